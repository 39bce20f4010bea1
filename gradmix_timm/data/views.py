"""Two views of every image: the training transform applied twice to one decoded image."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ['TwoViews', 'collate_views']


class TwoViews:
    """An image transform applied twice, each time with its own random draws.

    timm's ``fast_collate`` lays such pairs out as view 1 of every image, then view 2 of every image, labels alike;
    :func:`collate_views` does so for images that are float already.

    Args:
        transform: PIL image to an array or tensor.

    Example:
        >>> TwoViews(str.upper)('a')
        ('A', 'A')
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Any, Any]:
        """Both views."""
        return self.transform(image), self.transform(image)

    def __repr__(self) -> str:
        return f'TwoViews({self.transform!r})'


def collate_views(batch: Sequence[tuple[tuple[Any, Any], Any]]) -> tuple[Tensor, Tensor]:
    """Batch of pairs: images [2 B, C, H, W], view 1 first, and labels [2 B]; PyTorch's default for the rest."""
    views, labels = default_collate(list(batch))
    return torch.cat(list(views)), torch.cat([labels] * len(views))
