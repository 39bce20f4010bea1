"""The figures that the code released with ARPL would print, for comparison with papers that used it.

Its curve drops one sample at a time from the lowest score up and, among equal scores, knowns before unknowns: a tie
always counts against the method. Its OSCR is one position off. Vectorised; O(n log n).
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ['aupr_in', 'aupr_out', 'auroc', 'fpr_at_95_known', 'oscr']

Floats = NDArray[np.float64]


def _ascending(known: Floats, unknown: Floats) -> NDArray[np.intp]:
    """Positions in (known, unknown) by score, knowns first among equals."""
    return np.argsort(np.concatenate([known, unknown]), kind='stable')


def _left(known: Floats, unknown: Floats) -> tuple[Floats, Floats]:
    """Knowns and unknowns still accepted after dropping 0, 1, ..., N + M samples."""
    is_known = _ascending(known, unknown) < len(known)
    kept = [len(known) - np.cumsum(is_known), len(unknown) - np.cumsum(~is_known)]
    return np.r_[len(known), kept[0]].astype(np.float64), np.r_[len(unknown), kept[1]].astype(np.float64)


def _trapezoid(y: Floats, x: Floats) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def auroc(known: Floats, unknown: Floats) -> float:
    """P(s_K > s_U): ties count for the unknown."""
    tp, fp = _left(known, unknown)
    return 0. - _trapezoid(1 - fp / len(unknown), tp / len(known))


def fpr_at_95_known(known: Floats, unknown: Floats) -> float:
    """Unknowns left where the share of knowns left is nearest to 95%, on either side, first such place."""
    tp, fp = _left(known, unknown)
    return float(fp[np.abs(tp / len(known) - .95).argmin()] / len(unknown))


def aupr_in(known: Floats, unknown: Floats) -> float:
    """Trapezoids under precision of the knowns, with (1, 1/2) and (0, 0) added as end points."""
    tp, fp = _left(known, unknown)
    some = tp + fp > 0
    tp, fp = tp[some], fp[some]
    return 0. - _trapezoid(np.r_[.5, tp / (tp + fp), 0], np.r_[1, tp / len(known), 0])


def aupr_out(known: Floats, unknown: Floats) -> float:
    """Trapezoids under precision of the unknowns, with (0, 0) and (1, 1/2) added as end points."""
    tp, fp = _left(known, unknown)
    caught, lost = len(unknown) - fp, len(known) - tp
    some = caught + lost > 0
    caught, lost = caught[some], lost[some]
    return _trapezoid(np.r_[0, caught / (caught + lost), .5], np.r_[0, caught / len(unknown), 1])


def oscr(known: Floats, correct: NDArray[np.bool_], unknown: Floats) -> float:
    """Area whose correct classifications are counted one position later than its false positives.

    At position k of n samples sorted upwards: CC = correct at positions > k, FP = unknowns at positions >= k, for
    k <= n - 2; then the points (0, 0) and (1, 1), sorted downwards, trapezoids.
    """
    order = _ascending(known, unknown)
    size = len(order)
    right = np.concatenate([correct, np.zeros(len(unknown), bool)])[order]
    novel = order >= len(known)
    cc = np.r_[right[::-1].cumsum()[::-1][1:size], 0][:size - 1]
    fp = novel[::-1].cumsum()[::-1][:size - 1]
    ccr, fpr = np.r_[cc / len(known), 0, 0, 1], np.r_[fp / len(unknown), 0, 0, 1]
    down = np.lexsort((ccr, fpr))[::-1]
    return 0. - _trapezoid(ccr[down], fpr[down])
