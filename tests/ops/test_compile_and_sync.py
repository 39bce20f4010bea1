"""Mixing compiles into one graph for any boxes, and on a GPU never waits for the device."""
from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gradmix_timm import create_mixer
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
    'gridmix', 'saliencymix', 'attentivemix', 'snapmix', 'puzzlemix', 'regmixup', 'openmix'])
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
