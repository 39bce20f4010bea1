"""Data sets open or say what is missing; cuts keep the right images with the right labels."""
from __future__ import annotations

import pickle
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_dataset, create_loader

from gradmix_timm.data import (
    UnreadableImageError,
    class_names,
    hold_out,
    labels_of,
    list_splits,
    load_split,
    open_dataset,
    select_classes,
    take,
)
from gradmix_timm.data import images as images_module

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


def fill(root, classes=('red', 'green', 'blue'), count=4):
    """Class folders of plain images; in image number i one pixel says i."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new('RGB', (8, 8), COLOURS.get(name, (9, 9, 9)))
            image.putpixel((0, 0), (i, i, i))
            image.save(root / name / f'{i}.png')
    return root


@pytest.fixture
def folders(tmp_path):
    fill(tmp_path / 'train')
    fill(tmp_path / 'val', count=2)
    return tmp_path


@pytest.fixture(scope='module')
def digits():
    return open_dataset('sklearn/digits', split='train')


# Digits


def test_digits_are_scikit_learns_and_split_80_to_20_by_class(digits):
    test = open_dataset('sklearn/digits', split='test')
    assert class_names(digits) == tuple('0123456789')
    rows = np.concatenate([digits.reader.rows, test.reader.rows])
    assert sorted(rows) == list(range(1797))
    for label in range(10):
        n_test, n = np.sum(labels_of(test) == label), np.sum(load_digits().target == label)
        assert n_test == round(0.2 * n)
    image, label = test[5]
    row = test.reader.rows[5]
    assert label == load_digits().target[row]
    assert (image.mode, image.size) == ('RGB', (8, 8))
    assert np.array_equal(np.asarray(image)[:, :, 1], np.rint(load_digits().images[row] * 255 / 16))


def test_digits_are_read_with_and_without_scikit_learns_import(monkeypatch):
    images, labels = images_module.digits()
    assert np.array_equal(images, load_digits().images)
    assert np.array_equal(labels, load_digits().target)
    monkeypatch.setattr(images_module, 'find_spec', lambda name: None)
    for found, expected in zip(images_module.digits.__wrapped__(), (images, labels), strict=True):
        assert np.array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_digits_are_always_the_same_rows(digits):
    test = open_dataset('sklearn/digits', split='test').reader.rows
    # Written down when the split was made: figures of one release must hold for the next.
    assert (len(test), test[:6].tolist(), int(test.sum())) == (359, [5, 9, 12, 14, 16, 17], 324981)
    assert np.array_equal(open_dataset('sklearn/digits', split='train').reader.rows, digits.reader.rows)


def test_digits_in_grey():
    assert open_dataset('sklearn/digits', split='test', img_mode='L')[0][0].mode == 'L'


@pytest.mark.parametrize(('name', 'split', 'options', 'told'), [
    ('sklearn/digits', 'validation', {}, "no split 'validation' in sklearn/digits: Available: test, train"),
    ('sklearn/iris', 'train', {}, 'sklearn/digits'),
    ('sklearn/digits', 'train', {'class_map': 'a.txt'}, 'leave out --class-map'),
    ('digits', 'train', {}, '--dataset sklearn/digits'),
    ('', 'train', {}, 'no data given: --data-dir DIR'),
    ('sk/digits', 'train', {}, 'names begin with torch/, .*sklearn/'),
    ('torch/cifar1', 'train', {'root': 'x'}, "did you mean 'torch/cifar10"),
    ('torch/cifar10', 'train', {}, '--data-dir DIR'),
    ('torch/cifar10', 'tset', {'root': 'x'}, "no split 'tset' in torch/cifar10: did you mean 'test'"),
    ('torch/mnist', 'train', {'root': 'nowhere-at-all'}, '--dataset-download fetches it'),
    ('', 'train', {'root': 'nowhere-at-all'}, 'no folder at nowhere-at-all; --data-dir'),
])
def test_names_and_splits_that_are_not_there(name, split, options, told):
    with pytest.raises(ValueError, match=told):
        open_dataset(name, split=split, **options)


def test_splits_are_listed(folders):
    assert list_splits('sklearn/digits') == ('train', 'test')
    assert list_splits('', folders) == ('train', 'val')
    assert list_splits('', folders / 'train') == ()


# Folders


def test_folder_gives_timms_images_and_labels(folders):
    ours = open_dataset('', folders, 'train')
    timms = create_dataset('', str(folders), split='train')
    assert len(ours) == len(timms) == 12
    for one, other in zip(ours, timms, strict=True):
        assert one[1] == other[1]
        assert one[0].tobytes() == other[0].tobytes()
    assert class_names(ours) == ('blue', 'green', 'red')
    assert labels_of(ours).tolist() == labels_of(timms).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_split_synonyms_are_timms(folders):
    assert len(open_dataset('', folders, 'validation')) == 6
    assert len(open_dataset('', folders / 'train', 'anything')) == 12  # no split folders inside: the folder itself


def test_a_folder_without_splits_is_noted_once_however_often_it_is_opened(folders, caplog):
    with caplog.at_level('INFO', 'gradmix_timm.data.sources'):
        for split in ('train', 'train', 'validation'):
            open_dataset('', folders / 'train', split)
    assert caplog.text.count('has no split folders') == 1


def test_split_that_is_not_there_lists_those_that_are(folders):
    with pytest.raises(ValueError, match=r"no split 'test' in .*, which has train, val; name one with"):
        open_dataset('', folders, 'test')


def test_class_named_as_a_split_is_a_class(tmp_path):
    fill(tmp_path / 'train', ('bus', 'train'))
    assert class_names(open_dataset('', tmp_path, 'train')) == ('bus', 'train')


def test_folders_that_are_not_classes_are_told(folders, tmp_path_factory):
    (folders / 'train' / 'yellow').mkdir()
    with pytest.raises(ValueError, match=r'class folder .*yellow holds no image \(\.png, .*fill or remove it'):
        open_dataset('', folders, 'train')
    assert len(open_dataset('', folders, 'train', min_classes=1)) == 12
    (folders / 'train' / 'yellow').rmdir()
    Image.new('RGB', (4, 4)).save(folders / 'train' / 'stray.png')
    with pytest.raises(ValueError, match=r'images lie in .* itself; expected one folder a class'):
        open_dataset('', folders, 'train')
    empty = tmp_path_factory.mktemp('empty')
    with pytest.raises(ValueError, match=r'no image in .*expected one folder a class'):
        open_dataset('', empty, 'train')


def test_one_class_is_told_and_may_be_allowed(tmp_path):
    fill(tmp_path / 'val', ('images',))
    (tmp_path / 'val' / 'val_annotations.txt').touch()
    with pytest.raises(ValueError, match=r"one class, 'images'; expected 2 or more.*by val_annotations.txt"):
        open_dataset('', tmp_path, 'val')
    assert len(open_dataset('', tmp_path, 'val', min_classes=1)) == 4


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / 'a.zip').write_bytes(b'PK')
    with pytest.raises(ValueError, match=r'a folder of class folders or a \.tar'):
        open_dataset('', tmp_path / 'a.zip', 'train')


@pytest.mark.parametrize('text', ['green\nred\nblue\n\n', '\ufeffgreen\nred\nblue\n', 'green\r\nred\r\nblue'])
def test_class_maps_as_editors_write_them_name_the_same_classes(text, folders, tmp_path, caplog):
    (tmp_path / 'map.txt').write_text(text, encoding='utf-8', newline='')
    dataset = open_dataset('', folders, 'train', class_map=str(tmp_path / 'map.txt'))
    assert (class_names(dataset), len(dataset)) == (('green', 'red', 'blue'), 12)
    assert not caplog.text


def test_classes_that_a_class_map_leaves_out_are_named(folders, caplog):
    """A slip of the pen in the map took a class out of training silently."""
    open_dataset('', folders, 'train', class_map={'green': 0, 'redd': 1})
    assert '8 images of 2 classes that the class map does not name (blue, red) left out, and 1 of its' in caplog.text
    assert 'classes have no image (redd)' in caplog.text


def test_class_map_orders_the_classes(folders, tmp_path):
    path = tmp_path / 'map.txt'
    path.write_text('red\ngreen\n')
    dataset = open_dataset('', folders, 'train', class_map=str(path))
    assert class_names(dataset) == ('red', 'green')
    assert len(dataset) == 8
    with pytest.raises(ValueError, match='Cannot locate'):
        open_dataset('', folders, 'train', class_map='none.txt')
    with pytest.raises(ValueError, match='without gaps'):
        open_dataset('', folders, 'train', class_map={'red': 3, 'green': 0})


def test_tar_opens_and_a_broken_one_is_told(folders, tmp_path):
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        tar.add(folders / 'train', '.')
    dataset = open_dataset('', tmp_path / 'train.tar', 'train')
    assert class_names(dataset) == ('blue', 'green', 'red')
    assert labels_of(dataset).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset[11][0].getpixel((4, 4)) == COLOURS['red']
    (tmp_path / 'bad.tar').write_bytes(b'no tar at all')
    with pytest.raises(ValueError, match=r'bad.tar, split .* could not be opened'):
        open_dataset('', tmp_path / 'bad.tar', 'train')
    whole = (tmp_path / 'train.tar').read_bytes()
    with tarfile.open(tmp_path / 'train.tar') as tar:
        middle = tar.getmembers()[9]
    # Behind an image, in a header, in an image: Python's tarfile reads the first two without a word.
    for place in (middle.offset, middle.offset + 100, middle.offset_data + 40):
        (tmp_path / 'short.tar').write_bytes(whole[:place])
        with pytest.raises(ValueError, match=rf'short.tar is cut short at {place:,} bytes.*fetch it again'):
            open_dataset('', tmp_path / 'short.tar', 'train')
    with tarfile.open(tmp_path / 'empty.tar', 'w'):
        pass
    with pytest.raises(ValueError, match='no image in'):
        open_dataset('', tmp_path / 'empty.tar', 'train')


def test_tars_in_a_folder_are_its_splits(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp('tars')
    with tarfile.open(root / 'train.tar', 'w') as tar:
        tar.add(folders / 'train', '.')
    assert list_splits('', root) == ('train',)
    assert labels_of(open_dataset('', root, 'train')).tolist() == labels_of(open_dataset('', folders, 'train')).tolist()
    with pytest.raises(ValueError, match=r"no split 'val' in .*, which has train"):
        open_dataset('', root, 'val')


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
    monkeypatch.delitem(__import__('sys').modules, 'timm.data.readers.reader_hfds', raising=False)
    with pytest.raises(ValueError, match='pip install datasets'):
        open_dataset('hfds/cifar10', split='train')


def test_torchvision_sets_keep_names_labels_and_modes(monkeypatch):
    fake = torchvision.datasets.FakeData(6, (1, 8, 8), 3)
    fake.targets, fake.classes = [0, 1, 2, 0, 1, 2], ['0 - zero', '1 - one', '2 - two']
    monkeypatch.setattr('gradmix_timm.data.sources.create_dataset', lambda *args, **kwargs: fake)
    dataset = open_dataset('torch/mnist', 'x', 'validation')
    assert class_names(dataset) == ('0 - zero', '1 - one', '2 - two')
    assert fake[0][0].mode == 'L'  # which timm would hand on to a model of three channels
    assert dataset[0][0].mode == 'RGB'
    cut = select_classes(dataset, ['2', '0'])
    assert (cut.classes, cut.targets.tolist(), cut.indices.tolist()) == (('2', '0'), [1, 0, 1, 0], [0, 2, 3, 5])


# Corrupt images


def break_image(folders):
    path = folders / 'train' / 'green' / '1.png'
    path.write_bytes(path.read_bytes()[:40])
    return path


def test_corrupt_image_is_named_where_timm_takes_the_next(folders):
    path = break_image(folders)
    dataset = open_dataset('', folders, 'train')
    with pytest.raises(UnreadableImageError, match=f'{path} cannot be read as an image .*; replace or remove it'):
        list(dataset)
    with pytest.raises(ValueError, match=str(path)):
        select_classes(dataset, ['green'])[1]
    path.unlink()
    with pytest.raises(UnreadableImageError, match=str(path)):
        dataset[5]


def test_a_corrupt_image_is_replaced_where_asked_for_as_timm_does(folders, caplog):
    path = break_image(folders)
    (folders / 'train' / 'red' / '3.png').write_bytes(b'')  # the last row, whose next one is the first
    theirs = list(create_dataset('', folders, split='train'))
    caplog.clear()
    ours = open_dataset('', folders, 'train')
    ours.replaces_unreadable = True
    found = list(ours)
    assert [(image.tobytes(), label) for image, label in found] == [(image.tobytes(), label) for image, label in theirs]
    assert [record.levelname for record in caplog.records] == ['WARNING'] * 2
    assert f'Skipped sample (index 5). {path} cannot be read' in caplog.text


def test_a_data_set_of_corrupt_images_ends_after_as_many_retries_as_timms(folders):
    for path in (folders / 'train').rglob('*.png'):
        path.write_bytes(b'')
    dataset = open_dataset('', folders, 'train')
    dataset.replaces_unreadable = True
    with pytest.raises(UnreadableImageError):
        dataset[0]


def test_timms_rule_leaves_out_folders_without_images_as_timm_does(folders, caplog):
    (folders / 'train' / 'yellow').mkdir()
    (folders / 'train' / 'grey').mkdir()
    (folders / 'train' / 'grey' / 'notes.csv').write_text('1')
    ours = open_dataset('', folders, 'train', timm_rule=True)
    theirs = create_dataset('', folders, split='train')
    assert labels_of(ours).tolist() == [label for _, label in theirs]
    assert list(class_names(ours)) == list(theirs.reader.class_to_idx)
    assert 'left out, as they hold no image: grey, yellow' in caplog.text


def test_corrupt_image_is_named_out_of_a_worker(folders, workers_end):
    path = break_image(folders)
    cut = select_classes(open_dataset('', folders, 'train'), ['red', 'green'])
    loader = create_loader(cut, (3, 8, 8), 4, num_workers=2, device=torch.device('cpu'), persistent_workers=False)
    with pytest.raises(UnreadableImageError, match=str(path)):
        list(loader)


# Cuts


def test_selected_classes_carry_their_place_as_target(folders):
    dataset = open_dataset('', folders, 'train')
    cut = select_classes(dataset, ['red', 'blue'])
    assert len(cut) == 8
    assert class_names(cut) == ('red', 'blue')
    assert cut.indices.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    for item, (image, target) in enumerate(cut):
        assert image.getpixel((4, 4)) == COLOURS[('red', 'blue')[target]]
        assert cut.filename(item).startswith(('red', 'blue')[target])
    assert labels_of(cut).tolist() == [target for _, target in cut]


def test_unknown_classes_are_minus_one(folders):
    cut = select_classes(open_dataset('', folders, 'train'), ['green'], unknown=True)
    assert {image.getpixel((4, 4)) for image, _ in cut} == {COLOURS['green']}
    assert [target for _, target in cut] == [-1] * 4


def test_known_and_unknown_of_a_protocol_share_no_image(digits):
    split = load_split('digits', trial=2)
    known, unknown = select_classes(digits, split.known), select_classes(digits, split.unknown, unknown=True)
    assert len(known) + len(unknown) == len(digits)
    assert not set(known.indices) & set(unknown.indices)
    truth = labels_of(digits)
    assert all(split.known[target] == str(truth[i]) for i, target in zip(known.indices, known.targets, strict=True))


def test_class_that_is_not_there_or_empty(folders):
    dataset = open_dataset('', folders, 'train')
    with pytest.raises(ValueError, match="did you mean 'green'"):
        select_classes(dataset, ['gren', 'red'])
    few = take(dataset, [0, 1, 4])
    with pytest.raises(ValueError, match=r"class 'red' has no image in this split; 1 of 2"):
        select_classes(few, ['red', 'blue'])


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


def test_timms_own_data_sets_can_be_cut_too(folders):
    cut = select_classes(create_dataset('', str(folders), split='train'), ['red'])
    assert len(cut) == 4
    with pytest.raises(TypeError, match='streamed'):
        select_classes(Streamed(), ['red'])
    with pytest.raises(TypeError, match="expected timm's ImageDataset or a torchvision data set, got list"):
        labels_of([1, 2])


def test_labels_must_be_one_class_an_image(folders):
    dataset = open_dataset('', folders, 'train')
    dataset.reader.samples = [(path, [0., 1.]) for path, _ in dataset.reader.samples]
    with pytest.raises(ValueError, match=r'labels of type float64 and shape \(12, 2\)'):
        labels_of(dataset)


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.001, 0.999])
def test_held_out_share_is_disjoint_stratified_and_repeats(digits, fraction):
    known = select_classes(digits, load_split('digits').known)
    train, held = hold_out(known, fraction, seed=3)
    assert sorted([*train.indices, *held.indices]) == known.indices.tolist()
    for label in range(6):
        n, n_held = np.sum(known.targets == label), np.sum(held.targets == label)
        assert n_held == min(max(round(fraction * n), 1), n - 1)
    again = hold_out(select_classes(open_dataset('sklearn/digits'), load_split('digits').known), fraction, seed=3)
    assert np.array_equal(again[1].indices, held.indices)
    truth = labels_of(digits)
    assert all(known.classes[t] == str(truth[i]) for i, t in zip(held.indices, held.targets, strict=True))


def test_held_out_rows_depend_on_the_seed_and_are_random(digits):
    one, other = hold_out(digits, 0.1, seed=0)[1].indices, hold_out(digits, 0.1, seed=1)[1].indices
    assert not np.array_equal(one, other)
    assert 0.3 < np.mean(one < len(digits) / 2) < 0.7


def test_parts_have_transforms_of_their_own(digits):
    train, held = hold_out(digits, 0.1)
    train.transform = lambda image: 'train'
    assert train[0][0] == 'train'
    assert isinstance(held[0][0], Image.Image)
    assert isinstance(digits[0][0], Image.Image)


@pytest.mark.parametrize('fraction', [0, 1, 1.5, -0.1])
def test_share_outside_0_and_1_is_refused(digits, fraction):
    with pytest.raises(ValueError, match='between 0 and 1, got'):
        hold_out(digits, fraction)


def test_class_with_one_image_cannot_be_held_out(folders):
    dataset = take(open_dataset('', folders, 'train'), [0, 1, 4, 8, 9])
    with pytest.raises(ValueError, match=r"class 'green' has one image, .*--osr-val-fraction 0"):
        hold_out(dataset, 0.5)


def test_rows_are_taken_by_their_place_in_the_source(digits):
    known = select_classes(digits, load_split('digits').known)
    held = hold_out(known, 0.1, seed=1)[1]
    again = take(known, held.indices.tolist())
    assert np.array_equal(again.indices, held.indices)
    assert np.array_equal(again.targets, held.targets)
    with pytest.raises(ValueError, match=r'1 of 2 rows are not in the data set .*check --data-dir'):
        take(known, [int(held.indices[0]), 10 ** 6])


@pytest.mark.parametrize(('prefetch', 'workers'), [(True, 0), (False, 0), (True, 2), (False, 2)])
def test_timms_loader_takes_a_cut(digits, prefetch, workers):
    cut = select_classes(digits, ['3', '8'])
    loader = create_loader(
        cut, (3, 16, 16), 32, use_prefetcher=prefetch, num_workers=workers, device=torch.device('cpu'),
        mean=(0.5,) * 3, std=(0.5,) * 3, persistent_workers=False)
    images, targets = zip(*loader, strict=True)
    assert torch.cat(images).shape == (len(cut), 3, 16, 16)
    assert torch.cat(targets).tolist() == cut.targets.tolist()
    assert torch.cat(images).dtype == torch.float32
    assert torch.cat(images).std() > 0.3


def test_timms_loader_takes_grey_and_unknowns():
    cut = select_classes(open_dataset('sklearn/digits', split='test', img_mode='L'), ['1'], unknown=True)
    loader = create_loader(cut, (1, 8, 8), 8, num_workers=0, device=torch.device('cpu'), mean=(0.5,), std=(0.5,))
    images, targets = next(iter(loader))
    assert images.shape == (8, 1, 8, 8)
    assert targets.tolist() == [-1] * 8


def test_cuts_pickle_for_spawned_workers(digits):
    cut = pickle.loads(pickle.dumps(select_classes(digits, ['3', '8'])))
    assert cut[0][1] == 0
    assert repr(cut) == f'CutDataset({len(cut)} of 1438 images, 2 classes)'
