"""Open set recognition at one threshold: how well labels with rejection fit, with intervals."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.openset.results import AtThreshold

from .metrics.bootstrap import bootstrap_ci
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
    where a class has a single image, which shows no spread, there is none.

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
    for name, metric in (means | {'normalized_accuracy': partial(normalized_accuracy, weight=LAMBDA)}).items():
        of_both = partial(_joined, metric)
        found[name] = of_both(*given, *others)
        if not draws:
            continue
        alone = (counts == 1).any() or (name != 'balanced_accuracy' and len(unknown_pred) == 1)
        if name in means:
            found[f'{name}_ci'] = None if alone else list(
                bootstrap_ci(of_both, given, others, draws=draws, seed=seed, strata=(known_label, None)))
        else:
            found[f'{name}_ci'] = list(bootstrap_ci(of_both, given, others, draws=draws, seed=seed))
    found['best_f1'] = best_f1(np.r_[known_pred, unknown_pred], np.r_[known_scores, unknown_scores],
                               np.r_[known_label, others[1]], num_classes)[0]
    return cast(AtThreshold, found)


def _joined(metric: Metric, pred: Array, label: Array, other_pred: Array, other_label: Array) -> float:
    """A metric of known and unknown samples together."""
    return metric(np.r_[pred, other_pred], np.r_[label, other_label])
