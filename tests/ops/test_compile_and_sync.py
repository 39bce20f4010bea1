"""Mixing compiles into one graph for any boxes, and on a GPU never waits for the device."""
from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradmix_timm import create_mixer
from gradmix_timm.data import batch_augment
from gradmix_timm.data.batch_augment import BatchAugment
from gradmix_timm.ops import (
    box_lam,
    boxes_at,
    boxes_inside,
    mix_targets,
    paste_donors,
    paste_resized,
    sample_center,
    soft_targets,
    window_boxes,
)

SIZE = (24, 32)


def mix(images, labels, maps, partner, sides, u, fill):
    """All that follows the attribution: window, box, paste, label weights."""
    boxes = window_boxes(maps, sides)
    around = boxes_at(sample_center(maps, u[:, 0]), sides, SIZE)
    boxes = torch.where(u[:, :1] < 0.5, boxes, torch.where(u[:, 1:] < 0.5, around, boxes_inside(u, sides, SIZE)))
    lam = box_lam(boxes, SIZE)
    rows = mix_targets(soft_targets(labels, 5, 0.1), partner, torch.stack([lam, 1 - lam], 1))
    if fill == 'donor':
        return paste_donors(images, partner, boxes), rows
    whole = torch.tensor([0, SIZE[0], 0, SIZE[1]], device=images.device).expand(images.shape[0], 4)
    return paste_resized(images, images[partner], whole, boxes), rows


def case(seed: int, batch: int):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 3, *SIZE, generator=rng), torch.arange(batch) % 5,
            torch.rand(batch, *SIZE, generator=rng), torch.randperm(batch, generator=rng),
            torch.randint(0, 24, (batch, 2), generator=rng), torch.rand(batch, 2, generator=rng))


@pytest.mark.slow
@pytest.mark.parametrize('fill', ['donor', 'donor-resized'])
def test_one_graph_serves_all_boxes(fill):
    counter = CompileCounter()
    compiled = torch.compile(mix, backend=counter, fullgraph=True, dynamic=True)
    for seed, batch in enumerate((8, 8, 6)):
        arguments = case(seed, batch)
        for found, want in zip(compiled(*arguments, fill), mix(*arguments, fill), strict=True):
            assert torch.equal(found, want)
    assert counter.frame_count == 1, 'boxes are data, not shapes: nothing is compiled again'


@pytest.mark.gpu
@pytest.mark.parametrize('name', [
    'cutmix', 'mixup', 'random-box', 'center-box', 'gradmix', 'cutout', 'random-erasing', 'resizemix', 'fmix',
    'gridmix', 'saliencymix', 'attentivemix', 'snapmix', 'puzzlemix', 'regmixup', 'openmix', 'pixmix', 'tokenmix'])
@pytest.mark.parametrize('prob', [1.0, 0.5])
def test_a_mixed_step_never_waits_for_the_gpu(name, prob):
    import timm
    model = timm.create_model('resnet18', num_classes=5).cuda().train()
    images, labels = torch.randn(8, 3, 64, 64, device='cuda'), torch.arange(8, device='cuda') % 5
    mixer = create_mixer(name, num_classes=5, prob_elem=prob)
    mixer.prepare(model, (3, 64, 64))
    with torch.autocast('cuda', torch.bfloat16):
        for _ in range(3):  # labels are checked, and kernels chosen, in the first steps
            mixer(images, labels, model)
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode('error')
            mixed, rows = mixer(images, labels, model)
            (-(rows * model(mixed).float().log_softmax(1)).sum(1).mean()).backward()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert mixed.device == images.device
    assert mixed.isfinite().all()


# Without a GPU: tensors without data, whose values nothing can read, stand for those of one.

class NoBlockingCopy(TorchDispatchMode):
    """Refuses copies between devices that wait until the device has done all that it was given before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.device != args[0].device:
            assert (kwargs or {}).get('non_blocking'), f'a blocking copy of {list(args[0].shape)}'
        return result


class NoTensorOfValues(TorchFunctionMode):
    """Refuses ``torch.tensor(values, device=...)``, which copies them in the same way."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        device = torch.device((kwargs or {}).get('device') or 'cpu')
        assert function is not torch.tensor or device.type == 'cpu', 'values are copied to the device'
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting():
    with NoBlockingCopy(), NoTensorOfValues():
        yield


@pytest.fixture
def meta(monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *args, **options: contextlib.nullcontext())  # knows no such device
    return torch.device('meta')


@pytest.mark.parametrize(('name', 'options'), [
    ('cutmix', {}), ('mixup', {}), ('random-box', {}), ('center-box', {}), ('cutout', {}), ('resizemix', {}),
    ('gridmix', {}), ('saliencymix', {}), ('regmixup', {}), ('openmix', {}), ('guidedmix', {'pairing': 'random'}),
    ('pixmix', {}), ('pixmix', {'mean': (0.5,) * 3, 'std': (0.2,) * 3})], ids=str)
def test_no_mix_waits_for_a_copy(name, options, meta):
    images, labels = torch.empty(8, 3, 16, 16, device=meta), torch.empty(8, dtype=torch.int64, device=meta)
    mixer = create_mixer(name, num_classes=5, prob_elem=0.7, **options)
    mixer.set_step(1, 0)  # labels are checked in the first steps of the first epoch
    mixer(images, labels)  # what is copied once
    with no_waiting():
        mixed, rows = mixer(images, labels)
    assert mixed.device == rows.device == images.device


@pytest.mark.parametrize('options', [{}, {'padding': 2, 'fill': (9., 0., 1.)}], ids=str)
@pytest.mark.parametrize('table', [True, False])
def test_no_augmentation_waits_for_a_copy(options, table, monkeypatch, meta):
    if not table:
        monkeypatch.setattr(batch_augment, '_TABLE_BYTES', 0)
    augment = BatchAugment((8, 8), vflip=0.5, grayscale_prob=0.5, **options)
    images = torch.empty(6, 3, 10, 10, dtype=torch.uint8, device=meta)
    draw = augment.draw(np.random.default_rng(0), 6, (10, 10))
    augment.apply(images, draw)
    with no_waiting():
        assert augment.apply(images, draw).device == images.device
