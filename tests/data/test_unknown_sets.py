"""Sets of unknown images: made, from folders, tars and torchvision; codecs; fingerprints of lists."""
from __future__ import annotations

import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from gradmix_timm.data import (
    check_specs,
    fingerprint,
    list_made,
    made_images,
    open_dataset,
    open_outside,
    parse_codec,
    parse_unknown,
    recode,
    select_classes,
)

KNOWN = ('cat', 'automobile')


def folder(root, classes, count=3):
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(root / name / f'{number}.png')
    return root


# ---- made images

@pytest.mark.parametrize('name', list_made())
def test_made_images_are_a_function_of_seed_and_position(name):
    one, two = made_images(name, 6, [(20, 14), (7, 9)], seed=3), made_images(name, 9, [(20, 14), (7, 9)], seed=3)
    pixels = [np.asarray(one.read(place)[0]) for place in (4, 5)]
    assert [part.shape for part in pixels] == [(14, 20, 3), (9, 7, 3)]
    for place, part in zip((4, 5), pixels, strict=True):
        np.testing.assert_array_equal(part, np.asarray(two.read(place)[0]))
    other = made_images(name, 6, [(20, 14)], seed=4)
    assert not np.array_equal(pixels[0], np.asarray(other.read(4)[0]))
    assert not np.array_equal(pixels[0], np.asarray(one.read(0)[0]))
    assert len(list(one)) == 6


def test_made_images_look_as_their_names_say():
    def pixels(name, size=64):
        return np.stack([np.asarray(made_images(name, 8, [(size, size)]).read(i)[0]) for i in range(8)]) / 255.
    assert pixels('uniform').mean() == pytest.approx(0.5, abs=0.01)
    assert pixels('uniform').std() == pytest.approx(1 / np.sqrt(12), abs=0.01)
    assert set(np.unique(pixels('rademacher'))) == {0., 1.}
    assert (np.ptp(pixels('constant'), axis=(1, 2)) == 0).all()
    assert all(len(np.unique(image.reshape(-1, 3), axis=0)) == 2 for image in pixels('checkerboard'))
    assert (pixels('blobs') == 0).mean() == pytest.approx(0.75, abs=0.01)
    # Smooth textures change little from pixel to pixel, noise a lot.
    steps = {name: np.abs(np.diff(pixels(name), axis=1)).mean() for name in ('clouds', 'stripes', 'gaussian')}
    assert steps['clouds'] < 0.03 < 0.2 < steps['gaussian']
    assert steps['stripes'] < 0.15


def test_grey_made_images():
    assert made_images('clouds', 1, [(8, 8)], mode='L').read(0)[0].mode == 'L'


def test_made_images_refuse_what_makes_none():
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        made_images('unifrom', 2, [(8, 8)])
    with pytest.raises(ValueError, match='1 or more'):
        made_images('uniform', 0, [(8, 8)])


# ---- one word a set

@pytest.mark.parametrize(('text', 'words'), [
    ('textures', 'expected folder:NAME=DIR'), ('foldr:a=b', "did you mean 'folder'"), ('noise:unifrom', 'uniform'),
    ('torchvision:svnh', "did you mean 'svhn'"), ('folder:a=', 'a name for the results'), ('noise:', 'expected'),
    ('noise:uniform=500', r'leave out =500 \(--made-images N')])
def test_a_word_that_names_nothing(text, words):
    with pytest.raises(ValueError, match=words):
        parse_unknown(text)


def test_names_of_the_groups():
    given = ['folder:mine=a/b', 'folder:a/b', 'folder:x/tin.tar', 'torchvision:textures', 'timm:hfds/cifar100=c',
             'made:stripes']
    assert [parse_unknown(text).name for text in given] == ['mine', 'b', 'tin', 'dtd', 'cifar100', 'stripes']


def test_two_sets_of_one_name(tmp_path):
    folder(tmp_path / 'a', ['x'])
    with pytest.raises(ValueError, match=r"^unknown=noise:uniform: the name 'uniform' is taken"):
        check_specs([parse_unknown('noise:uniform'), parse_unknown('made:uniform')])


def test_a_place_that_is_no_folder_of_images(tmp_path):
    with pytest.raises(ValueError, match=r'^unknown=folder:a=.*gone: there is nothing at .*gone; expected a folder'):
        check_specs([parse_unknown(f'folder:a={tmp_path / "gone"}')])
    (tmp_path / 'list.txt').write_text('a.png\n')
    with pytest.raises(ValueError, match=r'list\.txt is a file of another kind; expected a folder'):
        check_specs([parse_unknown(f'folder:a={tmp_path / "list.txt"}')])


def test_folders_with_and_without_classes_and_split_folders(tmp_path):
    folder(tmp_path / 'classes', ['dog', 'bird'])
    folder(tmp_path / 'flat', ['.'])
    folder(tmp_path / 'split' / 'val', ['dog'], 2)
    folder(tmp_path / 'split' / 'train', ['dog'], 5)
    counts = {}
    for name in ('classes', 'flat', 'split'):
        images = open_outside(parse_unknown(f'folder:{tmp_path / name}'), KNOWN).images
        counts[name] = len(images)
        assert set(images.targets) == {-1}
    assert counts == {'classes': 6, 'flat': 3, 'split': 2}


def test_a_tar_as_timm_reads_it(tmp_path):
    folder(tmp_path / 'a', ['dog', 'bird'])
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.add(tmp_path / 'a', arcname='.')
    there = open_outside(parse_unknown(f'folder:pets={tmp_path / "a"}'), KNOWN).images
    packed = open_outside(parse_unknown(f'folder:pets={tmp_path / "a.tar"}'), KNOWN).images
    assert {there.picture(i).tobytes() for i in range(6)} == {packed.picture(i).tobytes() for i in range(6)}


