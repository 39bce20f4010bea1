"""What a file may say: JSON and YAML read within limits, values checked against annotated types.

A file from elsewhere is data. Whoever reads one states its shape as types and gets a ValueError of one line for
everything else: ``FILE: FIELD: got VALUE (type), expected TYPE``, with at most 80 characters of the value.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

__all__ = ['Length', 'Plain', 'Range', 'check', 'naming', 'read_json', 'read_text', 'read_yaml', 'shown']

_JSON_BYTES, _YAML_BYTES = 64 * 2 ** 20, 2 ** 20
# Of YAML: nesting, and values once every alias is written out (a file of ten lines can expand to a billion).
_DEPTH, _VALUES = 32, 100_000
# Limit on the values that one check visits: lists of a pickle may be shared and expand to many.
_CHECKED = 20_000_000
_SHOWN = 80
_NAMES = {int: 'a whole number', float: 'a finite number', str: 'a string', bool: 'true or false',
          type(None): 'null', dict: 'a mapping', list: 'a list', tuple: 'a list'}


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Of a number, in ``Annotated[float, Range(0, 1)]``; both ends belong to it."""

    low: float = -math.inf
    high: float = math.inf

    def __call__(self, value: Any) -> str:
        """What was expected; '' where the value is that."""
        ends = f'{self.low:g} or more' if self.high == math.inf else f'from {self.low:g} to {self.high:g}'
        return '' if self.low <= value <= self.high else f'a number {ends}'


@dataclasses.dataclass(frozen=True, slots=True)
class Length:
    """Of a string, list or mapping, in ``Annotated[str, Length(high=100)]``; both ends belong to it."""

    low: int = 0
    high: float = math.inf

    def __call__(self, value: Any) -> str:
        """What was expected; '' where the value is that."""
        unit = 'characters' if isinstance(value, str) else 'entries'
        ends = f'{self.low} or more' if self.high == math.inf else f'{self.low} to {self.high:g}'
        return '' if self.low <= len(value) <= self.high else f'{ends} {unit}'


def _plain(value: Any) -> str:
    """What was expected, where a value is not made of null, booleans, finite numbers, strings, lists and mappings."""
    stack, count = [(value, 0)], 0
    while stack:
        entry, depth = stack.pop()
        count += 1
        if depth > _DEPTH or count > _VALUES:
            return f'at most {_DEPTH} levels of lists and mappings and {_VALUES:,} values'
        if isinstance(entry, Mapping):
            if not all(isinstance(key, str) for key in entry):
                return 'a mapping whose keys are strings'
            entry = list(entry.values())
        if isinstance(entry, list | tuple):
            stack += [(inner, depth + 1) for inner in entry]
        elif isinstance(entry, float) and not math.isfinite(entry):
            return 'finite numbers'
        elif not (entry is None or isinstance(entry, bool | int | float | str)):
            return 'numbers, strings, lists and mappings'
    return ''


#: Anything that JSON can hold, of finite numbers, not nested beyond reason.
Plain = Annotated[Any, _plain]


def check(value: Any, type_: Any, where: str) -> Any:
    """A value that conforms to a type.

    Args:
        value: As read.
        type_: ``Any``, a TypedDict or a dataclass (a mapping; entries that it does not name are let through), Literal,
            unions, ``int`` (no booleans), ``float`` (finite; whole numbers too), ``bool``, ``str``, ``None``,
            ``list[T]``, ``tuple[T, ...]``, ``tuple[A, B]``, ``Sequence[T]`` (lists and tuples are one), ``dict[K, V]``,
            ``Mapping[K, V]``, and ``Annotated[T, condition, ...]`` with :class:`Range`, :class:`Length` or a function
            from the value to what was expected, '' where it is that.
        where: The file's name; the place inside is added.

    Returns:
        The value itself.

    Raises:
        ValueError: ``WHERE: FIELD: got VALUE (type), expected TYPE``.

    Example:
        >>> check({'auroc': [50, 61.5]}, dict[str, list[Annotated[float, Range(0, 100)]]], 'x.json')
        {'auroc': [50, 61.5]}
        >>> check({'auroc': [50, True]}, dict[str, list[float]], 'x.json')
        Traceback (most recent call last):
        ValueError: x.json: auroc[1]: got True (bool), expected a finite number
    """
    try:
        _Checker().check(value, type_, '', 0)
    except _Mismatch as error:
        raise ValueError(f'{where}: {error}') from None
    return value


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Put a file's name before the message of a ValueError that does not have it."""
    try:
        yield
    except ValueError as error:
        if str(where) in str(error):
            raise
        raise ValueError(f'{where}: {error}') from error


