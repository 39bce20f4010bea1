"""Choose options of scores by AUROC on validation images: held-out known ones against a set of unknown ones.

OpenOOD's automatic parameter search (APS), with its grids. The validation set must share no image and no class with the
sets that are evaluated, or the figures there are no test.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradmix_timm.openset.results import TunedScore
from gradmix_timm.records import Embeddings

from .judge import EmbeddedSets, fitted_on
from .metrics import auroc
from .presets import Preset
from .scores import fit_score, parse_score, score_label

__all__ = ['GRIDS', 'choose_options']

_PERCENTILES = (65, 70, 75, 80, 85, 90, 95)
#: Score to option to the values tried, as in configs/postprocessors/*.yml of OpenOOD v1.5; of GEN's powers those
#: that it takes here, up to 1.
GRIDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    'gen': {'gamma': (0.01, 0.1, 0.5, 1.), 'top': (10, 50, 100, 200, 500, 1000)},
    'knn': {'k': (50, 100, 200, 500, 1000)}, 'vim': {'dim': (256, 1000)}, 'react': {'percentile': (85, 90, 95, 99)},
    'ash': {'percentile': _PERCENTILES}, 'scale': {'percentile': _PERCENTILES},
    'vra': {'upper': (85, 90, 95, 99), 'lower': (1, 5, 10, 15)}, 'nci': {'alpha': (1e-4, 1e-3, 0.01, 0.1)},
    'fdbd': {'normalizer': ('distance', 'norm')}, 'relation': {'power': (1, 2, 4, 6, 8)}}


def choose_options(sets: EmbeddedSets, unknown: Embeddings, names: Sequence[str], preset: Preset | None = None,
                   on_score: Callable[[str], None] = lambda _: None) -> dict[str, TunedScore]:
    """The best options of each score that has a grid.

    An option given in a name stays fixed, unless a preset put it there. Values that cannot be fit (more neighbours than
    samples) are left out; the first of equal AUROC wins.

    Args:
        sets: With held-out images of the known classes; the test images are not looked at.
        unknown: Embeddings of the validation set.
        names: Scores.
        preset: As of :func:`~gradmix_timm.openset.judge.judge`.
        on_score: Called with each score's name as its turn comes.
    """
    assert sets.held_out is not None
    fixed = {} if preset is None else dict(map(parse_score, preset.scores))
    found: dict[str, TunedScore] = {}
    for label in names:
        name, given = parse_score(label)
        own = {key: value for key, value in given.items() if fixed.get(name, {}).get(key) != value}
        grid = {key: values for key, values in GRIDS.get(name, {}).items() if key not in own}
        if not grid:
            continue
        on_score(label)
        tried: dict[str, float] = {}
        for values in itertools.product(*grid.values()):
            options = given | dict(zip(grid, values, strict=True))
            row = score_label(name, options)
            try:
                score = fit_score(row, fitted_on(sets, row, preset), sets.head, sets.held_out)
                tried.setdefault(row, auroc(score(sets.held_out), score(unknown)))
            except ValueError:
                continue
        if tried:
            found[label] = {'chosen': max(tried, key=tried.__getitem__), 'tried': tried}
    return found