def test_an_empty_set_is_an_error(tmp_path):
    (tmp_path / 'none').mkdir()
    with pytest.raises(ValueError, match='no image in'):
        open_outside(parse_unknown(f'folder:{tmp_path / "none"}'), KNOWN)


def test_known_classes_among_the_unknown(tmp_path):
    """By name, as protocols spell names: 'car' is CIFAR-10's automobile."""
    spec = parse_unknown(f'folder:{folder(tmp_path / "a", ["car", "dog", "Cat"])}')
    with pytest.raises(ValueError, match=r"has 2 of 3 classes that the model knows \('car', 'Cat'\).*overlap='drop'"):
        open_outside(spec, KNOWN)
    dropped = open_outside(spec, KNOWN, overlap='drop')
    assert [os.path.basename(os.path.dirname(name)) for name in dropped.images.filenames()] == ['dog'] * 3
    assert (set(dropped.dropped), dropped.left_out, dropped.images.classes) == ({'Cat', 'car'}, 6, ('dog',))
    kept = open_outside(spec, KNOWN, overlap='keep')
    assert (len(kept.images), set(kept.shared)) == (9, {'Cat', 'car'})
    with pytest.raises(ValueError, match='no image is left'):
        open_outside(spec, ('car', 'dog', 'cat'), overlap='drop')


def test_made_images_have_no_classes_to_share():
    assert len(open_outside(parse_unknown('noise:stripes'), ('stripes',), count=2).images) == 2


def test_torchvision_sets(tmp_path):
    """SVHN's own file; its classes are digits, which a model of digits knows."""
    from scipy.io import savemat
    savemat(tmp_path / 'test_32x32.mat', {'X': np.zeros((32, 32, 3, 12), np.uint8), 'y': np.arange(1, 13) % 10 + 1})
    spec = parse_unknown('torchvision:svhn')
    with pytest.raises(ValueError, match='--unknown-data-dir DIR'):
        open_outside(spec, KNOWN)
    with pytest.raises(ValueError, match='--download fetches it'):
        open_outside(spec, KNOWN, root=tmp_path / 'elsewhere')
    import torchvision.datasets
    SVHN = torchvision.datasets.SVHN
    original, SVHN._check_integrity = SVHN._check_integrity, lambda self: True
    try:
        opened = open_outside(spec, KNOWN, root=tmp_path)
        assert len(opened.images) == 12
        assert opened.images.picture(0).size == (32, 32)
        with pytest.raises(ValueError, match='has 2 of 10 classes that the model knows'):
            open_outside(spec, ('3', '5'), root=tmp_path)
        left = open_outside(spec, ('3', '5'), root=tmp_path, overlap='drop')
        labels = opened.images.source.reader.targets
        assert len(left.images) == 12 - int(np.isin(labels, [3, 5]).sum())
    finally:
        SVHN._check_integrity = original


# ---- codecs

def test_recoding_is_the_files_own_pixels(tmp_path):
    data = select_classes(open_dataset('', folder(tmp_path / 'a', ['x', 'y'])), ['y'])
    plain = data.picture(1)
    plain.save(tmp_path / 'again.jpg', quality=40)
    recoded = recode(data, parse_codec('jpeg:40'))
    np.testing.assert_array_equal(recoded.picture(1), Image.open(tmp_path / 'again.jpg'))
    assert not np.array_equal(recoded.picture(1), plain)
    np.testing.assert_array_equal(recode(data, parse_codec('png')).picture(1), plain)
    assert recoded.filename(1) == data.filename(1)


@pytest.mark.parametrize('text', ['jpeg', 'jpeg:0', 'jpeg:101', 'jpeg:high', 'webp', 'png:3'])
def test_codecs_that_are_none(text):
    with pytest.raises(ValueError, match='jpeg:QUALITY'):
        parse_codec(text)


# ---- fingerprints

def test_a_fingerprint_follows_whatever_decides_the_pixels(tmp_path):
    def of(names=('x', 'y'), **options):
        return fingerprint(select_classes(open_dataset('', tmp_path / 'a', **options), names))
    folder(tmp_path / 'a', ['x', 'y', 'z'])
    first = of()
    assert first == of()
    assert len({first, of(('y', 'x')), of(('x',)), of(img_mode='L'),
                fingerprint(recode(select_classes(open_dataset('', tmp_path / 'a'), ('x', 'y')), parse_codec('png')))}
               ) == 5
    path = tmp_path / 'a' / 'y' / '1.png'
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = of()
    assert second != first
    path.write_bytes(path.read_bytes() + b'\0')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert of() != second


def test_a_tar_that_changed(tmp_path):
    folder(tmp_path / 'a', ['x', 'y'])

    def of():
        return fingerprint(select_classes(open_dataset('', tmp_path / 'a.tar'), ('x',)))
    found = []
    for more in (0, 1):
        with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
            tar.add(tmp_path / 'a', arcname='.')
        found.append(of())
        os.utime(tmp_path / 'a.tar', ns=(0, more))
    assert found[0] != of()


def test_data_in_memory_and_made():
    digits = {split: fingerprint(select_classes(open_dataset('sklearn/digits', split=split), ('3', '4')))
              for split in ('train', 'test')}
    assert digits['train'] != digits['test']
    made = [fingerprint(open_outside(parse_unknown(f'noise:{name}'), (), count=4, seed=seed).images)
            for name, seed in (('uniform', 0), ('uniform', 0), ('uniform', 1), ('clouds', 0))]
    assert made[0] == made[1]
    assert len(set(made)) == 3
