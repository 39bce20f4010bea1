"""Affine maps of images, one for each image of a batch."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['rotation', 'warp']


def rotation(angle: Tensor, size: tuple[int, int]) -> Tensor:
    """The map of :func:`warp` that turns an image counter-clockwise about its middle.

    Args:
        angle: Radians, [B].
        size: (H, W).

    Returns:
        float32 [B, 2, 3].
    """
    cos, sin = angle.float().cos(), angle.float().sin()
    y, x = (side / 2 for side in size)
    return torch.stack([torch.stack([cos, -sin, x - cos * x + sin * y], 1),
                        torch.stack([sin, cos, y - sin * x - cos * y], 1)], 1)


def warp(images: Tensor, matrix: Tensor, mode: str = 'bilinear') -> Tensor:
    """Each image read at ``matrix @ (x, y, 1)``; 0 where that lies outside.

    Args:
        images: float [B, C, H, W].
        matrix: From places in the result to places in the image, in pixels (x to the right, y down, the first pixel's
            middle at 0.5), float [B, 2, 3]; as PIL's ``Image.transform(..., AFFINE, ...)``.
        mode: 'bilinear' or 'nearest'.

    Returns:
        [B, C, H, W], the images' dtype.
    """
    height, width = images.shape[2:]
    y = torch.arange(height, dtype=torch.float32, device=images.device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=images.device) + 0.5
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(
        height, width)], -1)
    with torch.autocast(images.device.type, enabled=False):
        at = (places[None, :, :, None] @ matrix.float()[:, None, None].transpose(3, 4))[..., 0, :]
        # Not by a tensor of the two sides: to copy that to a GPU waits for it.
        grid = torch.stack([2 * at[..., 0] / width - 1, 2 * at[..., 1] / height - 1], -1)
        return F.grid_sample(images.float(), grid, mode=mode, align_corners=False).to(images.dtype)
