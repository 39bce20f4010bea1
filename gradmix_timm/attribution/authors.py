"""Attribution maps fused as the GradMix authors' code fuses them: normalised over the whole batch, summed in pixels."""
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from gradmix_timm.records import Captured

from .maps import METHODS

__all__ = ['authors_map', 'fuse_authors', 'normalise_over_batch']

# Theirs: keeps a batch without any evidence from dividing by zero; absolute, so maps below it fade.
_EPSILON = 1e-8


def normalise_over_batch(maps: Tensor) -> Tensor:
    """(M - min M) / (max M - min M + 1e-8), one minimum and maximum for the batch and all places.

    Images are coupled: the result for one row depends on the others.

    Args:
        maps: [B, h, w] of one layer, finite.

    Returns:
        float32 [B, h, w] in [0, 1].
    """
    low, high = maps.float().aminmax()
    return (maps.float() - low) / (high - low + _EPSILON)


def fuse_authors(maps: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
    """Maps of several layers, each normalised over the batch, resized to pixels (bilinear), summed in the order given.

    Args:
        maps: [B, h_l, w_l] each, before any normalisation.
        image_size: (H, W) in pixels.

    Returns:
        float32 [B, H, W] in [0, number of layers]; only the positions of its maxima are meaningful.

    Raises:
        ValueError: No map.

    Example:
        >>> import torch
        >>> coarse, fine = torch.tensor([[[1.]], [[3.]]]), torch.tensor([[[0., 4.]], [[2., 0.]]])
        >>> fuse_authors([coarse, fine], (1, 2))
        tensor([[[0.0000, 1.0000]],
                [[1.5000, 1.0000]]])
    """
    if not maps:
        raise ValueError('no map to fuse; give at least one layer')
    # Rows as channels, as theirs: the resize then rounds alike, and ties along a border, where the bilinear rule
    # repeats the outermost cells, fall on the same pixel. With rows as images a maximum can move by some pixels.
    rows = [normalise_over_batch(layer)[None] for layer in maps]
    pixels = [F.interpolate(row, size=image_size, mode='bilinear', align_corners=False)[0] for row in rows]
    return sum(pixels[1:], start=pixels[0])


def authors_map(captured: Sequence[Captured], image_size: tuple[int, int], method: str = 'layercam') -> Tensor:
    """The map of every layer, theirs LayerCAM, sum over channels of relu(G) * A, fused by :func:`fuse_authors`.

    G is the gradient of the *loss*, without a minus sign: high where more activation raises the loss.

    Args:
        captured: Layers of one pass; ``gradient`` in the direction of the loss (score 'loss').
        image_size: (H, W) in pixels.
        method: Name in :data:`METHODS`.

    Returns:
        float32 [B, H, W].
    """
    make = METHODS[method]
    return fuse_authors([make(layer.activation.float(), layer.gradient.float()) for layer in captured], image_size)
