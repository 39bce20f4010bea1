"""Which images a run trains on, holds out, keeps for the test and says so."""
from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_training import run_tiny, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli.errors import UsageError
from gradmix_timm.data import open_dataset, overlap, recorded_parts, select_classes
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
    assert len(record.held_out) == len(record.val_indices) == 4
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
