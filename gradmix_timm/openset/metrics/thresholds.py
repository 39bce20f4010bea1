"""Open set recognition at one threshold: how to set it, and metrics of the labels with rejection."""
from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from .checks import ArrayLike, fraction, scores
from .checks import labels as as_labels

__all__ = ['balanced_accuracy', 'best_f1', 'conformal_threshold', 'gate', 'macro_f1', 'normalized_accuracy',
           'observed_threshold']


def conformal_threshold(validation: ArrayLike, alpha: float = 0.05) -> float:
    """Threshold tau that a new known sample misses (s < tau) with probability at most ``alpha``.

    The floor(alpha (n + 1))-th smallest score of known samples that took no part in fitting: split conformal, exact for
    every n as long as they are exchangeable with those to come.

    Args:
        validation: Knownness of held-out known samples, [n].
        alpha: Share of knowns that may be rejected, in (0, 1).

    Returns:
        tau, to accept s >= tau; -inf with a warning if n is too small for the guarantee, so that all are accepted.

    Example:
        >>> conformal_threshold(range(100))
        4.0
    """
    array = scores('validation', validation)
    fraction('alpha', alpha, ends=False)
    # 0.05 * 20 and the like are whole up to rounding; near 1 that would ask for one score more than there are.
    rank = min(math.floor(alpha * (len(array) + 1) + 1e-9), len(array))
    if not rank:
        needed = math.ceil(1 / alpha - 1e-9) - 1
        warnings.warn(f'{len(array)} validation scores are too few to reject at most {alpha:g} of the knowns: '
                      f'{needed} are needed; everything is accepted', stacklevel=2)
        return -math.inf
    return float(np.partition(array, rank - 1)[rank - 1])


def observed_threshold(known: ArrayLike, alpha: float = 0.05) -> float:
    """The largest observed score that rejects (s < tau) at most ``alpha`` of these samples, with no promise for others.

    Args:
        known: Knownness of known samples, [n].
        alpha: Share of them that may be rejected, in (0, 1).

    Example:
        >>> observed_threshold(range(20))
        1.0
    """
    array = scores('known', known)
    fraction('alpha', alpha, ends=False)
    return float(np.sort(array)[math.floor(alpha * len(array) + 1e-9)])


