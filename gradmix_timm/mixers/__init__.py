"""The registry of batch mixers: timm's own, published methods, GradMix and its controls, and user-defined ones."""
from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from gradmix_timm.choices import TIMM_MODES
from gradmix_timm.options import OPTIONS, RECIPES, GradMixOptions
from gradmix_timm.registry import Registry, nearest

from .attentivemix import AttentiveMix
from .base import BatchMixer
from .callables import CallableMixer, TorchvisionMixer
from .contract import BoundMixer, Mixer, adopt
from .cutout import Cutout
from .fmix import FMix
from .gradmix import GradMix
from .gridmix import GridMix
from .guidedmix import GuidedMix
from .openmix import OpenMix
from .pixmix import PixMix
from .plain import CutMix, Mixup, NoMix
from .puzzlemix import PuzzleMix
from .random_erasing import RandomErasing
from .regmixup import RegMixup
from .resizemix import ResizeMix
from .saliencymix import SaliencyMix
from .snapmix import SnapMix
from .switch import SwitchMixer
from .timm_mix import TimmMixup
from .tokenmix import TokenMix
from .transmix import TransMix

__all__ = [
    'OPTIONS',
    'RECIPES',
    'TIMM_MODES',
    'AttentiveMix',
    'BatchMixer',
    'BoundMixer',
    'CallableMixer',
    'CutMix',
    'Cutout',
    'FMix',
    'GradMix',
    'GradMixOptions',
    'GridMix',
    'GuidedMix',
    'Mixer',
    'Mixup',
    'NoMix',
    'OpenMix',
    'PixMix',
    'PuzzleMix',
    'RandomErasing',
    'RegMixup',
    'ResizeMix',
    'SaliencyMix',
    'SnapMix',
    'SwitchMixer',
    'TimmMixup',
    'TokenMix',
    'TorchvisionMixer',
    'TransMix',
    'create_mixer',
    'list_mixers',
    'recorded_options',
    'register_mixer',
]

_SHARED = ('num_classes', 'label_smoothing', 'prob', 'prob_elem', 'seed', 'rank', 'multi_label_mix', 'unknown_output')

_MIXERS: Registry[Callable[..., Any]] = Registry('mixer')


def register_mixer(name: str, summary: str, function: bool = False
                   ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that enters a mixer class, a factory or a plain function into the registry, and so into --mixup-mode.

    Args:
        name: For :func:`create_mixer`; a word without ``+``.
        summary: One line for :func:`list_mixers`.
        function: The decorated object is not a class or factory but the mixer itself, ``(images, labels, **options)
            -> (images, soft targets)``; see :class:`CallableMixer` for its arguments and its seeding.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> import torch
        >>> @register_mixer('doctest-mixup', 'mixup with a mild alpha')
        ... def mild(num_classes, **common):
        ...     return Mixup(num_classes, alpha=0.2, **common)
        >>> create_mixer('doctest-mixup', num_classes=3).alpha
        0.2
        >>> @register_mixer('doctest-half', 'the mean of each image and its neighbour', function=True)
        ... def half(images, labels, share=0.5):
        ...     rows = torch.nn.functional.one_hot(labels, 3).float()
        ...     return images.lerp(images.roll(1, 0), share), rows.lerp(rows.roll(1, 0), share)
        >>> mixer = create_mixer('doctest-half', num_classes=3, share=0.25, prob=1.0)
        >>> mixer(torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]))[1]
        tensor([[0.7500, 0.0000, 0.2500],
                [0.2500, 0.0000, 0.7500]])
    """
    enter = _MIXERS.register(name, summary)
    if not function:
        return enter

    def enter_function(mix: Callable[..., Any]) -> Callable[..., Any]:
        def create(num_classes: int, **options: Any) -> CallableMixer:
            return CallableMixer(name, mix, num_classes, **options)
        enter(create)
        return mix

    return enter_function


def list_mixers() -> dict[str, str]:
    """Registered names to one line each."""
    return _MIXERS.describe()


def create_mixer(name: str, **options: Any) -> Mixer:
    """A mixer by name.

    Args:
        name: A registered name, or two joined by ``+``, which alternate by ``switch_prob`` batch by batch.
        **options: ``num_classes`` and the mixer's own; every one of ours takes label_smoothing, prob, prob_elem,
            seed and rank. For ``a+b``: those of both, each for the mixers that take it, ``switch_prob``, and
            ``parts={'a': {...}, 'b': {...}}`` over them.

    Returns:
        A mixer: ``images, targets = mixer(images, labels, model)``.

    Raises:
        ValueError: An unknown name or option; the message names the nearest.
        TypeError: A name that is no text.

    Example:
        >>> create_mixer('mixup', num_classes=10, alpha=0.5)
        Mixup(alpha=0.5, lam='image', num_classes=10, label_smoothing=0.0, prob=1.0, prob_elem=1.0, seed=0, rank=0)
    """
    if not isinstance(name, str):
        raise TypeError(f"a mixer is asked for by its name, such as 'gradmix', got {name!r}")
    if '+' in name:
        return _create_switch(name, **options)
    entry = _MIXERS[name]
    if 'num_classes' not in options and name not in TIMM_MODES and _takes(entry, 'num_classes'):
        raise ValueError(f'mixer {name!r} needs num_classes, the width of the classifier')
    unknown = [option for option in options if not _takes(entry, option)]
    if unknown:
        known = _parameters(entry)
        raise ValueError(f'mixer {name!r} has no option {unknown[0]!r}: {nearest(unknown[0], known)}')
    fixed = entry.keywords.get('attribution') if isinstance(entry, partial) and entry.func is GradMix else None
    if fixed and options.get('attribution', fixed) != fixed:
        raise ValueError(f'mixer {name!r} has attribution={fixed!r}, which makes it a control, got '
                         f"{options['attribution']!r}; leave it out, or take mixer 'gradmix'")
    options = {option: value.tolist() if isinstance(value, np.ndarray) else value for option, value in options.items()}
    for option, kind in _kinds(entry).items():
        if kind in ('int', 'float') and isinstance(options.get(option, 0), str | list | tuple | dict | None):
            raise ValueError(f'mixer {name!r}: {option} is a number, got {options[option]!r}')
    return adopt(name, entry(**options), int(options.get('num_classes', 0)))


def recorded_options(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of a checkpoint's mixer that it still has, and the names of those that it has no more.

    Example:
        >>> recorded_options('cutmix', {'alpha': 1.0, 'beta': 2.0})
        ({'alpha': 1.0}, ['beta'])
    """
    if '+' not in name:
        kept = {option: value for option, value in options.items() if _takes(_MIXERS[name], option)}
        return kept, [option for option in options if option not in kept]
    parts, former = {}, []
    for part, own in dict(options.get('parts') or {}).items():
        parts[part], gone = recorded_options(part, dict(own))
        former += [f'{part}.{option}' for option in gone]
    return {**options, 'parts': parts}, former


