"""Identify the image of a row by name and content, and find the images that two sets share.

A row's number changes when a file is added to its folder; its name and its bytes do not.
"""
from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, BinaryIO

import numpy as np

from .images import DigitsReader, ImageSource, TorchvisionReader
from .subsets import CutDataset, as_source, evenly

__all__ = ['STRAY', 'Overlap', 'check_apart', 'digest_of', 'identities', 'overlap', 'row_names',
           'rows_of', 'shared_rows']

# A digest covers a small file completely, and of a large one the size and a block of its start, middle and end.
_BLOCK = 16 * 1024
# Limits on files whose sizes are compared, and on files opened to compare contents: a second on a local disk, a minute
# on a slow network disk. Of larger sets an evenly spaced part is compared.
_MOST_SIZED, _MOST_OPENED = 100_000, 20_000
#: Share of images that published sets repeat (CIFAR-10's test set in 3 of 1,000, ImageNet's too); more is a mistake.
STRAY = 0.01
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Overlap:
    """Images of a test set that are images of a training set.

    Attributes:
        paths: Test images that are the same files as training images, links followed.
        contents: Further ones whose bytes equal those of a training image.
        examples: Some of them, (test name, training name).
        images: Size of the test set.
        compared: Test images that were compared with all training images by content; fewer in very large sets.
    """

    paths: int = 0
    contents: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    images: int = 0
    compared: int = 0

    def __bool__(self) -> bool:
        return bool(self.paths or self.contents)

    def __str__(self) -> str:
        return self.describe()

    def describe(self, kind: str = 'test') -> str:
        """A sentence with the number of images that are training images, and some examples."""
        kinds = [f'{count:,} {what}' for count, what in (
            (self.paths, 'by path'), (self.contents, 'by content')) if count]
        part = '' if self.compared in (0, self.images) else f', of {self.compared:,} compared by content'
        shown = ', '.join(test if test == train else f'{test} is {train}' for test, train in self.examples[:_SHOWN])
        return (f'{self.paths + self.contents:,} of the {self.images:,} {kind} images are training images '
                f'({" and ".join(kinds)}{part}: {shown}{", ..." if self.paths + self.contents > _SHOWN else ""})')


# ---- names and contents of rows

def row_names(images: CutDataset | ImageSource) -> list[str]:
    """Name of every row's file, relative to the root of its split, with '/' between folders; no name is there twice.

    Members of tars have the tar's name before theirs, rows without files their number. Names that are not UTF-8 hold
    surrogates, as :func:`os.fsdecode` makes them.
    """
    source, rows = rows_of(images)
    reader = source.reader
    samples = getattr(reader, 'samples', None)
    if isinstance(samples, list):  # faster than timm's relpath, 10 s per million rows
        start = os.path.join(os.fspath(reader.root), '')
        names = [samples[row][0].removeprefix(start).replace(os.sep, '/') for row in rows]
    elif samples is not None:
        names = ['/'.join(filter(None, (tar, child and child.name, member.name)))
                 for member, tar, child in (samples[row] for row in rows)]
    elif isinstance(reader, DigitsReader | TorchvisionReader):
        names = [source.filename(int(row)) for row in rows]
    else:
        names = [str(row) for row in rows]
    times: Counter[str] = Counter()
    for place, name in enumerate(names):
        times[name] += 1
        if times[name] > 1:  # a tar may hold a name twice
            names[place] = f'{name}#{times[name]}'
    return names


def identities(images: CutDataset | ImageSource) -> dict[str, str]:
    """Name of each row to a digest of its content, 32 hexadecimal digits; what a checkpoint records.

    Of files above 48 KiB the digest covers the size and 16 KiB of the start, the middle and the end.
    """
    source, rows = rows_of(images)
    return {name: digest_of(source, row) for name, row in zip(row_names(images), rows.tolist(), strict=True)}


# ---- overlap

