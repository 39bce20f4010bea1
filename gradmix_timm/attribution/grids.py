"""A layer's output as a grid over the image: layout, prefix tokens and grid read off a tensor, folding to NCHW."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Hints', 'Reading', 'TargetLayer', 'fold', 'read_grid']

# Class, distillation and register tokens: timm's largest count is 9; more are accepted if a model declares them.
_MAX_PREFIX = 16
# Cells a side up to which a tolerance of one cell would admit any grid.
_COARSE = 3


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """A layer whose output is a grid over the image and leads to the logits.

    Attributes:
        name: Dotted module name.
        index: Element of the output where it is a tuple or list, else None.
        layout: 'NCHW', 'NHWC' or 'NLC' (tokens).
        prefix: Tokens before the grid (class, distillation, registers); 0 unless 'NLC'.
        grid: (h, w) at the probed image size.
        number: Position among the usable layers in forward order; -1 for a layer the user named from outside them.
        order: Tokens of a scrambled layer (hiera's mask units) in raster order, length h * w; None where they are.
        signed: Whether gradient times activation has a sign. It has none in a stream that only a LayerNorm of each
            place reads: that does not see its scale, so that sum_c G A = 0 everywhere, and evidence for a label and
            against it give the same map.

    Example:
        >>> str(TargetLayer('stage4', 0, 'NCHW', 0, (56, 56)))
        'stage4[0]'
    """

    name: str
    index: int | None
    layout: str
    prefix: int
    grid: tuple[int, int]
    number: int = -1
    order: tuple[int, ...] | None = field(default=None, repr=False)
    signed: bool = field(default=True, repr=False)

    def __str__(self) -> str:
        return self.name if self.index is None else f'{self.name}[{self.index}]'


class Hints(NamedTuple):
    """A model's declarations about a layer, used only where the tensor's shape is ambiguous.

    Attributes:
        channels: Width of the layer, or None.
        channels_last: Four-dimensional outputs are NHWC.
        prefix: Prefix tokens the model declares (wrong on cait and xcit, whose patch blocks have none).
    """

    channels: int | None = None
    channels_last: bool = False
    prefix: int = 0


_NO_HINTS = Hints()


class Reading(NamedTuple):
    """Layout, prefix tokens and grid (h, w) of an output."""

    layout: str
    prefix: int
    grid: tuple[int, int]


def read_grid(tensor: Tensor, image_size: tuple[int, int], hints: Hints = _NO_HINTS) -> Reading | None:
    """The grid of an output [B, ...], or None where there is none above 1 x 1.

    Args:
        tensor: Output of a layer, batch first.
        image_size: (H, W) of the images.
        hints: What the model declares.

    Example:
        >>> read_grid(torch.zeros(2, 197, 192), (224, 224))
        Reading(layout='NLC', prefix=1, grid=(14, 14))
        >>> read_grid(torch.zeros(2, 5, 7, 64), (160, 224))
        Reading(layout='NHWC', prefix=0, grid=(5, 7))
    """
    reading = None
    if tensor.dim() == 4:
        reading = _read_image(tensor.shape[1:], image_size, hints)
    elif tensor.dim() == 3:
        reading = _read_tokens(tensor.shape[1], image_size, hints.prefix)
    return reading if reading and math.prod(reading.grid) > 1 else None


def fold(tensor: Tensor, target: TargetLayer, image_size: tuple[int, int]) -> Tensor:
    """A layer's output, or the gradient there, on its grid: [B, C, h, w], differentiable, a view where it can be.

    Works at any image size the model takes, not only the probed one.

    Args:
        tensor: Output of the layer; a tuple or list is indexed by ``target.index``.
        target: The layer.
        image_size: (H, W) of the images.

    Raises:
        ValueError: Another number of dimensions than the layout's, or tokens that make no grid of the image's aspect.
    """
    if target.index is not None and isinstance(tensor, tuple | list):
        tensor = tensor[target.index]
    if tensor.dim() != len(target.layout):
        raise ValueError(f'layer {target} gave {list(tensor.shape)}, expected {target.layout} as it was found: the '
                         'model was changed since; find layers again, resolve_layers(model, input_size, ...)')
    if target.layout == 'NCHW':
        return tensor
    if target.layout == 'NHWC':
        return tensor.permute(0, 3, 1, 2)
    tokens = tensor[:, target.prefix:]
    grid = _fold_grid(tokens.shape[1], target, image_size)
    if grid is None:
        raise ValueError(f'layer {target}: {tokens.shape[1]} tokens make no grid over {image_size[0]}x{image_size[1]} '
                         'pixels; choose another, layers=... (--gradmix-layers)')
    if target.order is not None:
        tokens = tokens[:, torch.tensor(target.order).to(tokens.device, non_blocking=True)]
    return tokens.transpose(1, 2).unflatten(2, grid)


def _fold_grid(count: int, target: TargetLayer, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The grid at this image size: the probed one if it still has the image's aspect, else solved anew."""
    if target.order is not None:
        return target.grid if count == len(target.order) else None
    if math.prod(target.grid) == count and _consistent(target.grid, image_size):
        return target.grid
    return _token_grid(count, image_size)


def _consistent(grid: Sequence[int], image_size: Sequence[int]) -> bool:
    """Some stride s makes both sides: h within one cell of H / s and w within one of W / s (padding, cropping).

    Both sides go through the same layers, so that the longer side has no fewer cells, and equal sides have as many.
    Up to three cells one more or less would admit any pair: there both are rounded alike.
    """
    (h, w), (height, width) = grid, image_size
    if h > height or w > width or (height <= width and h > w) or (height >= width and h < w):
        return False
    if min(h, w) <= _COARSE:
        strides = range(1, max(height, width) + 1)
        return any((height // s, width // s) == (h, w) or (-(-height // s), -(-width // s)) == (h, w) for s in strides)
    return max(height / (h + 1), width / (w + 1)) < min(height / (h - 1), width / (w - 1))


def _misfit(grid: Sequence[int], image_size: Sequence[int]) -> float:
    """How far the grid's aspect is from the image's: 0 where equal."""
    return abs(math.log(grid[0] * image_size[1] / (grid[1] * image_size[0])))


def _read_image(shape: Sequence[int], image_size: tuple[int, int], hints: Hints) -> Reading | None:
    """NCHW or NHWC: by the declared width, else by which two sizes match H : W, else by the declared layout."""
    first, middle, last = shape
    options = {'NCHW': (middle, last), 'NHWC': (first, middle)}
    if hints.channels is not None and (first == hints.channels) != (last == hints.channels):
        options.pop('NHWC' if first == hints.channels else 'NCHW')
    if len(options) == 2:
        options = {layout: grid for layout, grid in options.items() if _consistent(grid, image_size)}
    preferred = 'NHWC' if hints.channels_last else 'NCHW'
    layouts = sorted(options, key=lambda name: (_misfit(options[name], image_size), name != preferred))
    return Reading(layouts[0], 0, options[layouts[0]]) if layouts else None


def _read_tokens(count: int, image_size: tuple[int, int], declared: int) -> Reading | None:
    """Prefix and grid of ``count`` tokens: the declared prefix first, then the smallest; exact aspects first."""
    prefixes = [p for p in dict.fromkeys((declared, *range(_MAX_PREFIX + 1))) if p < count]
    grids = [(prefix, _token_grid(count - prefix, image_size)) for prefix in prefixes]
    for exact in (True, False):
        for prefix, grid in grids:
            if grid and (not exact or grid[0] * image_size[1] == grid[1] * image_size[0]):
                return Reading('NLC', prefix, grid)
    return None


def _token_grid(count: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Grid of h * w = count with the aspect nearest the image's, within one cell; a square image has square grids."""
    if count < 1:
        return None
    divisors = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    pairs = [(n, count // n) for n in divisors] + [(count // n, n) for n in divisors]
    best = min(pairs, key=lambda grid: _misfit(grid, image_size))
    if image_size[0] == image_size[1]:
        return best if best[0] == best[1] else None
    return best if _consistent(best, image_size) else None
