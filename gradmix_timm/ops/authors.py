"""Sides of boxes as the GradMix authors' code makes them."""
from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['authors_sides']


def authors_sides(lam: Tensor, size: tuple[int, int]) -> Tensor:
    """Nominal sides of a box, floor(side * sqrt(1 - lam)), all in float32 as theirs: a floor may turn on a last bit.

    Args:
        lam: Drawn kept share in [0, 1], [] or [B].
        size: Image (H, W).

    Returns:
        int64 [2] or [B, 2], (height, width).

    Example:
        >>> authors_sides(torch.tensor([0.5, 0.75]), (32, 32))
        tensor([[22, 22],
                [16, 16]])
    """
    ratio = (1 - lam.float()).sqrt()
    return torch.stack([(side * ratio).long() for side in size], -1)
