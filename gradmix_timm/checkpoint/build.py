"""The model of a checkpoint, with its weights."""
from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from gradmix_timm.models import check_name, own_names
from gradmix_timm.schema import shown

from .allowed import check_model_name
from .reading import Loaded


def build_model(loaded: Loaded | None, model: str | None = None, num_classes: int | None = None,
                pretrained: bool = False) -> nn.Module:
    """A model in eval mode, with the weights of a checkpoint or as timm makes it.

    An output for no class (``unknown_output`` of the record) is folded into the others: the model's logits are those
    of the known classes, z_k - z_unknown, the log-odds of each against no class. Probabilities among the known classes
    and the predicted class are unchanged; the energy is the log-odds of all known classes against none of them.

    Args:
        loaded: A checkpoint, or None for timm's own weights or a random start.
        model: timm's model name; over the checkpoint's.
        num_classes: Outputs of the head; None: as in the checkpoint, else timm's default.
        pretrained: Fetch timm's weights; only without a checkpoint.

    Raises:
        ValueError: No or an unknown model name; weights that do not fit; a head that has not ``num_classes`` outputs
            or not one for each known class; pretrained weights that could not be downloaded.
    """
    name = model or (loaded.model if loaded else None)
    if not name:
        where = f'{loaded.path} holds weights alone' if loaded else 'no checkpoint was given'
        raise ValueError(f'{where}: name the model, --model NAME')
    if loaded is not None and not model:
        check_model_name(name, loaded.path)
    if loaded is None:
        return _create(name, pretrained, {} if num_classes is None else {'num_classes': num_classes}).eval()
    if pretrained:
        raise ValueError('a checkpoint brings its own weights: leave out --pretrained or --checkpoint')
    loaded = replace(loaded, state_dict=own_names(name, loaded.state_dict))
    if loaded.record is not None and loaded.record.unknown_output:
        loaded = _folded(loaded, name)
    kwargs = loaded.model_kwargs
    if name != loaded.model:
        kwargs = {key: kwargs[key] for key in ('num_classes', 'in_chans') if key in kwargs}
    prefix, head = _head_size(name, loaded.state_dict)
    _check_head(loaded, head, num_classes)
    wanted = head if head is not None else num_classes
    kwargs = kwargs if wanted is None else {**kwargs, 'num_classes': wanted}
    _check_size(name, kwargs, loaded, prefix)
    net = _create(name, False, kwargs, '' if model else f'{loaded.path}: ')
    weights = _fitted(net.state_dict(), name, loaded, prefix)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:  # names and shapes were checked before
        raise ValueError(f'the weights in {loaded.path} cannot be taken by {name} ({error})') from error
    return net.eval()


def check_input(net: nn.Module, input_size: Sequence[int], where: str) -> None:
    """Check with one blank image that the model accepts the recorded preprocessing.

    Args:
        net: In evaluation mode.
        input_size: (C, H, W).
        where: Source of the size, for the message.

    Raises:
        ValueError: The model fails on it.
    """
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    blank = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
    try:
        with torch.inference_mode():
            net(blank)
    except Exception as error:  # models raise any type on unexpected shapes
        size = ' x '.join(map(str, input_size))
        raise ValueError(f'{where}: the model does not take images of {size} ({" ".join(str(error).split())[:200]}); '
                         'the checkpoint or --img-size says another size than the weights are for') from error


def find_device(device: torch.device | str | None = None) -> torch.device:
    """The given device; None: cuda if available.

    Raises:
        ValueError: A device that PyTorch cannot use here.
    """
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch raises all three
        raise ValueError(f'device {str(device)!r}: PyTorch {torch.__version__} cannot use it here '
                         f"({str(error).splitlines()[0]}); give 'cpu' (type --device cpu)") from error
    return found


def pretraining(args: Mapping[str, Any] | None, name: str | None = None) -> str | None:
    """Origin of a run's initial weights.

    A net pretrained on ImageNet has seen many "unknown" classes, so its figures are not comparable with those of one
    trained from scratch.

    Args:
        args: timm's training arguments, as stored in a checkpoint, or None.
        name: The model, if it is evaluated with timm's own weights.

    Returns:
        'none'; timm's name of the weights with their tag; 'file NAME'; None if it is not recorded.

    Example:
        >>> pretraining({'pretrained': False, 'initial_checkpoint': ''}), pretraining(None, 'resnet18')
        ('none', 'resnet18.a1_in1k')
    """
    if name is None:
        if args is None or 'pretrained' not in args:
            return None
        file = args.get('initial_checkpoint') or (args['pretrained'] and args.get('pretrained_path'))
        if file or not args['pretrained']:
            return f'file {os.path.basename(str(file))}' if file else 'none'
        name = str(args.get('model'))
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    tag = config.tag if config is not None else ''
    return f'{name}.{tag}' if tag and '.' not in name else name


def _prefixes(names: Collection[str]) -> list[str]:
    """Every common prefix of all names that ends in a dot: '', 'model.', 'model.backbone.'.

    Trainers keep the net in an attribute: Lightning modules as ``model`` or ``net``, FSDP, DataParallel
    and averaged models as ``module``.
    """
    pairs = list(zip(min(names, default=''), max(names, default=''), strict=False))  # these two suffice
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return [''] + [min(names)[:place + 1] for place in range(shared) if pairs[place][0] == '.']


