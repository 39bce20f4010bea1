"""How well knownness separates knowns from unknowns: rank metrics, exact and tie-aware, as pure functions.

Knownness: higher = more known. Accept means s >= tau, reject means s <= tau. Lists, NumPy arrays and tensors are taken;
scores are compared as they are, never squashed, so no ties are made. Every function raises ValueError on NaN or an
empty side; infinities rank. Figures are fractions in [0, 1].
"""
from __future__ import annotations

from . import arpl
from . import rank_counts as counts
from .calibration import adaptive_ece, brier, ece, fit_temperature, nll, reliability
from .checks import ArrayLike, correctness, fraction, infinite_count, sides
from .curves import Curve, oscr_curve, roc_curve
from .intervals import delong_ci, top1, wilson_ci
from .summary import RANK_METRICS, summarize
from .thresholds import (
    balanced_accuracy,
    best_f1,
    conformal_threshold,
    gate,
    macro_f1,
    normalized_accuracy,
)

__all__ = [
    'RANK_METRICS',
    'Curve',
    'adaptive_ece',
    'aupr_in',
    'aupr_out',
    'auroc',
    'balanced_accuracy',
    'best_f1',
    'brier',
    'ccr_at_fpr',
    'conformal_threshold',
    'delong_ci',
    'detection_error',
    'ece',
    'fit_temperature',
    'fpr_at_95_known',
    'fpr_at_95_unknown',
    'gate',
    'infinite_count',
    'macro_f1',
    'nll',
    'normalized_accuracy',
    'oscr',
    'oscr_curve',
    'reliability',
    'roc_curve',
    'summarize',
    'tie_share',
    'top1',
    'wilson_ci',
]


def _of(metric: counts.Metric, known: ArrayLike, unknown: ArrayLike, correct: ArrayLike | None = None) -> float:
    checked = sides(known, unknown)
    right = None if correct is None else correctness(correct, len(checked[0]))
    return float(metric(counts.count(*checked, right)[1]))


def auroc(known: ArrayLike, unknown: ArrayLike, legacy: bool = False) -> float:
    """Probability that a known outscores an unknown, ties by half: P(s_K > s_U) + P(s_K = s_U) / 2.

    Args:
        known: Knownness of known samples, [N].
        unknown: Knownness of unknown samples, [M].
        legacy: As the code that came with ARPL computes it: a tie counts for the unknown, so that constant scores give
            0 rather than 0.5. For comparison with figures made by it.

    Returns:
        Fraction in [0, 1]; 0.5 for scores without information.

    Example:
        >>> auroc([3., 2., 2.], [2., 1.])
        0.8333333333333334
        >>> auroc([1., 1.], [1.]), auroc([1., 1.], [1.], legacy=True)
        (0.5, 0.0)
    """
    return arpl.auroc(*sides(known, unknown)) if legacy else _of(counts.auroc, known, unknown)


def aupr_in(known: ArrayLike, unknown: ArrayLike, legacy: bool = False) -> float:
    """Average precision with the knowns positive; chance level N / (N + M).

    The step estimator of scikit-learn's ``average_precision_score``, not a trapezoid, which overstates (constant scores
    and equal sides: 0.5 here, 0.75 by trapezoid).

    Args:
        known: Knownness of known samples, [N].
        unknown: Knownness of unknown samples, [M].
        legacy: ARPL's AUIN: trapezoids with made-up end points and ties against the method.

    Example:
        >>> round(aupr_in([3., 1.], [2.]), 4)
        0.8333
    """
    return arpl.aupr_in(*sides(known, unknown)) if legacy else _of(counts.aupr_in, known, unknown)


def aupr_out(known: ArrayLike, unknown: ArrayLike, legacy: bool = False) -> float:
    """Average precision with the unknowns positive, found from the lowest score up; chance level M / (N + M).

    Args:
        known: Knownness of known samples, [N].
        unknown: Knownness of unknown samples, [M].
        legacy: ARPL's AUOUT: trapezoids with made-up end points and ties against the method.

    Example:
        >>> aupr_out([3., 1.], [2.])
        0.5
    """
    return arpl.aupr_out(*sides(known, unknown)) if legacy else _of(counts.aupr_out, known, unknown)


