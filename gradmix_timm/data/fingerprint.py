"""Fingerprint of a list of images: names, targets, and the files behind them by size and time, or the bytes."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .images import DigitsReader, ImageSource, TorchvisionReader
from .recode import Recoded
from .shortcut import ShortcutSource
from .subsets import CutDataset
from .synthetic import MadeReader

__all__ = ['fingerprint']


def fingerprint(images: CutDataset) -> str | None:
    """SHA-256 of everything that determines the pixels, the targets and their order.

    Files on disk count by path, size and modification time (nanoseconds), a tar as a whole; arrays in memory by their
    bytes; synthetic images by their parameters.

    Returns:
        Hexadecimal; None for a source that cannot be fingerprinted without reading it all.
    """
    digest = hashlib.sha256()
    found = _source(images.source, images.indices)
    if found is None:
        return None
    for part in found:
        digest.update(part if isinstance(part, bytes) else part.encode('utf-8', 'surrogateescape'))
        digest.update(b'\0')
    for array in (images.indices, images.targets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _source(source: ImageSource, rows: np.ndarray) -> Iterator[str | bytes] | None:
    if isinstance(source, Recoded):
        inner = _source(source.inner, rows)
        return None if inner is None else _chain(f'codec {source.codec}', inner)
    if isinstance(source, ShortcutSource):
        inner = _source(source.inner, rows)
        return None if inner is None else _chain(source.describe(), inner)
    found = _reader(source.reader, rows)
    return None if found is None else _chain(f'mode {source.input_img_mode} exif {source.exif}', found)


def _chain(first: str, rest: Iterator[str | bytes]) -> Iterator[str | bytes]:
    yield first
    yield from rest


def _reader(reader: Any, rows: np.ndarray) -> Iterator[str | bytes] | None:
    if isinstance(reader, MadeReader):
        return iter([repr(reader)])
    if isinstance(reader, DigitsReader):
        return (reader.files[row] for row in rows)
    if isinstance(reader, TorchvisionReader):
        return _torchvision(reader, rows)
    if (mark := getattr(getattr(reader, 'dataset', None), '_fingerprint', None)) is not None:
        return iter([f'datasets {mark}'])  # Hugging Face's own, of data and every step since
    root = getattr(reader, 'root', None)
    if root is None or not hasattr(reader, 'samples'):
        return None
    if os.path.isfile(root):
        return _files([str(root)], [str(reader.filename(int(row))) for row in rows])
    return _files([str(reader.filename(int(row), absolute=True)) for row in rows])


def _torchvision(reader: TorchvisionReader, rows: np.ndarray) -> Iterator[str | bytes] | None:
    data = getattr(reader.dataset, 'data', None)
    if data is not None and hasattr(data, '__array__'):
        return _chain(type(reader.dataset).__name__, iter([np.asarray(data).tobytes()]))
    names = [str(reader.filename(int(row), absolute=True)) for row in rows]
    return _files(names) if all(map(os.path.isfile, names[:1])) and names else None


def _files(paths: list[str], names: list[str] | None = None) -> Iterator[str]:
    for path in paths:
        stat = os.stat(path)
        yield f'{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}'
    yield from names or ()
