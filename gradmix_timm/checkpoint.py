"""What a checkpoint says of itself; reading any that timm can hold; writing files whole or not at all."""
from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

__all__ = [
    'KEY', 'Loaded', 'RunRecord', 'atomic_path', 'build_model', 'check_known', 'load_checkpoint', 'versions',
    'write_atomic']

#: The entry of a checkpoint that holds :meth:`RunRecord.to_state`.
KEY = 'gradmix_timm'
FORMAT = 1
_EXPECTED = ("expected a checkpoint of this package's or timm's training, a state dict saved with torch.save, or a "
             '.safetensors file')
# Leading bytes of what people hand over by mistake.
_KINDS = {
    b'\x89PNG': 'a PNG image', b'\xff\xd8\xff': 'a JPEG image', b'GIF8': 'a GIF image', b'%PDF': 'a PDF',
    b'\x1f\x8b': 'a gzip archive', b'\xfd7zXZ': 'an xz archive', b'\x93NUMPY': 'a NumPy array',
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself (git lfs pull fetches it)',
    b'PK': 'a zip archive that is cut short or not from torch.save',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything about a training run that judging its model needs.

    Attributes:
        format: Version of this record.
        model: timm's model name.
        model_kwargs: All that ``timm.create_model`` needs besides: num_classes, in_chans, img_size, ...
        known_classes: Names in head order: position = index of the logit.
        unknown_classes: Names kept from training.
        protocol: Open-set protocol, or None.
        family: Family of its trials, or None.
        trial: Number of the trial, or None.
        dataset: As in ``--dataset``.
        data_dir: Where it lay.
        splits: Split names, ``{'train': ..., 'test': ...}``.
        val_indices: Positions in the train split that were held out for validation.
        data_config: timm's: input_size, interpolation, mean, std, crop_pct, crop_mode, ...
        mixer: Name of the mixer, or None.
        mixer_options: Its resolved options.
        objective: Name of the training objective.
        seed: Of the run.
        versions: See :func:`versions`.
    """

    format: int = FORMAT
    model: str
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    known_classes: tuple[str, ...] = ()
    unknown_classes: tuple[str, ...] = ()
    protocol: str | None = None
    family: str | None = None
    trial: int | None = None
    dataset: str = ''
    data_dir: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    val_indices: tuple[int, ...] = ()
    data_config: dict[str, Any] = field(default_factory=dict)
    mixer: str | None = None
    mixer_options: dict[str, Any] = field(default_factory=dict)
    objective: str = 'ce'
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ('known_classes', 'unknown_classes', 'val_indices'):
            object.__setattr__(self, name, tuple(_plain(tuple(getattr(self, name)), name)))
        for kind in ('known', 'unknown'):
            names = getattr(self, f'{kind}_classes')
            if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
                raise ValueError(f'{kind}_classes of a run are different names, got {names}')
        classes = self.model_kwargs.get('num_classes') or 0
        if self.known_classes and classes not in (0, len(self.known_classes)):
            raise ValueError(f'the head has num_classes={classes} outputs and {len(self.known_classes)} known classes '
                             'are named; one output a class is expected')

    def to_state(self) -> dict[str, Any]:
        """The record as builtin types, which ``torch.load(weights_only=True)`` takes.

        Raises:
            ValueError: A value that is not made of numbers, strings, lists and dicts, with its place.
        """
        return {f.name: _plain(getattr(self, f.name), f.name) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunRecord:
        """The record of a checkpoint; entries that this version does not know are left out.

        Raises:
            ValueError: Not a record, or one of a newer format.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get('model'), str):
            raise ValueError(f"the checkpoint's {KEY!r} entry is not a record of a run: expected a dict with 'model', "
                             f'got {_brief(state)}')
        version = state.get('format', FORMAT)
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(f"the checkpoint's record has format {version!r}, this version reads up to {FORMAT}; "
                             'pip install -U gradmix-timm')
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in state.items() if name in known})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory, on the CPU.

    Attributes:
        record: What this package wrote about the run, or None.
        args: timm's training arguments, or None.
        state_dict: Weights, without prefixes of wrappers.
        epoch: Of the checkpoint, or None.
        metric: By which it was kept, or None.
        sha256: Of the file, hexadecimal.
        path: Where it was read.
        ema: Whether the weights are the moving average.
        arch: timm's name for the model in a checkpoint without args, or None.
    """

    record: RunRecord | None
    args: dict[str, Any] | None
    state_dict: dict[str, Tensor]
    epoch: int | None
    metric: float | None
    sha256: str
    path: str
    ema: bool = False
    arch: str | None = None

    @property
    def model(self) -> str | None:
        """The model's name as far as the checkpoint knows it."""
        if self.record is not None:
            return self.record.model
        return (self.args or {}).get('model') or self.arch

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """What ``timm.create_model`` needs besides the name."""
        if self.record is not None:
            return dict(self.record.model_kwargs)
        args = self.args or {}
        channels = args.get('in_chans') or next(iter(args.get('input_size') or ()), None)
        found = {'num_classes': args.get('num_classes'), 'in_chans': channels, 'global_pool': args.get('gp'),
                 **(args.get('model_kwargs') or {})}
        return {name: value for name, value in found.items() if value is not None}


