"""Rows are told by name and content: held-out files stay the same files, and shared images are found."""
from __future__ import annotations

import logging
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from gradmix_timm.checkpoint import RunRecord
from gradmix_timm.data import (
    check_apart,
    hold_out,
    identity,
    open_dataset,
    overlap,
    recorded_parts,
    split_flat,
)
from gradmix_timm.data.identity import identities, row_names


def noise(path, rng, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def fill(root, classes=('cat', 'dog', 'ship'), count=10, seed=0, start=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        for number in range(start, start + count):
            noise(root / name / f'{number}.png', rng)
    return root


@pytest.fixture
def data(tmp_path):
    fill(tmp_path / 'train')
    fill(tmp_path / 'test', count=4, seed=1, start=100)
    return tmp_path


def found_again(images, record):
    """Rows of the source that a record holds out."""
    held = recorded_parts(images, record).held
    return [] if held is None else held.indices.tolist()


# ---- held-out images

@pytest.mark.parametrize('change', ['none', 'add', 'remove another', 'rename another'])
def test_the_same_files_stay_held_out_whatever_is_done_to_others(data, change):
    whole = open_dataset('', data, 'train')
    held = hold_out(whole, 0.2, 3)[1]
    record, names = RunRecord(model='x', held_out=identities(held)), sorted(row_names(held))
    others = sorted(set(row_names(whole)) - set(names))
    if change == 'add':
        noise(data / 'train' / 'cat' / '000.png', np.random.default_rng(9))
    elif change == 'remove another':
        (data / 'train' / others[0]).unlink()
    elif change == 'rename another':
        (data / 'train' / others[0]).rename(data / 'train' / 'ship' / 'zzz.png')
    again = open_dataset('', data, 'train')
    parts = recorded_parts(again, record)
    assert sorted(row_names(parts.held)) == names
    assert not set(row_names(parts.train)) & set(names)
    assert parts.test is None


def test_a_held_out_image_that_was_renamed_or_changed_is_an_error(data):
    whole = open_dataset('', data, 'train')
    held = hold_out(whole, 0.2, 3)[1]
    record = RunRecord(model='x', held_out=identities(held))
    name = row_names(held)[0]
    path = data / 'train' / name
    path.rename(path.with_name('moved.png'))
    with pytest.raises(ValueError, match=rf'1 of 6 held-out images are not in .*{name}.*--data-dir'):
        recorded_parts(open_dataset('', data, 'train'), record)
    other = next(n for n in row_names(whole) if n not in record.held_out and n.startswith(name.split('/')[0]))
    shutil.copy(data / 'train' / other, path)  # two files that changed names
    with pytest.raises(ValueError, match=rf'1 of 6 held-out images in .* other content than at training \({name}\)'):
        recorded_parts(open_dataset('', data, 'train'), record)


def test_nothing_held_out_is_no_row(data):
    assert found_again(open_dataset('', data, 'train'), RunRecord(model='x')) == []


# ---- shared images

@pytest.mark.parametrize(('how', 'paths', 'contents'), [
    ('copies', 0, 30), ('links', 30, 0), ('hard links', 30, 0), ('folder links', 30, 0), ('same', 30, 0)])
def test_images_of_training_are_found_in_the_test_set(tmp_path, how, paths, contents):
    train, test = fill(tmp_path / 'train'), tmp_path / 'test'
    if how == 'copies':
        shutil.copytree(train, test)
    elif how == 'same':
        test = train
    else:
        for folder in train.iterdir():
            if how == 'folder links':
                test.mkdir(exist_ok=True)
                (test / folder.name).symlink_to(folder)
                continue
            (test / folder.name).mkdir(parents=True)
            for file in folder.iterdir():
                (os.symlink if how == 'links' else os.link)(file, test / folder.name / f'other-{file.name}')
    found = overlap(open_dataset('', train), open_dataset('', test))
    assert (found.paths, found.contents, found.images, found.compared) == (paths, contents, 30, 30)
    assert len(found.examples) == 3
    with pytest.raises(ValueError, match=r'30 of the 30 test images are training images .*; --test-split NAME'):
        check_apart(open_dataset('', train), open_dataset('', test), '--test-split NAME')


def test_one_copy_under_another_name_and_class_is_found_and_none_is_made_up(data):
    train, test = open_dataset('', data, 'train'), open_dataset('', data, 'test')
    assert not overlap(train, test)
    shutil.copy(data / 'train' / 'cat' / '3.png', data / 'test' / 'dog' / 'x.png')
    found = overlap(train, open_dataset('', data, 'test'))
    assert (found.paths, found.contents, found.examples) == (0, 1, (('dog/x.png', 'cat/3.png'),))
    assert found.describe() == ('1 of the 13 test images are training images (1 by content: dog/x.png is cat/3.png)')


def test_large_files_alike_at_start_middle_and_end_are_two_images(tmp_path):
    pixels = np.zeros((200, 200, 3), np.uint8)
    for split, row in (('train', 50), ('test', 51)):
        for name in ('cat', 'dog'):
            (tmp_path / split / name).mkdir(parents=True)
            made = pixels.copy()
            made[row, ::3 if name == 'cat' else 5] = 255
            Image.fromarray(made).save(tmp_path / split / name / '0.bmp')
            (tmp_path / split / name / '0.bmp').rename(tmp_path / split / name / '0.png')
    assert not overlap(open_dataset('', tmp_path, 'train'), open_dataset('', tmp_path, 'test'))


def test_a_few_strays_in_a_hundred_are_reported_not_refused(tmp_path):
    train, test = fill(tmp_path / 'train', count=5), fill(tmp_path / 'test', count=100, seed=1)
    shutil.copy(train / 'cat' / '0.png', test / 'cat' / 'x.png')
    assert check_apart(open_dataset('', train), open_dataset('', test), '').contents == 1
    for number in range(1, 5):
        shutil.copy(train / 'dog' / f'{number}.png', test / 'cat' / f'x{number}.png')
    with pytest.raises(ValueError, match='5 of the 305'):
        check_apart(open_dataset('', train), open_dataset('', test), '')


def test_tars_arrays_and_torchvisions_folders_are_compared_too(data, tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.add(data / 'train', arcname='.')
    in_tar, folder = open_dataset('', tmp_path / 'a.tar'), open_dataset('', data, 'train')
    assert (overlap(in_tar, in_tar).paths, overlap(folder, in_tar).contents) == (30, 30)
    torchs = open_dataset('torch/folder', data, 'train')
    assert (overlap(folder, torchs).paths, row_names(torchs)) == (30, row_names(folder))
    digits = {split: open_dataset('sklearn/digits', split=split) for split in ('train', 'test')}
    assert not overlap(digits['train'], digits['test'])
    assert overlap(digits['test'], digits['test']).paths == 359


def test_the_row_numbers_of_arrays_say_nothing_but_their_pixels_do():
    made = torchvision.datasets.FakeData(size=20, image_size=(3, 8, 8), num_classes=2)
    assert overlap(made, made).contents == 20


@pytest.mark.parametrize(('limit', 'count'), [('_MOST_OPENED', 30), ('_MOST_SIZED', 20)])
def test_very_large_sets_are_compared_in_part(tmp_path, monkeypatch, limit, count):
    monkeypatch.setattr(identity, limit, count)
    train, test = fill(tmp_path / 'train', count=20), fill(tmp_path / 'test', count=20, seed=0)
    found = overlap(open_dataset('', train), open_dataset('', test))
    assert 0 < found.compared < 60
    assert found.contents >= found.compared
    assert f'of {found.compared} compared by content' in found.describe()
    with pytest.raises(ValueError, match='of the 60 test images'):
        check_apart(open_dataset('', train), open_dataset('', test), '')


def test_no_file_is_opened_whose_size_is_its_own(data, monkeypatch):
    for place, file in enumerate(sorted(data.rglob('*.png'))):
        with file.open('ab') as end:
            end.write(bytes(1000 * place))
    monkeypatch.setattr(identity, '_file_digest', lambda *_: pytest.fail('opened'))
    assert not overlap(open_dataset('', data, 'train'), open_dataset('', data, 'test'))


# ---- folders without splits

def test_a_flat_folder_is_split_by_class_and_seed_and_said(tmp_path, caplog):
    whole = open_dataset('', fill(tmp_path / 'data', count=20))
    with caplog.at_level(logging.WARNING):
        train, test = split_flat(whole, 0.2, 7)
    assert '12 of its 60 images (20% of each class, seed 7)' in caplog.text
    assert np.bincount(test.targets).tolist() == [4, 4, 4]
    assert sorted([*train.indices, *test.indices]) == list(range(60))
    assert split_flat(whole, 0.2, 7)[1].indices.tolist() == test.indices.tolist()
    assert split_flat(whole, 0.2, 8)[1].indices.tolist() != test.indices.tolist()


def test_copies_in_a_flat_folder_lie_on_one_side(tmp_path):
    root = fill(tmp_path / 'data', count=20)
    for file in sorted((root / 'cat').iterdir()):
        shutil.copy(file, file.with_name(f'copy-{file.name}'))
    for seed in range(3):
        train, test = split_flat(open_dataset('', root), 0.2, seed)
        assert not overlap(train, test)
        assert len(train) + len(test) == 80


# ---- names that are not UTF-8

def test_names_that_are_not_utf8_are_told(tmp_path):
    root = os.fsencode(fill(tmp_path / 'train'))
    os.rename(root + b'/cat', root + b'/caf\xe9')
    os.rename(root + b'/dog/0.png', root + b'/dog/\xff.png')
    whole = open_dataset('', tmp_path, 'train')
    record = RunRecord(model='x', held_out=identities(whole))
    assert {'dog/\udcff.png', 'caf\udce9/3.png'} <= set(record.held_out)
    torch.save(record.to_state(), tmp_path / 'record.pt')
    record = RunRecord.from_state(torch.load(tmp_path / 'record.pt', weights_only=True))
    assert found_again(open_dataset('', tmp_path, 'train'), record) == list(range(30))
