"""Cost of a map at a layer: the share of the forward pass behind it."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .dry_run import Size, ask, hooked
from .grids import TargetLayer
from .model_guard import borrow, frozen

__all__ = ['cost_share', 'cost_shares']


def cost_shares(model: nn.Module, targets: Sequence[TargetLayer], input_size: Size) -> tuple[float, ...]:
    """FLOPs between a layer and the logits over all FLOPs of a forward pass, from one pass on one image.

    With p this share, a map costs 1 + p forward passes, a plain training step about 3. Attention is counted product by
    product, whatever kernel would run it.

    Args:
        model: Any classifier.
        targets: Layers of it.
        input_size: (C, H, W) of the images.

    Returns:
        One number in [0, 1] a layer.

    Raises:
        ValueError: The model refuses the size, or nothing in it counts as an operation.
    """
    reached: dict[str, int] = {}

    def note(name: str, _: object) -> None:
        reached.setdefault(name, counter.get_total_flops())

    with borrow(model) as inner, frozen(inner), _countable(inner), FlopCounterMode(display=False) as counter:
        with hooked(inner, [target.name for target in targets], note):
            ask(inner, input_size, batch=1)
        total = counter.get_total_flops()
    if not total:
        raise ValueError(f'{type(model).__name__} has no operation that can be counted (no products)')
    return tuple((total - reached[target.name]) / total for target in targets)


def cost_share(model: nn.Module, target: TargetLayer, input_size: Size) -> float:
    """The share of one layer; see :func:`cost_shares`.

    Example:
        >>> import timm
        >>> from gradmix_timm.attribution import usable_layers
        >>> model = timm.create_model('resnet18')
        >>> layers = usable_layers(model, (3, 64, 64))
        >>> [round(cost_share(model, layer, (3, 64, 64)), 2) for layer in layers]
        [0.68, 0.46, 0.23, 0.0]
    """
    return cost_shares(model, [target], input_size)[0]


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Attention as separate products, nothing recorded for a backward."""
    device_type = next((p.device.type for p in model.parameters()), 'cpu')
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield
