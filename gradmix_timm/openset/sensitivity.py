"""Sensitivity of scores to their settings: AUROC over several values of each score's main option.

For inspection only, never for choosing options: the images scored are test images.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradmix_timm.openset.results import Sensitivity

from .judge import EmbeddedSets, fitted_on
from .metrics import auroc
from .presets import Preset
from .scores import fit_score, parse_score

__all__ = ['LADDERS', 'sensitivity']

_TEMPERATURES = (0.5, 1., 2., 5., 10., 100.)
_NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200, 500, 1000)
_SHRINKAGE = (1e-6, 1e-4, 1e-2, 0.1, 1.)
_PERCENTILES = (10., 30., 50., 65., 80., 85., 90., 95., 99.)
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
#: Score to its option and the values tried; ``dim`` in shares of the features' width.
LADDERS: dict[str, tuple[str, tuple[float, ...]]] = {
    'msp': ('temperature', _TEMPERATURES), 'energy': ('temperature', _TEMPERATURES),
    'gen': ('gamma', (0.01, 0.05, 0.1, 0.2, 0.5, 1.)), 'knn': ('k', _NEIGHBOURS), 'knn-mean': ('k', _NEIGHBOURS),
    'class-knn': ('k', (1, 3, 5, 10, 20)), 'class-knn-share': ('k', (1, 3, 5, 10, 20)),
    'mahalanobis': ('shrinkage', _SHRINKAGE), 'rmahalanobis': ('shrinkage', _SHRINKAGE),
    'vim': ('dim', _SHARES), 'openmax': ('tailsize', (5, 10, 20, 25, 50)),
    'react': ('percentile', _PERCENTILES), 'ash': ('percentile', _PERCENTILES), 'scale': ('percentile', _PERCENTILES),
    'dice': ('percentile', _PERCENTILES), 'nci': ('alpha', (0., 1e-4, 1e-3, 0.01, 0.1)),
    'gradnorm': ('temperature', _TEMPERATURES), 'nnguide': ('k', _NEIGHBOURS),
    'relation': ('power', (1., 2., 4., 6., 8.)), 'residual': ('dim', _SHARES), 'gmm': ('shrinkage', _SHRINKAGE),
    'vra': ('upper', _PERCENTILES)}


def sensitivity(sets: EmbeddedSets, names: Sequence[str], on_score: Callable[[str], None] = lambda _: None,
                preset: Preset | None = None) -> dict[str, Sensitivity]:
    """AUROC of each score at other values of its main option, everything else as it is.

    Args:
        sets: Embeddings of known and unknown images.
        names: Scores; those without such an option are left out.
        on_score: Called with each score's name as its turn comes.
        preset: Of the evaluation; some fit scores on held-out images.

    Returns:
        Score to ``option``, the value ``used``, and ``points``, pairs (value, AUROC) in rising order; a value that
        cannot be fit (more neighbours than samples) is left out.
    """
    found: dict[str, Sensitivity] = {}
    for name in names:
        base, options = parse_score(name)
        if base in LADDERS:
            on_score(name)
            points, used = _climb(sets, base, options, preset)
            if len(points) > 1:
                found[name] = {'option': LADDERS[base][0], 'used': used, 'points': points}
    return found


def _climb(sets: EmbeddedSets, name: str, options: dict[str, Any], preset: Preset | None,
           ) -> tuple[list[tuple[float, float]], float | None]:
    option, values = LADDERS[name]
    if option == 'dim':
        width = sets.known.features.shape[1]
        values = tuple(dict.fromkeys(max(1, round(share * width)) for share in values))
    points: dict[float, float] = {}
    used: float | None = None
    for wanted in (None, *values):
        try:
            score = fit_score(name, fitted_on(sets, name, preset), sets.head, sets.held_out,
                              **options if wanted is None else options | {option: wanted})
            area = auroc(score(sets.known), score(sets.unknown))
        except ValueError:
            continue
        value = wanted
        if value is None:
            # None: the fit derives the value from the data.
            value = used = score.options[option] if score.options[option] is not None else score.diagnostics[option]
        points[value] = area
    return [(value, points[value]) for value in sorted(points)], used
