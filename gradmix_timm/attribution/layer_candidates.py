"""Candidate target layers: timm's declarations, a small table that corrects them, else a trace."""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .grids import Hints

__all__ = ['declared', 'hints_for', 'inside_attention', 'norms', 'pinned_element', 'traceable', 'traced']

# Families whose feature_info names no module (twins, mvitv2), too few (coat) or modules that go on with another tensor
# than the one named (efficientvim): patterns of block names instead.
_BLOCKS = {
    'coat': (r'serial_blocks\d\.\d+', r'parallel_blocks\.\d+'),
    'efficientvim': (r'stages\.\d+\.blocks\.\d+',),
    'mvitv2': (r'stages\.\d+',),
    'twins': (r'blocks\.\d+\.\d+',),
}
# Blocks that return one tensor per scale: the element that has just been worked on. Elsewhere the first usable one.
_ELEMENTS = {'coat': (r'parallel_blocks\.\d+', 3)}
# Classifiers and their auxiliaries, whose outputs are class scores, not features.
_HEAD = re.compile(r'(^|\.)(head|heads|fc|classifier|aux\w*)(\.|$)', re.IGNORECASE)
# Classes of attention, of convolutions and of norms on maps.
_ATTENTION = re.compile(r'attention|attn', re.IGNORECASE)
_PLANAR = re.compile(r'conv|2d', re.IGNORECASE)
_RESIZED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample)
# A wrapper, its backbone, a stack, its blocks.
_MAX_DEPTH = 5
# Stages or blocks that make a choice worth offering; with fewer the containers are opened.
_ENOUGH = 3


def declared(model: nn.Module) -> list[str]:
    """Module names from ``feature_info`` (or the table), of timm models and of timm models inside the model.

    Leaves before the first block are the stem's activation, not a stage: they are left out.
    """
    names: list[str] = []
    for prefix, owner in _owners(model):
        own = list(_from_table(owner)) or list(_from_feature_info(owner))
        blocks = [position for position, name in enumerate(own) if any(owner.get_submodule(name).children())]
        names += [prefix + name for name in own[blocks[0] if blocks else 0:]]
    return list(dict.fromkeys(names))


def hints_for(model: nn.Module, names: Sequence[str]) -> dict[str, Hints]:
    """Declarations about the named modules: width, layout, prefix tokens of the nearest timm model."""
    modules = dict(model.named_modules())
    owners = [(prefix, owner, _widths(owner)) for prefix, owner in _owners(model)]
    hints = {}
    for name in names:
        prefix, owner, widths = next((found for found in owners if name.startswith(found[0])), ('', model, {}))
        lineage = [modules[name[:end]] for end in _ends(name)] + [owner, model]
        tokens = (getattr(module, 'num_prefix_tokens', None) for module in lineage)
        hints[name] = Hints(
            channels=widths.get(name.removeprefix(prefix)),
            channels_last=str(getattr(owner, 'output_fmt', '')).endswith('NHWC'),
            prefix=next((count for count in tokens if isinstance(count, int)), 0))
    return hints


def pinned_element(model: nn.Module, name: str) -> int | None:
    """The element of the module's output to take first, where the family has one."""
    for prefix, owner in _owners(model):
        pattern, index = _ELEMENTS.get(_family(owner), ('', None))
        if index is not None and re.fullmatch(pattern, name.removeprefix(prefix)):
            return index
    return None


def norms(model: nn.Module) -> list[str]:
    """Names of the normalisation layers, whatever their class: LayerNorm, RmsNorm, LayerNorm2d, ..."""
    return [name for name, module in model.named_modules()
            if 'norm' in type(module).__name__.lower() and not any(module.children())]


def inside_attention(model: nn.Module, name: str) -> bool:
    """Whether a module works on the heads of an attention: four sizes there are [B, heads, tokens, ...], no map.

    Convolutions and their norms (BatchNorm2d, LayerNorm2d) inside an attention do see a map.
    """
    if _PLANAR.search(type(model.get_submodule(name)).__name__):
        return False
    parents = [model.get_submodule(name[:end]) for end in _ends(name)[1:]]
    # Not the blocks called so that hold a norm, an attention and an MLP (MaxViT's): these know of no heads.
    return any(_ATTENTION.search(type(parent).__name__)
               and any('heads' in key and isinstance(value, int) for key, value in vars(parent).items())
               for parent in parents)


