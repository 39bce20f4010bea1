"""Recognise out-of-memory errors of any device."""
from __future__ import annotations

import torch

__all__ = ['is_out_of_memory']


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory; PyTorch's CPU allocator raises a plain RuntimeError.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError('shapes differ'))
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
