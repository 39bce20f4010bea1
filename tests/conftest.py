"""Tiny models and batches for every room's tests."""
from __future__ import annotations

import pytest
import timm
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _quiet_threads():
    torch.set_num_threads(1)


@pytest.fixture
def tiny_cnn() -> nn.Module:
    """timm's test_resnet with dropout and drop path, 10 classes, in training mode."""
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=10, drop_rate=0.3, drop_path_rate=0.3).train()


@pytest.fixture
def tiny_vit() -> nn.Module:
    """timm's test_vit at 64 px with dropout and drop path, 10 classes, in training mode."""
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=10, img_size=64, drop_rate=0.3, drop_path_rate=0.3).train()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images of 64 px, every label different."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 64, 64, generator=generator), torch.arange(8)
