"""Intervals in closed form: DeLong for AUROC, Wilson for a rate, Student over trials; and Holm's correction."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtr, stdtrit

from gradmix_timm.openset.results import ClosedSet

from .checks import ArrayLike, check_level, correctness, scores, sides
from .rank_counts import Ladder

__all__ = [
    'FEWEST_PAIRS',
    'NO_SPREAD',
    'Difference',
    'TrialMean',
    'delong_ci',
    'delong_of_counts',
    'draws_ci',
    'holm',
    'logit_ci',
    'over_trials',
    'paired_delong',
    'paired_difference',
    'rule_of_three',
    'share_ci',
    'too_few_pairs',
    'top1',
    'wilson_ci',
]

Floats = NDArray[np.float64]
#: Pairs that a verdict takes at least: with four, a 95% interval by Student's law rests on three degrees of freedom.
FEWEST_PAIRS = 5
#: In place of a verdict if all differences are equal.
NO_SPREAD = 'cannot say (no spread)'
# Standard errors between an AUROC and the nearer end of [0, 1] from which on its interval is symmetric.
_FAR = 4
# A variance below this is rounding of identical placements.
_NO_SPREAD = 1e-24
# A spread below this share of the figures is rounding.
_ROUNDING = 1e-12


def _normal(level: float) -> float:
    return NormalDist().inv_cdf((1 + check_level(level)) / 2)


def rule_of_three(value: float, size: int, level: float) -> tuple[float, float]:
    """Interval for a rate whose estimate shows no spread, so that a spread-based interval would be a point.

    ``size`` independent pairs that all agree leave room for a share of 1 - (1 - level)^(1 / size) that would not, about
    3 / size at 95%; the value may lie off by that share of the way to either end of [0, 1].
    """
    agree = (1 - check_level(level)) ** (1 / size)
    return value * agree, 1 - (1 - value) * agree


def logit_ci(value: float, error: float, fewest: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a rate from its standard error, normal on the scale of log(rate / (1 - rate)).

    Args:
        value: The rate, in (0, 1) unless ``error`` is 0.
        error: Its standard error; where it is 0 the interval is that of :func:`rule_of_three`.
        fewest: Disjoint groups of samples, for the rule of three.
        level: Coverage aimed at, in (0, 1).
    """
    if not error:
        return rule_of_three(value, fewest, level)
    return _on_logits(value, _normal(level) * error)


def _on_logits(value: float, half: float) -> tuple[float, float]:
    """Ends of an interval of a rate in (0, 1), half as wide as ``half`` where it is narrow, within [0, 1]."""
    odds, half = logit(value), half / (value * (1 - value))
    return float(expit(odds - half)), float(expit(odds + half))


def wilson_ci(successes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a binomial rate; sensible at 0, at 1 and for small counts.

    Args:
        successes: Between 0 and ``total``.
        total: At least 1.
        level: Coverage aimed at, in (0, 1).

    Returns:
        (low, high), fractions in [0, 1].

    Raises:
        ValueError: Counts that are none of a rate.

    Example:
        >>> [round(end, 4) for end in wilson_ci(90, 100)]
        [0.8256, 0.9448]
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f'a rate needs 0 <= successes <= total and total >= 1, got {successes} of {total}')
    z2, rate = _normal(level) ** 2, successes / total
    middle = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = float(np.sqrt(z2 * (rate * (1 - rate) / total + z2 / (4 * total * total)))) / (1 + z2 / total)
    # At the ends the root is exact only in theory.
    return 0. if successes == 0 else middle - half, 1. if successes == total else middle + half


def top1(correct: ArrayLike, level: float = 0.95) -> ClosedSet:
    """Closed set accuracy with Wilson's interval, as results.json has it.

    Args:
        correct: Which images got their class, bool [N].
        level: Coverage aimed at, in (0, 1).

    Raises:
        ValueError: No image, or values that are not true or false.

    Example:
        >>> top1([True, True, False, True])['top1']
        0.75
    """
    right = correctness(correct, len(correct))
    low, high = wilson_ci(int(right.sum()), len(right), level)
    return {'top1': float(right.mean()), 'top1_ci': [low, high]}


def _placements(known: Floats, unknown: Floats) -> tuple[Floats, Floats]:
    """For each known the share of unknowns below it, for each unknown the share of knowns above it; ties by half."""

    def below(needles: Floats, side: Floats) -> Floats:
        side = np.sort(side)
        return (np.searchsorted(side, needles, 'left') + np.searchsorted(side, needles, 'right')) / (2 * len(side))

    return below(known, unknown), 1 - below(unknown, known)


def _standard_error(of_known: Floats, of_unknown: Floats) -> float:
    """Square root of DeLong's variance; 0 where a side has one sample, which shows no spread."""
    if min(len(of_known), len(of_unknown)) < 2:
        return 0.
    spread = of_known.var(ddof=1) / len(of_known) + of_unknown.var(ddof=1) / len(of_unknown)
    return float(np.sqrt(spread)) if spread > _NO_SPREAD else 0.