def overlap(train: CutDataset | ImageSource, test: CutDataset | ImageSource) -> Overlap:
    """Images of ``test`` that ``train`` holds too, by path (symbolic and hard links followed) and by content.

    Files are opened only where sizes agree. Of sets as large as ImageNet an evenly spread part is compared by content.

    Args:
        train: Images that were trained on.
        test: Images to be evaluated.
    """
    pairs, n_paths, compared = shared_rows(train, test)
    (train_source, _), (test_source, test_rows) = rows_of(train), rows_of(test)
    names = tuple((str(test_source.filename(one)), str(train_source.filename(other))) for one, other in pairs[:_SHOWN])
    return Overlap(n_paths, len(pairs) - n_paths, names, len(test_rows), compared)


def check_apart(train: CutDataset | ImageSource, test: CutDataset | ImageSource, remedy: str, kind: str = 'test',
                ) -> Overlap:
    """Reject a test set that overlaps with training images, except for a few copies, as published sets have.

    Args:
        train: Images that were trained on.
        test: Images to be evaluated.
        remedy: End of the message, with what to type.
        kind: What the message calls the images of ``test``.

    Returns:
        The overlap, at most one test image in a hundred, by content alone.

    Raises:
        ValueError: A test image is a training file, or more than one in a hundred are copies of one.
    """
    found = overlap(train, test)
    if found.paths or found.contents > STRAY * found.compared:
        raise ValueError(f'{found.describe(kind)}; {remedy}')
    return found


def shared_rows(train: CutDataset | ImageSource, test: CutDataset | ImageSource,
                 ) -> tuple[list[tuple[int, int]], int, int]:
    """(test row, training row) of one image, those of one file first; their number; test rows that were compared."""
    (train_source, train_rows), (test_source, test_rows) = rows_of(train), rows_of(test)
    trained = dict(zip(_places(train_source, train_rows), train_rows.tolist(), strict=True))
    trained.pop(None, None)
    pairs = [(row, trained[place]) for row, place in zip(test_rows.tolist(), _places(test_source, test_rows),
                                                         strict=True) if place in trained]
    rest = np.setdiff1d(test_rows, [row for row, _ in pairs])
    tested, sized = (rows[evenly(len(rows), _MOST_SIZED)] for rows in (rest, train_rows))
    inodes: dict[Any, int] = {}
    by_size: dict[int | None, list[int]] = {}
    for row, (inode, size) in zip(sized.tolist(), _stats(train_source, sized), strict=True):
        inodes[inode] = row
        by_size.setdefault(size, []).append(row)
    inodes.pop(None, None)
    stats = list(zip(tested.tolist(), _stats(test_source, tested), strict=True))
    links = [(row, inodes[inode]) for row, (inode, _) in stats if inode in inodes]
    candidates = _affordable([(row, size) for row, (inode, size) in stats if inode not in inodes], by_size)
    copies = _copies(train_source, by_size, test_source, candidates)
    compared = (len(candidates) + len(links)) * len(sized) / max(len(train_rows), 1)
    return pairs + links + copies, len(pairs) + len(links), len(pairs) + round(compared)


