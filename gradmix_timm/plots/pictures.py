"""Tables of pictures: images under their attribution maps, and what a mixer does to a batch."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from gradmix_timm.records import AttributionMap, MixDraw

from .figure import drawable, grid_axes, plain_words

__all__ = ['MixScene', 'plot_attribution', 'plot_scene']

_CELL, _DPI = 1.45, 110  # inches a picture, pixels an inch
_BOX = '#00d0ff'


@dataclass(frozen=True)
class MixScene:
    """Everything that a picture of one mixed batch shows, on the CPU.

    Attributes:
        mixer: Its name.
        images: Normalised, [B, C, H, W].
        mixed: The same, mixed.
        targets: float32 [B, K].
        draw: Boxes and weights; None where they are not known, as for timm's own mixers, which draw and apply in one.
        maps: (name, float32 [B, H, W] in [0, 1]) for each layer and, last, the fused map.
        labels: int64 [B].
        layers: Names of the target layers.
    """

    mixer: str
    images: Tensor
    mixed: Tensor
    targets: Tensor
    draw: MixDraw | None
    maps: tuple[tuple[str, Tensor], ...]
    labels: Tensor
    layers: tuple[str, ...]


def plot_attribution(attribution: AttributionMap, images: Tensor, class_names: Sequence[str] = (),
                     labels: Tensor | None = None, mean: Sequence[float] | None = None,
                     std: Sequence[float] | None = None, rows: int = 6, ax: Axes | None = None) -> Figure:
    """Images, and the same under their attribution maps; one image per row.

    Args:
        attribution: Of :func:`gradmix_timm.attribute`, for these images.
        images: [B, C, H, W] as the model gets them.
        class_names: In label order.
        labels: int64 [B], written below the images.
        mean: Of the normalisation, to undo it. None: images outside [0, 1] are stretched between their least and
            greatest value.
        std: Of the normalisation.
        rows: At most this many images.
        ax: A subplot within whose bounds the table is drawn; None: a new figure.

    Raises:
        TypeError: ``attribution`` is none.
        ValueError: Another number of maps than of images, or ``ax`` is no subplot.

    Example:
        >>> from gradmix_timm import attribute
        >>> import timm
        >>> model, images = timm.create_model('test_resnet'), torch.rand(2, 3, 64, 64)
        >>> figure = plot_attribution(attribute(model, images, torch.tensor([0, 1])), images)
        >>> [ax.get_title() for ax in figure.axes[:2]]
        ['image', 'attribution 8 x 8']
    """
    if not isinstance(attribution, AttributionMap):
        raise TypeError(f'the first argument is what attribute(model, images, labels) returns, got '
                        f'{type(attribution).__name__}')
    if len(attribution.map) != len(images):
        raise ValueError(f'got {len(attribution.map)} maps for {len(images)} images; expected one map an image')
    images, count = images.detach().cpu(), min(rows, len(images))
    shown = _shown(images, mean, std)
    maps = attribution.map[:count].cpu().float()
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    maps = F.interpolate(maps[:, None], size=images.shape[2:], mode='bilinear', align_corners=False)[:, 0]
    height, width = attribution.map.shape[1:]
    axes = grid_axes(ax, count, 2, (_CELL, _CELL + 0.25), _DPI)
    for row in range(count):
        _picture(axes[row, 0], shown[row])
        _map_over(axes[row, 1], shown[row], maps[row])
        if labels is not None:
            axes[row, 0].set_xlabel(_name(class_names, int(labels[row])), fontsize=8)
    axes[0, 0].set_title('image', fontsize=9)
    axes[0, 1].set_title(f'attribution {height} x {width}', fontsize=9)
    return _table(axes)


def plot_scene(scene: MixScene, class_names: Sequence[str] = (), mean: Sequence[float] | None = None,
               std: Sequence[float] | None = None, rows: int = 6, ax: Axes | None = None) -> Figure:
    """One image per row: original, maps, the fused map with the box, the partner, the mixed image.

    Args:
        scene: What to show.
        class_names: In label order.
        mean: Of the normalisation, see :func:`plot_attribution`.
        std: Of the normalisation.
        rows: At most this many images.
        ax: A subplot within whose bounds the table is drawn; None: a new figure.

    Raises:
        ValueError: ``rows`` is below 1, or ``ax`` is no subplot.
    """
    if rows < 1:
        raise ValueError(f'rows is the number of images that are shown, 1 or more; got {rows}')
    rows = min(rows, len(scene.images))
    both = _shown(torch.cat([scene.images.float(), scene.mixed.float()]), mean, std)
    original, mixed = both[:len(scene.images)], both[len(scene.images):]
    # Without a partner, as after `none` or a blanked box, a column of it would repeat the first one.
    partners = scene.draw is not None and bool((scene.draw.partner != torch.arange(len(scene.images))).any())
    columns = ['original', *(name for name, _ in scene.maps), *(['partner'] if partners else []), 'mixed']
    axes = grid_axes(ax, rows, len(columns), (_CELL, _CELL + 0.62), _DPI)
    for row in range(rows):
        cells = iter(axes[row])
        first = next(cells)
        _picture(first, original[row])
        first.set_xlabel(_name(class_names, int(scene.labels[row])), fontsize=8)
        for _, maps in scene.maps:
            axis = next(cells)
            _map_over(axis, original[row], maps[row])
            if scene.draw is not None:
                _box(axis, scene.draw.dst[row])
        if scene.draw is not None and partners:
            axis, partner = next(cells), int(scene.draw.partner[row])
            _picture(axis, original[partner])
            _box(axis, scene.draw.src[row])
            axis.set_xlabel(_name(class_names, int(scene.labels[partner])), fontsize=8)
        axis = next(cells)
        _picture(axis, mixed[row])
        axis.set_xlabel(_caption(scene, class_names, row), fontsize=8)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=9)
    return _table(axes)


def _table(axes: Any) -> Figure:
    for one in axes.flat:
        plain_words(one)
    figure: Figure = axes[0, 0].figure
    return figure


def _shown(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> np.ndarray:
    """Images as float pictures [B, H, W, C] in [0, 1], or [B, H, W] if grey."""
    images, channels = images.float(), images.shape[1]
    if mean is not None and std is not None:
        scale = [torch.tensor(v[:channels] if len(v) >= channels else [v[0]] * channels)[None, :, None, None]
                 for v in (std, mean)]
        images = images * scale[0] + scale[1]
    elif images.min() < 0 or images.max() > 1:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-12)
    shown = images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown[..., 0] if channels != 3 else shown


def _picture(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image, cmap='gray', vmin=0, vmax=1)


def _map_over(axis: Any, image: np.ndarray, pixels: Tensor) -> None:
    _picture(axis, image)
    axis.imshow(pixels.numpy(), cmap='inferno', alpha=0.65, vmin=0, vmax=1)


def _box(axis: Any, box: Tensor) -> None:
    yl, yh, xl, xh = box.tolist()
    if yh > yl and xh > xl:
        axis.add_patch(Rectangle((xl - 0.5, yl - 0.5), xh - xl, yh - yl, fill=False, edgecolor=_BOX, linewidth=1.8))


def _name(class_names: Sequence[str], index: int) -> str:
    return drawable(class_names[index]) if 0 <= index < len(class_names) else str(index)


def _caption(scene: MixScene, class_names: Sequence[str], row: int) -> str:
    weights, order = scene.targets[row].sort(descending=True)
    parts = [f'{_name(class_names, int(k))} {w:.2f}' for w, k in zip(weights[:2], order[:2], strict=False) if w > 0.02]
    if scene.draw is None:
        return '\n'.join(parts)
    return '\n'.join([*parts, 'not mixed' if scene.draw.lam[row] == 1 else f'kept {scene.draw.lam[row]:.0%}'])
