"""TokenMix: whole tokens from a partner in several rectangles; labels are weighted by their visible content."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.ops import image_size, to_device
from gradmix_timm.records import MixDraw

from .base import BatchMixer
from .snapmix import SnapMix

__all__ = ['TokenMix', 'block_mask']

_ATTEMPTS = 10
_ASPECT = (0.3, 1 / 0.3)


class TokenMix(SnapMix):
    """Rectangles of tokens from a partner; label weights by each image's own content map.

    Liu et al., "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers", arXiv:2207.08409,
    equations 3-6: M is made of rectangles on the grid of tokens (sides by area and aspect in [0.3, 1 / 0.3]) until
    a share 1 - lam of them is the partner's; with C the content map of an image's label, sum 1, the own label weighs
    sum of C_i (1 - M) and the partner's sum of C_partner M. **They do not add up to 1**: a pair that hides both objects
    is less of either. In a pair of one class their sum may go beyond 1, so that ``train.py`` refuses binary
    cross-entropy, which their recipe uses. ``share`` is 0.5: their code overwrites the drawn lam with that
    and adds a row of 14 tokens, 0.57 in all. It takes half of the label smoothing off either weight; here the weights
    are of smoothed labels.

    Their content maps come from a pretrained NFNet, stored beside the data. Here they are Grad-CAM of the label in the
    model that is given: the live one, or a frozen one, ``mixer(images, labels, teacher)``, of any kind that has layers.

    Args:
        num_classes: K.
        share: Of the tokens that are the partner's, in (0, 1); or 'beta': drawn from Beta(alpha, alpha).
        alpha: Of Beta(alpha, alpha).
        lam: 'batch' for one mask, as theirs; 'image' for one each, on the host at about 0.2 ms.
        tokens: Tokens along the shorter side of the image: 14 for 16 px patches of 224.
        layers: Of the content map, see :func:`gradmix_timm.attribution.resolve_layers`; default: the deepest usable.
        **common: See :class:`BatchMixer`.
    """

    name = 'tokenmix'
    option_names = ('share', 'alpha', 'lam', 'tokens', 'layers')

    def __init__(self, num_classes: int, share: float | str = 0.5, alpha: float = 1.0, lam: str = 'batch',
                 tokens: int = 14, layers: Any = -1, **common: Any) -> None:
        super().__init__(num_classes, alpha, lam, layers, **common)
        if share != 'beta' and (isinstance(share, str) or not 0 < share < 1):
            raise ValueError(f"share of the tokens is in (0, 1), or 'beta', got {share!r}")
        if tokens % 1 != 0 or tokens < 2:
            raise ValueError(f'tokens is a whole number of 2 or more, got {tokens}')
        self.share, self.tokens = share, int(tokens)

    def _draw(self, images: Tensor, targets: Tensor, model: nn.Module | None, rng: np.random.Generator,
              coins: np.ndarray, partner: np.ndarray) -> MixDraw:
        assert model is not None
        batch, size, device = images.shape[0], image_size(images), images.device
        shorter = min(size)
        height, width = (max(1, min(side, round(self.tokens * side / shorter))) for side in size)
        count = 1 if self.lam == 'batch' else batch
        share = rng.beta(self.alpha, self.alpha, count) if self.share == 'beta' else np.full(count, self.share)
        pasted = np.stack([block_mask(rng, (height, width), float(part)) for part in share]) * coins[:, None, None]
        hidden = F.interpolate(to_device(pasted.astype(np.float32), device)[:, None], size=size, mode='nearest-exact')
        donors, mask = to_device(partner, device), 1 - hidden
        maps, lam = self.class_maps(model, images, targets), mask.mean((1, 2, 3))
        flat = maps.sum((1, 2)) == 0
        own = torch.where(flat, lam, (maps * mask[:, 0]).sum((1, 2)))
        other = torch.where(flat[donors], 1 - lam, (maps[donors] * hidden[:, 0]).sum((1, 2)))
        own = torch.where(lam == 1, torch.ones_like(own), own)
        return MixDraw.of(self.name, donors, lam, mask=mask, weight=torch.stack([own, other], 1),
                          fallback=(flat | flat[donors]) & (lam < 1))

    def _paste(self, images: Tensor, draw: MixDraw) -> Tensor:
        return BatchMixer._paste(self, images, draw)  # whole tokens, not SnapMix's resized box


def block_mask(rng: np.random.Generator, grid: tuple[int, int], share: float) -> np.ndarray:
    """Rectangles on a grid until they cover a share of it, bool [h, w]; BEiT's algorithm, as theirs.

    Where no rectangle fits, theirs ends with fewer cells; here single cells at random places fill up the share.

    Args:
        rng: Of the draw.
        grid: (h, w).
        share: At least one cell is covered, and at least one is not (where there are two).

    Example:
        >>> int(block_mask(np.random.default_rng(0), (14, 14), 0.5).sum())
        98
    """
    mask = np.zeros(grid, dtype=bool)
    wanted = int(np.clip(round(share * mask.size), 1, max(1, mask.size - 1)))
    while (missing := wanted - int(mask.sum())) > 0:
        for _ in range(_ATTEMPTS):
            area, aspect = rng.uniform(1, max(1, missing)), math.exp(rng.uniform(*np.log(_ASPECT)))
            height, width = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
            if height >= grid[0] or width >= grid[1]:
                continue
            top, left = rng.integers(grid[0] - height + 1), rng.integers(grid[1] - width + 1)
            block = mask[top:top + height, left:left + width]
            if 0 < block.size - block.sum() <= missing:
                block[:] = True
                break
        else:
            mask.flat[rng.choice(np.flatnonzero(~mask))] = True
    return mask
