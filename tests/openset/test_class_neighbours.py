"""Class-wise neighbours against slow loops; what is refused."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from gradmix_timm.openset.scores import fit_score
from gradmix_timm.openset.scores import neighbours as module
from gradmix_timm.openset.scores.neighbours import class_neighbour_sums
from gradmix_timm.records import Embeddings


def make(n: int = 60, classes: int = 4, queries: int = 23, dim: int = 7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    labels = labels[torch.randperm(n, generator=generator)]
    labels[:3] = 0  # classes of unequal size
    return (torch.randn(n, dim, generator=generator, dtype=dtype), labels,
            3 * torch.randn(queries, dim, generator=generator, dtype=dtype))


def slow(features, labels, queries, k):
    """One query, one class, one sample at a time, sorted."""
    features, queries, out = features.numpy(), queries.numpy(), []
    for query in queries:
        row = []
        for label in range(int(labels.max()) + 1):
            members = features[labels.numpy() == label]
            cosines = [m @ query / np.linalg.norm(m) / np.linalg.norm(query) for m in members]
            row.append(sum(sorted(cosines)[-k:]))
        out.append(row)
    return torch.tensor(np.array(out))


@pytest.mark.parametrize('k', [1, 3, 10])
@pytest.mark.parametrize('block', [1, 5, 4096])
def test_sums_equal_slow_loops(k, block, monkeypatch):
    monkeypatch.setattr(module, '_CLASS_ROWS', block)
    features, labels, queries = make()
    sums = class_neighbour_sums(features, labels, queries, k, 4)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, slow(features, labels, queries, k), rtol=0, atol=1e-13)


@pytest.mark.parametrize('given', [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_the_features_is_all_that_a_lower_precision_costs(given):
    features, labels, queries = make()
    with torch.autocast('cpu', torch.bfloat16):
        sums = class_neighbour_sums(features.to(given), labels, queries.to(given), 3, 4)
    exact = slow(features.to(given).double(), labels, queries.to(given).double(), 3)
    torch.testing.assert_close(sums, exact, rtol=0, atol=1e-13)


def test_order_of_samples_and_company_of_queries_do_not_matter():
    features, labels, queries = make()
    expected = class_neighbour_sums(features, labels, queries, 3, 4)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(class_neighbour_sums(features[order], labels[order], queries, 3, 4), expected)
    alone = torch.cat([class_neighbour_sums(features, labels, q[None], 3, 4) for q in queries])
    torch.testing.assert_close(alone, expected)
    assert class_neighbour_sums(features, labels, queries[:0], 3, 4).shape == (0, 4)


def test_a_class_with_too_few_samples_is_named():
    features, labels, queries = make()
    keep = (labels != 2) | (torch.arange(60) == (labels == 2).nonzero()[0])
    with pytest.raises(ValueError, match=r'k=3 .* class 2 has 1; give more samples or a smaller k'):
        class_neighbour_sums(features[keep], labels[keep], queries, 3, 4)
    with pytest.raises(ValueError, match='class 4 has 0, class 5 has 0'):
        class_neighbour_sums(features, labels, queries, 3, 6)


def embedded(rows, labels):
    return Embeddings(torch.zeros(len(rows), 3), rows, None, labels, torch.arange(len(rows)))


def test_shares_are_of_the_sums_and_refuse_a_denominator_of_zero_or_less():
    samples, labels = torch.eye(3), torch.arange(3)
    score = fit_score('class-knn-share', embedded(samples, labels), k=1)
    queries = torch.tensor([[2., 1., 1.], [1., -1., -0.5], [1., -1., 0.]])
    assert score(embedded(queries[:1], labels[:1])).tolist() == pytest.approx([0.5])
    with pytest.raises(ValueError, match=r'2 of 3 queries .*query 1: -0\.3333.* score by class-knn'):
        score(embedded(queries, labels))
