"""Boxes as tensors: their sides, where to put them, what they hide. No randomness, no model, no loop over images."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    'argmax_center',
    'box_lam',
    'box_mask',
    'box_mass',
    'boxes_at',
    'boxes_inside',
    'image_size',
    'sample_center',
    'share_of',
    'whole_boxes',
    'window_boxes',
]


#: Below this share of a map's mass two places count as equal.
_TIE = 2e-6
#: One, for a share given as a whole number. NumPy's uniform float64 numbers are multiples of half of that.
SHARE_UNIT = 2 ** 54
_DIGIT_BITS = 18
# Sum of the mass of a map in whole numbers.
_MASS = 2 ** 40


def image_size(images: Tensor) -> tuple[int, int]:
    """(H, W) of images [B, C, H, W]."""
    return images.shape[2], images.shape[3]


def whole_boxes(batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """The box of the whole image, for each of ``batch`` rows: int64 [B, 4]."""
    zero = torch.zeros(batch, dtype=torch.int64, device=device)
    return torch.stack([zero, zero + size[0], zero, zero + size[1]], 1)


def _check_boxes(boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or boxes.dtype != torch.int64:
        raise ValueError(f'expected boxes int64 [B, 4] (yl, yh, xl, xh), got {boxes.dtype} {list(boxes.shape)}')


def box_lam(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each image that survives a rectangular paste.

    Measured from the clipped box, not from the Beta draw (timm: ``correct_lam``):
    lam = 1 - (yh - yl)(xh - xl) / (H W).  CutMix, arXiv:1905.04899, eqs. 1-2.

    Args:
        boxes: Half-open pixels (yl, yh, xl, xh), int64 [B, 4], inside the image.
        size: Image (H, W) in pixels.

    Returns:
        float32 [B] in [0, 1], same device; 1 means that nothing is pasted.

    Raises:
        ValueError: Wrong shape or dtype.

    Example:
        >>> box_lam(torch.tensor([[0, 16, 0, 16], [4, 4, 0, 9]]), (32, 32))
        tensor([0.7500, 1.0000])
    """
    _check_boxes(boxes)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return 1 - area.float() / (size[0] * size[1])


def boxes_at(center: Tensor, sides: Tensor, size: tuple[int, int], placement: str = 'clip') -> Tensor:
    """Boxes around given centres, cut at the border (``clip``, as CutMix) or pushed inside (``shift``).

    The box starts ``side // 2`` before the centre, so an odd side keeps its pixel.

    Args:
        center: Pixels (y, x), int64 [B, 2].
        sides: Box (height, width) in pixels, int64 [B, 2].
        size: Image (H, W).
        placement: 'clip' or 'shift'.

    Returns:
        int64 [B, 4], half-open (yl, yh, xl, xh), inside the image.

    Raises:
        ValueError: Another placement.

    Example:
        >>> boxes_at(torch.tensor([[0, 5]]), torch.tensor([[4, 3]]), (8, 8))
        tensor([[0, 2, 4, 7]])
        >>> boxes_at(torch.tensor([[0, 5]]), torch.tensor([[4, 3]]), (8, 8), 'shift')
        tensor([[0, 4, 4, 7]])
    """
    if placement not in ('clip', 'shift'):
        raise ValueError(f"placement is 'clip' or 'shift', got {placement!r}")
    limit = torch.stack([torch.full_like(sides[:, 0], n) for n in size], 1)
    low = center - sides // 2
    if placement == 'shift':
        low = low.clamp(min=0).minimum((limit - sides).clamp(min=0))
    high = (low + sides).minimum(limit)
    low, high = low.clamp(min=0), high.clamp(min=0)
    return torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def share_of(u: Tensor | int, whole: Tensor | int) -> Tensor:
    """floor(u * whole), exactly and without float64, which not every device has (Apple's mps).

    Args:
        u: A share in [0, 1): float, or a whole number of units of 2^-54, int64.
        whole: int64 below 2^44, broadcastable to ``u``.

    Returns:
        int64.

    Example:
        >>> share_of(torch.tensor([0.5, 0.999]), 7), share_of(torch.tensor([2 ** 54 - 1]), 2 ** 43)
        (tensor([3, 6]), tensor([8796093022207]))
    """
    if isinstance(u, Tensor) and u.is_floating_point():
        u = (u * SHARE_UNIT).long()
    found: Any = 0
    for digit in range(0, 3 * _DIGIT_BITS, _DIGIT_BITS):  # the product of all digits would have 98 bits
        found = (whole * (u >> digit & (1 << _DIGIT_BITS) - 1) + found) >> _DIGIT_BITS
    return found