def fpr_at_95_known(known: ArrayLike, unknown: ArrayLike, legacy: bool = False) -> float:
    """Share of unknowns accepted when at least 95% of the knowns are (ODIN's FPR95, and most papers').

    tau is the largest observed score that accepts s >= tau for at least 95% of the knowns; nothing is interpolated.

    Args:
        known: Knownness of known samples, [N].
        unknown: Knownness of unknown samples, [M].
        legacy: 1 - ARPL's TNR: the threshold whose rate is *nearest* to 95%, ties against the method.

    Example:
        >>> fpr_at_95_known(range(20), [0.5, 1., 1.5, -1.])
        0.5
    """
    return arpl.fpr_at_95_known(*sides(known, unknown)) if legacy else _of(counts.fpr_at_95_known, known, unknown)


def fpr_at_95_unknown(known: ArrayLike, unknown: ArrayLike) -> float:
    """Share of knowns rejected when at least 95% of the unknowns are (OpenOOD's and pytorch-ood's FPR95).

    tau is the smallest observed score that rejects s <= tau for at least 95% of the unknowns; nothing is interpolated.

    Args:
        known: Scores of the knowns, higher = more known, [N].
        unknown: Scores of the unknowns, [M].

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: An empty side, or a score that is NaN.

    Example:
        >>> fpr_at_95_unknown([17.5, 18., 18.5, 30.], range(20))
        0.5
    """
    return _of(counts.fpr_at_95_unknown, known, unknown)


def detection_error(known: ArrayLike, unknown: ArrayLike) -> float:
    """Smallest mean of the two error rates, min over tau of (P(s_K < tau) + P(s_U >= tau)) / 2; at most 0.5.

    Args:
        known: Scores of the knowns, higher = more known, [N].
        unknown: Scores of the unknowns, [M].

    Returns:
        Fraction in [0, 0.5].

    Raises:
        ValueError: An empty side, or a score that is NaN.

    Example:
        >>> detection_error([3., 1.], [2., 0.])
        0.25
    """
    return _of(counts.detection_error, known, unknown)


def oscr(known: ArrayLike, correct: ArrayLike, unknown: ArrayLike, legacy: bool = False) -> float:
    """Area under the open set classification rate curve, correct classification rate over false positive rate.

    CCR(tau) is the share of knowns with the right class and s > tau, FPR(tau) the share of unknowns with s >= tau
    (Dhamija et al., arXiv:1811.04110). The area, exactly: the mean over all known-unknown pairs of
    correct_k (1[s_k > s_u] + 1[s_k = s_u] / 2), which is OpenAUC (arXiv:2210.13458) where nothing ties. It never
    exceeds the closed set accuracy. ``correct`` and the scores must come from one predictor.

    Args:
        known: Knownness of known samples, [N].
        correct: Whether each known sample got its own class, bool [N].
        unknown: Knownness of unknown samples, [M].
        legacy: The routine of ARPL's code: one position off (0.0075 low with 20 knowns and 10 unknowns, 0.00007 with
            2000 and 1000), and ties against the method (it leaves their order to an unstable sort; here always the
            worst one, so that equal scores give 0).

    Example:
        >>> oscr([3., 2.], [True, False], [1., 2.5])
        0.5
    """
    if legacy:
        scores, others = sides(known, unknown)
        return arpl.oscr(scores, correctness(correct, len(scores)), others)
    return _of(counts.oscr, known, unknown, correct)


def ccr_at_fpr(known: ArrayLike, correct: ArrayLike, unknown: ArrayLike, fpr: float) -> float:
    """Largest share of knowns accepted with their own class while at most ``fpr`` of the unknowns are accepted.

    Those knowns that are right and score above the (floor(fpr M) + 1)-th highest unknown: the OSCR curve's height.

    Args:
        known: Knownness of known samples, [N].
        correct: Whether each known sample got its own class, bool [N].
        unknown: Knownness of unknown samples, [M].
        fpr: Fraction of unknowns that may pass, in [0, 1]; with fpr < 1 / M none may.

    Example:
        >>> ccr_at_fpr([5., 3., 1.], [1, 1, 1], [4., 2.], fpr=0.5)
        0.6666666666666666
    """
    return _of(counts.ccr_at_fpr(fraction('fpr', fpr)), known, unknown, correct)


def tie_share(known: ArrayLike, unknown: ArrayLike) -> float:
    """Share of known-unknown pairs with equal scores: by half of it AUROC could move under another rule for ties.

    Args:
        known: Scores of the knowns, higher = more known, [N].
        unknown: Scores of the unknowns, [M].

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: An empty side, or a score that is NaN.
    """
    return _of(counts.tie_share, known, unknown)
