"""Which image a row is, by name and by content: held-out rows found again, and images that two sets share.

A row's number says nothing once a file was added to its folder; its name and the bytes behind it do.
"""
from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, BinaryIO, Protocol

import numpy as np

from .images import DigitsReader, ImageSource, TorchvisionReader
from .subsets import CutDataset, as_source, hold_out, labels_of, take

__all__ = [
    'FLAT_SHARE', 'Overlap', 'Parts', 'RecordedRows', 'check_apart', 'find_rows', 'held_out_rows', 'identities',
    'list_digest', 'overlap', 'recorded_parts', 'row_names', 'split_flat']

_logger = logging.getLogger(__name__)

# A digest covers the whole of a small file; of a large one its size and a block of its start, middle and end.
_BLOCK = 16 * 1024
# Files whose sizes are compared, and that are opened to compare contents, at most: a second on a local disk, a minute
# on a slow network's. Of larger sets an evenly spread part.
_MOST_SIZED, _MOST_OPENED = 100_000, 20_000
# Published sets repeat a few images (CIFAR-10's test set in 3 of 1,000, ImageNet's too): more is no accident.
_STRAY = 0.01
_SHOWN = 3
#: Share of each class that a folder without splits keeps for the test, as sklearn/digits does.
FLAT_SHARE = 0.2


