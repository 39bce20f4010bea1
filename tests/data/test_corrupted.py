"""Corrupted data sets: rows seeded by their place, timm's crop before, and the official files with their checks."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_loader, create_transform

from gradmix_timm.data import class_names, fingerprint, labels_of, open_dataset, select_classes, take
from gradmix_timm.data.corruption import corrupt, corrupted, open_official
from gradmix_timm.data.preprocessing import Preprocessing

CONFIG = {'input_size': (3, 24, 24), 'interpolation': 'bicubic', 'crop_pct': 0.875, 'crop_mode': 'center'}
CLASSES = ('ant', 'bee', 'cat')


def clean(root, count=4, side=32):
    """Class folders of noise."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / 'test' / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / 'test' / name / f'{number}.png')
    return open_dataset('', root, 'test')


# ---- made

def test_an_image_is_the_same_in_every_cut_of_its_data_set(tmp_path):
    source = clean(tmp_path)
    bees = select_classes(source, ('bee',))
    whole = corrupted(take(source, range(12)), 'snow', 2, seed=5)
    part = corrupted(bees, 'snow', 2, seed=5)
    for row in range(4):
        assert np.array_equal(part.picture(row), whole.picture(4 + row))
        assert np.array_equal(part.picture(row), corrupt(np.asarray(bees.picture(row)), 'snow', 2, 5, 4 + row))
    assert part.filename(1) == bees.filename(1)
    assert part.targets.tolist() == bees.targets.tolist()
    assert fingerprint(part) is None, 'a cache must not take them for the clean ones'


@pytest.mark.parametrize('workers', [0, 2])
def test_timms_loader_gives_the_same_with_and_without_workers(tmp_path, workers: int):
    images = corrupted(select_classes(clean(tmp_path), CLASSES), 'gaussian_noise', 5, seed=1, scale='cifar')
    loader = create_loader(images, input_size=(3, 32, 32), batch_size=5, num_workers=workers, use_prefetcher=False,
                           crop_pct=1., mean=(0.,) * 3, std=(1.,) * 3, persistent_workers=False,
                           device=torch.device('cpu'))
    got = torch.cat([batch for batch, _ in loader])
    slow = np.stack([images.picture(row) for row in range(12)])
    assert np.array_equal((got.permute(0, 2, 3, 1).numpy() * 255).round(), slow)


