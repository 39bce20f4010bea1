"""Open set recognition at one threshold: how well labels with rejection fit, with intervals."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.openset.results import AtThreshold

from .metrics.intervals import logit_ci
from .metrics.thresholds import balanced_accuracy, best_f1, gate, macro_f1, normalized_accuracy

__all__ = ['LAMBDA', 'at_threshold']

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]
#: Weight of the knowns' accuracy in the normalised accuracy; the rest is the share of unknowns rejected.
LAMBDA = 0.5


def at_threshold(known_pred: Array, known_label: Array, known_scores: Array, unknown_pred: Array, unknown_scores: Array,
                 threshold: float, num_classes: int) -> AtThreshold:
    """Macro-F1 over the known classes and the unknown, balanced and normalised accuracy at a threshold.

    Means over classes are over those that have images. Intervals are normal ones on the logit scale, with standard
    errors from the counts (:func:`_estimates`); the means over classes have none where a class has a single
    image, which shows no spread.

    Args:
        known_pred: Closed-set predictions of known samples, int [N].
        known_label: Their classes, int [N].
        known_scores: Their knownness, float [N].
        unknown_pred: Closed-set predictions of unknown samples, int [M].
        unknown_scores: Their knownness, float [M].
        threshold: Accept s >= threshold; fixed beforehand, on known validation samples.
        num_classes: K.

    Returns:
        ``classes_with_images`` (known classes that the means are over), ``macro_f1``, ``balanced_accuracy`` (known
        classes), ``balanced_accuracy_with_unknown``, ``normalized_accuracy`` with its ``lambda``, each with
        ``<name>_ci`` (or None); and ``best_f1``, the macro-F1 of the threshold that suits these very samples best: an
        upper bound, which papers that sweep the threshold report.

    Example:
        >>> found = at_threshold(*map(np.array, ([0, 1], [0, 1], [.9, .2], [0], [.1])), 0.5, 2)
        >>> round(found['macro_f1'], 4), found['balanced_accuracy'], round(found['best_f1'], 4)
        (0.5556, 0.5, 1.0)
    """
    given = (gate(known_pred, known_scores, threshold), known_label)
    others = (gate(unknown_pred, unknown_scores, threshold), np.full(len(unknown_pred), -1))
    means: dict[str, Metric] = {
        'macro_f1': partial(macro_f1, num_classes=num_classes), 'balanced_accuracy': balanced_accuracy,
        'balanced_accuracy_with_unknown': partial(balanced_accuracy, with_unknown=True)}
    counts = np.bincount(known_label)
    found: dict[str, Any] = {'lambda': LAMBDA, 'classes_with_images': int((counts > 0).sum())}
    pred, label = (np.r_[one, other] for one, other in zip(given, others, strict=True))
    for name, metric in (means | {'normalized_accuracy': partial(normalized_accuracy, weight=LAMBDA)}).items():
        found[name] = metric(pred, label)
    fewest = int(counts[counts > 0].min())
    for name, (centre, error) in _estimates(found, given, others, num_classes).items():
        alone = fewest == 1 or (name != 'balanced_accuracy' and len(unknown_pred) == 1)
        low, high = logit_ci(centre, error, fewest)
        found[f'{name}_ci'] = None if name in means and alone else [min(low, found[name]), max(high, found[name])]
    found['best_f1'] = best_f1(np.r_[known_pred, unknown_pred], np.r_[known_scores, unknown_scores], label,
                               num_classes)[0]
    return cast(AtThreshold, found)


def _estimates(found: dict[str, Any], known: tuple[Array, Array], unknown: tuple[Array, Array],
               num_classes: int) -> dict[str, tuple[float, float]]:
    """Middle of the interval and standard error of each figure, by the delta method: each class is multinomial.

    Variances are unbiased, with one sample less than there are in each class: at five images a class resamples, which
    divide by all, gave intervals that held 89% in place of 95%. The two rates of the normalised accuracy are moved to
    the middle by half a sample (Jeffreys), so that no error among few unknowns is no certainty.

    Args:
        found: The figures.
        known: Predictions, -1 for rejected, and labels of the known samples.
        unknown: The same of the unknown samples, labels -1.
        num_classes: K.
    """
    size = num_classes + 1
    counts = np.zeros((size, size))
    for answer, label in (known, unknown):
        counts += np.bincount(label % size * size + answer % size, minlength=size * size).reshape(size, size)
    support, taken, hits = counts.sum(1), counts.sum(0), np.diag(counts)
    some, less = support > 0, np.maximum(support - 1, 1)
    share = counts / np.maximum(support, 1)[:, None]
    recall = np.diag(share)
    spread = recall * (1 - recall) / less
    # Change of the mean F1, 2 hits / (taken + support), for one more prediction j of class i.
    both = np.maximum(taken + support, 1)
    slope = np.where(some, -2 * hits / both ** 2, 0.)[None].repeat(size, 0)
    slope[np.diag_indices(size)] += np.where(some, 2 / both, 0.)
    of_f1 = support ** 2 / less * ((share * slope ** 2).sum(1) - (share * slope).sum(1) ** 2)
    right, total = (np.array([part[:-1].sum(), part[-1]]) for part in (hits, support))
    rate, weight = (right + 0.5) / (total + 1), np.array([LAMBDA, 1 - LAMBDA])
    middle = found | {'normalized_accuracy': float(weight @ rate)}
    variances = {
        'macro_f1': of_f1.sum() / some.sum() ** 2,
        'balanced_accuracy': spread[:-1].sum() / some[:-1].sum() ** 2,
        'balanced_accuracy_with_unknown': spread.sum() / some.sum() ** 2,
        'normalized_accuracy': weight ** 2 @ (rate * (1 - rate) / total)}
    return {name: (middle[name], float(max(value, 0.) ** .5)) for name, value in variances.items()}