def traceable(model: nn.Module) -> list[str]:
    """Names of the modules to watch in a trace; not what spreads a cell over many, no part of an attention."""
    return [name for name, module in model.named_modules()
            if name and name.count('.') < _MAX_DEPTH and not _HEAD.search(name) and not isinstance(module, _RESIZED)
            and not inside_attention(model, name)]


def traced(model: nn.Module, spatial: Sequence[str], chained: set[str]) -> list[str]:
    """Stage or block names of a model that declares none, in forward order.

    The outermost modules with children are taken. Where they are fewer than three, those that merely chain their
    children (``features``, ``encoder``) are opened, level by level. A model of bare layers gives the last of each run
    of layers that a convolution or linear layer opens.

    Args:
        model: The model.
        spatial: Names of the modules that ran once and gave a grid, in forward order.
        chained: Those of them whose output is that of their last child.
    """
    blocks = [name for name in spatial if any(model.get_submodule(name).children())]
    best: list[str] = []
    level = _outermost(blocks)
    while True:
        if len(level) > len(best):
            best = level
        opened = [inner for name in level for inner in (_opened(name, blocks) if name in chained else []) or [name]]
        if len(best) >= _ENOUGH or opened == level:
            break
        level = opened
    if len(best) > 1:
        return [name for name in spatial if name in best]
    return [name for name in spatial if name in {*best, *_runs(model, spatial)}]


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that declare features, with the prefix of their names."""
    found: list[str] = []
    for name, module in model.named_modules():
        if hasattr(module, 'feature_info') and not any(name.startswith(f) for f in found):
            found.append(f'{name}.' if name else '')
            yield found[-1], module


def _entries(owner: nn.Module) -> list[dict[str, Any]]:
    info = getattr(owner, 'feature_info', None) or []
    return [entry for entry in getattr(info, 'info', info) if isinstance(entry, dict) and entry.get('module')]


def _from_table(owner: nn.Module) -> Iterator[str]:
    patterns = _BLOCKS.get(_family(owner), ())
    for name, _ in owner.named_modules():
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            yield name


def _from_feature_info(owner: nn.Module) -> Iterator[str]:
    for entry in _entries(owner):
        name = _resolve(owner, entry['module'])
        if name is not None:
            yield name


def _widths(owner: nn.Module) -> dict[str | None, int | None]:
    return {_resolve(owner, entry['module']): entry.get('num_chs') for entry in _entries(owner)}


def _resolve(owner: nn.Module, declared_name: str) -> str | None:
    """The module of that name; else the one that ends so (gemma4_vit declares its encoder's), or None."""
    names = [name for name, _ in owner.named_modules()]
    for form in (declared_name, declared_name.replace('.', '_')):
        if form in names:
            return form
    ending = [name for name in names if name.endswith(f'.{declared_name}')]
    return ending[0] if len(ending) == 1 else None


def _family(module: nn.Module) -> str:
    """The module name of a timm model ('coat'), '' for others."""
    path = type(module).__module__
    return path.rsplit('.', 1)[-1] if path.startswith('timm.models.') else ''


def _ends(name: str) -> list[int]:
    """Where the name and the names of its ancestors end, the longest first."""
    return [len(name)] + [match.start() for match in reversed(list(re.finditer(r'\.', name)))]


def _outermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f'{other}.') for other in names)]


def _opened(name: str, blocks: Sequence[str]) -> list[str]:
    return _outermost([inner for inner in blocks if inner.startswith(f'{name}.')])


def _runs(model: nn.Module, spatial: Sequence[str]) -> list[str]:
    """The last leaf of each run: convolution, normalisation, activation, pooling."""
    ends: list[str] = []
    for name in spatial:
        module = model.get_submodule(name)
        if any(module.children()):
            continue
        weight = getattr(module, 'weight', None)
        if not ends or (isinstance(weight, Tensor) and weight.dim() > 1):
            ends.append(name)
        ends[-1] = name
    return ends