def boxes_inside(u: Tensor, sides: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole boxes at places given by uniform numbers: u = 0 is the top left, u -> 1 the bottom right.

    Args:
        u: In [0, 1), for (y, x), [B, 2]; see :func:`share_of`.
        sides: Box (height, width), int64 [B, 2], not larger than the image.
        size: Image (H, W).

    Returns:
        int64 [B, 4], half-open (yl, yh, xl, xh); every valid place is equally likely for uniform u.
    """
    room = torch.stack([n - sides[:, i] for i, n in enumerate(size)], 1)
    low = share_of(u, room + 1).minimum(room)
    high = low + sides
    return torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def _summed_area(maps: Tensor) -> Tensor:
    """Summed-area table, float32 [B, H + 1, W + 1], with a leading row and column of zeros."""
    return torch.nn.functional.pad(maps.float().cumsum(1).cumsum(2), (1, 0, 1, 0))


def _pick(table: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """table[b, rows[b, i], cols[b, j]] for every b, i, j: [B, I, J]."""
    picked = table.gather(1, rows[:, :, None].expand(-1, -1, table.shape[2]))
    return picked.gather(2, cols[:, None, :].expand(-1, rows.shape[1], -1))


def box_mass(maps: Tensor, boxes: Tensor) -> Tensor:
    """Share of each map's mass that lies inside its box.

    Args:
        maps: Non-negative, float [B, H, W], in the boxes' pixels.
        boxes: Half-open (yl, yh, xl, xh), int64 [B, 4].

    Returns:
        float32 [B] in [0, 1]; 0 where the map is all zero.
    """
    _check_boxes(boxes)
    table = _summed_area(maps)
    corner = _pick(table, boxes[:, :2], boxes[:, 2:])
    inside = corner[:, 1, 1] - corner[:, 0, 1] - corner[:, 1, 0] + corner[:, 0, 0]
    total = table[:, -1, -1]
    return torch.where(total > 0, inside / total, torch.zeros_like(total)).clamp(0, 1)


def _distance(table: Tensor, double_y: Tensor, double_x: Tensor) -> Tensor:
    """Squared distance of box centres from the centre of mass over the squared diagonal, [B, H, W].

    Args:
        table: Summed-area table of the maps.
        double_y: Twice the row of each centre, [B, H].
        double_x: Twice the column, [B, W].
    """
    height, width = table.shape[1] - 1, table.shape[2] - 1
    total = table[:, -1, -1].clamp_min(torch.finfo(table.dtype).tiny)
    # Mean coordinate of the mass = size - (sum of the cumulative sums) / total, less half a pixel.
    mean_y = height + 0.5 - table[:, :, -1].sum(1) / total
    mean_x = width + 0.5 - table[:, -1, :].sum(1) / total
    y, x = double_y.float() / 2 - mean_y[:, None], double_x.float() / 2 - mean_x[:, None]
    return (y.square()[:, :, None] + x.square()[:, None, :]) / (height * height + width * width)


def window_boxes(maps: Tensor, sides: Tensor, sign: str = 'high') -> Tensor:
    """The place, wholly inside the image, where a box of given sides covers the most (or least) of the map.

    All places are compared by a summed-area table, whatever the sides, which may differ between images. Where places
    tie to within 2e-6 of the map's mass (a spot smaller than the box ties with itself), the box is centred on the
    map's centre of mass ('low': as far from it as it gets), not pushed into the upper left.

    Args:
        maps: float [B, H, W], finite.
        sides: Box (height, width), int64 [B, 2], at most (H, W).
        sign: 'high' for the largest sum, 'low' for the smallest.

    Returns:
        int64 [B, 4], half-open (yl, yh, xl, xh).
    """
    height, width = maps.shape[1:]
    table = _summed_area(maps)
    y = torch.arange(height, device=maps.device)
    x = torch.arange(width, device=maps.device)
    high_y, high_x = y + sides[:, :1], x + sides[:, 1:]
    outside = (high_y > height)[:, :, None] | (high_x > width)[:, None, :]
    apart = _distance(table, high_y + y, high_x + x)
    high_y, high_x = high_y.clamp(max=height), high_x.clamp(max=width)
    bands = table.gather(1, high_y[:, :, None].expand(-1, -1, width + 1)) - table[:, :-1]
    sums = bands.gather(2, high_x[:, None, :].expand(-1, height, -1)) - bands[:, :, :-1]
    sums = (sums if sign == 'high' else -sums).masked_fill(outside, -torch.inf)
    tied = sums >= sums.amax((1, 2), keepdim=True) - _TIE * table[:, -1:, -1:]
    best = (-apart if sign == 'high' else apart).masked_fill(~tied, -torch.inf).flatten(1).argmax(1)
    top, left = best // width, best % width
    return torch.stack([top, top + sides[:, 0], left, left + sides[:, 1]], 1)


def argmax_center(maps: Tensor, sign: str = 'high') -> Tensor:
    """Pixel of the map's maximum (or minimum, ``sign='low'``): int64 [B, 2] as (y, x), the first in reading order."""
    flat = maps.flatten(1)
    best = flat.argmax(1) if sign == 'high' else flat.argmin(1)
    return torch.stack([best // maps.shape[2], best % maps.shape[2]], 1)


def sample_center(maps: Tensor, u: Tensor, sign: str = 'high', floor: float = 0.1) -> Tensor:
    """A pixel drawn from each map as a distribution, by inverting its cumulative sum at ``u``.

    Args:
        maps: Non-negative, float [B, H, W].
        u: In [0, 1), [B]; see :func:`share_of`.
        sign: 'low' draws from (maximum - map) instead.
        floor: Share of the mass that is spread evenly, so that a flat map works and no pixel is out of reach.

    Returns:
        int64 [B, 2] as (y, x).
    """
    flat, count = maps.float().flatten(1), maps[0].numel()
    if sign == 'low':
        flat = flat.amax(1, keepdim=True) - flat
    total = flat.sum(1, keepdim=True)
    density = flat / total.clamp_min(torch.finfo(flat.dtype).tiny)
    # In whole numbers: float32 is too coarse for the sums of so many pixels.
    mass = torch.where(total > 0, density, 1 / count).mul(_MASS).round().long().cumsum(1)
    even = torch.arange(1, count + 1, device=flat.device) * (SHARE_UNIT // count)
    share, whole = round(floor * SHARE_UNIT), mass[:, -1:]
    cumulative = mass + share_of(share, share_of(even, whole) - mass)
    index = torch.searchsorted(cumulative, share_of(u, whole[:, 0])[:, None], right=True)
    index = index[:, 0].clamp(max=count - 1)
    return torch.stack([index // maps.shape[2], index % maps.shape[2]], 1)


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """True inside each box: bool [B, 1, H, W] for half-open int64 boxes [B, 4].

    Example:
        >>> box_mask(torch.tensor([[0, 1, 1, 3]]), (2, 3)).int()
        tensor([[[[0, 1, 1],
                  [0, 0, 0]]]], dtype=torch.int32)
    """
    _check_boxes(boxes)
    y = torch.arange(size[0], device=boxes.device)
    x = torch.arange(size[1], device=boxes.device)
    rows = (y >= boxes[:, 0:1]) & (y < boxes[:, 1:2])
    cols = (x >= boxes[:, 2:3]) & (x < boxes[:, 3:4])
    return (rows[:, :, None] & cols[:, None, :])[:, None]
