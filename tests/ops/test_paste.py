"""Pasting against loops and torch's own resize."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gradmix_timm.ops import blend, mix_targets, noise_fill, paste, paste_donors, paste_resized, soft_targets

BOXES = torch.tensor([[2, 9, 3, 20], [0, 20, 0, 24], [5, 5, 1, 4]])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('channels', [1, 3])
def test_paste_equals_slices_and_keeps_dtype_and_format(dtype, memory, channels):
    images = torch.randn(3, channels, 20, 24).to(dtype).contiguous(memory_format=memory)
    before, donors = images.clone(), images.flip(0)
    mixed = paste(images, donors, BOXES)
    taken = paste_donors(images, torch.tensor([2, 1, 0]), BOXES)
    want = images.clone()
    for row, (yl, yh, xl, xh) in enumerate(BOXES.tolist()):
        want[row, :, yl:yh, xl:xh] = donors[row, :, yl:yh, xl:xh]
    assert torch.equal(images, before)
    for found in (mixed, taken):
        assert torch.equal(found, want)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=memory)


def test_resized_paste_is_the_antialiased_bilinear_resize():
    images = torch.randn(3, 3, 20, 24)
    donors = images.flip(0)
    whole = torch.tensor([[0, 20, 0, 24]] * 3)
    mixed = paste_resized(images, donors, whole, BOXES)
    want = F.interpolate(donors[:1], size=(7, 17), mode='bilinear', antialias=True)[0]
    assert torch.allclose(mixed[0, :, 2:9, 3:20], want, atol=1e-6)
    assert torch.equal(mixed[0, :, :2], images[0, :, :2])
    assert torch.allclose(mixed[1], donors[1], atol=1e-6)
    assert torch.equal(mixed[2], images[2])


def test_resized_paste_reads_its_source_box_only():
    images = torch.zeros(1, 1, 8, 8)
    donors = torch.full((1, 1, 8, 8), 9.0)
    donors[:, :, 2:4, 2:6] = 1.0
    mixed = paste_resized(images, donors, torch.tensor([[2, 4, 2, 6]]), torch.tensor([[1, 7, 0, 8]]))
    assert torch.allclose(mixed[:, :, 1:7], torch.ones(1, 1, 6, 8), atol=1e-6)


def test_blend_rounds_once_from_float32():
    images, donors = torch.randn(4, 3, 5, 5).bfloat16(), torch.randn(4, 3, 5, 5).bfloat16()
    keep = torch.rand(4, 1, 1, 1)
    want = (keep * images.double() + (1 - keep.double()) * donors.double())
    assert torch.allclose(blend(images, donors, keep).double(), want, atol=0.02)
    assert blend(images, donors, keep).dtype == torch.bfloat16


def test_noise_is_a_function_of_its_seed_and_moves_no_other_stream():
    images = torch.zeros(2, 3, 6, 7)
    state = torch.get_rng_state()
    first, again, other = noise_fill(images, 5), noise_fill(images, 5), noise_fill(images, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (2, 1, 6, 7)
    assert (first.min() >= 0) & (first.max() < 1)


def test_smoothing_is_timms():
    from timm.data.mixup import one_hot
    labels = torch.tensor([0, 3, 2])
    off, on = 0.1 / 5, 1 - 0.1 + 0.1 / 5
    assert torch.allclose(soft_targets(labels, 5, 0.1), one_hot(labels, 5, on_value=on, off_value=off))
    rows = torch.eye(5)[labels]
    assert torch.allclose(soft_targets(rows, 5, 0.1), soft_targets(labels, 5, 0.1))


def test_targets_mix_by_weight():
    rows = torch.eye(3)
    mixed = mix_targets(rows, torch.tensor([2, 0, 1]), torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]))
    assert mixed.tolist() == [[1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5]]