def _create_switch(name: str, switch_prob: float = 0.5, parts: dict[str, dict[str, Any]] | None = None,
                   **shared: Any) -> SwitchMixer:
    names = name.split('+')
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f'expected two different mixers joined by "+", got {name!r}')
    timms = [n for n in names if n in TIMM_MODES]
    if timms:
        raise ValueError(f"{timms[0]!r} is timm's own class and cannot alternate: use 'mixup' or 'cutmix' in {name!r}")
    parts = {} if parts is None else parts
    if not isinstance(parts, Mapping) or not all(isinstance(own, Mapping) for own in parts.values()):
        raise ValueError(f"parts is {{'{names[0]}': {{...}}, '{names[1]}': {{...}}}}, options by mixer, got {parts!r}")
    if not isinstance(switch_prob, Real):
        raise ValueError(f'switch_prob is a number, got {switch_prob!r}')
    stray = [part for part in parts if part not in names]
    if stray:
        raise ValueError(f'parts names {stray[0]!r}: {nearest(stray[0], names)}')
    takers = {option: [n for n in names if _takes(_MIXERS[n], option)] or names for option in shared}
    made = [create_mixer(n, **{**{option: value for option, value in shared.items() if n in takers[option]},
                               **parts.get(n, {})}) for n in names]
    first, second = (_alternating(name, mixer) for mixer in made)
    return SwitchMixer(first, second, switch_prob)


def _alternating(name: str, mixer: Mixer) -> BatchMixer:
    if not isinstance(mixer, BatchMixer):
        raise ValueError(f'{mixer.name!r} draws and applies in one and cannot alternate in {name!r}: derive it from '
                         'gradmix_timm.mixers.BatchMixer')
    return mixer


def _parameters(entry: Callable[..., Any]) -> set[str]:
    """Keywords of an entry, including those of its base class and of GradMix's options."""
    names: set[str] = set()
    target = entry.func if isinstance(entry, partial) else entry
    for parameter in inspect.signature(entry).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            names.add(parameter.name)
        elif isinstance(target, type) and issubclass(target, GradMix):
            names.update(OPTIONS)
        elif target is TimmMixup:
            names.update(('cutmix_minmax', 'prob', 'switch_prob', 'correct_lam'))
        elif isinstance(target, type) and issubclass(target, BatchMixer):
            names.update(_SHARED, *(inspect.signature(c).parameters for c in target.__mro__[1:-1]))
        else:
            names.add('**')
    return names - {'self', 'common', 'options', 'mode'}


def _kinds(entry: Callable[..., Any]) -> dict[str, str]:
    """The annotated type of each option of a mixer of ours."""
    target = entry.func if isinstance(entry, partial) else entry
    if not (isinstance(target, type) and issubclass(target, BatchMixer)):
        return {}
    own = {name: str(option.type) for name, option in OPTIONS.items()} if issubclass(target, GradMix) else {}
    return own | {parameter.name: str(parameter.annotation) for source in reversed(target.__mro__[:-1])
                  for parameter in inspect.signature(source).parameters.values()}


