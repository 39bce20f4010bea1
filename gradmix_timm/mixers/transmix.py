"""TransMix: CutMix whose labels follow the class token's attention, known after the forward pass."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradmix_timm.attribution import check_class_attention, watch_class_attention
from gradmix_timm.ops import box_mask, image_size, mix_targets
from gradmix_timm.records import Mixed

from .plain import CutMix
from .serving import serving

__all__ = ['TransMix']


class TransMix(CutMix):
    """CutMix's images; label weights by the class token's attention in the forward pass of the mix itself.

    Chen et al., "TransMix: Attend to Mix for Vision Transformers", arXiv:2111.09833, equations 3-4: lambda = A . M, A
    the class token's attention to the patches in the last block (mean over heads, sum 1, no gradient), M the own share
    of each patch. Their code takes the mean of that and of the area, and so do we: ``area=0.5``; 0 is the equation
    alone. M is the mean of the box over each patch, where they take its nearest pixel. They alternate it with mixup:
    ``--mixup-mode mixup+transmix``, ``--mixup-switch-prob 0.8``.

    The label is known after the forward pass::

        mixed = mixer.mix(images, labels)
        with mixer.watch(model, mixed) as finish:
            output = model(mixed.input)
        loss = criterion(output, finish(output))

    ``train.py`` does that. A plain call gives labels by area. For the pass, the attention of the last block is not
    fused, so that its weights exist; a model without a class token is refused by name.

    Args:
        num_classes: K.
        alpha: Of Beta(alpha, alpha).
        lam: 'image' for a draw each, 'batch' for one, as theirs.
        area: Weight of the area in the label, in [0, 1]; the attention has the rest.
        **common: See :class:`BatchMixer`.
    """

    name: str = 'transmix'
    labels_after_forward = True
    option_names = ('alpha', 'lam', 'area')

    def __init__(self, num_classes: int, alpha: float = 1.0, lam: str = 'image', area: float = 0.5, **common: Any
                 ) -> None:
        super().__init__(num_classes, alpha, lam, **common)
        if not 0 <= area <= 1:
            raise ValueError(f'area is a weight in [0, 1], got {area}')
        self.area = float(area)

    def __call__(self, images: Tensor, targets: Any = None, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Mix as CutMix, with a warning: labels by attention come of :meth:`watch`."""
        warnings.warn("a plain call of mixer 'transmix' gives labels by area, as cutmix does; its own are known after "
                      'the forward: mixed = mixer.mix(images, labels), then mixer.watch(model, mixed), see '
                      'docs/mixers.md', stacklevel=2)
        return super().__call__(images, targets, model)

    def _prepare(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        """Reject a model whose class token's attention cannot be read."""
        check_class_attention(model, input_size)

    @contextmanager
    def watch(self, model: nn.Module, mixed: Mixed) -> Iterator[Callable[[object], Tensor]]:
        """The attention of the pass inside the block."""
        if mixed.draw is None or mixed.rows is None:
            yield lambda output: mixed.target
            return
        draw, rows, size = mixed.draw, mixed.rows, image_size(mixed.input)
        with ExitStack() as stack:
            with serving(self.name, model, self.advice):
                seen = stack.enter_context(watch_class_attention(model))
            yield lambda output: mix_targets(rows, draw.partner, self.weights(seen.maps(size), draw.dst, size),
                                      self.multi_label_mix == 'union')

    def weights(self, attention: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Label weights (own, partner), float32 [B, 2].

        Args:
            attention: float32 [B, h, w], rows sum to 1.
            boxes: The partner's pixels, int64 [B, 4].
            size: Of the image.
        """
        pasted = box_mask(boxes, size).float()
        pooled = F.adaptive_avg_pool2d(pasted, (attention.shape[1], attention.shape[2]))[:, 0]
        other = (attention * pooled).sum((1, 2))
        share = self.area * pasted.mean((1, 2, 3)) + (1 - self.area) * other
        return torch.stack([1 - share, share], 1)
