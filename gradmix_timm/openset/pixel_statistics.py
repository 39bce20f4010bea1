"""Statistics of pixels that need no model, and how well they separate known from unknown images.

If two sets went through different resizing, codecs or cameras, mean brightness or sharpness separates them, and a score
that separates them may reflect nothing else.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.openset.results import Statistic, Statistics

from .metrics import auroc
from .metrics.intervals import delong_ci

__all__ = ['STATISTICS', 'WARN_ABOVE', 'combined_auroc', 'compare_statistics', 'measure', 'warnings_of']

Floats = NDArray[np.float64]

#: Name to what is measured, in the order of :func:`measure`.
STATISTICS = {
    'mean': 'mean brightness', 'contrast': 'standard deviation of the brightness',
    'laplacian': 'mean size of the Laplacian (sharpness)', 'chroma': 'mean distance of the colours from grey',
    'chroma_detail': "colours' change from pixel to pixel over the brightness's",
    'aspect': 'width over height of the stored image (log)', 'size': 'pixels of the stored image (log)',
    'bytes': 'length of the stored file (log)'}
# Missing for images in archives or arrays.
_OPTIONAL = 'bytes'
#: An AUROC above this is worth a warning.
WARN_ABOVE = 0.6
# Folds of the combined figure, images a side below which it is not given, and how freely it is fitted.
_FOLDS, _LEAST, _STRENGTH = 5, 10, 0.05
# Weights of red, green and blue in the brightness, ITU-R BT.601, as JPEG and PIL use them.
_LUMA = np.array([0.299, 0.587, 0.114])


def measure(pixels: NDArray[Any], size: tuple[int, int], length: float = np.nan) -> Floats:
    """The statistics of one image.

    Args:
        pixels: As the model gets them but not normalised, 0 to 1, [H, W, C] with C = 1 or 3.
        size: Width and height of the image as it is stored.
        length: Bytes of its file; NaN without one.

    Returns:
        float64 [8], in the order of ``STATISTICS``.

    Example:
        >>> dict(zip(STATISTICS, measure(np.full((4, 4, 3), 0.5), (8, 4)).round(3).tolist()))['mean']
        0.5
    """
    values = np.asarray(pixels, dtype=np.float64)
    luma = values @ _LUMA if values.shape[2] == 3 else values[..., 0]
    colour = values - luma[..., None]
    detail = _change(luma)
    return np.array([
        luma.mean(), luma.std(), _laplacian(luma), np.abs(colour).mean(),
        # A flat image has no detail to compare with.
        _change(colour) / detail if detail > 1e-9 else 0., np.log(size[0] / size[1]), np.log(size[0] * size[1]),
        np.log(length)])


def compare_statistics(known: Floats, unknown: Floats, seed: int = 0) -> Statistics:
    """How well each statistic, and all together, separate known from unknown images.

    Args:
        known: Of :func:`measure`, float64 [N, 8]; without the bytes where an image of either side has none.
        unknown: float64 [M, 8].
        seed: Of the folds.

    Returns:
        'n_known', 'n_unknown', 'statistics' (name to 'auroc' in [0.5, 1] whichever side is higher, 'auroc_ci', and
        'higher', the side that has more), 'combined' ('auroc' of a logistic regression on images left out of its fit,
        in [0.5, 1], and its interval; None with fewer than ten images a side) and 'worst', the name of the
        largest.

    Raises:
        ValueError: An empty side, another width, or values that are not finite.
    """
    names = list(STATISTICS)
    if all(rows.ndim == 2 and rows.shape[1] == len(names) for rows in (known, unknown)):
        place = names.index(_OPTIONAL)
        if not (np.isfinite(known[:, place]).all() and np.isfinite(unknown[:, place]).all()):
            del names[place]
            known, unknown = np.delete(known, place, 1), np.delete(unknown, place, 1)
    for name, rows in (('known', known), ('unknown', unknown)):
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(names) or not np.isfinite(rows).all():
            raise ValueError(f'{name}: expected finite rows of {len(STATISTICS)} statistics, one an image, got '
                             f'{list(rows.shape)}')
    statistics = {name: _one(known[:, place], unknown[:, place]) for place, name in enumerate(names)}
    return {
        'n_known': len(known), 'n_unknown': len(unknown), 'statistics': statistics,
        'combined': combined_auroc(known, unknown, seed),
        'worst': max(statistics, key=lambda name: statistics[name]['auroc'])}


def combined_auroc(known: Floats, unknown: Floats, seed: int = 0) -> Statistic | None:
    """AUROC of a logistic regression on all statistics and their squares, each image scored by a fit without it.

    Args:
        known: float64 [N, S].
        unknown: float64 [M, S].
        seed: Of the folds.

    Returns:
        'auroc' in [0, 1] and 'auroc_ci'; None with fewer than ten images a side.
    """
    if min(len(known), len(unknown)) < _LEAST:
        return None
    # A second to import.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.concatenate([known, unknown])
    rows = np.concatenate([rows, (rows - rows.mean(0)) ** 2], axis=1)
    side = np.repeat([1, 0], [len(known), len(unknown)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, class_weight='balanced', max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    found = cross_val_predict(model, rows, side, cv=folds, method='decision_function')
    one, other = found[side == 1], found[side == 0]
    return {'auroc': auroc(one, other), 'auroc_ci': list(delong_ci(one, other))}


def warnings_of(compared: Statistics, whose: str = 'the unknown images') -> list[str]:
    """A warning for a set that statistics separate from the known images: AUROC above 0.6, and by more than chance.

    Args:
        compared: Of :func:`compare_statistics`.
        whose: What the unknowns are called.

    Returns:
        One sentence with every such statistic, the largest first; empty if there are none.
    """
    by_size = sorted(compared['statistics'].items(), key=lambda item: -item[1]['auroc'])
    found = [f'{name.replace("_", " ")} {values["auroc"]:.0%} ({values["higher"]} higher)'
             for name, values in by_size if _alarming(values)]
    combined = compared['combined']
    if not found and combined is not None and _alarming(combined):
        found.append(f'all statistics together {combined["auroc"]:.0%}')
    if not found:
        return []
    return [f'pixels alone separate {whose} from the known images, without a model; AUROC by {", ".join(found)}']


def _alarming(values: Statistic) -> bool:
    """Above the bar, and not by chance among few images."""
    return values['auroc'] > WARN_ABOVE and values['auroc_ci'][0] > 0.5


def _one(known: Floats, unknown: Floats) -> Statistic:
    area = auroc(known, unknown)
    low, high = delong_ci(known, unknown)
    if area < 0.5:
        return {'auroc': 1 - area, 'auroc_ci': [1 - high, 1 - low], 'higher': 'unknown'}
    return {'auroc': area, 'auroc_ci': [low, high], 'higher': 'known'}


def _laplacian(luma: Floats) -> float:
    if min(luma.shape) < 3:
        return 0.
    inner = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.abs(around - 4 * inner).mean())


def _change(values: Floats) -> float:
    """Mean step from a pixel to the next, down and across."""
    steps = [np.abs(np.diff(values, axis=axis)) for axis in (0, 1) if values.shape[axis] > 1]
    return float(np.mean([step.mean() for step in steps])) if steps else 0.
