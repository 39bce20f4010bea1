"""A mark lies where it is said to lie, tells the class that the view says, and stays in every epoch and process."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gradmix_timm.checkpoint.allowed import check_dataset
from gradmix_timm.data import (
    Shortcut,
    bearing,
    canonical_name,
    hold_out,
    inner_name,
    open_dataset,
    parse_shortcut,
    select_classes,
    viewed,
)
from gradmix_timm.data.cached import hold_images
from gradmix_timm.data.fingerprint import fingerprint
from gradmix_timm.data.shortcut import MARKS, VIEWS, Brush, ShortcutSource

KNOWN = ('0', '2', '3', '5', '7', '9')


@pytest.fixture(scope='module')
def digits():
    return open_dataset('shortcut:digits', split='train')


@pytest.fixture(scope='module')
def plain():
    return open_dataset('sklearn/digits', split='train')


def colour(number, classes=10):
    return Brush(number, classes, 1, (0, 0)).colour


def test_a_patch_of_the_class_s_colour_lies_where_the_mask_says_and_nothing_else_changes(digits, plain):
    places = set()
    for row in range(20):
        image, target = digits.read(row)
        mask, number = digits.mark(row)
        clean = np.asarray(plain.read(row)[0].resize((32, 32), Image.Resampling.BICUBIC))
        marked, covered = np.asarray(image), np.asarray(mask) > 0
        rows, columns = np.nonzero(covered)
        assert number == target
        assert covered.sum() == 25
        assert (np.ptp(rows), np.ptp(columns)) == (4, 4)
        assert (marked[covered] == colour(target)).all()
        assert (marked[~covered] == clean[~covered]).all()
        places.add((rows[0], columns[0]))
    assert len(places) > 15


def test_views_keep_the_place_and_change_the_class(digits):
    known = select_classes(bearing(digits, KNOWN), KNOWN)
    unknown = select_classes(bearing(digits, KNOWN), ('1', '4', '6', '8'), unknown=True)
    numbers = {int(name) for name in KNOWN}
    for images, own in ((known, True), (unknown, False)):
        shown = {view: viewed(images, view) for view in VIEWS}
        conflicts = set()
        for place in range(40):
            row = int(images.indices[place])
            found = {view: cut.source.mark(row) for view, cut in shown.items()}
            _, target = digits.read(row)
            assert found['absent'][1] is None
            assert not np.asarray(found['absent'][0]).any()
            assert found['own'][0] == found['conflict'][0] == found['trained'][0]
            assert (found['own'][1] == target) == own
            assert found['conflict'][1] in numbers - {target}
            assert found['own'][1] in numbers
            conflicts.add(found['conflict'][1])
        assert conflicts == numbers


def test_the_share_holds_as_trained_and_not_where_all_bear_it():
    images = open_dataset('shortcut:digits:share=0.9', split='train')
    cut = select_classes(images, KNOWN)
    borne = [viewed(cut, 'trained').source.mark(int(row))[1] is not None for row in cut.indices[:400]]
    assert 0.85 < np.mean(borne) < 0.95
    assert all(viewed(cut, 'own').source.mark(int(row))[1] is not None for row in cut.indices[:50])


def test_what_is_drawn_depends_on_row_and_seed_alone(digits):
    again = open_dataset('shortcut:digits', split='train')
    other = open_dataset('shortcut:digits:seed=1', split='train')
    fixed = open_dataset('shortcut:digits:place=fixed', split='train')
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    assert all(digits.read(row)[0] == again.read(row)[0] for row in (5, 3, 5))
    assert [digits.mark(row)[0] for row in range(9)] != [other.mark(row)[0] for row in range(9)]
    assert all(fixed.mark(row)[0] == fixed.mark(0)[0] for row in range(9))


def test_cuts_and_held_images_read_the_same_pixels(digits):
    _, held = hold_out(select_classes(digits, KNOWN), 0.1)
    cached = hold_images(held)
    for place in (0, 7):
        pixels = np.asarray(digits.read(int(held.indices[place]))[0])
        assert (cached[place][0].numpy() == pixels.transpose(2, 0, 1)).all()
        assert (np.asarray(held[place][0]) == pixels).all()


def test_another_shortcut_or_view_is_another_list_of_images(digits, plain):
    cuts = [select_classes(source, KNOWN) for source in (
        digits, plain, open_dataset('shortcut:digits:side=6', split='train'))]
    cuts += [viewed(cuts[0], 'absent'), viewed(cuts[0], 'conflict')]
    assert len({fingerprint(cut) for cut in cuts}) == len(cuts)
    assert fingerprint(cuts[0]) == fingerprint(select_classes(open_dataset('shortcut:digits'), KNOWN))


@pytest.mark.parametrize('kind', [*MARKS, 'patch+patch', 'patch+border'])
def test_every_kind_differs_between_classes_and_changes_only_what_it_covers(kind):
    pixels = np.full((24, 20, 3), 200, np.uint8)
    pixels[8:16, 6:14] = 30
    image, shortcut = Image.fromarray(pixels), Shortcut(kind, side=4, strength=0.5)
    spots = np.random.default_rng(0).random((2, 2))[:len(shortcut.kinds)]
    drawn = [shortcut.draw(image, number, 6, spots) for number in range(6)]
    assert len({picture.tobytes() for picture, _ in drawn}) == 6
    for picture, mask in drawn:
        assert mask.any()
        assert (np.asarray(picture)[~mask] == pixels[~mask]).all()
        assert picture.size == image.size


@pytest.mark.parametrize(('side', 'words'), [
    (3, 'the mark of class 8 has no pixel'), (5, 'the marks of classes 14 and 16 are alike')])
def test_text_marks_that_tell_no_class_are_refused_when_the_source_is_made(digits, side, words):
    with pytest.raises(ValueError, match=f'kind=text,side={side}: {words}; expected side=6 or more'):
        ShortcutSource(digits.inner, Shortcut('text', side), classes=26)
    assert ShortcutSource(digits.inner, Shortcut('text', side), classes=26, known=(0, 1, 2)).known == (0, 1, 2)
    assert ShortcutSource(digits.inner, Shortcut('patch', side), classes=26).classes == 26
    assert ShortcutSource(digits.inner, Shortcut('text', 6), classes=1000).classes == 1000


def test_two_patches_lie_apart_and_a_mark_larger_than_the_image_covers_it():
    image = Image.new('RGB', (12, 12))
    _, mask = Shortcut('patch+patch', side=3).draw(image, 0, 2, np.array([[0., 0.], [0.9, 0.9]]))
    assert mask.sum() == 18
    for kind in ('patch', 'border', 'text', 'texture'):
        _, mask = Shortcut(kind, side=40).draw(image, 0, 2, np.array([[0.5, 0.5]]))
        assert mask.any()


def test_flipped_stripes_are_no_other_classs():
    image = Image.new('L', (64, 64))
    place = np.array([[0.5, 0.5]])
    marks = [np.asarray(Shortcut('texture', side=64).draw(image, n, 10, place)[0], float) for n in range(10)]
    spectra = np.abs([np.fft.fft2(mark - mark.mean()) for mark in marks])
    flipped = np.abs([np.fft.fft2(mark[:, ::-1] - mark.mean()) for mark in marks])
    apart = np.linalg.norm(spectra[:-1] - spectra[1:], axis=(1, 2)).min()
    for number, spectrum in enumerate(flipped):
        others = np.delete(spectra, number, 0)
        assert np.linalg.norm(others - spectrum, axis=(1, 2)).min() > 0.8 * apart


def test_grey_images_bear_grey_marks_alone():
    image = Image.new('L', (12, 12))
    marked, _ = Shortcut('texture').draw(image, 1, 4, np.array([[0.5, 0.5]]))
    assert marked.mode == 'L'
    with pytest.raises(ValueError, match='in-chans 3'):
        Shortcut('patch').draw(image, 1, 4, np.array([[0.5, 0.5]]))


def test_names_are_read_written_out_and_may_be_recorded():
    inner, shortcut = parse_shortcut('shortcut:torch/cifar10:kind=text,side=8,share=0.95,place=fixed,seed=3')
    assert (inner, shortcut) == ('torch/cifar10', Shortcut('text', 8, 0.95, 'fixed', 3))
    assert [inner_name(name) for name in ('shortcut:digits', 'shortcut:', 'shortcut::side=3', 'torch/mnist')] == [
        'sklearn/digits', '', '', 'torch/mnist']
    for name in ('shortcut:', 'shortcut:digits:share=1e-6', 'shortcut:digits:share=0.9999999',
                 'shortcut:torch/cifar10:kind=patch+border', 'torch/mnist'):
        whole = canonical_name(name)
        assert canonical_name(whole) == whole
        assert parse_shortcut(whole) == parse_shortcut(name)
        assert check_dataset(whole, 'x') == whole
    for name in ('shortcut:wds/x', 'shortcut:hfds/x:side=3', 'wds/pipe', 'torch/x:side=3'):
        with pytest.raises(ValueError, match='name it yourself'):
            check_dataset(name, 'x')


@pytest.mark.parametrize(('name', 'words'), [
    ('shortcut:digits:sied=3', "'side'"), ('shortcut:digits:side', 'each option once'),
    ('shortcut:digits:side=3,side=4', 'each option once'), ('shortcut:digits:side=0', '1 to 4096'),
    ('shortcut:digits:share=nan', '0 to 1'), ('shortcut:digits:kind=pach', "did you mean 'patch'"),
    ('shortcut:digits:place=left', 'random'), ('shortcut:digits:side=x', 'a number'),
    ('shortcut:cifar', 'no data given'), ('shortcut:hfids/x', 'hfids'),
])
def test_what_is_no_shortcut_says_what_to_type(name, words):
    with pytest.raises(ValueError, match=words):
        open_dataset(name)


def test_unknown_images_of_another_data_set_bear_known_marks(digits, tmp_path):
    for number in range(3):
        (tmp_path / f'{number}').mkdir()
        Image.new('RGB', (32, 32)).save(tmp_path / f'{number}' / 'a.png')
    others = bearing(digits, KNOWN, open_dataset('', tmp_path))
    told = {others.mark(row)[1] for row in range(3)}
    assert told <= {int(name) for name in KNOWN}
