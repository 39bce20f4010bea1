"""Labels of every kind against a loop over rows and classes."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from gradmix_timm.ops.targets import as_targets, mix_targets, soft_targets


@pytest.mark.parametrize('labels', [
    [2, 0], (2, 0), np.array([2, 0], dtype=np.uint8), torch.tensor([2, 0], dtype=torch.int16)])
def test_class_indices_of_any_kind_become_int64(labels):
    found = as_targets(labels)
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0]


def test_rows_are_left_as_they_are_and_words_are_refused():
    rows = torch.rand(2, 3)
    assert as_targets(rows) is rows
    assert as_targets(torch.tensor([True, False])).dtype == torch.bool
    with pytest.raises(TypeError, match=r'class indices .* got list'):
        as_targets(['cat', 'dog'])


@pytest.mark.parametrize('smoothing', [0., .1])
def test_smoothed_rows_are_timms(smoothing):
    labels, classes = torch.tensor([3, 0, 2]), 5
    wanted = [[1 - smoothing + smoothing / classes if k == label else smoothing / classes for k in range(classes)]
              for label in labels.tolist()]
    torch.testing.assert_close(soft_targets(labels, classes, smoothing), torch.tensor(wanted))
    rows = torch.eye(classes)[labels]
    torch.testing.assert_close(soft_targets(rows, classes, smoothing), torch.tensor(wanted))


@pytest.mark.parametrize('unknown_output', [False, True])
def test_mixed_rows_are_weighted_sums_and_what_is_of_no_class(unknown_output):
    rng = torch.Generator().manual_seed(0)
    rows, partner = torch.rand(4, 3, generator=rng), torch.tensor([1, 2, 3, 0])
    weight, unknown = torch.rand(4, 2, generator=rng), torch.rand(4, generator=rng)
    wanted = torch.zeros(4, 3)
    for i in range(4):
        for k in range(3):
            wanted[i, k] = weight[i, 0] * rows[i, k] + weight[i, 1] * rows[partner[i], k]
            wanted[i, k] += (unknown[i] if k == 2 else 0) if unknown_output else unknown[i] / 3
    found = mix_targets(rows, partner, weight, unknown=unknown, unknown_output=unknown_output)
    torch.testing.assert_close(found, wanted)
