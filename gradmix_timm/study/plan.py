"""The YAML file of a study: settings common to all cells, and axes whose combinations are the cells."""
from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradmix_timm.registry import nearest
from gradmix_timm.schema import read_yaml

__all__ = ['EVALUATIONS', 'Cell', 'Study', 'read_study']

#: Commands of ``gradmix-openset`` that a cell may run on its checkpoint.
EVALUATIONS = ('osr', 'ood', 'corrupt', 'probe', 'shortcut')
#: Checkpoint name to its file in the run folder.
CHECKPOINTS = {'best': 'model_best.pth.tar', 'last': 'last.pth.tar'}
_KEYS = ('name', 'output', 'base', 'train', 'processes', 'evaluate', 'checkpoint', 'axes', 'exclude')
# An axis given as a list sets the flag of its own name, except these.
_FLAG_OF_AXIS = {'trial': 'osr_trial', 'mixer': 'mixup_mode', 'protocol': 'osr_protocol', 'data': 'dataset'}
# Flags that the engine sets itself.
_RESERVED = ('output', 'experiment', 'resume', 'overwrite', 'checkpoint')
_MAX_CELLS = 100_000
# Flags whose value is a file that decides what is trained or evaluated.
_FILES = ('config', 'aug_config', 'osr_protocol', 'class_map')

Flags = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One training and its evaluations.

    Attributes:
        levels: Axis to the name of its level, in the order of the axes.
        train: Flags of train.py, keyed as in its YAML files.
        evaluate: Command of gradmix-openset to its flags.
        checkpoint: ``best`` by the validation images, or ``last``.
        processes: Of the training on this machine; more than one are started by torchrun.
        files: SHA-256 of the files that flags name: of ``config:`` and those it is based on, of ``aug_config:``, ...
    """

    levels: Mapping[str, str]
    train: Mapping[str, Any]
    evaluate: Mapping[str, Mapping[str, Any]]
    checkpoint: str = 'best'
    processes: int = 1
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder: the levels in words, and a hash of everything that the cell would run.

        A cell whose flags change has another name, and so has one whose file of flags changes: results of older flags
        are never reused for it.
        """
        words = '-'.join(re.sub(r'[^\w.+]+', '_', f'{level}') for level in self.levels.values())
        runs = [dict(self.train), {key: dict(value) for key, value in self.evaluate.items()}]
        rest: list[Any] = [self.checkpoint] * (self.checkpoint != 'best') + [self.processes] * (self.processes != 1)
        rest += self.files
        content = json.dumps(runs + rest, sort_keys=True, default=str)
        return f'{words[:80]}-{hashlib.sha256(content.encode()).hexdigest()[:8]}'


@dataclass(frozen=True, slots=True)
class Study:
    """A grid of cells.

    Attributes:
        name: For titles.
        output: Folder of the cells' files.
        axes: Axis to the names of its levels.
        base: Level of the first axis that differences are taken to.
        cells: In the order of the axes, the last one changing fastest.
        source: The YAML file.
    """

    name: str
    output: Path
    axes: Mapping[str, tuple[str, ...]]
    base: str
    cells: tuple[Cell, ...]
    source: Path


def read_study(path: str | Path) -> Study:
    """Read and check a study's YAML file; nothing is run.

    Keys: ``axes`` (axis to a list of values for the flag of its name, or to a mapping of level names to flags),
    ``train`` (flags of train.py for all cells), ``processes`` (of each training, by torchrun; default: 1),
    ``evaluate`` (command of gradmix-openset to flags; default: ``osr``), ``checkpoint`` (``best`` by the validation
    images, the default, or ``last``), ``base`` (level of the first axis that differences are taken to; default: its
    first), ``exclude`` (list of mappings of axes to levels), ``name`` and ``output`` (default: after the file).

    Args:
        path: The file. Paths in it are relative to the folder that the study is started in.

    Raises:
        ValueError: The file is not a valid study.
    """
    path = Path(path)
    given = _load(path)
    for key in given:
        if key not in _KEYS:
            raise ValueError(f'{path}: no key {key!r}: {nearest(str(key), _KEYS)}')
    axes = {str(axis): _levels(path, str(axis), values) for axis, values in _mapping(path, given, 'axes').items()}
    if not axes:
        raise ValueError(f'{path}: expected axes with at least one axis, as in axes: {{seed: [0, 1, 2]}}')
    train = _flags(path, 'train', given.get('train') or {})
    evaluate = {str(command): _flags(path, f'evaluate.{command}', flags or {}, command=str(command))
                for command, flags in (_mapping(path, given, 'evaluate') or {'osr': {}}).items()}
    checkpoint = str(given.get('checkpoint', 'best'))
    if checkpoint not in CHECKPOINTS:
        raise ValueError(f'{path}: checkpoint: {checkpoint!r}: {nearest(checkpoint, CHECKPOINTS)}')
    rules = given.get('exclude') or []
    if not isinstance(rules, list):
        raise ValueError(f'{path}: exclude: expected a list of mappings of axes to levels ({{mixer: none, seed: 2}}), '
                         f'got {type(rules).__name__}')
    excluded = [_excluded(path, rule, axes) for rule in rules]
    first = next(iter(axes))
    base = str(given.get('base', next(iter(axes[first]))))
    if base not in axes[first]:
        raise ValueError(f'{path}: base: {base!r} is no level of the first axis, {first}: {nearest(base, axes[first])}')
    processes = given.get('processes', 1)
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise ValueError(f'{path}: processes: {processes!r}; expected the number of processes of a training, 1 or more')
    cells = tuple(replace(cell, processes=processes, files=_digests(cell.train, cell.evaluate))
                  for cell in _cells(path, axes, train, evaluate, checkpoint, excluded))
    if not cells:
        raise ValueError(f'{path}: exclude: no cell is left of the {math.prod(map(len, axes.values()))} combinations; '
                         'take a rule out')
    output = given.get('output') or path.with_suffix('')
    if not isinstance(output, str | Path) or Path(output).is_file():
        raise ValueError(f'{path}: output: {output}; expected the name of a folder (output: DIR)')
    return Study(str(given.get('name') or path.stem), Path(output),
                 {axis: tuple(levels) for axis, levels in axes.items()}, base, cells, path)


