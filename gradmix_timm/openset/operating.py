"""Open set recognition at one threshold: how well labels with rejection fit, with intervals."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.openset.results import AtThreshold

from .metrics.bootstrap import EVERY_SCORE, bootstrap_ci
from .metrics.intervals import normal_ci
from .metrics.thresholds import balanced_accuracy, best_f1, macro_f1, normalized_accuracy

__all__ = ['LAMBDA', 'at_threshold']

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]
#: Weight of the knowns' accuracy in the normalised accuracy; the rest is the share of unknowns rejected.
LAMBDA = 0.5


def at_threshold(known_pred: Array, known_label: Array, known_scores: Array, unknown_pred: Array, unknown_scores: Array,
                 threshold: float, num_classes: int, draws: int = 1000, seed: int = 0) -> AtThreshold:
    """Macro-F1 over the known classes and the unknown, balanced and normalised accuracy at a threshold.

    Means over classes are over those that have images. Their intervals come from resamples of each class by itself;
    if a class has a single image, which shows no spread, there is no interval. Beyond
    :data:`~gradmix_timm.openset.metrics.bootstrap.EVERY_SCORE` samples they are normal ones of the same law
    (:func:`_standard_errors`).

    Args:
        known_pred: Closed-set predictions of known samples, int [N].
        known_label: Their classes, int [N].
        known_scores: Their knownness, float [N].
        unknown_pred: Closed-set predictions of unknown samples, int [M].
        unknown_scores: Their knownness, float [M].
        threshold: Accept s >= threshold; fixed beforehand, on known validation samples.
        num_classes: K.
        draws: Resamples of both sides for the intervals; 0: none.
        seed: Of the resamples.

    Returns:
        ``classes_with_images`` (known classes that the means are over), ``macro_f1``, ``balanced_accuracy`` (known
        classes), ``balanced_accuracy_with_unknown``, ``normalized_accuracy`` with its ``lambda``, each with
        ``<name>_ci`` (or None); and ``best_f1``, the macro-F1 of the threshold that suits these very samples best: an
        upper bound, which papers that sweep the threshold report.

    Example:
        >>> found = at_threshold(*map(np.array, ([0, 1], [0, 1], [.9, .2], [0], [.1])), 0.5, 2, draws=0)
        >>> round(found['macro_f1'], 4), found['balanced_accuracy'], round(found['best_f1'], 4)
        (0.5556, 0.5, 1.0)
    """
    given = (np.where(known_scores >= threshold, known_pred, -1), known_label)
    others = (np.where(unknown_scores >= threshold, unknown_pred, -1), np.full(len(unknown_pred), -1))
    means: dict[str, Metric] = {
        'macro_f1': partial(macro_f1, num_classes=num_classes), 'balanced_accuracy': balanced_accuracy,
        'balanced_accuracy_with_unknown': partial(balanced_accuracy, with_unknown=True)}
    counts = np.bincount(known_label)
    found: dict[str, Any] = {'lambda': LAMBDA, 'classes_with_images': int((counts > 0).sum())}
    many = len(known_label) + len(unknown_pred) > EVERY_SCORE
    errors = _standard_errors(given, others, num_classes) if many else {}
    for name, metric in (means | {'normalized_accuracy': partial(normalized_accuracy, weight=LAMBDA)}).items():
        of_both = partial(_joined, metric)
        found[name] = of_both(*given, *others)
        if not draws:
            continue
        alone = (counts == 1).any() or (name != 'balanced_accuracy' and len(unknown_pred) == 1)
        if name in means and alone:
            found[f'{name}_ci'] = None
        elif many:
            found[f'{name}_ci'] = list(normal_ci(found[name], errors[name], int(counts[counts > 0].min())))
        else:
            found[f'{name}_ci'] = list(bootstrap_ci(of_both, given, others, draws=draws, seed=seed,
                                                    strata=(known_label, None) if name in means else None))
    found['best_f1'] = best_f1(np.r_[known_pred, unknown_pred], np.r_[known_scores, unknown_scores],
                               np.r_[known_label, others[1]], num_classes)[0]
    return cast(AtThreshold, found)


def _standard_errors(known: tuple[Array, Array], unknown: tuple[Array, Array], num_classes: int) -> dict[str, float]:
    """Standard errors of smooth functions of the counts of predictions by class, each class multinomial (delta method).

    Args:
        known: Predictions, -1 for rejected, and labels of the known samples.
        unknown: The same of the unknown samples, labels -1.
        num_classes: K.
    """
    size = num_classes + 1
    counts = np.zeros((size, size))
    for answer, label in (known, unknown):
        counts += np.bincount(label % size * size + answer % size, minlength=size * size).reshape(size, size)
    support, taken, hits = counts.sum(1), counts.sum(0), np.diag(counts)
    some = support > 0
    share = counts / np.maximum(support, 1)[:, None]
    recall = np.diag(share)
    spread = recall * (1 - recall) / np.maximum(support, 1)
    # Change of the mean F1, 2 hits / (taken + support), for one more prediction j of class i.
    both = np.maximum(taken + support, 1)
    slope = np.where(some, -2 * hits / both ** 2, 0.)[None].repeat(size, 0)
    slope[np.diag_indices(size)] += np.where(some, 2 / both, 0.)
    of_f1 = support * ((share * slope ** 2).sum(1) - (share * slope).sum(1) ** 2)
    right, total = hits[:-1].sum() / support[:-1].sum(), support[:-1].sum()
    variances = {
        'macro_f1': of_f1.sum() / some.sum() ** 2,
        'balanced_accuracy': spread[:-1].sum() / some[:-1].sum() ** 2,
        'balanced_accuracy_with_unknown': spread.sum() / some.sum() ** 2,
        'normalized_accuracy': LAMBDA ** 2 * right * (1 - right) / total + (1 - LAMBDA) ** 2 * spread[-1]}
    return {name: float(max(value, 0.) ** .5) for name, value in variances.items()}


def _joined(metric: Metric, pred: Array, label: Array, other_pred: Array, other_label: Array) -> float:
    """A metric of known and unknown samples together."""
    return metric(np.r_[pred, other_pred], np.r_[label, other_label])
