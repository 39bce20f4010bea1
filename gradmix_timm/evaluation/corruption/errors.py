"""Robustness to corruptions: errors by corruption and severity, mCE and relative mCE, and open-set scores beside."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.openset.metrics.intervals import share_ci, top1
from gradmix_timm.openset.metrics.summary import summarize
from gradmix_timm.openset.results import (
    AurocBySide,
    CorruptedFigures,
    CorruptionGroup,
    CorruptionMeans,
    ScoreFigures,
)
from gradmix_timm.openset.scores import fit_score
from gradmix_timm.records import Embeddings

__all__ = ['corruption_errors', 'judge_corrupted', 'mean_error_ci', 'relative_errors', 'summarize_corruptions']

#: Corruption to severity to error, a share.
Errors = Mapping[str, Mapping[int, float]]


def corruption_errors(errors: Errors, reference: Mapping[str, float]) -> dict[str, float]:
    """Corruption error of each corruption: CE_c = sum over severities of E_c,s / the reference model's sum.

    Hendrycks and Dietterich, arXiv:1903.12261, section 4.2; mCE is the mean over the 15. 1 is as bad as the reference
    (AlexNet in the paper, and then for ImageNet at 224 px alone).

    Args:
        errors: Corruption to severity to the model's error.
        reference: Corruption to the reference model's error, a mean over the same severities.

    Raises:
        ValueError: A corruption that the reference lacks, or on which it makes no error.

    Example:
        >>> corruption_errors({'fog': {1: 0.25, 2: 0.5}}, {'fog': 0.75})
        {'fog': 0.5}
    """
    found = {}
    for name, by_severity in errors.items():
        mean = _reference_of(name, reference)
        if mean <= 0:
            raise ValueError(f'the reference model makes no error on {name}, so nothing can be divided by it; leave '
                             f'{name} out, or take another reference')
        found[name] = _mean(by_severity) / mean
    return found


def relative_errors(errors: Errors, clean: float, reference: Mapping[str, float], reference_clean: float
                    ) -> dict[str, float]:
    """Relative CE of each corruption: what corruption adds to the clean error, over what it adds to the reference's.

    Relative CE_c = sum over s of (E_c,s - E_clean) / the same of the reference. A model that degrades less than the
    reference has less than 1 even if its errors are larger.

    Args:
        errors: Corruption to severity to the model's error.
        clean: The model's error without corruption.
        reference: Corruption to the reference model's error, a mean over the same severities.
        reference_clean: The reference model's error without corruption.

    Raises:
        ValueError: A corruption that the reference lacks, or that does not make it worse.

    Example:
        >>> round(relative_errors({'fog': {1: 0.2, 2: 0.4}}, 0.1, {'fog': 0.6}, 0.2)['fog'], 4)
        0.5
    """
    found = {}
    for name, by_severity in errors.items():
        added = _reference_of(name, reference) - reference_clean
        if added <= 0:
            raise ValueError(f'{name} does not make the reference model worse, so a relative error means nothing')
        found[name] = (_mean(by_severity) - clean) / added
    return found


def mean_error_ci(wrong: NDArray[np.bool_], level: float = 0.95) -> tuple[float, float]:
    """Interval for the mean error over corruptions, which all show the same images: the image is the unit.

    Student's interval on each image's share of corruptions that it fails under, on the logit scale; errors of one image
    under 75 corruptions are strongly dependent, so a binomial interval over all of them would be several times too
    narrow.

    Args:
        wrong: Whether image i was misclassified under corruption j, bool [corruptions, images].
        level: Coverage, in (0, 1).

    Returns:
        (low, high), fractions in [0, 1].

    Example:
        >>> low, high = mean_error_ci(np.array([[True, False, False, True], [True, False, True, False]]))
        >>> round(low, 3), round(high, 3)
        (0.069, 0.931)
    """
    return share_ci(wrong.mean(0), level)


def judge_corrupted(known: Embeddings, unknown: Embeddings | None, clean_unknown: Embeddings | None,
                    scores: Sequence[str], draws: int = 0, seed: int = 0) -> tuple[CorruptedFigures, NDArray[np.bool_]]:
    """One group: closed-set accuracy of corrupted knowns, and scores of them against unknowns.

    ``scores`` compares them with corrupted unknowns, so that detecting the corruption itself earns a score nothing.
    ``scores_clean_unknown`` compares them with clean unknowns and shows whether corrupted knowns are rejected.

    Args:
        known: Of corrupted known images.
        unknown: Of unknown images with the same corruption, or None.
        clean_unknown: Of unknown images as they are, or None.
        scores: Names of scores that need no training images.
        draws: Resamples for all intervals except AUROC's, which is in closed form; 0: only AUROC's.
        seed: Of the resamples.

    Returns:
        The group, as plain numbers, and which images were classified correctly, bool [N].
    """
    right = (known.logits.argmax(1) == known.label).numpy()
    closed = top1(right)
    low, high = closed['top1_ci']
    fitted = {name: fit_score(name, None) for name in scores}

    def against(others: Embeddings) -> dict[str, ScoreFigures]:
        return {name: summarize(np.asarray(score(known), dtype=np.float64), right,
                                np.asarray(score(others), dtype=np.float64), draws=draws, seed=seed)
                for name, score in fitted.items()}

    group: CorruptedFigures = {
        'n_known': len(right), 'n_unknown': 0 if unknown is None else len(unknown.label), 'closed_set': closed,
        'error': 1 - float(right.mean()), 'error_ci': [1 - high, 1 - low],
        'scores': {} if unknown is None else against(unknown)}
    if clean_unknown is not None:
        group['scores_clean_unknown'] = against(clean_unknown)
    return group, right


def summarize_corruptions(groups: Mapping[str, CorruptionGroup], clean: float, wrong: NDArray[np.bool_],
                          reference: Mapping[str, float] | None = None) -> CorruptionMeans:
    """Means over severities and corruptions, and over a reference model's errors where they are given.

    Args:
        groups: Of :func:`judge_corrupted`, each with ``corruption`` and ``severity`` as well.
        clean: Error without corruption.
        wrong: bool [groups, images].
        reference: Corruption to mean error of the reference over the same severities, and 'clean'; None: no mCE.

    Returns:
        ``mean_error`` with its interval, ``by_corruption``, ``by_severity``; with a reference ``mce`` and
        ``relative_mce``, or the reason for their absence in ``no_mce`` and ``no_relative_mce``.
    """
    errors: dict[str, dict[int, float]] = {}
    for group in groups.values():
        errors.setdefault(group['corruption'], {})[group['severity']] = group['error']
    severities = sorted({group['severity'] for group in groups.values()})
    found: CorruptionMeans = {
        'clean_error': clean, 'mean_error': float(np.mean([_mean(row) for row in errors.values()])),
        'mean_error_ci': list(mean_error_ci(wrong)), 'severities': severities,
        'by_corruption': {name: {
            'error': _mean(row),
            'auroc': _mean_auroc([group for group in groups.values() if group['corruption'] == name])}
            for name, row in errors.items()},
        'by_severity': {str(severity): {
            'error': float(np.mean([row[severity] for row in errors.values() if severity in row])),
            'auroc': _mean_auroc([group for group in groups.values() if group['severity'] == severity])}
            for severity in severities}}
    if reference is not None:
        _divide(found, errors, clean, reference)
    return found


def _divide(found: CorruptionMeans, errors: Errors, clean: float, reference: Mapping[str, float]) -> None:
    """Add mCE and relative mCE, in total and by corruption."""
    named = {key: value for key, value in reference.items() if key != 'clean'}
    try:
        parts = corruption_errors(errors, named)
        found['mce'] = float(np.mean(list(parts.values())))
        for name, value in parts.items():
            found['by_corruption'][name]['ce'] = value
    except ValueError as error:
        found['no_mce'] = str(error)
    try:
        parts = relative_errors(errors, clean, named, reference['clean'])
        found['relative_mce'] = float(np.mean(list(parts.values())))
        for name, value in parts.items():
            found['by_corruption'][name]['relative_ce'] = value
    except ValueError as error:
        found['no_relative_mce'] = str(error)


def _mean_auroc(groups: Sequence[CorruptionGroup]) -> dict[str, AurocBySide]:
    """Score to mean AUROC against corrupted and against clean unknowns."""
    found: dict[str, AurocBySide] = {name: {'corrupted': float(np.mean([group['scores'][name]['auroc']
                                                                        for group in groups]))}
                                     for name in groups[0]['scores']}
    for name in groups[0].get('scores_clean_unknown', ()):
        found.setdefault(name, {})['clean'] = float(np.mean([
            group['scores_clean_unknown'][name]['auroc'] for group in groups]))
    return found


def _mean(by_severity: Mapping[int, float]) -> float:
    return float(np.mean(list(by_severity.values())))


def _reference_of(name: str, reference: Mapping[str, float]) -> float:
    if name not in reference:
        raise ValueError(f'the reference model was not evaluated on {name}; it has {", ".join(reference)}')
    return reference[name]
