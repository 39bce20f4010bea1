"""The attention of a transformer's class token, read from an existing forward pass."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .grids import Hints, read_grid
from .model_guard import borrow, recomputing, swapped, unwrap

__all__ = ['ClassAttention', 'check_class_attention', 'watch_class_attention']


class ClassAttention:
    """The class token's attention in the last block, of the newest forward pass.

    Args:
        model: Unwrapped.
        layer: Name of the attention module.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.layer, self.prefix = layer, int(getattr(model, 'num_prefix_tokens', 1))
        self.weights: Tensor | None = None

    def keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Pre-hook of the dropout that the attention weights [B, heads, queries, tokens] go through."""
        self.weights = inputs[0][:, :, 0].detach()

    def maps(self, image_size: tuple[int, int]) -> Tensor:
        """Mean over heads on the grid of patches, float32 [B, h, w], rows sum to 1.

        Raises:
            ValueError: No forward pass, or tokens that make no grid over the image.
        """
        weights = self.weights
        reading = None
        if weights is not None and weights.dim() == 3:
            tokens = weights.float().mean(1)[:, self.prefix:]
            reading = read_grid(tokens[:, :, None], image_size, Hints(prefix=0))
        if reading is None or reading.prefix:
            got = 'was not computed' if weights is None else f'has the shape {list(weights.shape)}'
            raise ValueError(f'the attention of {self.layer} {got}, expected one weight for each patch of '
                             f'{image_size[0]}x{image_size[1]} pixels')
        total = tokens.sum(1, keepdim=True)
        # In half precision a class token that looks at itself alone leaves nothing for the patches: they share evenly.
        return torch.where(total == 0, 1 / tokens.shape[1], tokens / total).unflatten(1, reading.grid)


def _last_attention(model: nn.Module) -> tuple[str, Any]:
    """Name and module of the last attention whose weights can be read.

    Raises:
        ValueError: The model has no class token, does not read it, or no such attention.
    """
    name = type(model).__name__
    if getattr(model, 'cls_token', None) is None:
        raise ValueError(f'{name} has no class token, whose attention says what a label is made of; take a model with '
                         "one (vit_tiny_patch16_224), or mixer 'cutmix' (--mixup-mode)")
    pool = getattr(model, 'global_pool', 'token')
    if pool != 'token':
        raise ValueError(f'{name} pools its tokens by {pool!r}, so that its class token learns nothing; build it with '
                         "global_pool='token' (--gp token), or take mixer 'cutmix' (--mixup-mode)")
    found = [(path, part) for path, part in model.named_modules()
             if isinstance(getattr(part, 'fused_attn', None), bool) and isinstance(
                 getattr(part, 'attn_drop', None), nn.Module)]
    if not found:
        raise ValueError(f'{name} has no attention whose weights can be read (fused_attn and attn_drop, as in timm); '
                         "take another model, or mixer 'cutmix' (--mixup-mode)")
    return found[-1]


@contextmanager
def watch_class_attention(model: nn.Module) -> Iterator[ClassAttention]:
    """Hook the last transformer block inside the ``with`` block, with its attention not fused.

    Fused attention does not compute the weights; the other blocks keep it. The flag and the hooks are restored on exit.

    Args:
        model: The model, in any wrapper.

    Raises:
        ValueError: A model without a class token that its head reads, without such an attention, or one that would
            recompute the pass outside the block.
    """
    inner = unwrap(model)
    if torch.is_grad_enabled() and recomputing(inner):
        raise ValueError(f'{type(inner).__name__} recomputes its activations in the backward, when its attention is '
                         'fused again: set_grad_checkpointing(False) (leave --grad-checkpointing out)')
    layer, attention = _last_attention(inner)
    seen = ClassAttention(inner, layer)
    handle = attention.attn_drop.register_forward_pre_hook(seen.keep)
    try:
        with swapped([attention], 'fused_attn', False):
            yield seen
    finally:
        handle.remove()


def check_class_attention(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """One borrowed forward on a blank image.

    Args:
        model: The model.
        input_size: (C, H, W).

    Raises:
        ValueError: See :func:`watch_class_attention`, and :meth:`ClassAttention.maps`.
    """
    like = next(model.parameters(), torch.zeros(()))
    with borrow(model) as inner, torch.no_grad(), watch_class_attention(inner) as seen:
        inner(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
        seen.maps((input_size[1], input_size[2]))