def shown(value: Any) -> str:
    """A value for a message, in one line of at most 80 characters; objects by their type alone."""
    text = _brief(value, 3)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN - 4]} ...'


def _brief(value: Any, levels: int) -> str:
    if isinstance(value, int) and value.bit_length() > 512:  # Python refuses to print the largest ones
        return f'a number of {value.bit_length()} bits'
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN])
    if not isinstance(value, list | tuple | Mapping):
        return type(value).__name__
    if levels == 0:
        return '...'
    first = list(itertools.islice(value, 4))
    cells = [f'{_brief(key, levels - 1)}: {_brief(value[key], levels - 1)}' for key in first] if isinstance(
        value, Mapping) else [_brief(entry, levels - 1) for entry in first]
    left, right = '{}' if isinstance(value, Mapping) else '[]'
    return left + ', '.join(cells + ['...'] * (len(value) > 4)) + right


# ---- files

def read_text(path: str | os.PathLike[str], limit: int) -> str:
    """A regular UTF-8 file of at most ``limit`` bytes.

    Raises:
        ValueError: A folder, a pipe or device, a larger file, or one that is not UTF-8.
        OSError: The file cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f'{path}: expected a file, got a {"folder" if path.is_dir() else "pipe or device"}')
    if size > limit:
        raise ValueError(f'{path}: {size:,} bytes, expected at most {limit:,}')
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start})') from error


def read_json(path: str | os.PathLike[str], limit: int = _JSON_BYTES) -> Any:
    """The value of a JSON file; numbers are finite.

    Raises:
        ValueError: Not JSON, nested beyond reason, NaN or an infinity in it; or as :func:`read_text`.
        OSError: The file cannot be read.
    """
    text = read_text(path, limit)
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f'{path}: nested too deeply for JSON of any use') from None
    except ValueError as error:
        raise ValueError(f'{path}: not JSON: {_short(error)}') from error


def read_yaml(path: str | os.PathLike[str], limit: int = _YAML_BYTES) -> Any:
    """The value of a YAML file of plain types; its nesting and its aliases are measured before anything is built.

    Raises:
        ValueError: Not YAML, a key twice, nesting or aliases beyond reason; or as :func:`read_text`.
        OSError: The file cannot be read.
    """
    text = read_text(path, limit)
    try:
        _measure(yaml.parse(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)
    except _Mismatch as error:
        raise ValueError(f'{path}: {error}') from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f'{path}: not YAML: {error.problem} in line {line}') from error
    except Exception as error:  # its constructors raise KeyError, AttributeError, ... on values that fit no tag
        raise ValueError(f'{path}: not YAML: {_short(error)}') from error


class _Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's is 20 times as fast
    """PyYAML's, which would take the last of several values of one key, and 010 for 8."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if node.tag.endswith(':int') and str(value) != node.value.lstrip('+'):
            raise yaml.constructor.ConstructorError(
                None, None, f'{node.value[:40]}, which YAML reads as {shown(value)}, without quotes', node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, Any] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if first.setdefault(key.value, key) is not key:
                raise yaml.constructor.ConstructorError(None, None, f'{key.value[:40]!r} twice', key.start_mark)
        return dict(super().construct_mapping(node, deep))


def _measure(events: Any) -> None:
    """Refuse a document that is nested too deeply or that its aliases make too large."""
    sizes: dict[str, float] = {}
    opened: list[tuple[str, int]] = []  # anchor, and values before it
    count = 0
    for event in events:
        anchor = str(getattr(event, 'anchor', ''))
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(anchor, 0)  # of none that is there the composer complains
            if size == math.inf:
                raise _Mismatch(f'*{anchor[:20]} stands inside what it names; write the values out')
            count += int(size)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            sizes[anchor] = 1
            if isinstance(event, yaml.CollectionStartEvent):
                sizes[anchor] = math.inf  # until it ends
                opened.append((anchor, count - 1))
        if len(opened) > _DEPTH:
            raise _Mismatch(f'nested more than {_DEPTH} levels deep')
        if count > _VALUES:
            raise _Mismatch(f'more than {_VALUES:,} values, those that aliases (*name) repeat included')


def _short(error: Exception) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 2 * _SHOWN else f'{text[:2 * _SHOWN]} ...'


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f'{word[:20]} is no number that JSON knows')
    return number


# ---- types

