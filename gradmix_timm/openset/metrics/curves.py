"""Points of the ROC and OSCR curves for plotting, thinned below visible resolution."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import ArrayLike, correctness, sides
from .rank_counts import count

__all__ = ['Curve', 'oscr_curve', 'roc_curve']


@dataclass(frozen=True, slots=True)
class Curve:
    """A monotone curve, from no sample accepted to all.

    Attributes:
        x: False positive rate (unknowns accepted), float64 [P], ascending from 0 to 1.
        y: Knowns accepted (ROC) or accepted with their own class (OSCR), float64 [P], ascending from 0.
        threshold: Score at and above which that point accepts, float64 [P], descending from inf.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    threshold: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Trapezoids: the metric itself while no corner was thinned away."""
        return float((np.diff(self.x) * (self.y[1:] + self.y[:-1]) / 2).sum())


def _corners(dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points where the direction changes, with both ends; steps are whole counts, so this is exact."""
    turns = dx[:-1] * dy[1:] != dx[1:] * dy[:-1]
    return np.r_[True, turns, True]


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], points: int) -> NDArray[np.bool_]:
    """First point of each of ``points`` cells, along the curve and along a logarithmic x axis, with both ends."""
    along = np.floor((x + y) / 2 * points)
    decades = np.floor(np.log10(np.maximum(x, 1e-9)) * points / 9)
    keep = np.r_[True, (np.diff(along) > 0) | (np.diff(decades) > 0)]
    keep[-1] = True
    return keep


def _curve(values: NDArray, gained: NDArray, passed: NDArray, totals: tuple[float, float], points: int | None) -> Curve:
    moved = np.flatnonzero((passed > 0) | (gained > 0))[::-1]  # a misclassified known does not change the OSCR curve
    dx, dy = passed[moved], gained[moved]
    x, y = np.r_[0, dx.cumsum()] / totals[1], np.r_[0, dy.cumsum()] / totals[0]
    threshold = np.r_[np.inf, values[moved]]
    keep = np.flatnonzero(_corners(dx, dy))
    if points is not None and not points >= 2:
        raise ValueError(f'points is the number of points of a curve, at least 2, got {points}')
    if points is not None and len(keep) > points:
        keep = keep[_thin(x[keep], y[keep], points)]
    return Curve(x[keep], y[keep], threshold[keep])


def roc_curve(known: ArrayLike, unknown: ArrayLike, points: int | None = 1000) -> Curve:
    """Knowns accepted (y) over unknowns accepted (x) as the threshold falls.

    Points in a straight run are dropped, which changes nothing. Beyond ``points`` corners one is kept per cell of a
    grid along the curve and one per cell of a logarithmic x axis, so that a drawn curve moves by at most 2 / points.

    Args:
        known: Knownness of known samples, [N].
        unknown: Knownness of unknown samples, [M].
        points: About how many points are enough; None keeps every corner, and ``area`` is then the AUROC.

    Example:
        >>> roc_curve([3., 2.], [1., 0.]).y.tolist()
        [0.0, 1.0, 1.0]
    """
    values, ladder = count(*sides(known, unknown))
    return _curve(values, ladder.known, ladder.unknown, (ladder.n_known, ladder.n_unknown), points)


def oscr_curve(known: ArrayLike, correct: ArrayLike, unknown: ArrayLike, points: int | None = 1000) -> Curve:
    """Correct classification rate (y) over false positive rate (x); the right end is the closed set accuracy.

    Args:
        known: Knownness of known samples, [N].
        correct: Whether each known sample got its own class, bool [N].
        unknown: Knownness of unknown samples, [M].
        points: As for :func:`roc_curve`.
    """
    scores, others = sides(known, unknown)
    values, ladder = count(scores, others, correctness(correct, len(scores)))
    assert ladder.correct is not None
    return _curve(values, ladder.correct, ladder.unknown, (ladder.n_known, ladder.n_unknown), points)