def delong_ci(known: ArrayLike, unknown: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of AUROC after DeLong, DeLong and Clarke-Pearson (1988), ties included; O(n log n).

    AUROC -/+ z x standard error; within four standard errors of 0 or 1 the same on the scale of
    log(AUROC / (1 - AUROC)), as there the plain interval leaves [0, 1] and covers too little (30 and 30 samples at .97:
    85% for 95%; on this scale 94%). Where the samples show no spread (perfect separation, constant scores, one sample
    on a side) the standard error is 0 without meaning; the rule of three then gives an interval from min(N, M)
    disjoint pairs: perfect separation of 100 and 100 gives (0.970, 1). With 20 samples on one side and many on the
    other it still covers too little: 92% for 95% at .75, 91% at .9, 87% at .97.

    Args:
        known: Knownness of known samples, [N].
        unknown: Knownness of unknown samples, [M].
        level: Coverage aimed at, in (0, 1).

    Returns:
        (low, high), fractions in [0, 1].

    Example:
        >>> [round(end, 3) for end in delong_ci(range(100, 200), range(100))]
        [0.97, 1.0]
    """
    # Sorted: the variance does not depend on the order, and searchsorted is ten times as fast on sorted values.
    of_known, of_unknown = _placements(*map(np.sort, sides(known, unknown)))
    return _delong(float(of_known.mean()), _standard_error(of_known, of_unknown), min(len(of_known), len(of_unknown)),
                   level)


def delong_of_counts(ladder: Ladder, level: float = 0.95) -> tuple[float, float]:
    """:func:`delong_ci` of scores that are counted already; equal but for rounding."""
    below = (ladder.n_unknown - ladder.unknown_kept + ladder.unknown / 2) / ladder.n_unknown
    above = (ladder.known_kept - ladder.known / 2) / ladder.n_known
    value, spread = float(ladder.known @ below / ladder.n_known), 0.
    fewest = int(min(ladder.n_known, ladder.n_unknown))
    if fewest > 1:
        for counts, place, total in ((ladder.known, below, ladder.n_known), (ladder.unknown, above, ladder.n_unknown)):
            spread += float(counts @ (place - value) ** 2) / (total - 1) / total
    return _delong(value, spread ** .5 if spread > _NO_SPREAD else 0., fewest, level)


def _delong(value: float, error: float, fewest: int, level: float) -> tuple[float, float]:
    z = _normal(level)
    if error and min(value, 1 - value) >= _FAR * error:
        return value - z * error, value + z * error
    return logit_ci(value, error, fewest, level)


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second, with its interval.

    Attributes:
        value: The difference.
        low: Lower end of the interval; -inf where the pairs cannot say.
        high: Upper end of the interval; inf where the pairs cannot say.
        error: Standard error; 0 where the pairs show no spread.
        p: Two-sided probability of a difference as large were there none; 1 where the pairs cannot say.
        n: What was paired: samples (both sides together), or trials.
    """

    value: float
    low: float
    high: float
    error: float
    p: float
    n: int


def too_few_pairs(count: int) -> str:
    """In place of a verdict."""
    return f'too few pairs ({count})'


def paired_delong(
        known: tuple[ArrayLike, ArrayLike],
        unknown: tuple[ArrayLike, ArrayLike],
        level: float = 0.95,
) -> Difference:
    """Difference in AUROC between two scores of the same images; far tighter than two separate intervals.

    Args:
        known: Knownness of the known samples by the first and by the second score, both [N] in the same order.
        unknown: The same for the unknown samples, both [M].
        level: Coverage aimed at, in (0, 1).

    Returns:
        First minus second. Where the pairs show no spread the interval is by the rule of three for min(N, M) disjoint
        pairs, and p is one minus the level at which that interval reaches 0: (1 + |difference|)^-min(N, M).

    Raises:
        ValueError: Lengths differ between the scores, NaN, an empty side.
    """
    first, second = _placements(*sides(known[0], unknown[0])), _placements(*sides(known[1], unknown[1]))
    if len(first[0]) != len(second[0]) or len(first[1]) != len(second[1]):
        raise ValueError(f'a paired comparison needs both scores of the same images, got {len(first[0])} and '
                         f'{len(second[0])} knowns, {len(first[1])} and {len(second[1])} unknowns')
    z = _normal(level)
    of_known, of_unknown = first[0] - second[0], first[1] - second[1]
    value, error = float(of_known.mean()), _standard_error(of_known, of_unknown)
    n = len(of_known) + len(of_unknown)
    if not error:
        fewest = min(len(of_known), len(of_unknown))
        low, high = rule_of_three((value + 1) / 2, fewest, level)
        return Difference(value, 2 * low - 1, 2 * high - 1, 0., (1 + abs(value)) ** -fewest, n)
    p = 2 * NormalDist().cdf(-abs(value) / error)
    return Difference(value, max(-1., value - z * error), min(1., value + z * error), error, p, n)


@dataclass(frozen=True, slots=True)
class TrialMean:
    """Mean over trials.

    Attributes:
        mean: Arithmetic mean.
        sd: Standard deviation with n - 1; NaN for one trial.
        low: Lower end of Student's interval of the mean; -inf for one trial, or for trials without any spread, which
            do not say how far another might be.
        high: Upper end; inf in these cases.
        n: Trials. Two orders of one class set are one trial: average duplicates first.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def over_trials(values: ArrayLike, level: float = 0.95) -> TrialMean:
    """Mean, standard deviation and Student's interval over trials.

    Args:
        values: One of each trial, [n].
        level: Coverage aimed at, in (0, 1).

    Returns:
        The interval is unbounded for one trial and for trials without any spread.

    Raises:
        ValueError: No value, or one that is NaN.

    Example:
        >>> summary = over_trials([0.90, 0.92, 0.94, 0.91, 0.93])
        >>> round(summary.mean, 3), round(summary.sd, 4), round(summary.low, 4)
        (0.92, 0.0158, 0.9004)
    """
    array = scores('values', values)
    n, mean = len(array), float(array.mean())
    quantile = float(stdtrit(n - 1, (1 + check_level(level)) / 2)) if n > 1 else float('inf')
    if n == 1:
        return TrialMean(mean, float('nan'), -quantile, quantile, 1)
    sd = float(array.std(ddof=1))
    if sd <= _ROUNDING * float(np.abs(array).max()):  # of sums, not of trials
        return TrialMean(mean, 0., -float('inf'), float('inf'), n)
    half = quantile * sd / n ** .5
    return TrialMean(mean, sd, mean - half, mean + half, n)


def share_ci(shares: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval for the mean of shares: Student's on the logit scale; where all are the same, the rule of three's.

    Shares of errors are skewed: of 30 images the plain interval held 85 to 93% in place of 95, this one 91 to 95.

    Args:
        shares: One an image, in [0, 1].
        level: Coverage, in (0, 1).

    Example:
        >>> low, high = share_ci([0.2, 0.4, 0.3, 0.5])
        >>> round(low, 3), round(high, 3), share_ci([0.5])
        (0.179, 0.571, (0.0, 1.0))
    """
    found = over_trials(shares, level)
    if found.n == 1:
        return 0., 1.
    return _on_logits(found.mean, found.high - found.mean) if found.sd else rule_of_three(found.mean, found.n, level)


def draws_ci(right: NDArray[np.bool_], level: float = 0.95) -> tuple[float, float]:
    """Interval for an accuracy over draws of training images and over the test images, which all draws share.

    The variances of both means are added, Student's law has Welch's degrees of freedom, and the logit scale keeps to
    [0, 1]. The spread of the draws alone says nothing of other test images: with 10 draws and 30 to 1,000 images its
    intervals held 49 to 94% in place of 95, these 95 to 97.

    Args:
        right: Whether each test image was classified correctly after each of several draws, bool [draws, images].
        level: Coverage, in (0, 1).

    Example:
        >>> low, high = draws_ci(np.array([[True, True, False, True], [True, False, False, True]]))
        >>> round(low, 2), round(high, 2)
        (0.06, 0.98)
    """
    (draws, images), value = right.shape, float(right.mean())
    if images == 1:
        return 0., 1.
    of_draws = float(right.mean(1).var(ddof=1)) / draws
    of_images = float(right.mean(0).var(ddof=1)) / images
    variance = of_draws + of_images
    if variance <= _NO_SPREAD:
        return rule_of_three(value, images, level)
    freedom = variance ** 2 / (of_draws ** 2 / (draws - 1) + of_images ** 2 / (images - 1))
    return _on_logits(value, float(stdtrit(freedom, (1 + check_level(level)) / 2)) * variance ** .5)


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Difference:
    """Difference of two methods over the same trials (same split, same order): Student's interval of the differences.

    Args:
        first: One value of each trial, [n], n >= 2.
        second: The same of the other method.
        level: Coverage aimed at, in (0, 1).

    Returns:
        First minus second. Where all differences are the same the interval is unbounded and p is 1: without any spread
        nothing is known of how far another trial might be.

    Raises:
        ValueError: Fewer than two trials, or lengths that differ.

    Example:
        >>> found = paired_difference([0.91, 0.93, 0.95, 0.92, 0.94], [0.90, 0.91, 0.94, 0.93, 0.94])
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (0.006, -0.008, 0.02)
    """
    a, b = scores('first', first), scores('second', second)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f'a paired difference needs the same trials of both, two at least, got {len(a)} and {len(b)}; '
                         'for one trial use paired_delong on its scores')
    gaps = a - b
    if np.ptp(gaps) <= _ROUNDING * max(np.abs(a).max(), np.abs(b).max()):
        gaps[:] = gaps[0]  # equal up to rounding, as 0.3 - 0.2 and 0.2 - 0.1
    trials = over_trials(gaps, level)
    error = trials.sd / trials.n ** .5
    p = 2 * float(stdtr(trials.n - 1, -abs(trials.mean) / error)) if error else 1.
    return Difference(trials.mean, trials.low, trials.high, error, p, trials.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons: p-values to hold against the level as they are, in the same order.

    Example:
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p = scores('p_values', p_values)
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(raised, 1)
    return out.tolist()
