"""The record of a training run in its checkpoints."""
from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Annotated, Any

import numpy as np

from gradmix_timm.schema import Length, Plain, check, naming, shown

from .allowed import Count, DataConfig, Name, check_model_kwargs

#: The entry of a checkpoint that holds :meth:`RunRecord.to_state`.
KEY = 'gradmix_timm'
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything about a training run that evaluating its model needs.

    The annotations restrict a file's content, see :func:`~gradmix_timm.schema.check`; for ``data_config`` see
    :class:`~gradmix_timm.checkpoint.allowed.DataConfig`.

    Attributes:
        format: Version of this record.
        model: timm's model name.
        model_kwargs: All that ``timm.create_model`` needs besides: num_classes, in_chans, img_size, ...
        known_classes: Names in head order: position = index of the logit.
        unknown_output: The head has an additional output, the last, for no class.
        unknown_classes: Names kept from training.
        protocol: Open-set protocol, or None.
        family: Family of its trials, or None.
        trial: Number of the trial, or None.
        dataset: As in ``--dataset``.
        data_dir: Its folder.
        splits: Split names, ``{'train': ..., 'test': ...}``.
        held_out: Images held out for validation: name in the train split to a digest of the content
            (:func:`gradmix_timm.data.identity.identities`).
        flat_test: The same of images kept for the test, where the data has no split folders.
        validation_overlap: Of a plain run whose validation images are training images: their number by 'paths' and
            'contents', of how many 'images'; else empty.
        data_config: timm's: input_size, interpolation, mean, std, crop_pct, crop_mode, ...
        mixer: Name of the mixer, or None.
        mixer_options: Its resolved options.
        objective: Name of the training objective.
        objective_options: Its options.
        probe: Of a head that was fitted to frozen features afterwards: epochs, and its train_top1
            in percent; else empty.
        seed: Of the run.
        versions: See :func:`versions`.
    """

    format: int = FORMAT
    model: Annotated[str, Length(1, 500)]
    model_kwargs: dict[str, Plain] = field(default_factory=dict)
    known_classes: tuple[Name, ...] = ()
    unknown_output: bool = False
    unknown_classes: tuple[Name, ...] = ()
    protocol: Name | None = None
    family: Name | None = None
    trial: Count | None = None
    dataset: Name = ''
    data_dir: Name | None = None
    splits: dict[str, Name] = field(default_factory=dict)
    held_out: dict[str, Name] = field(default_factory=dict)
    flat_test: dict[str, Name] = field(default_factory=dict)
    validation_overlap: dict[str, Count] = field(default_factory=dict)
    data_config: dict[str, Any] = field(default_factory=dict)
    mixer: Name | None = None
    mixer_options: dict[str, Plain] = field(default_factory=dict)
    objective: Name = 'ce'
    objective_options: dict[str, Plain] = field(default_factory=dict)
    probe: dict[str, Plain] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, Name] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ('known_classes', 'unknown_classes'):
            object.__setattr__(self, name, tuple(_plain(tuple(getattr(self, name)), name)))
        for kind in ('known', 'unknown'):
            names = getattr(self, f'{kind}_classes')
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise ValueError(f'{kind}_classes of a run are different names, got {shown(names)}')
        classes = self.model_kwargs.get('num_classes') or 0
        if self.known_classes and classes not in (0, len(self.known_classes) + self.unknown_output):
            more = ' and one for no class (unknown_output)' if self.unknown_output else ''
            raise ValueError(f'the head has num_classes={classes} outputs and {len(self.known_classes)} known classes '
                             f'are named; one output a class{more} is expected')

    def to_state(self) -> dict[str, Any]:
        """The record as builtin types, which ``torch.load(weights_only=True)`` accepts.

        Raises:
            ValueError: A value that is not made of numbers, strings, lists and dicts, with its place.
        """
        return {f.name: _plain(getattr(self, f.name), f.name) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], path: str | os.PathLike[str] = 'the checkpoint') -> RunRecord:
        """The record of a checkpoint; entries that this version does not know are left out.

        Args:
            state: The entry :data:`KEY`.
            path: Of the file, for messages.

        Raises:
            ValueError: Not a record, one of a newer format, a field that violates its annotation, or arguments
                of the model that load something.
        """
        where = f'{path}: {KEY}'
        if not isinstance(state, Mapping) or not isinstance(state.get('model'), str):
            raise ValueError(f"{where} is not a record of a run: expected a dict with 'model', got {brief(state)}")
        version = state.get('format', FORMAT)
        if type(version) is not int or version > FORMAT:
            raise ValueError(f'{where} has format {shown(version)}, this version reads up to {FORMAT}; '
                             'pip install -U gradmix-timm')
        known = {f.name for f in fields(cls)}
        found = check({name: value for name, value in state.items() if name in known}, cls, where)
        check(found.get('data_config', {}), DataConfig, f'{where}: data_config')
        check_model_kwargs(found.get('model_kwargs', {}), where)
        with naming(where):
            return cls(**found)


def check_known(record: RunRecord, names: Sequence[str]) -> None:
    """Check that class names are the head's, in its order; otherwise every label would be wrong.

    Raises:
        ValueError: They differ; the message gives the first position.
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
    """Versions of the packages that a result depends on."""
    found = {}
    for name in ('gradmix-timm', 'torch', 'torchvision', 'timm', 'numpy', 'pillow', 'scikit-learn'):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def brief(value: Any) -> str:
    """A short description of a value for a message: its type, or the first keys of a dict."""
    if isinstance(value, Mapping):
        keys = [str(key)[:40] if isinstance(key, str) else shown(key) for key in itertools.islice(value, 5)]
        return f'a dict of {", ".join(keys)}{", ..." if len(value) > 5 else ""}' if keys else 'an empty dict'
    return f'a {type(value).__name__}'


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
    raise ValueError(f'{where} of a run record is {brief(value)}; expected numbers, strings, lists and dicts')