def _affordable(rows: list[tuple[int, int | None]], by_size: Mapping[int | None, Sequence[int]],
                ) -> list[tuple[int, int | None]]:
    """Evenly spaced test rows, limited so that few training files of their sizes have to be opened."""
    sizes = {size for _, size in rows} & set(by_size)
    if None in sizes and len(by_size[None]) > _MOST_SIZED // 2:  # unknown sizes exclude no file
        return []
    opened = sum(len(by_size[size]) for size in sizes if size is not None)
    if opened <= _MOST_OPENED:
        return rows
    return [rows[place] for place in evenly(len(rows), len(rows) * _MOST_OPENED // opened)]


def _copies(train: ImageSource, by_size: Mapping[int | None, Sequence[int]], test: ImageSource,
            rows: Iterable[tuple[int, int | None]]) -> list[tuple[int, int]]:
    """(test row, training row) of equal bytes."""
    digests: dict[int | None, dict[str, int]] = {}
    found = []
    for row, size in rows:
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {digest_of(train, other): other for other in by_size[size]}
        other = digests[size].get(digest_of(test, row))
        if other is not None and _bytes(train, other) == _bytes(test, row):
            found.append((row, other))
    return found


def _places(source: ImageSource, rows: np.ndarray) -> Iterable[Any]:
    """Path of each row's file, links of folders followed, without accessing the file; None if unknown."""
    reader = source.reader
    if isinstance(reader, DigitsReader):
        return (('digits', int(reader.rows[row])) for row in rows)
    samples = getattr(reader, 'samples', None)
    if isinstance(samples, list):
        real = cache(os.path.realpath)
        return ((real(folder), name) for folder, name in (os.path.split(samples[row][0]) for row in rows))
    if samples is not None:  # of tars: (member, tar, tar in the tar)
        root = os.path.realpath(reader.root)
        return ((root, tar, child and child.name, member.name) for member, tar, child in (samples[row] for row in rows))
    mark = getattr(getattr(reader, 'dataset', None), '_fingerprint', None)  # Hugging Face's, of the data
    return ((None if mark is None else (mark, int(row))) for row in rows)


def _stats(source: ImageSource, rows: np.ndarray) -> Iterable[tuple[Any, int | None]]:
    """Inode and size of each row's file, each None if unknown."""
    reader = source.reader
    samples = getattr(reader, 'samples', None)
    if isinstance(samples, list):
        return (_stat(samples[row][0]) for row in rows)
    if samples is not None:
        return ((None, samples[row][0].size) for row in rows)
    files = getattr(reader, 'files', None)
    return ((None, None if files is None else len(files[row])) for row in rows)


def _stat(path: str) -> tuple[Any, int | None]:
    try:
        stat = os.stat(path)
    except OSError:  # a dangling link: reading it raises the error
        return None, -1
    return (stat.st_dev, stat.st_ino), stat.st_size


def rows_of(images: CutDataset | ImageSource) -> tuple[ImageSource, np.ndarray]:
    """The data set of images, and their positions in it."""
    if isinstance(images, CutDataset):
        return images.source, images.indices
    source = as_source(images)
    return source, np.arange(len(source))


# ---- digests

def digest_of(source: ImageSource, row: int) -> str:
    """Digest of one row's content, as in :func:`identities`."""
    samples = getattr(source.reader, 'samples', None)
    if isinstance(samples, list) and isinstance(path := samples[row][0], str):
        stat = os.stat(path)
        return _file_digest(path, stat.st_size, stat.st_mtime_ns)
    item = source.reader[row][0]
    if hasattr(item, 'read'):
        with item:
            return _stream_digest(item, item.seek(0, os.SEEK_END))
    return hashlib.blake2b(f'{item.mode} {item.size} '.encode() + item.tobytes(), digest_size=16).hexdigest()


@lru_cache(maxsize=2 ** 18)
def _file_digest(path: str, size: int, changed: int) -> str:
    """Digest of a file; size and modification time are part of the cache key."""
    with open(path, 'rb') as file:
        return _stream_digest(file, size)


def _stream_digest(file: BinaryIO, size: int) -> str:
    digest = hashlib.blake2b(f'{size} '.encode(), digest_size=16)
    whole = size <= 3 * _BLOCK
    for start, length in ((0, size),) if whole else ((at, _BLOCK) for at in (0, size // 2, size - _BLOCK)):
        file.seek(start)
        digest.update(file.read(length))
    return digest.hexdigest()


def _bytes(source: ImageSource, row: int) -> bytes:
    item = source.reader[row][0]
    if not hasattr(item, 'read'):
        return item.tobytes()
    with item:
        return item.read()
