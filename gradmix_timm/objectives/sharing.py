"""One clean forward for the loss and for the maps, also of a compiled model or one that recomputes activations."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradmix_timm.attribution import TargetLayer, unwrap, watch
from gradmix_timm.attribution.capture import Watch
from gradmix_timm.attribution.model_guard import recomputing

__all__ = ['SecondPass', 'kept_buffers', 'watch_training']


@contextmanager
def watch_training(model: nn.Module, targets: Sequence[TargetLayer]) -> Iterator[Watch]:
    """Hooks on the targets while a model trains; wrappers of ``torch.compile`` run their module as it is meanwhile.

    A compiled graph is built without the hooks of later. The pass under the hooks therefore runs uncompiled, on the
    same weights; passes outside the block are compiled. A checkpointed stage runs its blocks past the stage's own
    hooks (timm's ResNet), so a stage is watched at its last block, whose output is the stage's.

    Args:
        model: The classifier.
        targets: Layers to watch.
    """
    inner = unwrap(model)
    blocks = [_at_last_block(inner, one) for one in targets]
    with torch.compiler.set_stance('force_eager'), watch(inner, blocks) as seen:
        yield seen


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers as they were before the block.

    The gradient for the maps recomputes checkpointed blocks, and their BatchNorm would average the batch in once more.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()] if recomputing(model) else []
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # unseen by the graph of the loss, which holds some of them


class SecondPass:
    """A further training pass of a module, while the graph of an earlier one waits for its backward.

    It goes past DistributedDataParallel, whose hooks on the parameters fire all the same, once for both passes:
    entering it again would only broadcast the buffers again.

    BatchNorm hands its running statistics to its backward, which does not read them in training. In eager mode their
    update by the next pass goes unnoticed; in a compiled pass it counts as an in-place change and backward fails. So a
    compiled pass writes to copies of the buffers, whose values are copied back outside any graph. The copies stay the
    same tensors from step to step, which avoids recompilation.
    """

    def __init__(self) -> None:
        self._twins: dict[tuple[str, str], Tensor] = {}

    def __call__(self, module: nn.Module, images: Tensor) -> Tensor:
        """The module's output."""
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        with self._copied_buffers(inner):
            output: Tensor = inner(images)
        return output

    @contextmanager
    def _copied_buffers(self, module: nn.Module) -> Iterator[None]:
        inner = unwrap(module)
        if inner is module:
            yield
            return
        places = [(part, name, buffer, self._twin((path, name), buffer)) for path, part in inner.named_modules()
                  for name, buffer in part._buffers.items() if buffer is not None]
        try:
            for part, name, _, twin in places:
                part._buffers[name] = twin
            yield
        finally:
            for part, name, buffer, twin in places:
                buffer.data.copy_(twin)
                part._buffers[name] = buffer

    def _twin(self, key: tuple[str, str], buffer: Tensor) -> Tensor:
        twin = self._twins.get(key)
        if twin is None or (twin.shape, twin.dtype, twin.device) != (buffer.shape, buffer.dtype, buffer.device):
            twin = self._twins[key] = torch.empty_like(buffer)
        with torch.no_grad():
            return twin.copy_(buffer)


def _at_last_block(model: nn.Module, target: TargetLayer) -> TargetLayer:
    """The target, or the last module inside it where it is a plain sequence and activations are recomputed."""
    name, module = target.name, model.get_submodule(target.name)
    while recomputing(model) and type(module) is nn.Sequential and len(module):
        last, module = list(module.named_children())[-1]
        name = f'{name}.{last}'
    return replace(target, name=name)
