"""NNGuide and the relation graph against slow readings of their papers, and what their shortcuts leave alone."""
from __future__ import annotations

from dataclasses import replace

import embedded
import pytest
import torch
from torch.nn.functional import normalize

from gradmix_timm.openset.scores import fit_score, guided

TRAIN, QUERIES = embedded.make(240), embedded.make(40, seed=1)


@pytest.mark.parametrize(('options', 'k', 'step'), [({}, 10, 1), ({'k': 3}, 3, 1), ({'k': 3, 'share': .25}, 3, 4)])
def test_nnguide_is_the_energy_times_the_mean_of_the_largest_products_with_the_bank(options, k, step):
    bank = normalize(TRAIN.features.double(), dim=1) * TRAIN.logits.double().logsumexp(1)[:, None]
    products = normalize(QUERIES.features.double(), dim=1) @ bank[::step].T
    expected = products.sort(1, descending=True).values[:, :k].mean(1) * QUERIES.logits.double().logsumexp(1)
    torch.testing.assert_close(fit_score('nnguide', TRAIN, **options)(QUERIES), expected, rtol=1e-12, atol=0)


def test_nnguide_takes_all_samples_where_there_are_fewer_than_its_default():
    assert fit_score('nnguide', embedded.make(8)).options == {'k': 8, 'share': 1.}
    with pytest.raises(ValueError, match='k=11 neighbours of 8 training samples'):
        fit_score('nnguide:k=11', embedded.make(8))


def slow_relation(train, queries, power, threshold):
    p, of_train = queries.logits.double().softmax(1), train.logits.double().softmax(1)
    found = []
    for row in range(len(p)):
        total = 0.
        for i in range(len(of_train)):
            cosine = torch.cosine_similarity(queries.features[row].double(), train.features[i].double(), dim=0)
            relation = float(cosine.clamp(min=0) * (p[row] @ of_train[i]))
            total += relation ** power if relation > threshold else 0.
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(('power', 'threshold'), [(1., .03), (4., .03), (1., 0.), (2., .5)])
def test_relation_is_the_sum_over_all_training_samples(power, threshold):
    queries = embedded.take(QUERIES, slice(5))
    found = fit_score('relation', TRAIN, power=power, threshold=threshold)(queries)
    torch.testing.assert_close(found, slow_relation(TRAIN, queries, power, threshold), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('sharpness', [.1, 1., 10.])
def test_blocks_that_are_passed_by_change_nothing(sharpness, monkeypatch):
    """Small blocks of sure nets are mostly passed by; the sums are those over everything."""
    monkeypatch.setattr(guided, '_SAMPLES', 16)
    train, queries = (replace(part, logits=part.logits * sharpness) for part in (TRAIN, QUERIES))
    score = fit_score('relation', train)
    everything = fit_score('relation', train)
    everything.others = torch.full_like(everything.others, 2.)  # every bound reaches the threshold
    torch.testing.assert_close(score(queries), everything(queries), rtol=1e-12, atol=0)  # other shapes, other roundings
    if sharpness == 10:
        p = queries.logits.double().softmax(1)[:, score.answers]
        assert (p * score.most + (1 - p) * score.others > .03).double().mean() < .6
