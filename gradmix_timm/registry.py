"""A registry: names to entries, each with one line of summary, and errors that name the nearest."""
from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ['Registry', 'nearest']

T = TypeVar('T')


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an error message: the closest known names, then all of them, a name with a comma in double quotes.

    Example:
        >>> nearest('gradmx', ['cutmix', 'gradmix'])
        "did you mean 'gradmix'? Available: cutmix, gradmix"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f'did you mean {" or ".join(repr(n) for n in close)}? ' if close else ''
    listed = (f'"{name}"' if ',' in name else name for name in names)
    return f'{hint}Available: {", ".join(listed)}'


class Registry(Generic[T]):
    """Names to entries of one kind, in order of registration.

    Args:
        kind: What an entry is, for messages ('mixer', 'score').
        check: Raises where an entry is none of this kind.
        reserved: Characters that a name may not have, besides white space and "+".

    Example:
        >>> colours = Registry('colour')
        >>> @colours.register('red', 'long waves')
        ... def red():
        ...     return '#f00'
        >>> colours['red']() , colours.describe()
        ('#f00', {'red': 'long waves'})
    """

    def __init__(self, kind: str, check: Callable[[Any], None] | None = None, reserved: str = '') -> None:
        self.kind, self._check, self._reserved = kind, check, reserved
        self._entries: dict[str, tuple[T, str]] = {}

    def register(self, name: str, summary: str) -> Callable[[T], T]:
        """Decorator that enters a class or function under ``name``.

        Raises:
            ValueError: The name is taken, or is not a plain string without spaces, ``+`` and what is reserved.
            TypeError: The entry is of another kind.
        """
        if not name or any(c in name for c in f' \t\n+{self._reserved}'):
            signs = ''.join(f' or "{sign}"' for sign in f'+{self._reserved}')
            raise ValueError(f'a {self.kind} name is a word without spaces{signs}, got {name!r}')

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f'{self.kind} {name!r} is registered already; choose another name')
            if self._check is not None:
                self._check(entry)
            self._entries[name] = (entry, summary)
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._entries:
            raise ValueError(f'no {self.kind} named {name!r}: {nearest(str(name), self._entries)}')
        return self._entries[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def describe(self) -> dict[str, str]:
        """Names to their one line, in order of registration."""
        return {name: summary for name, (_, summary) in self._entries.items()}
