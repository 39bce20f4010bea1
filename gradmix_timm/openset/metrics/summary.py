"""All rank metrics of one score with their intervals, as one block of results.json."""
from __future__ import annotations

from typing import Any, cast

from gradmix_timm.openset.results import RankMetric, ScoreFigures

from . import rank_counts as counts
from .bootstrap import EVERY_SCORE, rank_intervals
from .checks import ArrayLike, correctness, fraction, infinite_count, sides
from .intervals import delong_ci, delong_of_counts

__all__ = ['RANK_METRICS', 'summarize']

# In the order of the printed table; oscr needs `correct`.
RANK_METRICS: dict[RankMetric, counts.Metric] = {
    'auroc': counts.auroc,
    'aupr_in': counts.aupr_in,
    'aupr_out': counts.aupr_out,
    'fpr_at_95_known': counts.fpr_at_95_known,
    'fpr_at_95_unknown': counts.fpr_at_95_unknown,
    'detection_error': counts.detection_error,
    'oscr': counts.oscr,
}


def summarize(
        known: ArrayLike,
        correct: ArrayLike | None,
        unknown: ArrayLike,
        draws: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        fprs: tuple[float, ...] = (0.001, 0.01, 0.1),
) -> ScoreFigures:
    """Every rank metric of one score, plain numbers ready for JSON.

    Args:
        known: Knownness of known samples, [N].
        correct: Whether each known sample got its own class, bool [N]; None leaves out OSCR, top-1 and CCR.
        unknown: Knownness of unknown samples, [M].
        draws: Resamples for the intervals; 0 leaves out all but AUROC's, which needs none.
        seed: Of the resamples.
        level: Coverage of the intervals, in (0, 1).
        fprs: False positive rates at which the correct classification rate is given.

    Returns:
        The metrics of ``RANK_METRICS``; ``top1``, the share that is correct; ``ccr_at_fpr``, a dict keyed by the rate
        as text; ``tie_share`` (share of known-unknown pairs that tie); ``degenerate`` (all scores are one value);
        ``infinite`` (how many are; they rank); and ``<metric>_ci`` as [low, high]: AUROC's after DeLong, the others by
        stratified bootstrap.

    Example:
        >>> figures = summarize([3., 2., 2.], [True, True, False], [2., 1.], draws=0)
        >>> round(figures['auroc'], 4), round(figures['oscr'], 4), figures['ccr_at_fpr']['0.1']
        (0.8333, 0.5833, 0.3333333333333333)
    """
    scores, others = sides(known, unknown)
    right = None if correct is None else correctness(correct, len(scores))
    values, ladder = counts.count(scores, others, right)
    metrics: dict[str, counts.Metric] = {
        name: metric for name, metric in RANK_METRICS.items() if right is not None or name != 'oscr'}
    figures: dict[str, Any] = {name: float(metric(ladder)) for name, metric in metrics.items()}
    if right is not None:
        figures['top1'] = float(right.mean())
        figures['ccr_at_fpr'] = {f'{fpr:g}': float(counts.ccr_at_fpr(fraction('fpr', fpr))(ladder)) for fpr in fprs}
    figures |= {'tie_share': float(counts.tie_share(ladder)), 'degenerate': len(values) == 1,
                'infinite': infinite_count(scores, others)}
    few = len(scores) + len(others) <= EVERY_SCORE
    figures['auroc_ci'] = list(delong_ci(scores, others, level) if few else delong_of_counts(ladder, level))
    if draws:
        drawn = {name: metric for name, metric in metrics.items() if name != 'auroc'}
        intervals = rank_intervals(drawn, scores, others, right, draws, seed, level, (values, ladder))
        figures |= {f'{name}_ci': list(interval) for name, interval in intervals.items()}
    return cast(ScoreFigures, figures)  # without oscr where `correct` is None
