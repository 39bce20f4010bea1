"""Boxes, pastes and targets alone, against timm's elem mode and torchvision's CutMix on the same batch."""
from __future__ import annotations

import pytest
import torch
from timing import interleaved
from torchvision.transforms import v2

from gradmix_timm import create_mixer
from gradmix_timm.attribution import to_pixels
from gradmix_timm.ops import window_boxes


@pytest.mark.parametrize(('size', 'batch'), [(32, 256), (64, 128), (224, 64)])
def test_mixing(size, batch, benchmark, record, device):
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device) % 10
    common = {'num_classes': 10}
    timms = create_mixer('elem', mixup_alpha=0.0, cutmix_alpha=1.0, **common)
    ours, box = create_mixer('cutmix', **common), create_mixer('random-box', **common)
    resized = create_mixer('random-box', fill='donor-resized', **common)
    theirs = v2.CutMix(num_classes=10)
    maps = torch.rand(batch, 7, 7, device=device)
    sides = torch.randint(size // 8, size // 2, (batch, 2), device=device)
    runs = {
        # timm writes into the batch it is given: the copy keeps its input alive, as the others do.
        'timm elem, on a copy': lambda: timms(images.clone(), labels),
        'timm elem, in place': lambda: timms(images, labels),
        'torchvision CutMix (one box a batch)': lambda: theirs(images, labels),
        'cutmix': lambda: ours(images, labels),
        'random-box': lambda: box(images, labels),
        'random-box, donor resized': lambda: resized(images, labels),
        'window search': lambda: window_boxes(to_pixels(maps, (size, size)), sides),
    }
    benchmark.pedantic(runs['random-box'], rounds=10, warmup_rounds=2)
    figures = interleaved(runs, 'torchvision CutMix (one box a batch)', device, rounds=31)
    record('mixing', f'{size}px x {batch}', figures)
