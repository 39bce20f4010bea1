"""Which images a run trains on, holds out, keeps for the test and says so."""
from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_training import run_tiny, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli.errors import UsageError
from gradmix_timm.data import listing, open_dataset, overlap, recorded_parts, select_classes
from gradmix_timm.data.identity import row_names

KNOWN = ('--known-classes', 'ant,bee', '--osr-val-fraction', 0.25, '--epochs', 1)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def add(folder, name, seed=5):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)


def recorded(folder):
    return load_checkpoint(folder / 'last.pth.tar').record


def test_held_out_images_are_recorded_by_name_and_found_after_a_file_was_added(images, tmp_path):
    data = shutil.copytree(images, tmp_path / 'data')
    record = recorded(run_tiny(data, tmp_path, *KNOWN, classes=None))
    assert len(record.held_out) == 4
    assert record.flat_test == {}
    before = set(record.held_out)
    add(data / 'train' / 'ant', '00.png')
    parts = recorded_parts(select_classes(open_dataset('', data, 'train'), ('ant', 'bee')), record)
    assert set(row_names(parts.held)) == before
    assert len(parts.train) == 13


@pytest.mark.parametrize('change', ['added', 'renamed'])
def test_resuming_with_other_files_held_out_is_refused(images, tmp_path, change):
    data = shutil.copytree(images, tmp_path / 'data')
    folder = run_tiny(data, tmp_path, *KNOWN, classes=None)
    if change == 'added':
        add(data / 'train' / 'ant', '00.png')
    else:  # the numbers of the rows stay what they were
        name = sorted(recorded(folder).held_out)[0]
        (data / 'train' / name).rename((data / 'train' / name).with_suffix('.jpeg'))
    with pytest.raises(UsageError, match='other images were held out'):
        run_tiny(data, tmp_path, *KNOWN[:-1], 2, '--resume', folder / 'last.pth.tar', classes=None, name='again')


def test_a_folder_without_splits_is_split_said_and_recorded(images, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        record = recorded(run_tiny(images / 'train', tmp_path, *KNOWN, '--seed', 3, classes=None))
    assert 'has no split folders: 4 of its 16 images (20% of each class, seed 3) are kept for the test' in caplog.text
    whole = select_classes(open_dataset('', images / 'train'), ('ant', 'bee'))
    parts = recorded_parts(whole, record)
    assert (len(parts.train), len(parts.held), len(parts.test)) == (8, 4, 4)
    assert set(row_names(parts.test)) == set(record.flat_test)
    assert not overlap(parts.train, parts.test)
    assert not overlap(parts.held, parts.test)
    assert not overlap(parts.train, parts.held)


@pytest.mark.parametrize('copied', [False, True])
def test_a_plain_run_validated_on_its_training_images_says_so(images, tmp_path, caplog, copied):
    data = images / 'train'
    if copied:
        data = tmp_path / 'data'
        for split in ('train', 'validation'):
            shutil.copytree(images / 'train', data / split)
    with caplog.at_level(logging.WARNING):
        record = recorded(run_tiny(data, tmp_path, '--epochs', 1))
    how = 'by content' if copied else 'by path'
    assert f'32 of the 32 validation images are training images (32 {how}' in caplog.text
    assert record.validation_overlap == {'paths': 0 if copied else 32, 'contents': 32 if copied else 0, 'images': 32}


def test_a_plain_run_with_images_apart_says_nothing(images, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        record = recorded(run_tiny(images, tmp_path, '--epochs', 1))
    assert 'training images' not in caplog.text
    assert record.validation_overlap == {}


def test_validation_of_other_classes_is_refused_whatever_the_head(images, tmp_path):
    data = shutil.copytree(images, tmp_path / 'data')
    shutil.rmtree(data / 'validation' / 'ant')
    words = r'train has 4 classes and --val-split validation 3, .*\(ant\).*--class-map'
    for classes in (None, 4, 7):
        with pytest.raises(UsageError, match=words):
            run_tiny(data, tmp_path, '--epochs', 1, classes=classes)
    run_tiny(data, tmp_path, '--epochs', 1, '--val-split', '', classes=None)


def test_a_head_of_a_thousand_for_four_folders_is_said(images, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_tiny(images, tmp_path, '--epochs', 1, classes=None)
    assert 'The head has 1000 outputs and the data 4 classes; --num-classes 4 gives' in caplog.text


@pytest.fixture(scope='module')
def nested(images, tmp_path_factory):
    """Every class by day, and litter beside it."""
    root = tmp_path_factory.mktemp('nested')
    for file in sorted(images.rglob('*.png')):
        split, name, number = file.relative_to(images).parts
        place = root / split / name / f'day{int(file.stem) % 2}' / number
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    for name in ('__MACOSX/ant/._0.png', 'ant/day0/._0.png', 'bee/.ipynb_checkpoints/0-checkpoint.png'):
        (root / 'train' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'train' / name).write_bytes(b'\0\5\x16\7')
    return root


def test_sub_folders_are_no_classes_of_an_open_set_run(nested, tmp_path):
    record = recorded(run_tiny(nested, tmp_path, *KNOWN, classes=None))
    assert (record.known_classes, record.unknown_classes) == (('ant', 'bee'), ('cat', 'dog'))
    assert len(record.held_out) == 4
    assert all(name.startswith(('ant/day', 'bee/day')) for name in record.held_out)


def test_a_plain_run_keeps_timms_classes_and_says_so(nested, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(listing, '_said', set())
    with caplog.at_level(logging.WARNING):
        record = recorded(run_tiny(nested, tmp_path, '--epochs', 1, classes=2))
    assert record.known_classes == ('day0', 'day1')
    assert "as in timm's script the innermost are the classes (day0, day1, ...)" in caplog.text
    assert '3 hidden or litter (' in caplog.text


def test_names_that_are_not_utf8_train_and_are_recorded(images, tmp_path):
    root = os.fsencode(shutil.copytree(images, tmp_path / 'data'))
    for split in (b'train', b'validation', b'test'):
        os.rename(root + b'/' + split + b'/ant', root + b'/' + split + b'/caf\xe9')
    for number in range(8):
        os.rename(root + b'/train/bee/%d.png' % number, root + b'/train/bee/\xff%d.png' % number)
    folder = run_tiny(os.fsdecode(root), tmp_path, '--known-classes', 'bee,caf\udce9', *KNOWN[2:], classes=None)
    record = recorded(folder)
    assert record.known_classes == ('bee', 'caf\udce9')
    assert sum(name.startswith('bee/\udcff') for name in record.held_out) == 2
    parts = recorded_parts(select_classes(open_dataset('', os.fsdecode(root), 'train'), record.known_classes), record)
    assert set(row_names(parts.held)) == set(record.held_out)
