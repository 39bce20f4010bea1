"""Target layers: find the layers of any classifier that have a map, and resolve a user's choice among them."""
from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary, ref

from torch import nn

from gradmix_timm.registry import nearest

from .dry_run import Finding, Size, called, dry_run
from .grids import TargetLayer, fold
from .layer_candidates import declared, hints_for, norms, pinned_element, traceable, traced
from .model_guard import unwrap

__all__ = ['TargetLayer', 'default_layer', 'fold', 'resolve_layers', 'usable_layers']

# Shorter grid sides from which a map is fine enough, best first: 7 is that of the last stage at 224 px.
_FINE_ENOUGH = (7, 4)
_ADVICE = 'choose another, layers=... (--gradmix-layers)'

_Choice = int | str


class _Found:
    """The layers found in a model, for as long as it is built as it was then.

    Attributes:
        plan: See :func:`_plan`.
        names: Of the modules.
        layers: By image size, or size and choice.
    """

    def __init__(self, model: nn.Module, plan: list[object]) -> None:
        self.plan, self.names = plan, frozenset(name for name, _ in model.named_modules())
        self.layers: dict[object, tuple[TargetLayer, ...]] = {}


_found: WeakKeyDictionary[nn.Module, _Found] = WeakKeyDictionary()


def usable_layers(model: nn.Module, input_size: Size = (3, 224, 224)) -> tuple[TargetLayer, ...]:
    """The stages or blocks of a model where a map can be taken, in forward order.

    Usable: the module runs exactly once in a forward pass, its output (or one element of it) has the batch first and
    a grid above 1 x 1, and the log-odds of the labels have a gradient there that is not all zero on the grid
    positions. The last block of a ViT that reads its class token is not. Candidates are what timm's ``feature_info``
    declares, else what a trace finds. Where the default among them has no sign (see :class:`TargetLayer`: the last
    stream of pre-norm transformers), the norm that reads it is a layer too, right behind it: ``blocks.11.norm1`` of a
    ViT that reads its class token, ``norm`` of a Swin. One or two times one forward and backward on two noise images;
    remembered per model and size until a part of the model is replaced, added or removed; nothing is left on the model.

    Args:
        model: Any classifier, wrapped or not, in any mode, dtype and device.
        input_size: (C, H, W) of the images.

    Raises:
        ValueError: No layer has a map, or the model refuses the size; with the remedy.

    Example:
        >>> import timm
        >>> model = timm.create_model('test_resnet', num_classes=4)
        >>> [(str(layer), layer.grid) for layer in usable_layers(model, (3, 64, 64))]
        [('layer1', (16, 16)), ('layer2', (8, 8)), ('layer3', (4, 4)), ('layer4', (2, 2))]
    """
    inner = unwrap(model)
    cache, size = _found_in(inner).layers, _three(input_size)
    if size not in cache:
        cache[size] = _usable(inner, size)
    return cache[size]


def default_layer(layers: Sequence[TargetLayer]) -> TargetLayer:
    """The deepest layer whose shorter grid side is at least 7, else at least 4, else the largest grid's deepest.

    Class evidence is strongest last, but a map of few cells places nothing: on 32 px images ResNet-18's last stage
    has a single cell and the first one is taken. Token models keep their grid, so depth is free there.

    Args:
        layers: In forward order, at least one.
    """
    for side in _FINE_ENOUGH:
        fine = [layer for layer in layers if min(layer.grid) >= side]
        if fine:
            return fine[-1]
    return max(reversed(layers), key=lambda layer: layer.grid[0] * layer.grid[1])


def resolve_layers(model: nn.Module, input_size: Size, layers: object = None) -> tuple[TargetLayer, ...]:
    """Resolve a user's choice of layers, each checked at this image size; cached as :func:`usable_layers` is.

    Args:
        model: Any classifier.
        input_size: (C, H, W) of the images.
        layers: None for :func:`default_layer`; an int, indexing the usable layers in forward order as Python does (-1
            the deepest); a module name, of any module with a map ('layer3', 'blocks.11.norm1', 'stage4[0]'); a
            sequence of these; or a string of them with commas ('-2,-1'). A string that is the name of a module means
            that module: '1' is a number only where no module is called so.

    Returns:
        As many layers as asked for, in the order asked, without repeats.

    Raises:
        ValueError: No such layer (with the nearest), a layer without a map (with the reason), a model without one.
        TypeError: Values other than numbers and names.

    Example:
        >>> import timm
        >>> model = timm.create_model('test_vit', num_classes=4)
        >>> [str(layer) for layer in resolve_layers(model, (3, 160, 160), '-2,blocks.3.norm1')]
        ['blocks.4', 'blocks.3.norm1']
    """
    inner = unwrap(model)
    found, size = _found_in(inner), _three(input_size)
    choices = _choices(layers, found.names)
    key = (size, choices)
    if key not in found.layers:
        found.layers[key] = _resolve(inner, size, choices)
    return found.layers[key]


