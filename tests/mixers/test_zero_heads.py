"""Classifiers that start at zero have no gradient before their first update: GradMix falls back, and recovers."""
from __future__ import annotations

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torchvision.models import VisionTransformer

from gradmix_timm import create_mixer

# Every family of timm that starts its head at zero (mlp_mixer, sequencer; swin_transformer_v2_cr and
# vision_transformer by an initialisation of theirs), made small; and torchvision's ViT.
SMALL = {
    'mixer': lambda: MlpMixer(num_classes=5, img_size=64, patch_size=8, num_blocks=2, embed_dim=32),
    'sequencer': lambda: timm.create_model('sequencer2d_s', img_size=64, layers=(1, 1, 1, 1), num_classes=5,
                                           embed_dims=(16, 32, 32, 32), hidden_sizes=(4, 8, 8, 8)),
    'swinv2_cr': lambda: timm.create_model('swinv2_cr_tiny_ns_224', img_size=64, window_size=4, depths=(1, 1, 1, 1),
                                           embed_dim=16, num_heads=(1, 1, 2, 2), weight_init='', num_classes=5),
    'vit, jax': lambda: timm.create_model('test_vit', img_size=64, weight_init='jax', num_classes=5),
    'torchvision vit': lambda: VisionTransformer(64, 8, 2, 2, 32, 64, num_classes=5),
}


@pytest.mark.parametrize('name', SMALL)
def test_all_rows_fall_back_until_the_first_update(name):
    torch.manual_seed(0)
    model = SMALL[name]().train()
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and not module.weight.any()]
    assert heads, 'the head starts at zero'
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 5
    mixer = create_mixer('gradmix', num_classes=5)
    mixer.prepare(model, (3, 64, 64))
    first = mixer.draw(images, labels, model)
    assert first.fallback.all()
    assert not any(head.weight.any() for head in heads), 'the head is as it was'
    mixed, rows = mixer.apply(images, labels, first)
    assert mixed.isfinite().all()
    assert torch.allclose(rows.sum(1), torch.ones(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = -(rows * model(mixed).log_softmax(1)).sum(1).mean()
    loss.backward()
    optimizer.step()
    assert not mixer.draw(images, labels, model).fallback.any()
