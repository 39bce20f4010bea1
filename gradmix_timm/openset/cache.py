"""Embeddings on disk under a key of everything they depend on; an interrupted pass resumes where it stopped.

An entry is a folder named by the key: arrays as .npy files, read as memory maps, and ``entry.json``. It is filled in
``KEY.partial``, block by block, with finished blocks recorded in ``done.json``, and renamed when complete. Both hold
the SHA-256 of every array's rows block by block, which is verified on reading.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradmix_timm.records import Embeddings
from gradmix_timm.schema import check, read_json

__all__ = ['EmbeddingCache', 'entry_key', 'weights_hash']

_logger = logging.getLogger(__name__)
# Rows of one pass through the loader, so the most that a killed run repeats: 8 s of ResNet-18 at 224 px on a GPU.
_BLOCK = 8192
# Version of the entries' layout; entries of another version are ignored.
_FORMAT = 2
_LOCK = 'lock'
_FIELDS = ('logits', 'features', 'projection', 'label')
_Field = Literal['logits', 'features', 'projection', 'label']


class _Block(TypedDict):
    """Rows up to ``stop``, and their digests by field."""

    stop: int
    sha256: dict[_Field, str]


class _Done(TypedDict):
    """Files of a stored entry."""

    count: int
    blocks: list[_Block]


class _Entry(_Done):
    """A whole one."""

    format: Literal[2]
    parts: dict[str, Any]


def weights_hash(*modules: nn.Module | None) -> str:
    """SHA-256 of the parameters and buffers of modules, names, shapes and dtypes included."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(b'module\0')
        for name, value in sorted(module.state_dict().items()) if module is not None else ():
            digest.update(f'{name}\0{value.dtype}\0{tuple(value.shape)}\0'.encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def entry_key(parts: Mapping[str, Any]) -> str:
    """Name of an entry: SHA-256 of everything it depends on, as JSON with sorted keys.

    Example:
        >>> entry_key({'a': 1, 'b': 2}) == entry_key({'b': 2, 'a': 1}) != entry_key({'a': 1, 'b': 3})
        True
    """
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


class EmbeddingCache:
    """A folder of entries.

    Args:
        folder: Made when the first entry is.
        block: Rows that are made at a time.

    Attributes:
        hits: Names of the sets that were found complete.
        misses: Names of those that were computed, in whole or in part.
    """

    def __init__(self, folder: str | os.PathLike[str], block: int = _BLOCK) -> None:
        self.folder, self.block = Path(folder), block
        self.hits: list[str] = []
        self.misses: list[str] = []

    def fetch(self, parts: Mapping[str, Any], count: int, make: Callable[[int, int], Embeddings],
              title: str = '') -> Embeddings:
        """Embeddings of ``count`` images: from disk, or computed block by block and stored.

        Args:
            parts: Everything they depend on, plain values; stored in the entry and compared on reading.
            count: Images.
            make: (start, stop) to the embeddings of those rows; never called for rows that are stored.
            title: Of the set, for ``hits`` and ``misses``.

        Returns:
            Memory-mapped, copy-on-write; ``index`` counts from 0.
        """
        whole = self.folder / entry_key(parts)
        found = self._read(whole, parts, count)
        if found is not None:
            self.hits.append(title)
            return found
        self.misses.append(title)
        partial = whole.with_name(f'{whole.name}.partial')
        try:
            partial.mkdir(parents=True, exist_ok=True)
            (partial / _LOCK).touch()
        except OSError as error:  # a read-only disk, which may serve other entries
            _logger.warning(f'{self.folder} cannot be written to ({error}); this run keeps its own embeddings')
            return make(0, count)
        with _claimed(partial) as ours:
            # Another run may have finished the entry since the first lookup.
            found = self._read(whole, parts, count)
            if found is not None:
                return found
            if not ours:
                _logger.warning(f'{partial} is being filled by another run; this one keeps its own embeddings')
                return make(0, count)
            self._fill(partial, parts, count, make)
            shutil.rmtree(whole, ignore_errors=True)  # an entry that could not be read
            os.replace(partial, whole)
        stored = self._read(whole, parts, count)
        if stored is None:
            raise ValueError(f'{whole} was written and cannot be read back: --cache DIR on another disk')
        return stored

    def _read(self, folder: Path, parts: Mapping[str, Any], count: int) -> Embeddings | None:
        """An entry, or None if it is missing or invalid."""
        try:
            entry: _Entry = check(read_json(folder / 'entry.json'), _Entry, str(folder / 'entry.json'))
            if entry['count'] != count or entry['parts'] != json.loads(_canonical(parts)):
                return None
            arrays = _arrays(folder, entry)
            if _whole_blocks(arrays, entry) != len(entry['blocks']) or entry['blocks'][-1]['stop'] != count:
                raise ValueError('its arrays are not those that were stored: their SHA-256 is another')
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, IndexError) as error:
            _logger.warning(f'{folder} cannot be read and is made anew ({error})')
            return None
        tensors: dict[str, Tensor | None] = dict.fromkeys(_FIELDS)
        tensors |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Embeddings(**tensors, index=torch.arange(count))  # type: ignore[arg-type]  # only projection is None

    def _fill(self, partial: Path, parts: Mapping[str, Any], count: int,
              make: Callable[[int, int], Embeddings]) -> None:
        done = _done(partial, count)
        first = done['blocks'][-1]['stop'] if done['blocks'] else 0
        if first:
            _logger.info(f'{partial.name[:12]}: {first} of {count} images are stored already')
        for start in range(first, count, self.block):
            stop = min(start + self.block, count)
            rows = make(start, stop)
            fields = {name: getattr(rows, name).numpy() for name in _FIELDS if getattr(rows, name) is not None}
            if any(len(values) != stop - start for values in fields.values()):
                raise ValueError(f'rows {start} to {stop} of a set gave {len(rows.label)} embeddings')
            for name, values in fields.items():
                _store(partial / f'{name}.npy', values, start, count)
            done['blocks'].append({'stop': stop, 'sha256': {
                name: _digest(values) for name, values in fields.items()}})  # type: ignore[misc]  # of _FIELDS
            _write(partial / 'done.json', done)
        _write(partial / 'entry.json', {'format': _FORMAT, **done, 'parts': json.loads(_canonical(parts))})
        (partial / 'done.json').unlink()