def gate(pred: ArrayLike, knownness: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Predicted classes with -1 (unknown) where knownness < threshold.

    Args:
        pred: Predicted class, int [N].
        knownness: Score, [N].
        threshold: Smallest that is accepted.

    Returns:
        int64 [N].

    Raises:
        ValueError: Lengths that differ, a score that is NaN, a threshold that is NaN, or a prediction that is no class.

    Example:
        >>> gate([2, 0, 1], [0.9, 0.2, 0.5], 0.5).tolist()
        [2, -1, 1]
    """
    if math.isnan(threshold):
        raise ValueError('threshold is NaN, which rejects everything')
    array = scores('knownness', knownness)
    return np.where(array >= threshold, as_labels('pred', pred, len(array)), -1)


def _classes(pred: NDArray[np.int64], label: NDArray[np.int64], num_classes: int | None) -> int:
    low, high = int(min(pred.min(), label.min())), int(max(pred.max(), label.max()))
    classes = high + 1 if num_classes is None else num_classes
    if low < -1 or high >= classes or classes < 1:
        raise ValueError(f'classes go from 0 to {classes - 1}, -1 is unknown; got {low} to {high}')
    return classes


def balanced_accuracy(pred: ArrayLike, label: ArrayLike, with_unknown: bool = False) -> float:
    """Mean recall over the known classes that have samples; with ``with_unknown`` the unknown is one class more.

    Args:
        pred: Predicted class, -1 for rejected, int [N].
        label: True class, -1 for unknown, int [N].
        with_unknown: Count the share of unknowns rejected as one more recall.

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: Lengths that differ, or no known sample.

    Example:
        >>> balanced_accuracy([0, 0, -1], [0, 1, -1]), balanced_accuracy([0, 0, -1], [0, 1, -1], with_unknown=True)
        (0.5, 0.6666666666666666)
    """
    truth = as_labels('label', label)
    guess = as_labels('pred', pred, len(truth))
    _classes(guess, truth, None)
    support = np.bincount(truth + 1, minlength=2)
    hits = np.bincount(truth[guess == truth] + 1, minlength=len(support))
    some = support > 0
    some[0] &= with_unknown
    if not some.any():
        raise ValueError('balanced accuracy needs at least one known sample')
    return float((hits[some] / support[some]).mean())


def normalized_accuracy(pred: ArrayLike, label: ArrayLike, weight: float) -> float:
    """Accuracy on knowns, times ``weight``, plus share of unknowns rejected, times 1 - weight; say which weight.

    Args:
        pred: Predicted class, -1 for rejected, int [N].
        label: True class, -1 for unknown, int [N].
        weight: Of the knowns, in [0, 1].

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: Lengths that differ, a weight outside [0, 1], or only knowns or unknowns.
    """
    truth = as_labels('label', label)
    guess = as_labels('pred', pred, len(truth))
    fraction('weight', weight)
    known = truth >= 0
    if known.all() or not known.any():
        raise ValueError('normalised accuracy needs knowns and unknowns (label -1)')
    right = guess == truth
    return float(weight * right[known].mean() + (1 - weight) * right[~known].mean())


def macro_f1(pred: ArrayLike, label: ArrayLike, num_classes: int | None = None) -> float:
    """Mean F1 over the classes that have samples (known ones and the unknown), at the threshold that made ``pred``.

    A class without samples has no F1; samples predicted as it count as errors of their own classes.

    Args:
        pred: Predicted class, -1 for rejected, int [N].
        label: True class, -1 for unknown, int [N].
        num_classes: Known classes there are; default: the largest one that occurs + 1.

    Example:
        >>> macro_f1([0, 1, -1, -1], [0, 1, 1, -1])
        0.7777777777777777
    """
    truth = as_labels('label', label)
    guess = as_labels('pred', pred, len(truth))
    size = _classes(guess, truth, num_classes) + 1
    hits = np.bincount(truth[guess == truth] + 1, minlength=size)
    support = np.bincount(truth + 1, minlength=size)
    some = support > 0
    return float((2 * hits[some] / (np.bincount(guess + 1, minlength=size) + support)[some]).mean())


def _f1_gains(pred: NDArray[np.int64], right: NDArray[np.bool_], support: NDArray[np.int64]) -> NDArray[np.float64]:
    """Change of the summed F1 of the known classes as samples are accepted in this order; float64 [N]."""
    order = np.argsort(pred, kind='stable')
    first = np.searchsorted(pred[order], pred[order])  # first position of each class
    hits = np.cumsum(right[order])
    hits = hits - np.where(first > 0, hits[first - 1], 0)
    taken = np.arange(len(pred)) - first + 1
    f1 = 2 * hits / (taken + support[pred[order]])
    before = np.where(taken > 1, np.r_[0, f1[:-1]], 0.)
    gains = np.empty(len(pred))
    gains[order] = f1 - before
    return gains


def best_f1(
        pred: ArrayLike,
        knownness: ArrayLike,
        label: ArrayLike,
        num_classes: int | None = None,
) -> tuple[float, float]:
    """Largest macro-F1 over all thresholds, and the threshold: an upper bound that saw the test labels.

    Papers that sweep the threshold report this figure; for an unbiased one fix the threshold on known validation data
    (:func:`conformal_threshold`) and use :func:`macro_f1`. O(n log n).

    Args:
        pred: Closed set prediction of every sample, int [N], no -1.
        knownness: Score of every sample, [N].
        label: True class, -1 for unknown, int [N].
        num_classes: As for :func:`macro_f1`.

    Returns:
        (F1, tau): accept s >= tau; tau = inf where rejecting everything is best.

    Raises:
        ValueError: Lengths that differ, a score that is NaN, or a prediction of -1.
    """
    array = scores('knownness', knownness)
    guess, truth = as_labels('pred', pred, len(array)), as_labels('label', label, len(array))
    classes = _classes(guess, truth, num_classes)
    if guess.min() < 0:
        raise ValueError('pred is the closed set prediction of every sample, from 0 on; best_f1 rejects by itself')
    down = np.argsort(-array, kind='stable')
    array, guess, truth = array[down], guess[down], truth[down]
    support = np.bincount(truth + 1, minlength=classes + 1)
    known = np.r_[0., _f1_gains(guess, guess == truth, support[1:]).cumsum()]
    unknowns = np.r_[0, (truth < 0).cumsum()]
    rejected = len(array) - np.arange(len(array) + 1)
    hits = unknowns[-1] - unknowns
    total = known + 2 * hits / np.maximum(rejected + unknowns[-1], 1)
    ends = np.r_[True, array[1:] != array[:-1], True]  # a threshold only separates different scores
    best = np.flatnonzero(ends)[total[ends].argmax()]
    return float(total[best] / (support > 0).sum()), float(array[best - 1]) if best else math.inf
