"""Open set recognition at one threshold: how well labels with rejection fit, with intervals."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics.bootstrap import bootstrap_ci
from .metrics.thresholds import balanced_accuracy, best_f1, macro_f1, normalized_accuracy

__all__ = ['LAMBDA', 'at_threshold']

Array = NDArray[Any]
#: Weight of the knowns' accuracy in the normalised accuracy; the rest is the share of unknowns rejected.
LAMBDA = 0.5


def at_threshold(known_pred: Array, known_label: Array, known_scores: Array, unknown_pred: Array, unknown_scores: Array,
                 threshold: float, num_classes: int, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Macro-F1 over the known classes and the unknown, balanced and normalised accuracy at a threshold.

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
        ``macro_f1``, ``balanced_accuracy`` (known classes), ``balanced_accuracy_with_unknown``,
        ``normalized_accuracy`` with its ``lambda``, each with ``<name>_ci``; and ``best_f1``, the macro-F1 of the
        threshold that suits these very samples best: an upper bound, which papers that sweep the threshold report.

    Example:
        >>> found = at_threshold(*map(np.array, ([0, 1], [0, 1], [.9, .2], [0], [.1])), 0.5, 2, draws=0)
        >>> round(found['macro_f1'], 4), found['balanced_accuracy'], round(found['best_f1'], 4)
        (0.5556, 0.5, 1.0)
    """
    def answers(known: Array, unknown: Array) -> Array:
        return np.concatenate([known, unknown])

    given = (np.where(known_scores >= threshold, known_pred, -1), known_label)
    others = (np.where(unknown_scores >= threshold, unknown_pred, -1), np.full(len(unknown_pred), -1))
    metrics: dict[str, Callable[[Array, Array], float]] = {
        'macro_f1': lambda pred, label: macro_f1(pred, label, num_classes),
        'balanced_accuracy': balanced_accuracy,
        'balanced_accuracy_with_unknown': lambda pred, label: balanced_accuracy(pred, label, with_unknown=True),
        'normalized_accuracy': lambda pred, label: normalized_accuracy(pred, label, LAMBDA)}
    found: dict[str, Any] = {'lambda': LAMBDA}
    for name, metric in metrics.items():
        def joined(pred: Array, label: Array, no_pred: Array, no_label: Array,
                   metric: Callable[[Array, Array], float] = metric) -> float:
            return metric(answers(pred, no_pred), answers(label, no_label))

        found[name] = joined(*given, *others)
        if draws:
            found[f'{name}_ci'] = list(bootstrap_ci(joined, given, others, draws=draws, seed=seed))
    found['best_f1'] = best_f1(answers(known_pred, unknown_pred), answers(known_scores, unknown_scores),
                               answers(known_label, others[1]), num_classes)[0]
    return found
