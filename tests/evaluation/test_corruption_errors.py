"""mCE and its kin by hand, groups of corrupted images, means and intervals."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from gradmix_timm.evaluation.corruption import (
    corruption_errors,
    judge_corrupted,
    mean_error_ci,
    relative_errors,
    summarize_corruptions,
)
from gradmix_timm.records import Embeddings

ERRORS = {'fog': {1: 0.1, 2: 0.3, 3: 0.5}, 'snow': {1: 0.4, 2: 0.4, 3: 0.7}}
# Sums of the reference: fog 0.4 + 0.5 + 0.6 = 1.5, snow 0.5 + 0.5 + 0.8 = 1.8.
REFERENCE = {'fog': 0.5, 'snow': 0.6}


def test_corruption_error_divides_sums_over_severities():
    got = corruption_errors(ERRORS, REFERENCE)
    assert got == pytest.approx({'fog': 0.9 / 1.5, 'snow': 1.5 / 1.8})


def test_relative_error_subtracts_the_clean_error_on_both_sides():
    got = relative_errors(ERRORS, 0.05, REFERENCE, 0.2)
    assert got == pytest.approx({'fog': (0.9 - 0.15) / (1.5 - 0.6), 'snow': (1.5 - 0.15) / (1.8 - 0.6)})


def test_the_reference_model_itself_has_one():
    by_severity = {'fog': {1: 0.4, 2: 0.6}, 'snow': {1: 0.5, 2: 0.7}}
    assert list(corruption_errors(by_severity, REFERENCE).values()) == pytest.approx([1, 1])
    assert list(relative_errors(by_severity, 0.2, REFERENCE, 0.2).values()) == pytest.approx([1, 1])


def test_a_reference_that_cannot_divide_is_refused():
    with pytest.raises(ValueError, match='not evaluated on snow'):
        corruption_errors(ERRORS, {'fog': 0.5})
    with pytest.raises(ValueError, match='no error on fog'):
        corruption_errors(ERRORS, {'fog': 0., 'snow': 0.5})
    with pytest.raises(ValueError, match='does not make the reference model worse'):
        relative_errors(ERRORS, 0.1, {'fog': 0.2, 'snow': 0.5}, 0.2)


def embeddings(logits, label) -> Embeddings:
    logits = torch.tensor(logits, dtype=torch.float32)
    return Embeddings(logits=logits, features=logits, projection=None, label=torch.tensor(label),
                      index=torch.arange(len(label)))


def some(count: int, shift: float, seed: int, unknown: bool = False) -> Embeddings:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, count)
    logits = generator.normal(size=(count, 3)) + shift * np.eye(3)[label]
    return embeddings(logits.tolist(), [-1] * count if unknown else label.tolist())


def test_a_group_has_error_with_interval_and_scores_against_both_kinds_of_unknowns():
    known, unknown, clean = some(60, 2., 0), some(40, 0., 1, True), some(50, 0.5, 2, True)
    group, right = judge_corrupted(known, unknown, clean, ['msp', 'mls'], draws=20)
    assert group['closed_set']['top1'] == right.mean() == 1 - group['error']
    low, high = group['error_ci']
    assert low < group['error'] < high
    assert [1 - end for end in group['closed_set']['top1_ci']] == pytest.approx([high, low])
    assert (group['n_known'], group['n_unknown']) == (60, 40)
    for field, others in (('scores', unknown), ('scores_clean_unknown', clean)):
        scores = torch.cat([known.logits, others.logits]).max(1).values
        truth = [1] * 60 + [0] * len(others.label)
        assert group[field]['mls']['auroc'] == pytest.approx(roc_auc_score(truth, scores))
        assert set(group[field]) == {'msp', 'mls'}
        assert 'oscr_ci' in group[field]['msp']


def test_without_unknowns_there_is_a_closed_set_alone():
    group, _ = judge_corrupted(some(30, 1., 0), None, None, ['msp'])
    assert group['scores'] == {}
    assert group['n_unknown'] == 0


def groups():
    made = {}
    for name, row in ERRORS.items():
        for severity, error in row.items():
            made[f'{name}/{severity}'] = {
                'corruption': name, 'severity': severity, 'error': error,
                'scores': {'mls': {'auroc': 0.9 - error / 2}}, 'scores_clean_unknown': {'mls': {'auroc': 0.8 - error}}}
    return made


def test_means_are_over_corruptions_and_over_severities():
    wrong = np.random.default_rng(0).random((6, 50)) < 0.4
    found = summarize_corruptions(groups(), 0.05, wrong, {**REFERENCE, 'clean': 0.2})
    assert found['mean_error'] == pytest.approx((0.3 + 0.5) / 2)
    assert found['by_corruption']['fog'] == {
        'error': pytest.approx(0.3), 'ce': pytest.approx(0.6), 'relative_ce': pytest.approx(0.75 / 0.9),
        'auroc': {'mls': {'corrupted': pytest.approx(0.75), 'clean': pytest.approx(0.5)}}}
    assert found['by_severity']['2']['error'] == pytest.approx(0.35)
    assert found['by_severity']['2']['auroc']['mls']['clean'] == pytest.approx(0.45)
    assert found['mce'] == pytest.approx((0.6 + 1.5 / 1.8) / 2)
    assert found['relative_mce'] == pytest.approx((0.75 / 0.9 + 1.35 / 1.2) / 2)
    assert found['severities'] == [1, 2, 3]


def test_what_the_reference_cannot_serve_is_said_and_the_rest_stands():
    wrong = np.zeros((6, 4), dtype=bool)
    found = summarize_corruptions(groups(), 0.05, wrong, {**REFERENCE, 'clean': 0.55})
    assert 'mce' in found
    assert 'does not make the reference model worse' in found['no_relative_mce']
    assert 'mce' not in summarize_corruptions(groups(), 0.05, wrong)
    assert 'not evaluated on snow' in summarize_corruptions(groups(), 0.05, wrong, {'fog': 1., 'clean': 0.})['no_mce']


def test_the_interval_of_the_mean_takes_the_image_for_its_unit():
    """The same 40 images under one corruption copied ten times tell no more than under one."""
    once = np.random.default_rng(0).random((1, 40)) < 0.3
    assert mean_error_ci(once.repeat(10, axis=0)) == pytest.approx(mean_error_ci(once))
    low, high = mean_error_ci(once)
    shares = once[0].astype(float)
    mean, half = shares.mean(), 2.0227 * shares.std(ddof=1) / 40 ** 0.5  # t with 39 degrees
    slope = mean * (1 - mean)
    assert (logit(high) - logit(low)) / 2 == pytest.approx(half / slope, rel=1e-4)


def test_the_interval_of_the_mean_covers_the_truth():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(300):
        hardness = generator.beta(2, 3, 80)  # of each image, the same under all corruptions
        low, high = mean_error_ci(generator.random((6, 80)) < hardness)
        hits += low < 0.4 < high
    assert 0.91 < hits / 300 < 0.99