def test_the_crop_is_timms_and_comes_before_the_corruption(tmp_path):
    images = select_classes(clean(tmp_path, side=50), CLASSES)
    transform = create_transform((3, 24, 24), is_training=False, interpolation='bicubic', crop_pct=0.875,
                                 mean=(0.,) * 3, std=(1.,) * 3)
    crop = Preprocessing.of(CONFIG).crop()
    picture = images.picture(0)
    assert crop(picture).size == (24, 24)
    seen = (transform(picture).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(crop(picture), seen)
    made = corrupted(images, 'contrast', 5, crop=crop, scale='imagenet').picture(0)
    assert np.array_equal(made, corrupt(seen, 'contrast', 5, scale='imagenet'))


# ---- CIFAR-C's files

def arrays(root, source, names=('fog', 'snow'), side=32, **changes):
    """Made-up files in which severity s of image k is filled with 10 s + k."""
    labels = labels_of(source)
    images = np.stack([np.full((side, side, 3), 20 * s + k, np.uint8) for s in range(5) for k in range(len(labels))])
    root.mkdir()
    for name in names:
        np.save(root / f'{name}.npy', changes.get('images', images))
    if changes.get('labels', ()) is not None:
        np.save(root / 'labels.npy', changes.get('labels', np.tile(labels, 5).astype(np.uint8)))
    return str(root)


def test_severities_are_slices_of_the_array_with_the_clean_sets_names(tmp_path):
    source = clean(tmp_path)
    official = open_official(arrays(tmp_path / 'c', source))
    assert official.names == ('snow', 'fog'), 'in the official order'
    official.check(('fog',), (1, 5))
    for severity in (1, 3, 5):
        made = official.open('fog', severity, source)
        assert class_names(made) == CLASSES
        cut = select_classes(made, ('cat', 'ant'))
        assert [np.asarray(cut.picture(row)).max() for row in range(8)] == [
            20 * (severity - 1) + k for k in (0, 1, 2, 3, 8, 9, 10, 11)]
        assert cut.targets.tolist() == [1] * 4 + [0] * 4
    assert official.open('fog', 1, source, 'L').read(0)[0].mode == 'L'


@pytest.mark.parametrize(('changes', 'words'), [
    ({'images': np.zeros((60, 32, 32), np.uint8)}, r'expected uint8 \[images, height, width, 3\]'),
    ({'images': np.zeros((60, 32, 32, 3), np.float32)}, 'float32'),
    ({'images': np.zeros((58, 32, 32, 3), np.uint8)}, '58 images are not five'),
    ({'labels': np.zeros(7, np.int64)}, '7 labels for the 60 images'),
    ({'labels': np.zeros((60, 1), np.int64)}, 'expected integers'),
    ({'labels': np.zeros(60)}, 'float64'),
    ({'labels': np.arange(60) % 3}, None),
    ({'labels': np.r_[np.arange(48) % 3, np.arange(12) % 2]}, 'labels of the five severities differ'),
    ({'labels': np.tile(np.arange(12) % 4, 5)}, 'labels from 0 to 3, the clean test set 3 classes'),
    ({'labels': np.tile([0] * 5 + [1] * 3 + [2] * 4, 5)}, "5 images of label 0, the clean test set 4 of 'ant'"),
])
def test_arrays_of_another_kind_are_refused(tmp_path, changes: dict, words: str | None):
    source = clean(tmp_path)
    official = open_official(arrays(tmp_path / 'c', source, **changes))
    if words is None:  # every severity 0, 1, 2, 0, ...: in another order than the folders, which is fine
        assert labels_of(official.open('fog', 2, source)).tolist() == [0, 1, 2] * 4
        return
    with pytest.raises(ValueError, match=words):
        official.open('fog', 1, source)


def test_the_state_of_the_files_shows_every_change(tmp_path):
    labels = Path(arrays(tmp_path / 'c', clean(tmp_path))) / 'labels.npy'
    inner = tmp_path / 'f' / 'fog' / '1' / 'cat'
    inner.mkdir(parents=True)
    for root, changed in ((labels.parent, labels), (tmp_path / 'f', inner)):
        official = open_official(root)
        before = official.state()
        assert official.state() == before
        os.utime(changed, ns=(1, 1))
        assert official.state() != before


def test_missing_and_broken_files_are_named(tmp_path):
    source = clean(tmp_path)
    official = open_official(arrays(tmp_path / 'c', source, labels=None))
    with pytest.raises(ValueError, match=r'no labels\.npy'):
        official.check(('fog',), (1,))
    with pytest.raises(ValueError, match=r'no frost: .*Available: fog, snow'):
        official.check(('frost',), (1,))
    (tmp_path / 'c' / 'labels.npy').write_bytes(b'<html>')
    with pytest.raises(ValueError, match='unpack the archive again'):
        official.open('fog', 1, source)
    for root, words in ((tmp_path / 'nowhere', 'no folder at'), (tmp_path / 'test', 'holds no corruption')):
        with pytest.raises(ValueError, match=words):
            open_official(str(root))
    (tmp_path / 'c' / 'frost').mkdir()
    with pytest.raises(ValueError, match=r'\.npy files and folders'):
        open_official(str(tmp_path / 'c'))


# ---- ImageNet-C's folders

def copy_folders(root, source, name='fog', inner='', severities=(1, 2, 3, 4, 5)):
    for severity in severities:
        for row in range(len(source)):
            image, label = source.read(row)
            place = root / inner / name / str(severity) / CLASSES[label] / f'{row}.JPEG'
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full_like(np.asarray(image), 40 * severity)).save(place, quality=95)
    return str(root)


@pytest.mark.parametrize('inner', ['', 'weather'])
def test_folders_are_read_by_class_name(tmp_path, inner: str):
    source = clean(tmp_path)
    official = open_official(copy_folders(tmp_path / 'c', source, inner=inner))
    official.check(('fog',), (1, 5))
    made = official.open('fog', 4, source)
    cut = select_classes(made, ('cat',))
    assert len(cut) == 4
    assert np.asarray(cut.picture(0)).max() == 160


def test_folders_of_another_data_set_or_short_ones_are_refused(tmp_path):
    source = clean(tmp_path)
    official = open_official(copy_folders(tmp_path / 'c', source, severities=(1, 2)))
    with pytest.raises(ValueError, match='has no folder 3'):
        official.check(('fog',), (1, 3))
    (tmp_path / 'c' / 'fog' / '1' / 'cat' / '9.JPEG').unlink()
    (tmp_path / 'c' / 'fog' / '1' / 'ant' / '99.JPEG').write_bytes(
        (tmp_path / 'c' / 'fog' / '1' / 'ant' / '0.JPEG').read_bytes())
    with pytest.raises(ValueError, match='5 images, the clean test set 4'):
        official.open('fog', 1, source)
    (tmp_path / 'c' / 'fog' / '2' / 'cat').rename(tmp_path / 'c' / 'fog' / '2' / 'cow')
    with pytest.raises(ValueError, match="'cat' is only in one"):
        official.open('fog', 2, source)
