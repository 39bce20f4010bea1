"""Mix one batch and keep the intermediate results, for a picture."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gradmix_timm.attribution import layer_maps, to_pixels
from gradmix_timm.ops import as_targets
from gradmix_timm.plots.pictures import MixScene, plot_scene
from gradmix_timm.records import MixDraw

from .base import BatchMixer
from .callables import seeded_streams
from .contract import Mixer
from .gradmix import GradMix

__all__ = ['make_scene', 'plot_mixes']


def plot_mixes(mixer: Mixer, images: Tensor, labels: Tensor, model: nn.Module | None = None,
               class_names: Sequence[str] = (), mean: Sequence[float] | None = None,
               std: Sequence[float] | None = None, rows: int = 6, ax: Axes | None = None) -> Figure:
    """What a mixer does to a batch: original, attribution per layer, box, partner, mixed image, kept share and labels.

    Args:
        mixer: Any of :func:`gradmix_timm.create_mixer`.
        images: Normalised, [B, C, H, W].
        labels: Class indices [B], in a tensor, an array or a list.
        model: Read by mixers that need one; left as it was, and so are the random streams.
        class_names: In label order.
        mean: Of the normalisation, to undo it. None: images outside [0, 1] are stretched between their least and
            greatest value.
        std: Of the normalisation.
        rows: At most this many images.
        ax: A subplot within whose bounds the table is drawn; None: a new figure.

    Returns:
        The figure; the last line of a notebook's cell shows it, ``figure.savefig('mixes.png')`` writes it.

    Raises:
        ValueError: The mixer cannot serve the model or the images; no images, or labels that are rows of weights;
            ``rows`` below 1; ``ax`` is no subplot.

    Example:
        >>> from gradmix_timm import create_mixer
        >>> figure = plot_mixes(create_mixer('cutmix', num_classes=3), torch.rand(3, 3, 16, 16), torch.arange(3))
        >>> [ax.get_title() for ax in figure.axes[:3]]
        ['original', 'partner', 'mixed']
    """
    return plot_scene(make_scene(mixer, model, images, labels), class_names, mean, std, rows, ax)


def make_scene(mixer: Mixer, model: nn.Module | None, images: Tensor, labels: Tensor) -> MixScene:
    """Mix one batch and keep the intermediate results; mixer, model and global random streams are left unchanged.

    Args:
        mixer: Any of :func:`gradmix_timm.create_mixer`.
        model: Read by mixers that need one.
        images: Normalised, [B, C, H, W].
        labels: Class indices [B].

    Returns:
        For :func:`~gradmix_timm.plots.pictures.plot_scene`, on the CPU.

    Raises:
        ValueError: The mixer cannot serve the model or the images; no images, or labels that are rows of weights.
    """
    labels = as_targets(labels)
    if not len(images) or labels.dim() != 1:
        raise ValueError(f'a picture of a mix takes one image or more and a class index for each, got '
                         f'{len(images)} images and labels {list(labels.shape)}')
    maps: list[tuple[str, Tensor]] = []
    layers: tuple[str, ...] = ()
    if not isinstance(mixer, BatchMixer):
        with seeded_streams(0, images.device):  # such as timm's, which draw from NumPy's stream
            # Mixers that train on the clean batch too return it first.
            mixed, targets = (rows[-len(images):] for rows in mixer(images.clone(), labels, model))
        return MixScene(mixer.name, images.cpu(), mixed.cpu(), targets.cpu(), None, (), labels.cpu(), ())
    generator = torch.Generator().manual_seed(0)
    draw = mixer.draw(images, labels, model, generator)
    mixed, targets = mixer.apply(images, labels, draw)  # without the clean batch
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
    return MixScene(mixer.name, images.cpu(), mixed.cpu(), targets.cpu(), draw.to('cpu') if _describes(draw) else None,
                    tuple((name, m.cpu()) for name, m in maps), labels.cpu(), layers)


def _describes(draw: MixDraw) -> bool:
    """Whether a draw says what was mixed; that of a function, or of PixMix, is a seed and says nothing."""
    others = draw.partner != torch.arange(len(draw.partner), device=draw.partner.device)
    return bool(draw.mask is not None or others.any() or draw.dst.any() or (draw.lam == 1).all())
