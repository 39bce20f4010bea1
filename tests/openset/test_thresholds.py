"""Thresholds from validation data, and accuracy and F1 with a reject option against scikit-learn."""
from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from gradmix_timm.openset import metrics


@pytest.mark.parametrize(('n', 'rank'), [(19, 1), (20, 1), (38, 1), (39, 2), (99, 5), (100, 5), (1999, 100)])
def test_conformal_threshold_is_an_order_statistic(n, rank):
    validation = np.random.default_rng(0).permutation(n).astype(float)
    assert metrics.conformal_threshold(validation) == rank - 1


@pytest.mark.parametrize('alpha', [1 - 1e-9, 1 - 1e-12])
def test_conformal_threshold_near_one_is_the_largest_score(alpha):
    assert metrics.conformal_threshold(np.arange(100.), alpha) == 99


def test_too_few_validation_scores_accept_all_and_say_how_many_are_needed():
    with pytest.warns(UserWarning, match='19 are needed'):
        assert metrics.conformal_threshold(np.arange(18.)) == -math.inf
    with pytest.warns(UserWarning, match='99 are needed'):
        metrics.conformal_threshold(np.arange(98.), alpha=.01)
    assert metrics.conformal_threshold(np.arange(99.), alpha=.01) == 0


def test_conformal_threshold_keeps_its_promise():
    rng = np.random.default_rng(1)
    kept = [(rng.normal(size=50) >= metrics.conformal_threshold(rng.normal(size=39))).mean() for _ in range(2000)]
    assert .945 < np.mean(kept) < .956  # 1 - 2 / 40 in expectation


def drawn(seed: int, decimals: int, classes: int = 4, n: int = 120):
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, classes, n)
    pred = np.where(rng.random(n) < .7, label.clip(0), rng.integers(0, classes, n))
    return pred, (rng.normal(size=n) + (label >= 0)).round(decimals), label


@pytest.mark.parametrize('seed', range(4))
def test_gated_labels_against_scikit_learn(seed):
    pred, score, label = drawn(seed, 3)
    gated = metrics.gate(pred, score, .5)
    assert ((gated == -1) == (score < .5)).all()
    expected = f1_score(label, gated, labels=range(-1, 4), average='macro', zero_division=0)
    assert metrics.macro_f1(gated, label, 4) == pytest.approx(expected, abs=1e-12)
    assert metrics.balanced_accuracy(gated, label, True) == pytest.approx(balanced_accuracy_score(label, gated))
    recalls = [(gated[label == c] == c).mean() for c in range(4)]
    assert metrics.balanced_accuracy(gated, label) == pytest.approx(np.mean(recalls))
    known = label >= 0
    expected = .3 * (gated == label)[known].mean() + .7 * (gated == -1)[~known].mean()
    assert metrics.normalized_accuracy(gated, label, .3) == pytest.approx(expected)


@pytest.mark.parametrize('decimals', [6, 1, 0])
@pytest.mark.parametrize('seed', range(3))
def test_best_f1_equals_the_sweep(decimals, seed):
    pred, score, label = drawn(seed, decimals)
    value, tau = metrics.best_f1(pred, score, label, 4)
    sweep = [metrics.macro_f1(metrics.gate(pred, score, t), label, 4) for t in [*np.unique(score), np.inf]]
    assert value == pytest.approx(max(sweep), abs=1e-12)
    assert metrics.macro_f1(metrics.gate(pred, score, tau), label, 4) == pytest.approx(value, abs=1e-12)


def test_best_f1_may_reject_everything():
    assert metrics.best_f1([0, 0, 0], [1., 2., 1.], [-1, -1, 0], 1) == (pytest.approx(.4), math.inf)


def test_classes_without_samples_have_no_f1():
    """They counted as zeros: 27% where the classes that occur average 80%."""
    pred, score, label = drawn(0, 3)
    gated = metrics.gate(pred, score, .5)
    assert metrics.macro_f1(gated, label, 1000) == metrics.macro_f1(gated, label, 4)
    assert metrics.best_f1(pred, score, label, 1000) == metrics.best_f1(pred, score, label, 4)
    strays = np.where(gated == 0, 500, gated)  # a class that does not occur is no class of the mean
    f1 = f1_score(label, strays, labels=range(-1, 4), average='macro', zero_division=0)
    assert metrics.macro_f1(strays, label, 1000) == pytest.approx(f1)


def test_classes_out_of_range_are_refused():
    with pytest.raises(ValueError, match='from 0 to 1'):
        metrics.macro_f1([0, 2], [0, 1], num_classes=2)
    with pytest.raises(ValueError, match='got -2'):
        metrics.balanced_accuracy([0, -2], [0, 1])
    with pytest.raises(ValueError, match='closed set prediction'):
        metrics.best_f1([-1], [0.], [0])
    with pytest.raises(ValueError, match='knowns and unknowns'):
        metrics.normalized_accuracy([0], [0], .5)
    with pytest.raises(ValueError, match='2 class indices'):
        metrics.gate([0], [0., 1.], 0.)
    with pytest.raises(ValueError, match='threshold is NaN'):
        metrics.gate([0], [0.], float('nan'))
