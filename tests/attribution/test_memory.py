"""The mixed step needs no more memory than a CutMix step."""
from __future__ import annotations

import pytest
import timm
import torch
from peak_memory import PeakMemory

from gradmix_timm import create_mixer


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224', 'convnext_atto'])
def test_peak_memory_is_that_of_cutmix(name):
    size = 96
    options = {'img_size': size} if 'vit' in name else {}
    model = timm.create_model(name, num_classes=10, **options).train()
    images, labels = torch.randn(8, 3, size, size), torch.arange(8)

    def peak(mixer):
        if mixer.requires_model:
            mixer.prepare(model, (3, size, size))
        model.zero_grad()
        with PeakMemory() as memory:
            mixed, rows = mixer(images, labels, model)
            loss = -(rows * model(mixed).log_softmax(1)).sum(1).mean()
            loss.backward()
        return memory.peak

    cutmix = peak(create_mixer('cutmix', num_classes=10))
    assert cutmix > 4 * images.numel()
    assert peak(create_mixer('gradmix', num_classes=10)) <= 1.05 * cutmix
    assert peak(create_mixer('none', num_classes=10)) < cutmix
