"""Evaluation under corruptions: one group for each corruption and severity, mCE, and a run that can be resumed."""
from .errors import corruption_errors, judge_corrupted, mean_error_ci, relative_errors, summarize_corruptions
from .run import (
    CorruptionOptions,
    CorruptionPlan,
    check_scores,
    draw_examples,
    evaluate_corruptions,
    open_files,
    plan_corruptions,
)

__all__ = [
    'CorruptionOptions', 'CorruptionPlan', 'check_scores', 'corruption_errors', 'draw_examples',
    'evaluate_corruptions', 'judge_corrupted', 'mean_error_ci', 'open_files', 'plan_corruptions', 'relative_errors',
    'summarize_corruptions']
