"""The model of a checkpoint, with its weights."""
from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .reading import Loaded


def build_model(loaded: Loaded | None, model: str | None = None, num_classes: int | None = None,
                pretrained: bool = False) -> nn.Module:
    """A model in eval mode, with the weights of a checkpoint or as timm makes it.

    Args:
        loaded: A checkpoint, or None for timm's own weights or a random start.
        model: timm's model name; over the checkpoint's.
        num_classes: Outputs of the head; None: as in the checkpoint, else timm's default.
        pretrained: Fetch timm's weights; only without a checkpoint.

    Raises:
        ValueError: No or an unknown model name; weights that do not fit; a head that has not ``num_classes`` outputs
            or not one for each known class; pretrained weights that could not be had.
    """
    name = model or (loaded.model if loaded else None)
    if not name:
        where = f'{loaded.path} holds weights alone' if loaded else 'no checkpoint was given'
        raise ValueError(f'{where}: name the model, --model NAME')
    if loaded is None:
        return _create(name, pretrained, {} if num_classes is None else {'num_classes': num_classes}).eval()
    if pretrained:
        raise ValueError('a checkpoint brings its own weights: leave out --pretrained or --checkpoint')
    kwargs = loaded.model_kwargs
    if name != loaded.model:
        kwargs = {key: kwargs[key] for key in ('num_classes', 'in_chans') if key in kwargs}
    head = _head_size(name, loaded.state_dict)
    _check_head(loaded, head, num_classes)
    wanted = head if head is not None else num_classes
    net = _create(name, False, kwargs if wanted is None else {**kwargs, 'num_classes': wanted})
    _fill(net, name, loaded)
    return net.eval()


def find_device(device: torch.device | str | None = None) -> torch.device:
    """The device that is named; cuda where none is named and there is one.

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
    """Where the first weights of a run came from.

    A net that saw ImageNet has seen many an "unknown" class: its figures do not stand beside those of one trained from
    scratch.

    Args:
        args: timm's training arguments, as a checkpoint holds them; None where there are none.
        name: The model, where it is judged with timm's own weights.

    Returns:
        'none'; timm's name of the weights with their tag; 'file NAME'; None where nobody says.

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


def _head_size(name: str, state: Mapping[str, Tensor]) -> int | None:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    named = config.classifier if config else None
    heads = (named,) if isinstance(named, str) else tuple(named or ())
    return next((len(state[f'{head}.weight']) for head in heads if f'{head}.weight' in state), None)


def _check_head(loaded: Loaded, head: int | None, num_classes: int | None) -> None:
    if head is None:
        return
    if num_classes is not None and head != num_classes:
        raise ValueError(f'the head in {loaded.path} has {head} outputs and num_classes={num_classes} was asked; '
                         f'--num-classes {head}, or leave it out')
    known = loaded.record.known_classes if loaded.record else ()
    if known and head != len(known):
        raise ValueError(f'{loaded.path} names {len(known)} known classes and its head has {head} outputs: the record '
                         'and the weights are not of one run')


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if ':' not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f'did you mean {" or ".join(close)}? ' if close else ''
        raise ValueError(f"timm has no model {name!r}: {hint}timm.list_models('*resnet*') lists them")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except (OSError, RuntimeError, TypeError) as error:
        if pretrained:
            raise ValueError(f'the pretrained weights of {name} could not be had ({str(error).split(". ")[0]}); leave '
                             'out --pretrained, or give a file with --checkpoint') from error
        raise ValueError(f'timm could not make {name} with {kwargs} ({error})') from error


def _fill(net: nn.Module, name: str, loaded: Loaded) -> None:
    own, given = net.state_dict(), loaded.state_dict
    shapes = [f'{key}: {list(given[key].shape)} in the file, {list(own[key].shape)} in the model'
              for key in own if key in given and own[key].shape != given[key].shape]
    wrong = {'missing': [key for key in own if key not in given],
             'unexpected': [key for key in given if key not in own], 'of another shape': shapes}
    if any(wrong.values()):
        told = '; '.join(f'{len(keys)} {kind} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
                         for kind, keys in wrong.items() if keys)
        raise ValueError(f'the weights in {loaded.path} do not fit {name}: {told}; name the model they were trained '
                         'with, --model NAME')
    net.load_state_dict(given)
