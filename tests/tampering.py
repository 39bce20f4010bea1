"""Every way in which a value of a file from elsewhere may be wrong, one at a time."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

#: Stands for an entry that is taken away.
GONE = object()
_LONG = 'x' * 100_000


def nested(levels: int = 200) -> list:
    """Lists in lists."""
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


#: Wrong in some place or other: of every type, empty, huge, not finite, nested, hostile as a name.
VALUES: dict[str, Any] = {
    'none': None, 'true': True, 'zero': 0, 'minus': -1, 'huge': 10 ** 12, 'beyond': 10 ** 400, 'half': 0.5,
    'nan': float('nan'), 'inf': float('inf'), 'empty': '', 'word': 'x', 'long': _LONG, 'path': '../../etc/passwd',
    'pipe': 'pipe:touch hacked', 'hub': 'hf-hub:timm/resnet18', 'nul': 'a\0b', 'list': [], 'numbers': [1, 2, 3],
    'words': ['a', 'b'], 'many': [0] * 100_000, 'dict': {}, 'other dict': {'a': {'b': 1}}, 'nested': nested(),
    'gone': GONE}


#: Some of each kind; the others take minutes.
FEW = {name: VALUES[name] for name in ('none', 'true', 'minus', 'huge', 'nan', 'word', 'numbers', 'dict', 'gone')}
ALL = pytest.mark.parametrize('values', [FEW, pytest.param(VALUES, marks=pytest.mark.slow)], ids=['few', 'all'])


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in lists and dicts, the first of a list alone."""
    entries = content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(
        content, list | tuple) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value changed, or taken away."""
    copied = copy.copy(content) if isinstance(content, dict) else list(content)
    if len(path) > 1:
        copied[path[0]] = changed(content[path[0]], path[1:], value)
    elif value is GONE:
        del copied[path[0]]
    else:
        copied[path[0]] = value
    return tuple(copied) if isinstance(content, tuple) else copied
