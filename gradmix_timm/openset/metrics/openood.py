"""The figures that OpenOOD v1.5's evaluator prints (github.com/Jingkang50/OpenOOD, openood/evaluators/metrics.py).

The unknown is the positive class; precision-recall curves are joined by trapezoids, which overstates;
FPR@95 is the share of knowns rejected at the first corner of scikit-learn's ROC curve that finds 95% of the unknowns;
CCR lets ceil(fpr M) unknowns pass, or tie. AUROC is exact there as here.
"""
from __future__ import annotations

import math

import numpy as np

from .rank_counts import Floats, Ladder

__all__ = ['aupr_in', 'aupr_out', 'ccr_at_fpr', 'fpr_at_95']


def _trapezoid(found: Floats, wrong: Floats) -> float:
    """Area under precision over recall as the threshold passes over positives and negatives; starts at (0, 1)."""
    found, wrong = found.cumsum(), wrong.cumsum()
    recall, precision = np.r_[0., found / found[-1]], np.r_[1., found / (found + wrong)]
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def aupr_in(ladder: Ladder) -> float:
    """Area under the precision-recall curve with knowns as positives.

    Args:
        ladder: Counts of both sides.

    Returns:
        Fraction in [0, 1]; where all scores are equal 1 less half the share of unknowns.
    """
    return _trapezoid(ladder.known[::-1], ladder.unknown[::-1])


def aupr_out(ladder: Ladder) -> float:
    """The same with unknowns as positives.

    Args:
        ladder: Counts of both sides.
    """
    return _trapezoid(ladder.unknown, ladder.known)


def fpr_at_95(ladder: Ladder) -> float:
    """Share of knowns that are rejected where 95% of the unknowns are: the library's ``fpr_at_95_unknown``.

    Points inside a straight run of the ROC curve are passed over, as scikit-learn's ``drop_intermediate`` does, so that
    it may lie above that.

    Args:
        ladder: Counts of both sides.

    Returns:
        Fraction in [0, 1].
    """
    found, wrong = ladder.unknown_cut, ladder.known_cut
    turns = (np.diff(found, 2) != 0) | (np.diff(wrong, 2) != 0)
    corners = np.r_[True, turns, True][-len(found):]
    found, wrong = found[corners], wrong[corners]
    return float(wrong[np.argmax(found / ladder.n_unknown >= 0.95)] / ladder.n_known)


def ccr_at_fpr(ladder: Ladder, fpr: float) -> float:
    """Share of knowns that score above the ceil(fpr M)-th highest of M unknowns and have their own class.

    Args:
        ladder: Counts of both sides, with those of correctly classified knowns.
        fpr: Share of unknowns that may pass, in (0, 1].

    Returns:
        Fraction in [0, 1].
    """
    assert ladder.correct is not None
    place = np.flatnonzero(ladder.unknown_kept >= math.ceil(fpr * ladder.n_unknown))[-1]
    return float(ladder.correct[place + 1:].sum() / ladder.n_known)
