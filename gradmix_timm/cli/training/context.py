"""What one stage of a training run hands to the next."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import NativeScaler
from torch import nn

from gradmix_timm.data import ClassSplit
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
    """What a run trains and validates on.

    Attributes:
        train: Training images.
        eval: Validation images, or None.
        known: Class names in head order; empty where they are not told or not one for each output.
        split: Known and unknown classes of an open-set run, checked against the data; None for a plain run.
        val_indices: Positions in the train split that are held out.
    """

    train: Any
    eval: Any
    known: tuple[str, ...]
    split: ClassSplit | None
    val_indices: tuple[int, ...]


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
        """Mix no more with timm's mixer; its targets stay smoothed one-hots."""
        if self.mixup is not None:
            self.mixup.mixup_enabled = False
        elif getattr(self.train, 'mixup_enabled', False):
            self.train.mixup_enabled = False
