"""Pictures of mixes: original, attribution per layer, fused map, box, mixed image, lam and labels, side by side."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from gradmix_timm.attribution import layer_maps, to_pixels
from gradmix_timm.checkpoint import atomic_path
from gradmix_timm.mixers import BatchMixer, GradMix, Mixer
from gradmix_timm.mixers.callables import seeded_streams
from gradmix_timm.records import MixDraw

__all__ = ['MixScene', 'draw_mixes', 'make_scene']

_CELL = 1.45  # inches a picture


@dataclass(frozen=True)
class MixScene:
    """All that a picture of one mixed batch shows, on the CPU.

    Attributes:
        mixer: Its name.
        images: Normalised, [B, C, H, W].
        mixed: The same, mixed.
        targets: float32 [B, K].
        draw: Boxes and weights; None for timm's own mixers, which draw and apply in one.
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


def make_scene(mixer: Mixer, model: nn.Module | None, images: Tensor, labels: Tensor) -> MixScene:
    """Mix one batch and keep what led to it; mixer, model and the global random streams are left as they were."""
    maps: list[tuple[str, Tensor]] = []
    layers: tuple[str, ...] = ()
    if not isinstance(mixer, BatchMixer):
        with seeded_streams(0, images.device):  # such as timm's, which draw from NumPy's stream
            mixed, targets = mixer(images.clone(), labels, model)
        return MixScene(mixer.name, images.cpu(), mixed.cpu(), targets.cpu(), None, (), labels.cpu(), ())
    generator = torch.Generator().manual_seed(0)
    draw = mixer.draw(images, labels, model, generator)
    mixed, targets = mixer.apply(images, labels, draw)
    guided = next((part for part in mixer.parts
                   if isinstance(part, GradMix) and part.requires_model and part.name == draw.name), None)
    if guided is not None and model is not None:
        size = (images.shape[2], images.shape[3])
        captured = guided.captured(model, images, labels)
        layers = tuple(c.layer for c in captured)
        single = layer_maps(captured, guided.config.attribution)
        if len(captured) > 1:
            maps += [(c.layer, to_pixels(m, size)) for c, m in zip(captured, single, strict=True)]
        fused = guided.fused(captured, size).map
        fused = fused / fused.amax((1, 2), keepdim=True).clamp_min(torch.finfo(fused.dtype).tiny)
        maps.append((layers[0] if len(layers) == 1 else 'fused', to_pixels(fused, size)))
    return MixScene(mixer.name, images.cpu(), mixed.cpu(), targets.cpu(), draw.to('cpu'),
                    tuple((name, m.cpu()) for name, m in maps), labels.cpu(), layers)


def pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images as float pictures [B, H, W, C] in [0, 1] (or [B, H, W] where grey)."""
    channels = images.shape[1]
    scale = [torch.tensor(v[:channels] if len(v) >= channels else [v[0]] * channels)[None, :, None, None]
             for v in (std, mean)]
    shown = (images.float() * scale[0] + scale[1]).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown[..., 0] if channels != 3 else shown


def _box(axis: Any, box: Tensor, colour: str) -> None:
    yl, yh, xl, xh = box.tolist()
    if yh > yl and xh > xl:
        axis.add_patch(Rectangle((xl - 0.5, yl - 0.5), xh - xl, yh - yl, fill=False, edgecolor=colour, linewidth=1.8))


def _name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)


def _caption(scene: MixScene, classes: Sequence[str], row: int) -> str:
    weights, order = scene.targets[row].sort(descending=True)
    parts = [f'{_name(classes, int(k))} {w:.2f}' for w, k in zip(weights[:2], order[:2], strict=False) if w > 0.02]
    lam = '' if scene.draw is None else f'\nkept {scene.draw.lam[row]:.0%}'
    return '\n'.join(parts) + lam


def draw_mixes(scene: MixScene, path: Path, classes: Sequence[str], mean: Sequence[float], std: Sequence[float],
               rows: int = 6) -> None:
    """Write the picture, one image a row: original, maps, the fused map with the box, the partner, the mixed image.

    Args:
        scene: What to show.
        path: A .png; written beside and renamed.
        classes: Names in label order.
        mean: Of the normalisation, to undo it.
        std: Of the normalisation.
        rows: At most this many images.
    """
    rows = min(rows, len(scene.images))
    original, mixed = pixels(scene.images, mean, std), pixels(scene.mixed, mean, std)
    columns = ['original', *(name for name, _ in scene.maps), *(['partner'] if scene.draw else []), 'mixed']
    figure = Figure(figsize=(_CELL * len(columns) + 0.3, (_CELL + 0.62) * rows + 0.3), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for row in range(rows):
        cells = iter(axes[row])
        first = next(cells)
        first.imshow(original[row], cmap='gray', vmin=0, vmax=1)
        first.set_xlabel(_name(classes, int(scene.labels[row])), fontsize=8)
        for _, maps in scene.maps:
            axis = next(cells)
            axis.imshow(original[row] if original.ndim == 3 else original[row].mean(-1), cmap='gray', vmin=0, vmax=1)
            axis.imshow(maps[row].numpy(), cmap='inferno', alpha=0.65, vmin=0, vmax=1)
            if scene.draw is not None:
                _box(axis, scene.draw.dst[row], '#00d0ff')
        if scene.draw is not None:
            axis, partner = next(cells), int(scene.draw.partner[row])
            axis.imshow(original[partner], cmap='gray', vmin=0, vmax=1)
            _box(axis, scene.draw.src[row], '#00d0ff')
            axis.set_xlabel(_name(classes, int(scene.labels[partner])), fontsize=8)
        axis = next(cells)
        axis.imshow(mixed[row], cmap='gray', vmin=0, vmax=1)
        axis.set_xlabel(_caption(scene, classes, row), fontsize=8)
    for index, axis in enumerate(axes.flat):
        axis.set_xticks([])
        axis.set_yticks([])
        if index < len(columns):
            axis.set_title(columns[index], fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
