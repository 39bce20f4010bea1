"""Which errors say that memory ran out, on whatever device."""
from __future__ import annotations

import torch

__all__ = ['is_out_of_memory']


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is of memory that ran out; PyTorch's allocator on the CPU raises a plain RuntimeError.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError('shapes differ'))
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
