"""Writing files whole or not at all."""
from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    r"""Write a file whole or not at all. See :func:`atomic_path`.

    Text is written as UTF-8; the bytes of a file name that is none, which Python holds as surrogates, as ``\udcff``.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode('utf-8', 'backslashreplace') if isinstance(content, str) else content)
