"""Scores of features and logits together, and fitted scores of the softmax, against slow readings of their papers."""
from __future__ import annotations

from dataclasses import replace

import embedded
import numpy as np
import pytest
import torch
from scipy.stats import entropy

from gradmix_timm.openset.scores import Head, fit_score

TRAIN, QUERIES = embedded.make(240), embedded.make(40, seed=1)
HEAD = embedded.make_head()


def test_klm_is_the_divergence_from_the_nearest_mean_softmax():
    p = TRAIN.logits.double().softmax(1).numpy()
    answer = p.argmax(1)
    means = [p[answer == c].mean(0) for c in range(embedded.CLASSES)]
    expected = [-min(entropy(row, mean) for mean in means) for row in QUERIES.logits.double().softmax(1).numpy()]
    np.testing.assert_allclose(fit_score('klm', TRAIN)(QUERIES), expected, rtol=1e-9, atol=1e-12)


def test_klm_leaves_out_a_class_that_is_never_predicted():
    never = TRAIN.logits.clone()
    never[:, 2] = -100.
    score = fit_score('klm', replace(TRAIN, logits=never))
    assert score.diagnostics['classes'] == embedded.CLASSES - 1
    assert score(QUERIES).isfinite().all()


@pytest.mark.parametrize('name', ['klm', 'temperature'])
def test_scores_of_held_out_images_take_these_where_there_are_any(name):
    held = embedded.make(100, seed=2)
    found = fit_score(name, TRAIN, held_out=held)
    assert found.diagnostics['fit_on'] == 'held-out images'
    assert torch.equal(found(QUERIES), fit_score(name, held)(QUERIES))
    assert fit_score(name, TRAIN).diagnostics['fit_on'] == 'training images'
    assert torch.equal(fit_score('she', TRAIN, held_out=held)(QUERIES), fit_score('she', TRAIN)(QUERIES))


@pytest.mark.parametrize('metric', ['inner_product', 'euclidean', 'cosine'])
def test_she_compares_with_the_mean_of_the_predicted_class(metric):
    right = TRAIN.logits.argmax(1) == TRAIN.label
    expected = []
    for feature, logits in zip(QUERIES.features.double(), QUERIES.logits, strict=True):
        mean = TRAIN.features[right & (TRAIN.label == logits.argmax())].double().mean(0)
        expected.append({'inner_product': feature @ mean, 'euclidean': -(feature - mean).norm(),
                         'cosine': feature @ mean / feature.norm() / mean.norm()}[metric])
    torch.testing.assert_close(fit_score('she', TRAIN, metric=metric)(QUERIES), torch.stack(expected))


def test_she_names_a_class_of_which_no_training_sample_is_classified_right():
    with pytest.raises(ValueError, match=r'she needs .* but class 2 has 0; train the model longer'):
        fit_score('she', embedded.take(TRAIN, TRAIN.label != 2))


@pytest.mark.parametrize('normalizer', ['distance', 'norm'])
def test_fdbd_is_how_far_a_feature_may_go_before_the_answer_changes(normalizer):
    """Each distance by walking the feature on to the boundary, where the two logits agree."""
    weight, mean = HEAD.weight.double(), TRAIN.features.double().mean(0)
    expected = []
    for feature in QUERIES.features.double():
        logits = weight @ feature + HEAD.bias.double()
        y, far = logits.argmax(), []
        for c in range(embedded.CLASSES):
            if c != y:
                across = weight[y] - weight[c]
                there = feature - (logits[y] - logits[c]) / (across @ across) * across
                at_boundary = weight @ there + HEAD.bias.double()
                assert at_boundary[y] == pytest.approx(float(at_boundary[c]))
                far.append((there - feature).norm())
        expected.append(torch.stack(far).mean() / (feature - mean if normalizer == 'distance' else feature).norm())
    found = fit_score('fdbd', TRAIN, HEAD, normalizer=normalizer)(QUERIES)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=0)  # the given logits are float32


def test_fdbd_knows_no_boundary_between_classes_of_equal_weights():
    twin = Head(torch.cat([HEAD.weight, HEAD.weight[:1]]), torch.cat([HEAD.bias, HEAD.bias[:1]]))
    train, queries = (replace(part, logits=twin(part.features).float()) for part in (TRAIN, QUERIES))
    assert fit_score('fdbd', train, twin)(queries).isfinite().all()


def test_nci_is_the_weight_along_the_centred_feature():
    mean = TRAIN.features.double().mean(0)
    centred = QUERIES.features.double() - mean
    weight = HEAD.weight.double()[QUERIES.logits.argmax(1)]
    expected = weight.norm(dim=1) * torch.cosine_similarity(weight, centred) + .01 * QUERIES.features.abs().sum(1)
    torch.testing.assert_close(fit_score('nci', TRAIN, HEAD, alpha=.01)(QUERIES), expected)


@pytest.mark.parametrize('temperature', [1., 3.])
def test_gradnorm_is_the_norm_that_a_backward_pass_gives(temperature):
    expected = []
    for feature in QUERIES.features.double():
        weight = HEAD.weight.double().requires_grad_()
        logits = (weight @ feature + HEAD.bias.double()) / temperature
        (-logits.log_softmax(0).mean()).backward()
        expected.append(weight.grad.abs().sum())
    found = fit_score('gradnorm', None, temperature=temperature)(QUERIES)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=0)
