"""Labels with rejection at one threshold, against scikit-learn."""
from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from gradmix_timm.openset.metrics import best_f1
from gradmix_timm.openset.operating import LAMBDA, at_threshold

K = 4


@pytest.fixture(scope='module')
def samples():
    rng = np.random.default_rng(0)
    label = rng.integers(0, K, 300)
    pred = np.where(rng.random(300) < 0.8, label, rng.integers(0, K, 300))
    return pred, label, rng.normal(1, 1, 300).round(1), rng.integers(0, K, 200), rng.normal(0, 1, 200).round(1)


@pytest.mark.parametrize('threshold', [-9., 0.5, 9.])
def test_figures_are_scikit_learns(samples, threshold):
    pred, label, known, unknown_pred, unknown = samples
    found = at_threshold(*samples, threshold, K)
    guess = np.r_[np.where(known >= threshold, pred, -1), np.where(unknown >= threshold, unknown_pred, -1)]
    truth = np.r_[label, np.full(200, -1)]
    classes = [-1, *range(K)]
    recall = recall_score(truth, guess, labels=classes, average=None, zero_division=0)
    assert found['macro_f1'] == pytest.approx(
        f1_score(truth, guess, labels=classes, average='macro', zero_division=0), abs=1e-12)
    assert found['balanced_accuracy'] == pytest.approx(recall[1:].mean(), abs=1e-12)
    assert found['balanced_accuracy_with_unknown'] == pytest.approx(recall.mean(), abs=1e-12)
    right = guess == truth
    assert found['lambda'] == LAMBDA == 0.5
    assert found['normalized_accuracy'] == pytest.approx((right[:300].mean() + right[300:].mean()) / 2, abs=1e-12)
    best = best_f1(np.r_[pred, unknown_pred], np.r_[known, unknown], truth, K)[0]
    assert found['best_f1'] == best >= found['macro_f1']


FIGURES = ('macro_f1', 'balanced_accuracy', 'balanced_accuracy_with_unknown', 'normalized_accuracy')


@pytest.mark.parametrize(('classes', 'spread'), [(3, 1.), (20, .3)])
def test_many_samples_have_the_intervals_of_the_bootstrap(classes, spread):
    """Standard errors from counts, against resamples of every sample within its class."""
    rng = np.random.default_rng(classes)
    label, unknown_pred = rng.integers(0, classes, 1500), rng.integers(0, classes, 700)
    pred = np.where(rng.random(1500) < .8, label, rng.integers(0, classes, 1500))
    known, unknown = rng.normal(1, spread, 1500), rng.normal(0, spread, 700)
    found = at_threshold(pred, label, known, unknown_pred, unknown, .3, classes)
    draws = []
    for _ in range(300):
        rows = np.concatenate([rng.choice(np.flatnonzero(label == c), (label == c).sum()) for c in range(classes)])
        others = rng.integers(0, 700, 700)
        drawn = at_threshold(pred[rows], label[rows], known[rows], unknown_pred[others], unknown[others], .3, classes)
        draws.append([drawn[name] for name in FIGURES])
    for name, values in zip(FIGURES, np.array(draws).T, strict=True):
        low, high = found[f'{name}_ci']
        assert low < found[name] < high
        assert (low, high) == pytest.approx(np.quantile(values, [.025, .975]), abs=.15 * (high - low)), name


def test_no_error_is_no_certainty():
    label, unknown = np.repeat(np.arange(3), 10), np.zeros(20, int)
    found = at_threshold(label, label, np.ones(30), unknown, -np.ones(20), 0., 3)
    for name in FIGURES:
        low, high = found[f'{name}_ci']
        assert found[name] == high == 1
        assert .7 < low < .97, name
