"""The cache of embeddings: what is stored comes back, what is stale never does, what was cut short goes on."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tampering import VALUES, changed, places

from gradmix_timm.openset import cache as cache_module
from gradmix_timm.openset.cache import EmbeddingCache, entry_key, weights_hash
from gradmix_timm.records import Embeddings

PARTS = {'weights': 'a', 'images': 'b'}


def rows(start, stop, projection=True):
    place = torch.arange(start, stop)
    values = place[:, None] + torch.arange(3) / 10
    return Embeddings(values.float(), 2 * values.float(), 3 * values[:, :2].float() if projection else None, place,
                      torch.arange(stop - start))


def same(found, expected):
    for name in ('logits', 'features', 'projection', 'label', 'index'):
        one, two = getattr(found, name), getattr(expected, name)
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)


def counting(calls, fail_at=None):
    def make(start, stop):
        if start == fail_at:
            raise KeyboardInterrupt
        calls.append((start, stop))
        return rows(start, stop)
    return make


@pytest.mark.parametrize('count', [1, 7, 8, 9, 20])
def test_what_is_stored_comes_back(count, tmp_path):
    calls = []
    cache = EmbeddingCache(tmp_path / 'made' / 'here', block=8)
    same(cache.fetch(PARTS, count, counting(calls), 'first'), rows(0, count))
    assert calls == [(start, min(start + 8, count)) for start in range(0, count, 8)]
    same(EmbeddingCache(tmp_path / 'made' / 'here').fetch(PARTS, count, counting(calls), 'again'), rows(0, count))
    assert len(calls) == -(-count // 8)
    assert (cache.hits, cache.misses) == ([], ['first'])
    assert [path.name for path in (tmp_path / 'made' / 'here').iterdir()] == [entry_key(PARTS)]


def test_without_a_projection(tmp_path):
    for _ in range(2):
        found = EmbeddingCache(tmp_path).fetch(PARTS, 5, lambda start, stop: rows(start, stop, projection=False))
        same(found, rows(0, 5, projection=False))


def test_without_a_layer_to_read_features_at(tmp_path):
    def make(start, stop):
        return replace(rows(start, stop, projection=False), features=torch.empty(stop - start, 0))

    for _ in range(2):
        same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 5, make), make(0, 5))


def test_a_place_that_takes_no_files_keeps_none_but_serves_what_it_has(tmp_path, monkeypatch, caplog):
    EmbeddingCache(tmp_path / 'full').fetch(PARTS, 5, rows)
    (tmp_path / 'file').touch()
    same(EmbeddingCache(tmp_path / 'file' / 'inside').fetch(PARTS, 5, rows), rows(0, 5))
    assert 'this run keeps its own embeddings' in caplog.text

    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, 'Read-only file system', str(path))

    monkeypatch.setattr(cache_module.Path, 'mkdir', read_only)
    monkeypatch.setattr(cache_module.Path, 'touch', read_only)
    cache = EmbeddingCache(tmp_path / 'full')
    same(cache.fetch(PARTS, 5, None, 'stored'), rows(0, 5))
    same(cache.fetch({'another': 1}, 5, rows, 'new'), rows(0, 5))
    assert (cache.hits, cache.misses) == (['stored'], ['new'])


def test_a_run_that_was_cut_short_goes_on(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls, fail_at=8))
    assert calls == [(0, 4), (4, 8)]
    assert not (tmp_path / entry_key(PARTS)).exists()
    same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls)), rows(0, 11))
    assert calls[2:] == [(8, 11)]


def test_an_entry_that_another_run_finishes_just_before_the_lock_is_taken_is_read(tmp_path, monkeypatch):
    """Red before: FileNotFoundError for the lock of a folder that had been renamed meanwhile."""
    touch = Path.touch

    def late(path):
        monkeypatch.undo()
        touch(path)
        EmbeddingCache(tmp_path).fetch(PARTS, 5, rows)

    monkeypatch.setattr(Path, 'touch', late)
    calls = []
    same(EmbeddingCache(tmp_path).fetch(PARTS, 5, counting(calls)), rows(0, 5))
    assert calls == []


def test_a_killed_process_leaves_what_it_had(tmp_path):
    def make(start, stop):
        if start == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows(start, stop)

    child = os.fork()
    if not child:
        try:
            EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, make)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    calls = []
    same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls)), rows(0, 11))
    assert calls == [(8, 11)]


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    """Rows are written, so that a full disk refuses them; a page of a memory map would end the process by SIGBUS."""
    as_ever, stored = open, tmp_path / f'{entry_key(PARTS)}.partial' / 'done.json'

    def full(path, mode='r', **options):
        """From the second block on rows go to a device that is full, once."""
        if mode == 'rb+' and stored.exists():
            monkeypatch.undo()
            return as_ever('/dev/full', mode, buffering=0)
        return as_ever(path, mode, **options)

    monkeypatch.setattr(cache_module, 'open', full, raising=False)
    with pytest.raises(OSError, match='No space left') as raised:
        EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, rows)
    assert raised.value.errno == errno.ENOSPC
    calls = []
    same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls)), rows(0, 11))
    assert calls == [(4, 8), (8, 11)]


def test_another_key_or_count_is_another_entry(tmp_path):
    calls = []
    cache = EmbeddingCache(tmp_path)
    for parts, count in ((PARTS, 4), ({**PARTS, 'images': 'c'}, 4), ({**PARTS, 'more': 1}, 4), (PARTS, 3)):
        same(cache.fetch(parts, count, counting(calls)), rows(0, count))
    assert len(calls) == 4


def flip(array):
    """One bit of one number."""
    array.view(np.uint8).reshape(-1)[-1] ^= 1


@pytest.mark.parametrize('field', ['logits', 'features', 'projection', 'label'])
@pytest.mark.parametrize('change', [lambda array: np.negative(array, out=array), flip, lambda array: array.fill(0)],
                         ids=['negated', 'one bit', 'zeros'])
@pytest.mark.parametrize('whole', [True, False])
def test_arrays_that_were_changed_are_never_served(field, change, whole, tmp_path, caplog):
    """Of an unfinished entry the blocks before the first changed one stay."""
    calls = []
    folder = tmp_path / (entry_key(PARTS) + ('' if whole else '.partial'))
    if whole:
        EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls))
    else:
        with pytest.raises(KeyboardInterrupt):
            EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls, fail_at=8))
    array = np.load(folder / f'{field}.npy', mmap_mode='r+')
    change(array[4:8])
    array.flush()
    del array
    calls.clear()
    same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls)), rows(0, 11))
    assert calls[0] == ((0, 4) if whole else (4, 8))
    assert ('is made anew (its arrays are not those that were stored' in caplog.text) == whole
    same(EmbeddingCache(tmp_path).fetch(PARTS, 11, counting(calls, fail_at=0)), rows(0, 11))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['entry.json', 'done.json'])
def test_no_value_of_an_entry_gives_anything_but_the_same_rows(name, tmp_path):
    made = tmp_path / 'made' / (entry_key(PARTS) + ('' if name == 'entry.json' else '.partial'))
    with contextlib.suppress(KeyboardInterrupt):
        EmbeddingCache(made.parent, block=4).fetch(PARTS, 6, counting([], fail_at=None if name == 'entry.json' else 4))
    good = json.loads((made / name).read_text())
    found = [place for place in places(good) if place[:1] != ('parts',) or len(place) == 1]
    for number, (place, label) in enumerate(itertools.product(found, (
            'none', 'true', 'minus', 'huge', 'half', 'nan', 'word', 'numbers', 'dict', 'nested', 'gone'))):
        folder = tmp_path / str(number) / made.name
        shutil.copytree(made, folder)
        (folder / name).write_text(json.dumps(changed(good, place, VALUES[label])))
        same(EmbeddingCache(folder.parent, block=4).fetch(PARTS, 6, rows), rows(0, 6))


@pytest.mark.parametrize('array', [
    np.zeros((6, 3)), np.zeros(6, np.float32), np.zeros((6, 3), np.int64), np.array(['x'] * 6),
    np.array([{}] * 6, dtype=object), np.zeros((6, 0), np.float32), np.zeros((), np.float32)],
    ids=lambda array: f'{array.dtype} {array.shape}')
def test_arrays_of_other_kinds_are_made_anew(array, tmp_path):
    EmbeddingCache(tmp_path).fetch(PARTS, 6, rows)
    folder = tmp_path / entry_key(PARTS)
    np.save(folder / 'logits.npy', array, allow_pickle=True)
    entry = json.loads((folder / 'entry.json').read_text())
    entry['blocks'][0]['sha256']['logits'] = hashlib.sha256(array.tobytes()).hexdigest()
    (folder / 'entry.json').write_text(json.dumps(entry))
    same(EmbeddingCache(tmp_path).fetch(PARTS, 6, rows), rows(0, 6))


@pytest.mark.parametrize('damage', ['cut', 'gone', 'text', 'swapped', 'other'])
def test_an_entry_that_is_not_what_it_should_be_is_made_anew(damage, tmp_path):
    calls = []
    EmbeddingCache(tmp_path).fetch(PARTS, 6, counting(calls))
    folder = tmp_path / entry_key(PARTS)
    if damage == 'cut':
        os.truncate(folder / 'features.npy', (folder / 'features.npy').stat().st_size - 4)
    elif damage == 'gone':
        (folder / 'label.npy').unlink()
    elif damage == 'text':
        (folder / 'entry.json').write_text('{')
    elif damage == 'swapped':  # an entry under the name of another
        entry = json.loads((folder / 'entry.json').read_text())
        (folder / 'entry.json').write_text(json.dumps({**entry, 'parts': {'weights': 'z'}}))
    else:
        np.save(folder / 'logits.npy', np.zeros((2, 3), np.float32))
    same(EmbeddingCache(tmp_path).fetch(PARTS, 6, counting(calls)), rows(0, 6))
    assert len(calls) == 2
    same(EmbeddingCache(tmp_path).fetch(PARTS, 6, counting(calls)), rows(0, 6))
    assert len(calls) == 2


def test_progress_that_cannot_be_told_starts_again(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls, fail_at=8))
    (tmp_path / f'{entry_key(PARTS)}.partial' / 'done.json').write_text('nonsense')
    calls.clear()
    same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 11, counting(calls)), rows(0, 11))
    assert calls[0] == (0, 4)


def test_two_runs_at_once_do_not_write_into_each_other(tmp_path):
    """The second finds the entry claimed and keeps its embeddings to itself."""
    inner = []

    def make(start, stop):
        inner.append(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 6, rows) if start == 0 else None)
        return rows(start, stop)
    same(EmbeddingCache(tmp_path, block=4).fetch(PARTS, 6, make), rows(0, 6))
    same(inner[0], rows(0, 6))


def test_writing_to_what_was_read_leaves_the_entry_alone(tmp_path):
    EmbeddingCache(tmp_path).fetch(PARTS, 6, rows).features.zero_()
    same(EmbeddingCache(tmp_path).fetch(PARTS, 6, rows), rows(0, 6))


def test_weights_that_differ_in_one_bit_differ():
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=2)
    first = weights_hash(model, None)
    assert first == weights_hash(model, None) != weights_hash(None, model)
    with torch.no_grad():
        model.fc.bias[1] = torch.nextafter(model.fc.bias[1], torch.tensor(9.))
    second = weights_hash(model, None)
    assert second != first
    next(model.buffers()).add_(1)
    assert weights_hash(model, None) not in (first, second)
    assert weights_hash(model, torch.nn.Linear(2, 2)) != weights_hash(model, None)