def _digest(rows: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


def _arrays(folder: Path, done: _Done) -> dict[str, NDArray[Any]]:
    """Arrays of the fields of the first block, as copy-on-write memory maps.

    Raises:
        ValueError: Fields, shapes or types that no pass writes.
        OSError: An array is missing.
    """
    fields = set(done['blocks'][0]['sha256']) if done['blocks'] else set()
    there = {path.stem for path in folder.glob('*.npy')}
    alike = all(set(block['sha256']) == fields for block in done['blocks'])
    if not alike or not {'logits', 'features', 'label'} <= fields == there:
        raise ValueError(f'it names the arrays {", ".join(sorted(fields))} and holds {", ".join(sorted(there))}')
    arrays: dict[str, NDArray[Any]] = {}
    for name in fields:
        array = arrays[name] = np.load(folder / f'{name}.npy', mmap_mode='c', allow_pickle=False)
        dtype, dims = (np.int64, 1) if name == 'label' else (np.float32, 2)
        empty = not array.size and name != 'features'  # a live module may have no layer to read them at
        if array.dtype != dtype or array.ndim != dims or len(array) != done['count'] or empty:
            raise ValueError(f'{name}.npy holds {array.dtype} {list(array.shape)}')
    return arrays


def _whole_blocks(arrays: Mapping[str, NDArray[Any]], done: _Done) -> int:
    """Number of leading blocks that still hold the rows that were stored."""
    start = 0
    for number, block in enumerate(done['blocks']):
        stop = block['stop']
        if not start < stop <= done['count'] or any(
                _digest(arrays[name][start:stop]) != digest for name, digest in block['sha256'].items()):
            return number
        start = stop
    return len(done['blocks'])


def _done(partial: Path, count: int) -> _Done:
    """Stored blocks of an unfinished entry; none, with its arrays removed, if they are unknown."""
    try:
        found: _Done = check(read_json(partial / 'done.json'), _Done, str(partial / 'done.json'))
        if found['count'] != count:
            raise ValueError(f'{found["count"]} images')
        blocks = found['blocks'][:_whole_blocks(_arrays(partial, found), found)]
    except (OSError, ValueError):
        blocks = []
    if not blocks:
        for path in partial.glob('*.npy'):
            path.unlink()
    return {'count': count, 'blocks': blocks}


def _store(path: Path, values: NDArray[Any], start: int, count: int) -> None:
    """Write rows into an array on disk of full size; on the disk before the row count is updated.

    Not through a memory map, which reserves no space: on a full disk it kills the process (SIGBUS).
    """
    if not path.exists():
        np.lib.format.open_memmap(path, mode='w+', dtype=values.dtype, shape=(count, *values.shape[1:]))
    array = np.load(path, mmap_mode='r', allow_pickle=False)
    with open(path, 'rb+') as file:
        file.seek(array.offset + start * array.strides[0])
        file.write(np.ascontiguousarray(values).data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _claimed(partial: Path) -> Iterator[bool]:
    """Lock the folder of an unfinished entry; yields False if another process has it. Released on exit."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield True
        return
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(open(partial / _LOCK, 'w'))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # of another process, or gone with a folder that is finished and renamed
            yield False
            return
        yield True


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f'{path.name}.new')
    temporary.write_text(json.dumps(value, sort_keys=True), encoding='utf-8')
    os.replace(temporary, path)


def _canonical(parts: Mapping[str, Any]) -> str:
    return json.dumps(parts, sort_keys=True)


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''