class _Mismatch(Exception):
    """What is wrong; ``depth``: how far inside."""

    def __init__(self, message: str, depth: int = 0) -> None:
        super().__init__(message)
        self.depth = depth


def _wrong(value: Any, expected: str, place: str, depth: int) -> _Mismatch:
    start = f'{place[:_SHOWN]}: ' if place else ''
    return _Mismatch(f'{start}got {shown(value)} ({type(value).__name__}), expected {expected}', depth)


class _Checker:
    """One walk through a value; raises :class:`_Mismatch`.

    Attributes:
        left: Values that it may still look at.
    """

    def __init__(self) -> None:
        self.left = _CHECKED

    def check(self, value: Any, kind: Any, place: str, depth: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Mismatch(f'more than {_CHECKED:,} values')
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return
        if origin is Annotated:
            self.check(value, inner[0], place, depth)
            for expected in filter(None, (condition(value) for condition in inner[1:])):
                raise _wrong(value, expected, place, depth)
        elif origin in (Union, types.UnionType):
            self._union(value, inner, place, depth)
        elif typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
            self._fields(value, kind, place, depth)
        elif isinstance(origin, type) or kind in (list, tuple, dict):
            self._container(value, origin or kind, inner, place, depth)
        elif not _is_one(value, type(None) if kind is None else kind):
            raise _wrong(value, _named(kind), place, depth)

    def _union(self, value: Any, kinds: tuple[Any, ...], place: str, depth: int) -> None:
        errors = []
        for kind in kinds:
            try:
                return self.check(value, kind, place, depth)
            except _Mismatch as error:
                errors.append(error)
        deepest = max(errors, key=lambda error: error.depth)
        raise deepest if deepest.depth > depth else _wrong(value, ' or '.join(map(_named, kinds)), place, depth)

    def _container(self, value: Any, origin: type, inner: tuple[Any, ...], place: str, depth: int) -> None:
        if issubclass(origin, Mapping):
            if not isinstance(value, Mapping):
                raise _wrong(value, _NAMES[dict], place, depth)
            key_kind, entry_kind = inner or (Any, Any)
            for key, entry in value.items():
                self.check(key, key_kind, f'a key of {place}' if place else 'a key', depth + 1)
                self.check(entry, entry_kind, _joined(place, key), depth + 1)
            return
        if not isinstance(value, list | tuple):
            raise _wrong(value, _NAMES[list], place, depth)
        fixed = origin is tuple and inner and inner[-1] is not ...
        if fixed and len(value) != len(inner):
            raise _wrong(value, f'a list of {len(inner)}', place, depth)
        for number, entry in enumerate(value):
            self.check(entry, inner[number] if fixed else inner[0] if inner else Any, f'{place}[{number}]', depth + 1)

    def _fields(self, value: Any, kind: Any, place: str, depth: int) -> None:
        if not isinstance(value, Mapping):
            raise _wrong(value, _NAMES[dict], place, depth)
        for name, (entry_kind, required) in _fields(kind).items():
            if name in value:
                self.check(value[name], entry_kind, _joined(place, name), depth + 1)
            elif required:
                raise _Mismatch(f'{_joined(place, name)} is missing, expected {_named(entry_kind)}', depth + 1)


def _is_one(value: Any, kind: Any) -> bool:
    """Whether a value is of a plain type, or one of a Literal's."""
    if typing.get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(kind))
    if kind is float:
        try:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # a whole number beyond the largest float
            return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name to type, and whether it has to be there."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        return {field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
                for field in dataclasses.fields(kind) if field.init}
    found = {}
    for name, hint in hints.items():
        # Under postponed annotations the class does not record which of its keys are NotRequired.
        marker = typing.get_origin(hint)
        required = name in kind.__required_keys__ if marker not in (typing.NotRequired, typing.Required) else (
            marker is typing.Required)
        while typing.get_origin(hint) in (typing.NotRequired, typing.Required):
            hint = typing.get_args(hint)[0]
        found[name] = (hint, required)
    return found


def _joined(place: str, key: Any) -> str:
    name = key if isinstance(key, str) and key.isprintable() and len(key) <= 40 else shown(key)
    return f'{place}.{name}' if place else name


def _named(kind: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _named(inner[0])
    if origin is Literal:
        return ' or '.join(map(shown, inner))
    if origin in (Union, types.UnionType):
        return ' or '.join(map(_named, inner))
    if isinstance(origin, type):
        return _NAMES[dict if issubclass(origin, Mapping) else list]
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _NAMES[dict]
    return _NAMES.get(type(None) if kind is None else kind, getattr(kind, '__name__', str(kind)))
