"""Atomic writing of files."""
from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` (same suffix), renamed to it when the block ends without an error.

    After an error the old file is unchanged and the temporary one removed. Missing folders are made.

    Example:
        >>> with atomic_path(getfixture('tmp_path') / 'table.csv') as temporary:
        ...     _ = temporary.write_text('a,b')
        >>> (getfixture('tmp_path') / 'table.csv').read_text()
        'a,b'
    """
    target = Path(os.path.realpath(path))  # a symbolic link is kept, and its target replaced
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
    r"""Write a file atomically. See :func:`atomic_path`.

    Text is written as UTF-8; surrogates, as in file names that are not UTF-8, are escaped as ``\udcff``.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode('utf-8', 'backslashreplace') if isinstance(content, str) else content)
