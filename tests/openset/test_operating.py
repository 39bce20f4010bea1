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
    found = at_threshold(*samples, threshold, K, draws=0)
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
    assert not [name for name in found if name.endswith('_ci')]


def test_intervals_are_seeded_and_hold_the_figure(samples):
    found, again, other = (at_threshold(*samples, 0.5, K, draws=200, seed=seed) for seed in (0, 0, 1))
    assert found == again != other
    for name in ('macro_f1', 'balanced_accuracy', 'balanced_accuracy_with_unknown', 'normalized_accuracy'):
        low, high = found[f'{name}_ci']
        assert low < found[name] < high
        assert 0.01 < high - low < 0.15  # two standard errors each way of 500 images are about .08


@pytest.mark.parametrize(('classes', 'spread'), [(3, 1.), (20, .3)])
def test_many_samples_have_the_intervals_of_the_bootstrap(classes, spread, monkeypatch):
    """Standard errors from counts, against resamples of every sample."""
    rng = np.random.default_rng(classes)
    label, unknown_pred = rng.integers(0, classes, 1500), rng.integers(0, classes, 700)
    pred = np.where(rng.random(1500) < .8, label, rng.integers(0, classes, 1500))
    given = (pred, label, rng.normal(1, spread, 1500), unknown_pred, rng.normal(0, spread, 700), .3, classes)
    every = at_threshold(*given, draws=400)
    monkeypatch.setattr('gradmix_timm.openset.operating.EVERY_SCORE', 0)
    cut = at_threshold(*given, draws=400)
    for name in ('macro_f1', 'balanced_accuracy', 'balanced_accuracy_with_unknown', 'normalized_accuracy'):
        assert cut[name] == every[name]
        low, high = every[f'{name}_ci']
        assert cut[f'{name}_ci'] == pytest.approx((low, high), abs=.15 * (high - low)), name
