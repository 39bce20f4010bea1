"""Class-wise neighbours against slow loops; what is refused."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from gradmix_timm.openset.scores.class_neighbours import class_neighbour_shares, class_neighbour_sums


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
@pytest.mark.parametrize('chunk', [1, 5, 2048])
def test_sums_equal_slow_loops(k, chunk):
    features, labels, queries = make()
    sums = class_neighbour_sums(features, labels, queries, k=k, chunk=chunk)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, slow(features, labels, queries, k), rtol=0, atol=1e-13)


def test_unit_rows_need_no_normalisation_and_other_rows_do():
    features, labels, queries = make()
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (features, queries)]
    expected = class_neighbour_sums(features, labels, queries)
    plain = class_neighbour_sums(unit[0], labels, unit[1], normalize=False)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-13)
    assert not torch.allclose(class_neighbour_sums(features, labels, queries, normalize=False), expected)


@pytest.mark.parametrize(('given', 'used', 'atol'), [
    (torch.float32, torch.float32, 1e-5), (torch.bfloat16, torch.float32, 0.05), (torch.float16, torch.float32, 0.01)])
def test_half_precision_is_computed_in_float32(given, used, atol):
    features, labels, queries = make()
    with torch.autocast('cpu', torch.bfloat16):
        sums = class_neighbour_sums(features.to(given), labels, queries.to(given))
    assert sums.dtype == used
    torch.testing.assert_close(sums.double(), slow(features, labels, queries, 3), rtol=0, atol=atol)
    # Rounding the inputs is all that half precision costs.
    exact = slow(features.to(given).double(), labels, queries.to(given).double(), 3)
    torch.testing.assert_close(sums.double(), exact, rtol=0, atol=1e-5)


def test_order_of_samples_and_company_of_queries_do_not_matter():
    features, labels, queries = make()
    expected = class_neighbour_sums(features, labels, queries)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(class_neighbour_sums(features[order], labels[order], queries), expected)
    alone = torch.cat([class_neighbour_sums(features, labels, q[None]) for q in queries])
    torch.testing.assert_close(alone, expected)
    assert class_neighbour_sums(features, labels, queries[:0]).shape == (0, 4)


def test_a_class_with_too_few_samples_is_named():
    features, labels, queries = make()
    keep = (labels != 2) | (torch.arange(60) == (labels == 2).nonzero()[0])
    with pytest.raises(ValueError, match=r'k=3 .* class 2 has 1; give more samples or a smaller k'):
        class_neighbour_sums(features[keep], labels[keep], queries)
    with pytest.raises(ValueError, match='class 4 has 0, class 5 has 0'):
        class_neighbour_sums(features, labels, queries, num_classes=6)


@pytest.mark.parametrize(('change', 'message'), [
    ({'labels': torch.zeros(60)}, 'labels int64'),
    ({'labels': torch.zeros(59, dtype=torch.int64)}, 'one a feature row'),
    ({'labels': torch.full((60,), -1)}, 'leave unknown samples out'),
    ({'num_classes': 2}, 'labels go from 0 to 1'),
    ({'queries': torch.zeros(3, 6)}, r'queries float \[rows, 7\]'),
    ({'features': torch.zeros(60, 7, 1)}, r'features float \[rows, D\]'),
    ({'k': 0}, 'neighbours, at least 1'),
    ({'chunk': 0}, 'at a time, at least 1'),
])
def test_wrong_input_is_refused(change, message):
    features, labels, queries = make()
    with pytest.raises(ValueError, match=message):
        class_neighbour_sums(**{'features': features, 'labels': labels, 'queries': queries, **change})


def test_shares_sum_to_one_and_refuse_a_denominator_of_zero_or_less():
    sums = torch.tensor([[2., 1., 1.], [1., -1., -0.5], [1., -1., 0.]])
    torch.testing.assert_close(class_neighbour_shares(sums[:1]), torch.tensor([[0.5, 0.25, 0.25]]))
    with pytest.raises(ValueError, match=r'2 of 3 queries .*query 1: -0\.5.* use the sums themselves'):
        class_neighbour_shares(sums)
    torch.testing.assert_close(class_neighbour_shares(sums[:2], signed=True),
                               torch.tensor([[0.5, 0.25, 0.25], [-2., 2., 1.]]))
