"""Tiny models and batches for every room's tests, and evaluations without pictures.

PyTorch and timm are imported by the fixtures: the process that only hands out the tests reads this file too.
"""
from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imports and thousands of tests are no garbage: full collections looked through them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_threads():
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(1)


def tiny(name: str, **kwargs) -> nn.Module:
    """A test model of timm's with dropout and drop path, 10 classes, in training mode."""
    import timm
    import torch
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, drop_rate=0.3, drop_path_rate=0.3, **kwargs).train()


@pytest.fixture
def tiny_cnn() -> nn.Module:
    """timm's test_resnet with dropout and drop path, 10 classes, in training mode."""
    return tiny('test_resnet')


@pytest.fixture
def tiny_vit() -> nn.Module:
    """timm's test_vit at 64 px with dropout and drop path, 10 classes, in training mode."""
    return tiny('test_vit', img_size=64)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images of 64 px, every label different."""
    import torch
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 64, 64, generator=generator), torch.arange(8)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures and page of an evaluation take longer than the evaluation of tiny data; here a page is a line."""
    for place in ('evaluation.result', 'cli.openset.report'):
        monkeypatch.setattr(f'gradmix_timm.{place}.draw', lambda folder: (folder / 'report.html').write_text('a page'))


@pytest.fixture
def workers_end(monkeypatch):
    """Ends the workers of loaders that broke off.

    An error of a worker is in a cycle with the loader's iterator, and the garbage collection that finds them has closed
    the queues before the iterator tells its workers to end: it waits for five seconds and kills them.
    """
    from torch.utils.data import DataLoader
    begin, begun = DataLoader._get_iterator, []
    monkeypatch.setattr(DataLoader, '_get_iterator', lambda self: begun.append(begin(self)) or begun[-1])
    yield
    for iterator in begun:
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()
