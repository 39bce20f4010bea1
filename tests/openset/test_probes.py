"""Probes of features: against scikit-learn and slow votes, chosen on held-out rows, seeded draws."""
from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from gradmix_timm.openset import probes
from gradmix_timm.openset.probes import (
    L2_GRID,
    LinearProbe,
    choose_l2,
    draw_shots,
    fit_linear,
    fit_neighbours,
    fit_prototypes,
)


def rows(count: int = 300, width: int = 8, classes: int = 4, seed: int = 0, noise: float = 1.5):
    """Features of very different scales round class centres, one of them constant."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = (centres[labels] + noise * generator.normal(size=(count, width))) * np.geomspace(0.01, 100, width) + 3
    features[:, 1] = 7.
    return torch.tensor(features).float(), torch.tensor(labels)


# ---- linear

@pytest.mark.parametrize('l2', [10., 0.1, 1e-3, 1e-4])
@pytest.mark.parametrize('classes', [2, 4])
def test_the_linear_probe_is_scikit_learns_logistic_regression(l2: float, classes: int):
    features, labels = rows(classes=classes)
    probe = fit_linear(features, labels, classes, l2)
    plain = (features.double().numpy() - features.double().numpy().mean(0))
    plain = plain / np.where(plain.std(0) > 0, plain.std(0), np.inf)
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), max_iter=10_000, tol=1e-10).fit(plain, labels)
    new = rows(seed=1, classes=classes)[0]
    got = probe.logits(new).softmax(1).numpy()
    new = (new.double().numpy() - features.double().numpy().mean(0)) / np.where(
        features.double().numpy().std(0) > 1e-9, features.double().numpy().std(0), np.inf)
    if classes == 2:  # one weight there, two here: the penalty on two of half the size is half
        theirs = LogisticRegression(C=2 / (l2 * len(labels)), max_iter=10_000, tol=1e-10).fit(plain, labels)
    assert np.abs(got - theirs.predict_proba(new)).max() < 2e-4


def test_the_minimum_does_not_depend_on_the_start():
    features, labels = rows()
    cold = fit_linear(features, labels, 4, 1e-3)
    warm = fit_linear(features, labels, 4, 1e-3, start=fit_linear(features, labels, 4, 10.))
    assert (cold.weight - warm.weight).abs().max() < 1e-4


def test_a_feature_that_is_constant_in_training_is_not_read():
    features, labels = rows()
    probe = fit_linear(features, labels, 4, 1e-4)
    moved = features.clone()
    moved[:, 1] += 1e6
    assert torch.equal(probe.logits(features), probe.logits(moved))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_the_way_of_a_gpu_ends_at_the_same_minimum(dtype, monkeypatch):
    features, labels = rows()
    monkeypatch.setattr(probes, '_ROWS', 37)  # many rows are summed in parts
    for l2 in (0.01, 1e-4):
        whole = fit_linear(features, labels, 4, l2)
        plain = ((features.double() - whole.mean) / whole.scale).to(dtype)
        weight, bias = torch.zeros(4, 8, dtype=dtype), torch.zeros(4, dtype=dtype)
        assert probes._descend(plain, labels, weight, bias, l2, 10_000)
        assert (weight - whole.weight).abs().max() < (1e-3 if dtype == torch.float64 else 2e-2)


def objective(probe, features, labels):
    loss = torch.nn.functional.cross_entropy(probe.logits(features).double(), labels)
    return float(loss + probe.l2 / 2 * probe.weight.square().sum())


def test_the_fit_converges_or_says_that_it_did_not():
    """Two hundred iterations were its end: the objective 1.1339 for 1.1175, and another strength was chosen by that."""
    features, labels = rows(count=300, width=30, classes=6, noise=4.)
    features = features @ torch.tensor(np.random.default_rng(0).normal(size=(30, 30))).float()  # ill-conditioned
    plain = ((features.double() - features.double().mean(0)) / features.double().std(0, correction=0)).numpy()
    best = LogisticRegression(C=1 / (1e-4 * 300), max_iter=100_000, tol=1e-7).fit(plain, labels)
    found = fit_linear(features, labels, 6, 1e-4)
    theirs = LinearProbe(torch.tensor(best.coef_), torch.tensor(best.intercept_), found.mean, found.scale, 1e-4)
    assert found.converged
    assert objective(found, features, labels) == pytest.approx(objective(theirs, features, labels), abs=1e-5)
    with pytest.warns(UserWarning, match=r'l2=0\.0001 has not converged after 20 iterations'):
        assert not fit_linear(features, labels, 6, 1e-4, iterations=20).converged


def test_classes_without_training_rows_are_never_answered():
    features, labels = rows()
    few = labels < 2
    for part in (few, labels == 3):
        probe = fit_linear(features[part], labels[part], 4, 1e-3)
        assert set(probe.logits(features).argmax(1).tolist()) <= set(labels[part].tolist())


def test_the_penalty_is_the_best_on_the_held_out_rows():
    features, labels = rows(count=60, width=40, noise=4.)
    held = rows(count=400, width=40, seed=5, noise=4.)
    l2, accuracies = choose_l2((features, labels), held, 4)
    slow = {strength: float((fit_linear(features, labels, 4, strength).logits(held[0]).argmax(1) == held[1])
                            .double().mean()) for strength in L2_GRID}
    assert accuracies == pytest.approx(slow, abs=0.011)  # weak penalties are still moving when the fit ends
    assert accuracies[l2] == max(accuracies.values())
    assert accuracies[l2] > accuracies[L2_GRID[-1]], 'noise in 40 dimensions wants a penalty'


def test_ties_in_accuracy_are_broken_by_cross_entropy():
    features, labels = rows(noise=0.01)  # every strength is right about everything
    l2, accuracies = choose_l2((features, labels), rows(seed=2, noise=0.01), 4, grid=(1., 1e-3, 1e-6))
    assert set(accuracies.values()) == {1.0}
    assert l2 == 1e-6


# ---- neighbours

@pytest.mark.parametrize('k', [1, 5, 300])
def test_neighbours_vote_as_a_slow_loop_counts(k: int):
    features, labels = rows(noise=3.)
    queries = rows(count=20, seed=3, noise=3.)[0]
    got = fit_neighbours(features, labels, 4, k).logits(queries)
    for query, logits in zip(queries.double(), got, strict=True):
        cosines = [(float(query @ row / query.norm() / row.norm()), int(label))
                   for row, label in zip(features.double(), labels, strict=True)]
        votes = [0.] * 4
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] += math.exp(cosine / 0.07)
        for label in range(4):
            expected = math.log(votes[label] / sum(votes)) if votes[label] else -1e4
            assert float(logits[label]) == pytest.approx(expected, abs=1e-3)


def test_there_are_never_more_neighbours_than_images():
    features, labels = rows(count=8)
    assert fit_neighbours(features, labels, 4).k == 8
    assert fit_neighbours(*rows(), 4).k == 20


# ---- few shots

def test_prototypes_are_centroids_of_unit_features():
    features, labels = rows()
    unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    center = np.stack([unit[labels == c].mean(0) for c in range(4)]).mean(0)
    slow = NearestCentroid().fit(unit, labels.numpy())
    probe = fit_prototypes(features, labels, 4)
    assert np.allclose(probe.means.numpy(), slow.centroids_ - center)
    one = fit_prototypes(features[:4], labels[:4], 4)
    assert one.logits(features[:4]).argmax(1).tolist() == [0, 1, 2, 3]


def test_draws_hold_as_many_of_each_class_and_differ():
    labels = np.repeat([0, 1, 2], [5, 9, 20])
    seen = set()
    for draw in range(6):
        chosen = draw_shots(labels, 3, seed=1, draw=draw)
        assert np.bincount(labels[chosen]).tolist() == [3, 3, 3]
        assert len(set(chosen.tolist())) == 9
        assert np.array_equal(chosen, draw_shots(labels, 3, seed=1, draw=draw))
        seen.add(tuple(chosen))
    assert len(seen) == 6
    with pytest.raises(ValueError, match='class 0 has 5 training images, fewer than 6'):
        draw_shots(labels, 6, 0, 0)


# ---- nobody sees the test

def test_no_fit_takes_test_images():
    """What is fitted is a function of training features, their labels and held-out training rows alone."""
    taken = {name for function in (fit_linear, choose_l2, fit_neighbours, fit_prototypes, draw_shots)
             for name in inspect.signature(function).parameters}
    assert taken == {'features', 'labels', 'num_classes', 'l2', 'start', 'iterations', 'train', 'held', 'grid', 'k',
                     'shots', 'seed', 'draw'}


def test_fitting_leaves_features_and_gradients_alone():
    features, labels = rows()
    before = features.clone()
    state = torch.get_rng_state()
    with torch.no_grad():
        probe = fit_linear(features, labels, 4, 0.1)
    assert torch.equal(before, features)
    assert torch.equal(state, torch.get_rng_state())
    assert not probe.weight.requires_grad


@pytest.mark.parametrize(('change', 'words'), [
    ({'labels': torch.tensor([0, 1])}, r'labels \[N\]'), ({'features': torch.zeros(0, 3)}, 'N above 0'),
    ({'labels': torch.full((300,), 4)}, 'expected 0..3'), ({'l2': 0.}, 'above 0')])
def test_what_cannot_be_fitted_is_refused(change: dict, words: str):
    features, labels = rows()
    with pytest.raises(ValueError, match=words):
        fit_linear(**{'features': features, 'labels': labels, 'num_classes': 4, 'l2': 1., **change})


def test_a_class_without_an_image_has_no_prototype():
    features, labels = rows()
    with pytest.raises(ValueError, match='class 4 has no image'):
        fit_prototypes(features, labels, 5)