def _takes(entry: Callable[..., Any], option: str) -> bool:
    known = _parameters(entry)
    return option in known or '**' in known


for _mode, _line in {
    'batch': 'timm: mixup / CutMix, one draw per batch',
    'pair': 'timm: one draw for each pair of images',
    'elem': 'timm: one draw for each image',
    'half': "timm's collate mode with the prefetcher (B images in, B / 2 out); in the step timm treats it as batch",
}.items():
    register_mixer(_mode, _line)(partial(TimmMixup, _mode))
register_mixer('none', 'nothing mixed; soft one-hot targets')(NoMix)
register_mixer('mixup', 'convex blend of two images and labels (arXiv:1710.09412)')(Mixup)
register_mixer('cutmix', 'a random box from a partner, labels by area (arXiv:1905.04899)')(CutMix)
register_mixer('random-box', 'control: GradMix with its box anywhere, no model')(partial(GradMix, attribution='random'))
register_mixer('center-box', 'control: GradMix with its box in the middle, no model')(
    partial(GradMix, attribution='center'))
register_mixer('gradmix', "a box over the model's own evidence, filled from a partner (arXiv:2505.12803)")(GradMix)
register_mixer('cutout', 'a square is blanked, the label stays (arXiv:1708.04552)')(Cutout)
register_mixer('random-erasing', 'a rectangle is filled with noise, the label stays (arXiv:1708.04896)')(RandomErasing)
register_mixer('resizemix', 'the whole partner, shrunk, at a random place (arXiv:2012.11101)')(ResizeMix)
register_mixer('fmix', 'a binary mask cut from low-frequency noise (arXiv:2002.12047)')(FMix)
register_mixer('gridmix', 'cells of a grid from either image (Baek et al., Pattern Recognition 2021)')(GridMix)
register_mixer('saliencymix', "a box round the partner's most salient point (arXiv:2006.01791)")(SaliencyMix)
register_mixer('regmixup', 'the clean batch, then its mixup: 2 B rows (arXiv:2206.14502)')(RegMixup)
register_mixer('guidedmix', 'pairs and blends by saliency (Guided-SR, arXiv:2306.16612)')(GuidedMix)
register_mixer('attentivemix', "the model's most active cells are kept, the rest is the partner's (arXiv:2003.13048)")(
    AttentiveMix)
register_mixer('snapmix', 'a box in a box, labels by class activation maps (arXiv:2012.04846)')(SnapMix)
register_mixer('puzzlemix', 'cells and blocks by the saliency of the loss, approximately (arXiv:2009.06962)')(PuzzleMix)
register_mixer('openmix', 'the clean batch, then mixes that are of no class (OpenMix+, IEEE TCSVT 2023)')(OpenMix)
register_mixer('transmix', "CutMix, labels by the class token's attention to the mix (arXiv:2111.09833)")(TransMix)
register_mixer('tokenmix', 'tokens of a partner, labels by the content that is seen (arXiv:2207.08409)')(TokenMix)
register_mixer('pixmix', 'fractals and augmented copies mixed in, the label stays (arXiv:2112.05135)')(PixMix)
for _kind, _line in {'MixUp': 'one lam', 'CutMix': 'one box'}.items():
    register_mixer(TorchvisionMixer.NAMES[_kind], f"torchvision's v2.{_kind}: {_line} per batch, partner above")(
        partial(TorchvisionMixer, _kind))


def _options_text() -> str:
    """One line per registered mixer: its own options with their defaults, without the shared ones."""
    lines = []
    for name in _MIXERS.describe():
        entry = _MIXERS[name]
        target = entry.func if isinstance(entry, partial) else entry
        if target is GradMix and entry is not target:
            lines.append(f'{name}: the options of gradmix')
            continue
        classes: tuple[Any, ...] = target.__mro__[:-1] if isinstance(target, type) else ()
        defaults = {parameter.name: parameter.default for source in (*reversed(classes), entry)
                    for parameter in inspect.signature(source).parameters.values()}
        notes: dict[str, str] = {}
        if target is GradMix:
            defaults |= asdict(GradMixOptions())
            notes['label'] = " ('keep' with a confidence)"
        options = [option if defaults.get(option, inspect.Parameter.empty) is inspect.Parameter.empty
                   else f'{option}={defaults[option]!r}{notes.get(option, "")}'
                   for option in sorted(_parameters(entry)) if option not in (*_SHARED, '**')]
        lines.append(f'{name}: {", ".join(options) or "none of its own"}')
    return '\n'.join(textwrap.fill(line, 110, initial_indent=' ' * 4, subsequent_indent=' ' * 8) for line in lines)


if create_mixer.__doc__:  # none under python -OO
    # Python 3.13 takes the indentation off by itself.
    create_mixer.__doc__ = inspect.cleandoc(create_mixer.__doc__).replace(
        'Returns:\n', f'Options of each name, with their defaults:\n{_options_text()}\n\nReturns:\n', 1)
