"""Copies from the host to the device."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ['to_device']


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small host array, not of float64 (which not every device has), to the device without synchronising."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