def load_checkpoint(path: str | os.PathLike[str], ema: bool | None = None) -> Loaded:
    """Read a checkpoint: ours, timm's, a bare state dict or safetensors; nothing in it is ever executed.

    Args:
        path: The file.
        ema: True: the moving average, which must be there; False: the plain weights; None: the average where there is
            one, as timm's training picks its best checkpoint by it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is something else; the message says what it is and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        inside = next((n for n in ('model_best.pth.tar', 'last.pth.tar') if (path / n).is_file()), '*.pth.tar')
        raise ValueError(f'{path} is a folder, a checkpoint is a file; name the file: {path / inside}')
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}; give the path of model_best.pth.tar in a run folder')
    content = _read(path)
    entry, averaged = _weights_entry(content, path, ema)
    weights = content[entry] if entry else content
    if not _is_state_dict(weights):
        raise ValueError(f'{path} holds {_brief(weights)}, no weights; {_EXPECTED}')
    content = content if entry else {}
    args, arch = content.get('args'), content.get('arch')
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return Loaded(
        record=RunRecord.from_state(content[KEY]) if KEY in content else None,
        args=args if isinstance(args, dict) else None, state_dict=clean_state_dict(weights),
        epoch=content.get('epoch'), metric=content.get('metric'), sha256=digest, path=str(path), ema=averaged,
        arch=arch if isinstance(arch, str) and timm.is_model(arch) else None)


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


def check_known(record: RunRecord, names: Sequence[str]) -> None:
    """Refuse class names that are not the head's, in the head's order: every label would be read wrongly.

    Raises:
        ValueError: With the first place where they differ.
    """
    known = record.known_classes
    if len(known) != len(names):
        raise ValueError(f'the checkpoint knows {len(known)} classes and {len(names)} were given; its classes are '
                         f'{", ".join(known)}')
    place = next((i for i, name in enumerate(names) if name != known[i]), None)
    if place is not None:
        raise ValueError(f'class {place} of the head is {known[place]!r} and {names[place]!r} was given; head order is '
                         f'{", ".join(known)}')


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {}
    for name in ('gradmix-timm', 'torch', 'torchvision', 'timm', 'numpy', 'pillow', 'scikit-learn'):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` (same suffix) that takes its name once the block has ended without an error.

    An error leaves the old file whole and nothing beside it. Missing folders are made.

    Example:
        >>> with atomic_path(getfixture('tmp_path') / 'table.csv') as temporary:
        ...     _ = temporary.write_text('a,b')
        >>> (getfixture('tmp_path') / 'table.csv').read_text()
        'a,b'
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing at what it names
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}')
    try:
        yield temporary
        with temporary.open('rb+') as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole or not at all; text as UTF-8. See :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f'{where}[{key!r}]') for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_plain(entry, f'{where}[{i}]') for i, entry in enumerate(value)])
    raise ValueError(f'{where} of a run record is {_brief(value)}; expected numbers, strings, lists and dicts')


def _read(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise ValueError(f'{path} is empty (0 bytes); {_EXPECTED}')
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        # timm stores its parsed arguments; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a reader raises on foreign bytes
        raise ValueError(f'{path} is {_kind(path)}; {_EXPECTED}') from error


def _kind(path: Path) -> str:
    with path.open('rb') as file:
        head = file.read(64)
    objects = []
    with suppress(Exception), torch.serialization.safe_globals([argparse.Namespace]):  # raises on other files
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if objects:
        named = ', '.join(sorted(objects)[:3])
        return f'a pickle of objects that are not loaded: that can run code ({named}); save model.state_dict() instead'
    text = head.isascii() and head.translate(None, b'\r\n\t').decode().isprintable()
    other = f'text, beginning {head[:24].decode()!r}' if text else 'no checkpoint, or a damaged one'
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), other)


def _weights_entry(content: Any, path: Path, ema: bool | None) -> tuple[str, bool]:
    """Key of the weights ('' for a bare state dict) and whether they are the moving average."""
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    averaged = next((key for key in ('state_dict_ema', 'model_ema') if found.get(key) is not None), '')
    if ema and not averaged:
        raise ValueError(f'{path} holds no moving average (EMA) of the weights; leave the EMA flag out')
    if averaged and ema is not False:
        return averaged, True
    return next((key for key in ('state_dict', 'model') if isinstance(found.get(key), dict)), ''), False


def _is_state_dict(content: Any) -> bool:
    return (isinstance(content, dict) and len(content) > 0
            and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()))


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        return f'a dict of {", ".join(keys[:5])}{", ..." if len(keys) > 5 else ""}' if keys else 'an empty dict'
    return f'a {type(value).__name__}'


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
