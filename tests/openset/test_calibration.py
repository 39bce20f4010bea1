"""Calibration figures by hand, by scikit-learn and by torch."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from gradmix_timm.openset import metrics
from gradmix_timm.openset.metrics import calibration


def drawn(temperature: float = 1., n: int = 4000, classes: int = 5):
    """Logits whose labels follow softmax(logits), then multiplied by the temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes)) * 2
    probs = softmax(logits, axis=1)
    labels = (probs.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=classes - 1)
    return logits * temperature, labels


def slow_ece(probs, labels, bins):
    total = 0.
    for i in range(bins):
        inside = [(p.max(), p.argmax() == y) for p, y in zip(probs, labels, strict=True)
                  if i / bins < p.max() <= (i + 1) / bins]
        if inside:
            total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside))
    return total / len(labels)


def test_ece_equals_the_loop_over_bins():
    logits, labels = drawn(1.7, n=500)
    probs = softmax(logits, axis=1)
    for bins in (1, 10, 15):
        assert metrics.ece(probs, labels, bins) == pytest.approx(slow_ece(probs, labels, bins), abs=1e-12)
    assert metrics.ece(torch.tensor(probs), torch.tensor(labels)) == metrics.ece(probs, labels)


def test_a_confidence_on_an_edge_belongs_below():
    # 0.6 = 9 / 15 ends the ninth bin; with 0.65 it shares no bin, so the errors 0.6 and 0.35 do not cancel.
    for dtype in (np.float64, np.float32):
        probs = np.array([[.6, .4], [.65, .35]], dtype=dtype)
        assert metrics.ece(probs, [1, 0]) == pytest.approx((.6 + .35) / 2, abs=1e-6)
        assert metrics.reliability(probs, [1, 0]).count.nonzero()[0].tolist() == [8, 9]


def test_calibrated_labels_have_no_error_and_overconfident_ones_have():
    for error in (metrics.ece, metrics.adaptive_ece):
        logits, labels = drawn()
        assert error(softmax(logits, axis=1), labels) < .03
        assert error(softmax(logits * 3, axis=1), labels) > .1


def test_adaptive_bins_are_even_and_ties_stay_together():
    probs = np.array([[.5, .5]] * 6 + [[.9, .1]] * 2)
    assert metrics.adaptive_ece(probs, [0, 0, 0, 1, 1, 1, 0, 0], 4) == pytest.approx(2 / 8 * .1)
    logits, labels = drawn(n=1000)
    order = np.random.default_rng(1).permutation(1000)
    probs = softmax(logits, axis=1)
    assert metrics.adaptive_ece(probs, labels) == pytest.approx(metrics.adaptive_ece(probs[order], labels[order]))


def test_nll_and_brier_equal_scikit_learn():
    logits, labels = drawn(n=300)
    probs = softmax(logits, axis=1)
    assert metrics.nll(logits, labels) == pytest.approx(log_loss(labels, probs, labels=range(5)))
    expected = brier_score_loss(labels, probs, labels=range(5), scale_by_half=False)
    assert metrics.brier(probs, labels) == pytest.approx(expected)
    assert metrics.nll([[1000., 0.]], [1]) == 1000.


@pytest.mark.parametrize('temperature', [.3, 1., 4.])
def test_the_temperature_that_was_put_in_is_found(temperature):
    logits, labels = drawn(temperature)
    found = metrics.fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=.05)
    best = metrics.nll(logits / found, labels)
    assert all(metrics.nll(logits / (found * factor), labels) >= best for factor in (.99, .999, 1.001, 1.01))


def test_likelihoods_of_many_samples_are_taken_block_by_block(monkeypatch):
    logits, labels = drawn(n=1001)
    whole = metrics.nll(logits, labels), metrics.fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, '_BLOCK', 300)
    assert (metrics.nll(logits, labels), metrics.fit_temperature(logits, labels)) == pytest.approx(whole, rel=1e-6)


def test_a_temperature_at_the_end_of_the_range_warns():
    with pytest.warns(UserWarning, match='all classified right'):
        assert metrics.fit_temperature([[3., 0.], [0., 3.]], [0, 1]) == .01
    with pytest.warns(UserWarning, match='say nothing'):
        assert metrics.fit_temperature([[3., 0.], [0., 3.]], [1, 0]) == pytest.approx(100, rel=.01)


def test_logits_that_are_equal_have_no_temperature():
    with pytest.warns(UserWarning, match='changes nothing'):
        assert metrics.fit_temperature(np.ones((5, 3)), [0, 1, 2, 0, 1]) == 1


def test_whole_numbers_are_probabilities_too():
    assert metrics.ece([[1, 0], [0, 1]], [0, 0]) == 0.5
    assert metrics.nll(np.array([[3, 3]]), [0]) == pytest.approx(np.log(2))


def test_what_is_no_closed_set_probability_is_refused():
    with pytest.raises(ValueError, match='apply softmax'):
        metrics.ece([[3., -1.]], [0])
    with pytest.raises(ValueError, match='leave unknown samples out'):
        metrics.ece([[.5, .5]], [-1])
    with pytest.raises(ValueError, match='1 rows that are not finite'):
        metrics.nll([[np.nan, 0.]], [0])
    with pytest.raises(ValueError, match='bins'):
        metrics.ece([[.5, .5]], [0], bins=0)
    with pytest.raises(ValueError, match='class indices'):
        metrics.ece([[.5, .5]], [0.])


@pytest.mark.parametrize('bins', [0, 1.5])
def test_bins_are_counted_in_whole_numbers(bins):
    for error in (metrics.ece, metrics.adaptive_ece):
        with pytest.raises(ValueError, match='a whole number of at least 1'):
            error([[0.5, 0.5]], [0], bins)