class RecordedRows(Protocol):
    """What a checkpoint recorded of its held-out images.

    Attributes:
        held_out: Name in the training split to digest; empty in old checkpoints.
        flat_test: The same of images kept for the test, where the data had no test split.
        val_indices: Positions of the held-out images in the training split.
        train_list: :func:`list_digest` of the training split, '' in old checkpoints.
    """

    @property
    def held_out(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def flat_test(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def val_indices(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def train_list(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Parts:
    """A training split as a run used it.

    Attributes:
        train: What was trained on.
        held: Held out for validation, or None.
        test: Kept for the test where the data had no test split, or None.
    """

    train: CutDataset
    held: CutDataset | None
    test: CutDataset | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Images of a test set that are images of a training set.

    Attributes:
        paths: Test images that are the very files of training images, links followed.
        contents: Further ones whose bytes equal those of a training image.
        examples: Some of them, (test name, training name).
        images: Size of the test set.
        compared: Test images that were compared with all training images, by content too; of very large sets fewer.
    """

    paths: int = 0
    contents: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    images: int = 0
    compared: int = 0

    def __bool__(self) -> bool:
        return bool(self.paths or self.contents)

    def describe(self, kind: str = 'test') -> str:
        """In words: how many images of which kind are training images, and some of them."""
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
    source, rows = _rows_of(images)
    reader = source.reader
    samples = getattr(reader, 'samples', None)
    if isinstance(samples, list):  # timm's relpath takes 10 s a million rows
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
    source, rows = _rows_of(images)
    return {name: _digest(source, row) for name, row in zip(row_names(images), rows.tolist(), strict=True)}


def list_digest(images: CutDataset | ImageSource) -> str:
    """SHA-256 of names and labels in order: the same list gives the same."""
    digest = hashlib.sha256()
    for name, label in zip(row_names(images), labels_of(images), strict=True):
        digest.update(f'{name}\t{label}\n'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()


# ---- held-out rows

def held_out_rows(images: CutDataset | ImageSource, record: RecordedRows) -> np.ndarray:
    """Rows that a training run held out, found by name and checked by content.

    A record of before names were kept has positions alone: they are taken as they are, with a warning where it has no
    digest of the list to check.

    Args:
        images: The training split, or a cut of it, as it is now.
        record: Of the run.

    Returns:
        Positions in the source, ascending, int64; empty where none were held out.

    Raises:
        ValueError: A held-out image is gone or has other content, or the list is another one.
    """
    if record.held_out:
        return find_rows(images, record.held_out, 'held-out')
    source, rows = _rows_of(images)
    indices = np.unique(np.asarray(record.val_indices, dtype=np.int64))
    if len(indices) and record.train_list and list_digest(source) != record.train_list:
        raise ValueError(f'the list of training images ({len(source)}) is not the one that held-out images were chosen '
                         'from; restore it, or name its folder, --data-dir')
    strays = np.setdiff1d(indices, rows)
    if len(strays):
        raise ValueError(f'{len(strays)} of {len(indices)} held-out images are not in the data set ({len(rows)} '
                         'images); it is not the one that they were chosen from, check --data-dir')
    if len(indices) and not record.train_list:
        _logger.warning('The checkpoint records its held-out images by number alone, as earlier versions did: if files '
                        'were added, removed or renamed since training, others are taken, training images among them')
    return indices


def recorded_parts(images: CutDataset | ImageSource, record: RecordedRows | None) -> Parts:
    """A training split cut as the run had it: what it trained on, held out, and kept for the test.

    Args:
        images: The training split, or a cut of it, as it is now.
        record: Of the run; None: nothing is known of it, all are training images.

    Raises:
        ValueError: As :func:`held_out_rows`.
    """
    held = test = np.zeros(0, dtype=np.int64)
    if record is not None:
        held, test = held_out_rows(images, record), find_rows(images, record.flat_test, 'test')
    train = np.setdiff1d(_rows_of(images)[1], np.concatenate([held, test]))
    return Parts(take(images, train.tolist()), take(images, held.tolist()) if len(held) else None,
                 take(images, test.tolist()) if len(test) else None)


def split_flat(images: CutDataset | ImageSource, share: float = FLAT_SHARE, seed: int = 0,
               ) -> tuple[CutDataset, CutDataset]:
    """A folder of class folders without splits in two parts, train and test; says so in one line of the log.

    Stratified and seeded; copies of one image lie on one side, that of training.

    Args:
        images: The whole folder, or a cut of it.
        share: Of each class that is kept for the test, in (0, 1).
        seed: Not negative.

    Raises:
        ValueError: A class with a single image.
    """
    train, test = hold_out(images, share, seed)
    copies = [row for row, _ in _shared_rows(train, test)[0]]
    if copies:
        train = take(images, np.union1d(train.indices, copies).tolist())
        test = take(images, np.setdiff1d(test.indices, copies).tolist())
    _logger.warning(f'{_root(train.source)} has no split folders: {len(test)} of its {len(train) + len(test)} images '
                    f'({share:.0%} of each class, seed {seed}) are kept for the test, the others train')
    return train, test


def find_rows(images: CutDataset | ImageSource, recorded: Mapping[str, str], kind: str) -> np.ndarray:
    """Positions in the source of the rows of these names and digests, ascending, int64.

    Args:
        images: Where to look.
        recorded: Of :func:`identities`.
        kind: What they are, for the message: 'held-out', 'test'.

    Raises:
        ValueError: A name that is not there, or with other content.
    """
    source, rows = _rows_of(images)
    place = dict(zip(row_names(images), rows.tolist(), strict=True))
    gone = [name for name in recorded if name not in place]
    where = _root(source)
    if gone:
        raise ValueError(f'{len(gone)} of {len(recorded)} {kind} images are not in {where} ({_some(gone)}): they were '
                         'renamed, moved or removed since training, or the data is another; restore the names, or '
                         'name the folder with --data-dir')
    found = {name: place[name] for name in recorded}
    other = [name for name, row in found.items() if _digest(source, row) != recorded[name]]
    if other:
        raise ValueError(f'{len(other)} of {len(recorded)} {kind} images in {where} have other content than at '
                         f'training ({_some(other)}), so that training may have used them under another name; restore '
                         'the files, or name the folder with --data-dir')
    return np.array(sorted(found.values()), dtype=np.int64)


def _root(source: ImageSource) -> str:
    return str(getattr(source.reader, 'root', None) or 'the data set')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


# ---- overlap

def overlap(train: CutDataset | ImageSource, test: CutDataset | ImageSource) -> Overlap:
    """Images of ``test`` that ``train`` holds too, by path (symbolic and hard links followed) and by content.

    Files are opened only where sizes agree. Of sets as large as ImageNet an evenly spread part is compared by content.

    Args:
        train: Images that were trained on.
        test: Images to be judged.
    """
    pairs, n_paths, compared = _shared_rows(train, test)
    (train_source, _), (test_source, test_rows) = _rows_of(train), _rows_of(test)
    names = tuple((str(test_source.filename(one)), str(train_source.filename(other))) for one, other in pairs[:_SHOWN])
    return Overlap(n_paths, len(pairs) - n_paths, names, len(test_rows), compared)


def check_apart(train: CutDataset | ImageSource, test: CutDataset | ImageSource, remedy: str) -> Overlap:
    """Refuse a test set of training images; a few stray copies, as published sets have, are left to be reported.

    Args:
        train: Images that were trained on.
        test: Images to be judged.
        remedy: What to type, the end of the message.

    Returns:
        The overlap, at most one test image in a hundred, by content alone.

    Raises:
        ValueError: A test image is a training file, or more than one in a hundred is a copy of one.
    """
    found = overlap(train, test)
    if found.paths or found.contents > _STRAY * found.compared:
        raise ValueError(f'{found.describe()}; {remedy}')
    return found


def _shared_rows(train: CutDataset | ImageSource, test: CutDataset | ImageSource,
                 ) -> tuple[list[tuple[int, int]], int, int]:
    """(test row, training row) of one image, those of one file first; their number; test rows that were compared."""
    (train_source, train_rows), (test_source, test_rows) = _rows_of(train), _rows_of(test)
    trained = dict(zip(_places(train_source, train_rows), train_rows.tolist(), strict=True))
    trained.pop(None, None)
    pairs = [(row, trained[place]) for row, place in zip(test_rows.tolist(), _places(test_source, test_rows),
                                                         strict=True) if place in trained]
    rest = np.setdiff1d(test_rows, [row for row, _ in pairs])
    tested, sized = _spread(rest, _MOST_SIZED), _spread(train_rows, _MOST_SIZED)
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


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _affordable(rows: list[tuple[int, int | None]], by_size: Mapping[int | None, Sequence[int]],
                ) -> list[tuple[int, int | None]]:
    """Test rows, evenly spread, for which not too many training files of their sizes are to be opened."""
    sizes = {size for _, size in rows} & set(by_size)
    if None in sizes and len(by_size[None]) > _MOST_SIZED // 2:  # sizes that are not told spare no file
        return []
    opened = sum(len(by_size[size]) for size in sizes if size is not None)
    if opened <= _MOST_OPENED:
        return rows
    return [rows[place] for place in _spread(np.arange(len(rows)), len(rows) * _MOST_OPENED // opened)]


def _copies(train: ImageSource, by_size: Mapping[int | None, Sequence[int]], test: ImageSource,
            rows: Iterable[tuple[int, int | None]]) -> list[tuple[int, int]]:
    """(test row, training row) of equal bytes."""
    digests: dict[int | None, dict[str, int]] = {}
    found = []
    for row, size in rows:
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {_digest(train, other): other for other in by_size[size]}
        other = digests[size].get(_digest(test, row))
        if other is not None and _bytes(train, other) == _bytes(test, row):
            found.append((row, other))
    return found


def _places(source: ImageSource, rows: np.ndarray) -> Iterable[Any]:
    """Which file each row is, links of folders followed, without a look at the file; None where it cannot be told."""
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
    """Of each row the inode, or None, and the size of its file, or None where that is not told."""
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
    except OSError:  # a link that leads nowhere: reading it will say so
        return None, -1
    return (stat.st_dev, stat.st_ino), stat.st_size


def _rows_of(images: CutDataset | ImageSource) -> tuple[ImageSource, np.ndarray]:
    if isinstance(images, CutDataset):
        return images.source, images.indices
    source = as_source(images)
    return source, np.arange(len(source))


# ---- digests

def _digest(source: ImageSource, row: int) -> str:
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
    """Of a file that has this size and this time of its last change."""
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