def _found_in(model: nn.Module) -> _Found:
    """What has been found in the model as it is built now."""
    found, plan = _found.get(model), _plan(model)
    if found is None or found.plan != plan:
        found = _found[model] = _Found(model, plan)
    return found


def _plan(model: nn.Module) -> list[object]:
    """What the model is made of: the submodules of each module in their order, and its own attributes that are text.

    The latter for timm's ``global_pool``. Other attributes, and a ``forward`` that is replaced, are not noticed: all
    of this is compared in every step of training. Weak references are equal if they are to one module.
    """
    plan: list[object] = [pair for pair in vars(model).items() if type(pair[1]) is str]
    parents, known = [model], {model}
    for parent in parents:
        for name, child in parent._modules.items():
            if child is None:
                plan += (name, None)
                continue
            plan += (name, ref(child))
            if child not in known:
                known.add(child)
                parents.append(child)
    return plan


def _three(input_size: Sequence[int]) -> Size:
    if len(input_size) != 3:
        raise ValueError(f'input_size is (C, H, W), got {tuple(input_size)}')
    channels, height, width = map(int, input_size)
    return channels, height, width


def _choices(layers: object, modules: Collection[str]) -> tuple[_Choice, ...] | None:
    """The choice as numbers and names, None for the default rule; a string that names a module is that name."""
    if layers is None or (layers == 'default' and layers not in modules):
        return None
    if isinstance(layers, int | str):
        layers = [layers]
    if not isinstance(layers, Sequence):
        raise TypeError(f'layers are numbers or module names, got {layers!r}')
    choices: list[_Choice] = []
    for item in layers:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise TypeError(f'layers are numbers or module names, got {item!r}')
        if isinstance(item, int) or item in modules:
            choices.append(item)
            continue
        words = [word.strip() for word in item.split(',')]
        choices += [int(word) if word not in modules and re.fullmatch(r'[+-]?\d+', word) else word for word in words]
    if not choices or '' in choices:
        raise ValueError(f'layers={layers!r} names no layer; give numbers or module names, or leave it out')
    return tuple(choices)


def _resolve(model: nn.Module, size: Size, choices: tuple[_Choice, ...] | None) -> tuple[TargetLayer, ...]:
    if choices is None:
        return (default_layer(usable_layers(model, size)),)
    found = [_by_number(model, size, choice) if isinstance(choice, int) else _by_name(model, size, choice)
             for choice in choices]
    return tuple(dict.fromkeys(found))


def _by_number(model: nn.Module, size: Size, number: int) -> TargetLayer:
    layers = usable_layers(model, size)
    if not -len(layers) <= number < len(layers):
        raise ValueError(f'no layer {number}: {called(model)} has {len(layers)} usable layers at {size[1]}x{size[2]} '
                         f'pixels ({_listed(layers)}); layers=... (--gradmix-layers) takes {-len(layers)} to '
                         f'{len(layers) - 1}')
    return layers[number]


def _by_name(model: nn.Module, size: Size, name: str) -> TargetLayer:
    """A layer among the usable ones, else any module of the model, probed on its own."""
    modules = dict(model.named_modules())
    match = None if name in modules else re.fullmatch(r'(.*)\[(\d+)\]', name)
    module, index = (match[1], int(match[2])) if match else (name, None)
    if not module or module not in modules:
        raise ValueError(_unknown(model, size, name))
    usable = _usable_or_none(model, size)
    for layer in usable:
        if layer.name == module and index in (None, layer.index):
            return layer
    hint = hints_for(model, [module])[module]
    if {layer.layout for layer in usable} == {'NHWC'}:
        hint = hint._replace(channels_last=True)
    finding = dry_run(model, size, [module], {module: hint})[0]
    fitting = [layer for layer in finding.layers if index in (None, layer.index)]
    if not fitting:
        reason = finding.reason or 'the gradient of the logits does not reach it'
        if index is not None and index not in [out.index for out in finding.outputs]:
            reason = f'its output has no such element with a grid: {finding.shapes}'
        raise ValueError(f'layer {name!r} of {called(model)} has no map: {reason}; {_ADVICE}')
    return fitting[0]


