"""Records that the stages of a training run pass on."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import NativeScaler
from torch import nn

from gradmix_timm.data import ClassSplit, CutDataset
from gradmix_timm.data.identity import identities
from gradmix_timm.data.preprocessing import Preprocessing

__all__ = ['Built', 'Data', 'Hardware', 'Loaders']


@dataclass(frozen=True)
class Hardware:
    """Where and in what precision a run computes.

    Attributes:
        device: Of this process.
        dtype: Of the model where --model-dtype is given.
        autocast: Makes the context of a forward pass.
        scaler: Of the loss, for float16 on CUDA.
    """

    device: torch.device
    dtype: torch.dtype | None
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: NativeScaler | None


@dataclass(frozen=True)
class Built:
    """A model ready for its task.

    Attributes:
        model: On its device.
        name: timm's name of its architecture.
        kwargs: What ``timm.create_model`` needs to make it again.
        preprocessing: Of validation images, here and in every later evaluation.
        patch_size: For NaFlex loaders.
    """

    model: nn.Module
    name: str
    kwargs: dict[str, Any]
    preprocessing: Preprocessing
    patch_size: tuple[int, int] | None


@dataclass(frozen=True)
class Data:
    """Images that a run trains and validates on.

    Attributes:
        train: Training images.
        eval: Validation images, or None.
        known: Class names in head order; empty if unknown or not one for each output.
        split: Known and unknown classes of an open-set run, checked against the data; None for a plain run.
        held: Part of the train split that is held out for validation, or None.
        flat_test: Part of the train split that is kept for the test, where the data has no split folders, or None.
        overlap: Validation images of a plain run that are training images: 'paths', 'contents', of 'images'; or empty.
    """

    train: Any
    eval: Any
    known: tuple[str, ...]
    split: ClassSplit | None
    held: CutDataset | None = None
    flat_test: CutDataset | None = None
    overlap: dict[str, int] = field(default_factory=dict)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Entries of a ``RunRecord`` by which the same images are found again."""
        held, flat = self.held, self.flat_test
        return {
            'held_out': identities(held) if held is not None else {},
            'flat_test': identities(flat) if flat is not None else {},
            'validation_overlap': self.overlap}


@dataclass(frozen=True)
class Loaders:
    """timm's loaders.

    Attributes:
        train: Of training batches.
        eval: Of validation batches, or None.
        mixup: timm's mixer in the step, where there is no prefetcher or images are cached.
        scaling: How gradients scale with the size of a batch that varies: 'none', 'sqrt', 'linear'; None where it
            does not vary.
        batch_reference: Mean images a batch.
        naflex: Batches are dicts of patches.
        bank: Of training images as validation sees them, for a contrastive objective; else None.
    """

    train: Any
    eval: Any
    mixup: Mixup | None
    scaling: str | None
    batch_reference: float
    naflex: bool
    bank: Any = None

    def switch_off_mixing(self) -> None:
        """Switch timm's mixer off; its targets are then smoothed one-hots."""
        if self.mixup is not None:
            self.mixup.mixup_enabled = False
        elif getattr(self.train, 'mixup_enabled', False):
            self.train.mixup_enabled = False
