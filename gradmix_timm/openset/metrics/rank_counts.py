"""Rank metrics as functions of counts on a ladder of score values; one row of counts, or one a bootstrap draw.

Every rank metric depends on the scores only through how many knowns, correctly classified knowns and unknowns stand at
each distinct value. So the scores are sorted once, and a thousand resamples are a thousand rows of counts.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    'Ladder',
    'Metric',
    'aupr_in',
    'aupr_out',
    'auroc',
    'ccr_at_fpr',
    'cells',
    'count',
    'detection_error',
    'fpr_at_95_known',
    'fpr_at_95_unknown',
    'oscr',
    'tie_share',
]

Floats = NDArray[np.float64]


def _from_above(counts: Floats) -> Floats:
    """Number of samples at each value or higher."""
    return np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]


@dataclass(frozen=True, slots=True)
class Ladder:
    """Counts at m ascending values, for R draws or none: arrays [R, m] or [m] of whole numbers in float64.

    Attributes:
        known: Knowns at each value.
        unknown: Unknowns at each value.
        correct: Correctly classified knowns at each value, or None.
        known_kept: Knowns accepted at threshold tau = value, that is s >= tau.
        unknown_kept: Unknowns accepted there.
        n_known: All knowns.
        n_unknown: All unknowns.
    """

    known: Floats
    unknown: Floats
    correct: Floats | None
    known_kept: Floats
    unknown_kept: Floats
    n_known: float
    n_unknown: float

    @classmethod
    def of(cls, known: Floats, unknown: Floats, correct: Floats | None = None) -> Ladder:
        """From counts at ascending values."""
        known_kept, unknown_kept = _from_above(known), _from_above(unknown)
        totals = float(known_kept[..., 0].flat[0]), float(unknown_kept[..., 0].flat[0])
        return cls(known, unknown, correct, known_kept, unknown_kept, *totals)

    @property
    def known_cut(self) -> Floats:
        """Knowns rejected at s <= value."""
        return self.n_known - self.known_kept + self.known

    @property
    def unknown_cut(self) -> Floats:
        """Unknowns rejected at s <= value."""
        return self.n_unknown - self.unknown_kept + self.unknown


Metric = Callable[[Ladder], Floats]


def count(known: Floats, unknown: Floats, correct: NDArray[np.bool_] | None = None) -> tuple[Floats, Ladder]:
    """The distinct values, ascending [m], and the counts there. O(n log n).

    Args:
        known: Checked scores of the knowns, float64 [N].
        unknown: Checked scores of the unknowns, float64 [M].
        correct: Which knowns got their class, bool [N].
    """
    # Each side sorted, then merged by the stable sort, which takes two runs in O(n): a third of the time of one sort
    # of everything that carries the sides along.
    pooled = np.concatenate([np.sort(known), np.sort(unknown)])
    order = np.argsort(pooled, kind='stable')
    pooled = pooled[order]
    ends = np.append(np.flatnonzero(pooled[1:] != pooled[:-1]), len(pooled) - 1)
    values, knowns_to = pooled[ends], np.cumsum(order < len(known))[ends]

    def steps(totals: NDArray[np.intp]) -> Floats:
        return np.diff(totals, prepend=0).astype(np.float64)

    right = None if correct is None else steps(np.searchsorted(np.sort(known[correct]), values, side='right'))
    return values, Ladder.of(steps(knowns_to), steps(ends + 1 - knowns_to), right)


# Quantiles of each side that bound cells, and further ones within so many standard errors of a 95% threshold.
_QUANTILES, _NEAR, _ERRORS = 512, 256, 6


def cells(ladder: Ladder) -> NDArray[np.intp]:
    """Starts of cells of neighbouring values that replace the ladder in resamples; int64 [at most ~2,500].

    Bounded by quantiles of both sides, so that a cell holds a 512th of either at most (or one value that has more), and
    finely, to a twentieth of a standard error, where the thresholds of the 95% rates can fall. Within a cell the order
    of knowns and unknowns moves no rank metric by more than a hundredth of its standard error.
    """
    bounds = [np.zeros(1, np.intp)]
    for cut, total, near in ((ladder.known_cut, ladder.n_known, 0.05), (ladder.unknown_cut, ladder.n_unknown, 0.95)):
        error = _ERRORS * (near * (1 - near) / total) ** 0.5
        bounds.append(np.searchsorted(cut, np.linspace(0, 1, _QUANTILES) * total))
        # A threshold is a score of this side: by itself, where few of this side stand between many of the other.
        at = np.searchsorted(cut, np.linspace(near - error, near + error, _NEAR).clip(0, 1) * total)
        bounds += [at, at + 1]
    starts = np.unique(np.concatenate(bounds))
    return starts[starts < ladder.known.shape[-1]]


def _concordance(upper: Floats, ladder: Ladder) -> Floats:
    """Share of pairs with ``upper`` above the unknown, ties by half; whole numbers until the division."""
    beneath = ladder.n_unknown - ladder.unknown_kept
    beneath += ladder.unknown / 2
    return np.einsum('...m,...m->...', upper, beneath) / (ladder.n_known * ladder.n_unknown)


def auroc(ladder: Ladder) -> Floats:
    """P(s_K > s_U) + P(s_K = s_U) / 2."""
    return _concordance(ladder.known, ladder)


def oscr(ladder: Ladder) -> Floats:
    """AUROC in which only a correctly classified known can win."""
    assert ladder.correct is not None
    return _concordance(ladder.correct, ladder)


def tie_share(ladder: Ladder) -> Floats:
    """Share of known-unknown pairs with equal scores."""
    return np.einsum('...m,...m->...', ladder.known, ladder.unknown) / (ladder.n_known * ladder.n_unknown)


def _precision(found: Floats, wrong: Floats, weight: Floats, total: float) -> Floats:
    """Average precision: sum over values of (share newly found there) x (precision down to there)."""
    taken = found + wrong
    np.maximum(taken, 1, out=taken)  # resampled counts may leave the end of the ladder empty
    np.divide(found, taken, out=taken)
    return np.einsum('...m,...m->...', weight, taken) / total


def aupr_in(ladder: Ladder) -> Floats:
    """Average precision with the knowns positive, from the highest score down."""
    return _precision(ladder.known_kept, ladder.unknown_kept, ladder.known, ladder.n_known)


def aupr_out(ladder: Ladder) -> Floats:
    """Average precision with the unknowns positive, from the lowest score up."""
    return _precision(ladder.unknown_cut, ladder.known_cut, ladder.unknown, ladder.n_unknown)


def _pick(counts: Floats, position: NDArray[np.intp]) -> Floats:
    return np.take_along_axis(counts, position[..., None], axis=-1)[..., 0]


def fpr_at_95_known(ladder: Ladder) -> Floats:
    """Unknowns accepted at the largest tau that accepts s >= tau for at least 95% of the knowns."""
    enough = ladder.known_kept / ladder.n_known >= 0.95  # true from the bottom up to tau
    return _pick(ladder.unknown_kept, enough.sum(-1) - 1) / ladder.n_unknown


def fpr_at_95_unknown(ladder: Ladder) -> Floats:
    """Knowns rejected at the smallest tau that rejects s <= tau for at least 95% of the unknowns."""
    cut = ladder.unknown_cut
    enough = cut / ladder.n_unknown >= 0.95  # true from tau to the top
    return _pick(ladder.known_cut, cut.shape[-1] - enough.sum(-1)) / ladder.n_known


def detection_error(ladder: Ladder) -> Floats:
    """Smallest mean of the two error rates over all thresholds."""
    gain = ladder.known_kept / ladder.n_known
    gain -= ladder.unknown_kept / ladder.n_unknown
    return (1 - gain.max(-1)) / 2


def ccr_at_fpr(fpr: float) -> Metric:
    """The metric: knowns accepted with their own class where at most ``fpr`` of the unknowns are accepted."""

    def metric(ladder: Ladder) -> Floats:
        assert ladder.correct is not None
        allowed = (ladder.unknown_kept / ladder.n_unknown <= fpr).sum(-1)  # true from tau to the top
        kept = _from_above(ladder.correct)
        last = kept.shape[-1] - 1
        found = _pick(kept, np.minimum(last + 1 - allowed, last))
        return np.where(allowed > 0, found, 0.) / ladder.n_known

    return metric