def _head_size(name: str, state: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """Prefix of all names, if the head shows it, and the head's outputs."""
    places = [(prefix, f'{prefix}{head}.weight') for prefix in _prefixes(state) for head in _head_names(name)]
    return next(((prefix, len(state[key])) for prefix, key in places if key in state and state[key].dim()), ('', None))


def _head_names(name: str) -> tuple[str, ...]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    named = config.classifier if config else None
    return (named,) if isinstance(named, str) else tuple(named or ())


def _folded(loaded: Loaded, name: str) -> Loaded:
    """The checkpoint with the last row of every head subtracted from the others.

    Raises:
        ValueError: A head is not found.
    """
    prefix, head = _head_size(name, loaded.state_dict)
    if head is None:
        raise ValueError(f'{loaded.path}: its head has an output for no class, and timm does not say where the head of '
                         f'{name} is; train it without --unknown-output')
    state = dict(loaded.state_dict)
    for key in (f'{prefix}{part}.{kind}' for part in _head_names(name) for kind in ('weight', 'bias')):
        if key in state:
            state[key] = state[key][:-1] - state[key][-1:]
    return replace(loaded, state_dict=state)


def _check_head(loaded: Loaded, head: int | None, num_classes: int | None) -> None:
    if head is None:
        return
    if num_classes is not None and head != num_classes:
        raise ValueError(f'the head in {loaded.path} has {head} outputs and not {num_classes}; name one class an '
                         f'output, known_classes=[...] (--known-classes A,B,...), or num_classes={head}')
    known = loaded.record.known_classes if loaded.record else ()
    if known and head != len(known):
        raise ValueError(f'{loaded.path} names {len(known)} known classes and its head has {head} outputs: the record '
                         'and the weights are not of one run')


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], where: str = '') -> nn.Module:
    check_name(name, where)
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # constructors raise any type on arguments from a file
        if pretrained and isinstance(error, OSError | RuntimeError | TypeError):
            raise ValueError(f'the pretrained weights of {name} could not be downloaded ({str(error).split(". ")[0]}); '
                             'leave out --pretrained, or give a file with --checkpoint') from error
        reason = ' '.join(str(error).split())[:300]
        raise ValueError(f'{where}timm could not make {name} with {shown(kwargs)} ({reason})') from error


def _check_size(name: str, kwargs: dict[str, Any], loaded: Loaded, prefix: str) -> None:
    """Compare names and shapes before allocating memory, since a file may describe a net of any size."""
    try:
        with torch.device('meta'):
            net = timm.create_model(name, **kwargs)
    except Exception:  # building the real model raises the error
        return
    _fitted(net.state_dict(), name, loaded, prefix)


def _fitted(own: Mapping[str, Tensor], name: str, loaded: Loaded, prefix: str) -> dict[str, Tensor]:
    """The checkpoint's weights under the model's names.

    Raises:
        ValueError: They do not fit; the message gives the remedy.
    """
    given = loaded.state_dict
    prefix = max([prefix, *_prefixes(given)], key=lambda p: sum(p + key in given for key in own))
    given = {key.removeprefix(prefix): value for key, value in given.items()}
    # The batch counter of BatchNorm, which weights of other frameworks lack and evaluation does not use.
    given |= {key: torch.zeros_like(value, device='cpu') for key, value in own.items()
              if key.endswith('.num_batches_tracked') and key not in given}
    shapes = [f'{key}: {list(given[key].shape)} in the file, {list(own[key].shape)} in the model'
              for key in own if key in given and own[key].shape != given[key].shape]
    kinds = [f'{key}: {given[key].dtype} in the file' for key in own
             if key in given and own[key].is_floating_point() != given[key].is_floating_point()]
    wrong = {'missing': [key for key in own if key not in given],
             'unexpected': [key for key in given if key not in own], 'of another shape': shapes,
             'of another type': kinds}
    if any(wrong.values()):
        found = '; '.join(f'{len(keys)} {kind} ({", ".join(key[:80] for key in keys[:3])}'
                          f'{", ..." if len(keys) > 3 else ""})' for kind, keys in wrong.items() if keys)
        raise ValueError(f'the weights in {loaded.path} do not fit {name}: {found}; '
                         f'{_remedy(own, given, name, loaded)}')
    return given


def _remedy(own: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str, loaded: Loaded) -> str:
    """The remedy for a mismatch."""
    inner = next((key.removesuffix(first) for first in list(own)[:1] for key in given if key.endswith(f'.{first}')), '')
    if inner and all(inner + key in given for key in own):
        return (f'they are there under {inner[:-1]!r}, beside others: save that part alone, '
                f'torch.save(module.{inner[:-1]}.state_dict(), FILE)')
    if loaded.model is not None and loaded.model != name:
        return f'the checkpoint was trained as {loaded.model}: leave out --model'
    if set(own) == set(given):
        return (f'they are of a {name} built otherwise (image size, channels, --model-kwargs), or of another model, '
                '--model NAME')
    return 'name the model they were trained with, --model NAME'