def _cells(path: Path, axes: Mapping[str, Mapping[str, Flags]], train: Flags, evaluate: Mapping[str, Flags],
           checkpoint: str, excluded: Sequence[Mapping[str, str]]) -> Iterator[Cell]:
    count = math.prod(map(len, axes.values()))
    if count > _MAX_CELLS:
        raise ValueError(f'{path}: axes: {count:,} combinations of levels; at most {_MAX_CELLS:,}')
    for names in itertools.product(*axes.values()):
        levels = dict(zip(axes, names, strict=True))
        if any(all(levels[axis] == level for axis, level in rule.items()) for rule in excluded):
            continue
        flags: Flags = {}
        for axis, level in levels.items():
            for key, value in axes[axis][level].items():
                if flags.setdefault(key, value) != value:
                    raise ValueError(f'{path}: axes.{axis}: level {level} sets {key}: {value!r}, and one of another '
                                     f'axis {key}: {flags[key]!r}; leave {key} to one axis, or exclude the two')
        yield Cell(levels, train | flags, evaluate, checkpoint)


def _digests(train: Mapping[str, Any], evaluate: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Of files that flags name, and of those that a file of flags names; recipes by name belong to the code."""
    named = [Path(value) for flags in (train, *evaluate.values()) for key in _FILES
             if isinstance(value := flags.get(key), str)]
    found: dict[Path, str] = {}
    while named:
        file = named.pop(0)
        if file in found or not file.is_file():
            continue
        found[file] = hashlib.sha256(file.read_bytes()).hexdigest()
        content = read_yaml(file) if file.suffix in ('.yaml', '.yml') else None
        if isinstance(content, Mapping):
            named += [file.parent / value if key == 'base' else Path(value) for key in ('base', *_FILES)
                      if isinstance(value := content.get(key), str)]
    return tuple(found.values())


def _load(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except OSError as error:
        raise ValueError(f'{path}: {error.strerror or error}; expected the YAML file of a study') from error
    if not isinstance(values, Mapping):
        raise ValueError(f'{path}: expected a mapping with axes, got {type(values).__name__}')
    return dict(values)


def _mapping(path: Path, given: Mapping[str, Any], key: str) -> dict[Any, Any]:
    value = given.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f'{path}: {key}: expected a mapping, got {type(value).__name__}')
    return dict(value)


def _levels(path: Path, axis: str, values: Any) -> dict[str, Flags]:
    """Name of each level to the flags that it sets."""
    if isinstance(values, Mapping):
        found = {str(level): _flags(path, f'axes.{axis}.{level}', flags or {}) for level, flags in values.items()}
    elif isinstance(values, list):
        flag = _FLAG_OF_AXIS.get(axis, axis.replace('-', '_'))
        found = {str(value): _flags(path, f'axes.{axis}', {flag: value}) for value in values}
    else:
        raise ValueError(f'{path}: axes.{axis}: expected a list of values or a mapping of levels to flags, got '
                         f'{type(values).__name__}')
    if not found or len(found) < len(values):
        raise ValueError(f'{path}: axes.{axis}: expected one or more levels, each named once')
    return found


def _flags(path: Path, where: str, flags: Any, command: str | None = None) -> Flags:
    if command is not None and command not in EVALUATIONS:
        raise ValueError(f'{path}: evaluate: no command {command!r}: {nearest(command, EVALUATIONS)}')
    if not isinstance(flags, Mapping):
        raise ValueError(f'{path}: {where}: expected flags and their values (epochs: 10), got {type(flags).__name__}')
    named = {str(key).lstrip('-').replace('-', '_'): value for key, value in flags.items()}
    if len(named) < len(flags):
        raise ValueError(f'{path}: {where}: a flag is there twice, with dashes and with underscores; leave one out')
    for key, value in named.items():
        if key in _RESERVED:
            raise ValueError(f'{path}: {where}: {key} is set for each cell; leave it out')
        if value is None:
            raise ValueError(f'{path}: {where}: {key} has no value; true switches a flag on')
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{path}: {where}: {key}: {value}; expected a finite number')
    return named


def _excluded(path: Path, rule: Any, axes: Mapping[str, Mapping[str, Flags]]) -> dict[str, str]:
    if not isinstance(rule, Mapping) or not rule:
        raise ValueError(f'{path}: exclude: expected a list of mappings of axes to levels ({{mixer: none, seed: 2}})')
    for axis, level in rule.items():
        if axis not in axes:
            raise ValueError(f'{path}: exclude: no axis {axis!r}: {nearest(str(axis), axes)}')
        if str(level) not in axes[axis]:
            raise ValueError(f'{path}: exclude: {axis} has no level {level!r}: {nearest(str(level), axes[axis])}')
    return {axis: str(level) for axis, level in rule.items()}
