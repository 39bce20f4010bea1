"""Borrow a live model: unwrapped, in evaluation mode, with everything restored at the end."""
from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

__all__ = ['borrow', 'check_classifies', 'frozen', 'recomputing', 'swapped', 'unwrap']

_REPLICAS = ('nn.DataParallel runs its replicas in threads, where attribution hooks cannot follow; use '
             'DistributedDataParallel (torchrun), or pass model.module')
# Attributes of every module: parameters, buffers, hooks.
_PYTORCHS = frozenset(vars(nn.Module()))


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself, without DistributedDataParallel and ``torch.compile`` around it (weights are shared).

    Raises:
        ValueError: nn.DataParallel or a scripted module, in which hooks do not work.
        TypeError: Not an nn.Module.
    """
    while True:
        if not isinstance(model, nn.Module):
            raise TypeError(f'expected an nn.Module to attribute, got {type(model).__name__}')
        if isinstance(model, nn.DataParallel):
            raise ValueError(_REPLICAS)
        if isinstance(model, torch.jit.ScriptModule):
            raise ValueError('a scripted model has no forward hooks; take the module before torch.jit.script '
                             '(leave out --torchscript)')
        if isinstance(model, DistributedDataParallel):
            model = model.module
            continue
        inside = getattr(model, '_orig_mod', None)
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def check_classifies(model: nn.Module) -> None:
    """Reject a model of timm's without its classifier, whose features would pass for logits.

    Raises:
        ValueError: It was built with ``num_classes=0``, and no head was put in since.
    """
    head = getattr(model, 'get_classifier', None)
    if getattr(model, 'num_classes', None) == 0 and callable(head) and isinstance(head(), nn.Identity):
        raise ValueError(f'{type(model).__name__} was built with num_classes=0 and gives features; give the whole '
                         'classifier, with one logit a class')


@contextmanager
def swapped(modules: Sequence[nn.Module], attribute: str, value: object) -> Iterator[None]:
    """``attribute`` set to ``value`` on each module, and always restored."""
    before = [getattr(module, attribute) for module in modules]
    try:
        for module in modules:
            setattr(module, attribute, value)
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            setattr(module, attribute, old)


@contextmanager
def _attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Empty caches and copied buffers inside the block; on exit every attribute is its former object.

    A list, dict, set or deque has its former content, too.

    In evaluation mode timm's levit, tiny_vit and efficientformers keep attention biases computed from the weights of
    the moment, until ``train()`` is called: the next pass, or the validation after it, would meet stale ones. convit
    replaces a buffer at its first forward; other networks count their calls or average features, in evaluation too.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    held = [(module, name, value, copy(value)) for module in modules for name, value in vars(module).items()
            if type(value) in (list, dict, set, deque) and name not in _PYTORCHS]
    try:
        for module, name, value, _ in held:
            if name.endswith('_cache') and type(value) is dict:
                setattr(module, name, {})
        _copy_buffers(modules)
        yield
    finally:
        for module, attributes, buffers in before:
            now = vars(module)
            now.update(attributes)
            if len(now) > len(attributes):
                for name in now.keys() - attributes.keys():
                    del now[name]
            if buffers:
                module._buffers.clear()
                module._buffers.update(buffers)
        for _, _, value, content in held:
            _put_back(value, content)


def _put_back(value: Any, content: Any) -> None:
    """Give a list, dict, set or deque its former content, if that changed."""
    if _identities(value) != _identities(content):
        value.clear()
        (value.update if isinstance(value, dict | set) else value.extend)(content)


def _identities(value: Any) -> list[Any]:
    return [(id(key), id(entry)) for key, entry in value.items()] if isinstance(value, dict) else [*map(id, value)]


def _copy_buffers(modules: Sequence[nn.Module]) -> None:
    """The forward of the block writes on copies; BatchNorm writes nothing in evaluation mode and keeps its own."""
    copies: dict[int, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for module in modules:
            if module._buffers and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())


@contextmanager
def _streams(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Random streams of Python, NumPy, torch's CPU and the modules' GPUs, put back at the end."""
    devices = {p.device.index for module in modules for p in module._parameters.values()
               if p is not None and p.device.type == 'cuda'}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _no_cached_weights() -> Iterator[None]:
    """Weights that PyTorch computes from parametrizations are not kept for a caller's ``parametrize.cached()``.

    Those of the pass have no path to the parameters, and in evaluation mode they may be others.
    """
    before = parametrize._cache_enabled
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        parametrize._cache_enabled = before


@contextmanager
def borrow(model: nn.Module) -> Iterator[nn.Module]:
    """The unwrapped model in evaluation mode, without checkpointing or compilation; all of it restored at the end.

    Evaluation mode, so that BatchNorm statistics do not move, dropout draws nothing, and the map of an image does not
    depend on the rest of its batch. Flags are set and restored module by module: a frozen BatchNorm stays frozen, a
    user-defined ``train()`` is not called. Buffers, other attributes of the modules and random streams are restored,
    whatever the forward pass does to them. A user's forward hooks run, as they may be a part of the model; the backward
    hooks of its modules do not.

    Raises:
        ValueError: See :func:`unwrap`; also where a part of the model is an nn.DataParallel.
    """
    inner = unwrap(model)
    modules = list(inner.modules())
    if any(isinstance(module, nn.DataParallel) for module in modules):
        raise ValueError(_REPLICAS)
    # A lazy module becomes another class in its first forward, to stay so; a scripted one keeps its state elsewhere.
    others = [m for m in modules if isinstance(m, nn.modules.lazy.LazyModuleMixin | torch.jit.ScriptModule)]
    settled = [m for m in modules if m not in others] if others else modules
    with _streams(modules), _attributes(settled), _no_cached_weights(), swapped(others, 'training', False):
        for module in settled:  # straight into the dict, as an assignment to a module takes ten times as long
            attributes = vars(module)
            attributes['training'] = False
            # A checkpointed stage runs its blocks past the stage's own hooks (timm's ResNet).
            if attributes.get('grad_checkpointing') is True:
                attributes['grad_checkpointing'] = False
            # A user's backward hooks collect or count the gradients of the training (K-FAC, Opacus).
            if attributes['_backward_hooks'] or attributes['_backward_pre_hooks']:
                attributes['_backward_hooks'], attributes['_backward_pre_hooks'] = OrderedDict(), OrderedDict()
        # Compiled parts run eagerly: they would not call hooks added later, and be compiled again for this pass.
        with torch.compiler.set_stance('force_eager'):
            yield inner


def recomputing(model: nn.Module) -> list[nn.Module]:
    """Its modules that recompute activations in the backward (timm's ``set_grad_checkpointing``)."""
    return [module for module in model.modules() if getattr(module, 'grad_checkpointing', False) is True]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient for the duration of the block.

    Less is kept for a backward that only activations need. And under ``no_grad`` a view of a parameter, such as an
    expanded class token, still requires a gradient without a graph to it, on which ``FlopCounterMode`` fails.
    """
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_()