def _usable_or_none(model: nn.Module, size: Size) -> tuple[TargetLayer, ...]:
    """The usable layers; empty instead of an error, since the user may name another module."""
    try:
        return usable_layers(model, size)
    except ValueError:
        return ()


def _unknown(model: nn.Module, size: Size, name: str) -> str:
    """The usable layers, nearest first; a name deeper in the model that is close is offered too."""
    layers = [str(layer) for layer in usable_layers(model, size)]
    return (f'{called(model)} has no layer {name!r}: {nearest(name, layers)}. layers=... (--gradmix-layers) takes '
            f'these, their numbers 0 to {len(layers) - 1} (-1 the deepest), or any other module name')


def _usable(model: nn.Module, size: Size) -> tuple[TargetLayer, ...]:
    """Declared layers, else traced ones, numbered in forward order."""
    names = declared(model)
    layers = _pick(model, dry_run(model, size, names, hints_for(model, names))) if names else []
    if not layers:
        layers = _trace(model, size)
    if not layers:
        raise ValueError(
            f'{called(model)} has no layer with a map on {size[1]}x{size[2]} pixels: none gives a grid above 1x1 '
            'whose gradient reaches the logits. Where its forward cuts the gradient (torch.no_grad, detach, quantized '
            'layers), let it through; else use larger images (--img-size), a convolutional or token model, or '
            "mixing without a model, 'random-box' or 'cutmix' (--mixup-mode)")
    layers = _with_sign(model, size, layers)
    return tuple(replace(layer, number=number) for number, layer in enumerate(layers))


def _with_sign(model: nn.Module, size: Size, layers: list[TargetLayer]) -> list[TargetLayer]:
    """Behind a default layer without a sign, the first norm on its grid that has one: that which reads it."""
    stream = default_layer(layers)
    if stream.signed:
        return layers
    names = [name for name in norms(model) if name != stream.name]
    reference, *findings = dry_run(model, size, [stream.name, *names], hints_for(model, [stream.name, *names]))
    behind = sorted((f for f in findings if f.seen > reference.seen), key=lambda finding: finding.seen)
    reader = next((layer for finding in behind for layer in finding.layers
                   if layer.signed and layer.grid == stream.grid), None)
    after = layers.index(stream) + 1
    return layers if reader is None else [*layers[:after], reader, *layers[after:]]


def _trace(model: nn.Module, size: Size) -> list[TargetLayer]:
    names = traceable(model)
    findings = dry_run(model, size, names, hints_for(model, names))
    once = sorted((f for f in findings if f.calls == 1 and f.outputs), key=lambda finding: finding.seen)
    chained = {f.name for f in once if isinstance(model.get_submodule(f.name), nn.Sequential)
               or any(out.giver.startswith(f'{f.name}.') for out in f.outputs)}
    chosen = set(traced(model, [f.name for f in once], chained))
    return _pick(model, [f for f in once if f.name in chosen]) or _pick(model, once)


def _pick(model: nn.Module, findings: Sequence[Finding]) -> list[TargetLayer]:
    """One layer a module, in forward order, and one of the modules that give the very same tensor.

    That is the container where the other is its last child, else the one that made the tensor.
    """
    makers: dict[str, TargetLayer] = {}
    for finding in sorted(findings, key=lambda finding: finding.seen):
        pinned = pinned_element(model, finding.name)
        givers = {out.index: out.giver for out in finding.outputs}
        for layer in finding.layers:
            giver = givers[layer.index]
            if pinned in (None, layer.index) and (giver not in makers or giver.startswith(f'{finding.name}.')):
                makers.pop(giver, None)
                makers[giver] = layer
                break
    return _settled(list(makers.values()), findings)


def _settled(layers: list[TargetLayer], findings: Sequence[Finding]) -> list[TargetLayer]:
    """Outputs [B, n, n, n] take the layout of the others, where those are all NHWC."""
    cubes = {(finding.name, out.index) for finding in findings for out in finding.outputs if out.cube}
    others = {layer.layout for layer in layers if (layer.name, layer.index) not in cubes and layer.layout != 'NLC'}
    return [replace(layer, layout='NHWC') if others == {'NHWC'} and (layer.name, layer.index) in cubes else layer
            for layer in layers]


def _listed(layers: Sequence[TargetLayer]) -> str:
    return ', '.join(str(layer) for layer in layers)
