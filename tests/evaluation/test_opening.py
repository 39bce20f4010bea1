"""Which images an evaluation opens, by what the checkpoint says of them."""
from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from gradmix_timm.checkpoint import RunRecord
from gradmix_timm.checkpoint.reading import Loaded
from gradmix_timm.data import hold_out, open_dataset, select_classes
from gradmix_timm.data.identity import identities, row_names
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.evaluation.opening import named_split, open_known, open_place, open_split, source_of
from gradmix_timm.evaluation.settings import DataOptions

CONFIG = {'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.5,) * 3, 'std': (0.5,) * 3,
          'crop_pct': 1.0}


def fill(root, names, count=4, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        for number in range(count):
            path = root / f'{name}/{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return root


def loaded(record):
    fields = dict.fromkeys(Loaded.__dataclass_fields__)
    return Loaded(**{**fields, 'path': 'x.pth.tar', 'record': record})


def test_a_file_chooses_no_reader_and_the_user_may():
    record = RunRecord(model='x', dataset='wds/x', data_dir='pipe:touch /tmp/x')
    with pytest.raises(ValueError, match='--dataset NAME'):
        source_of(DataOptions(), loaded(record))
    assert source_of(DataOptions(dataset='wds/y', data_dir='z'), loaded(record))['dataset'] == 'wds/y'


@pytest.mark.parametrize('name', ['sklearn/digits', 'shortcut:sklearn/digits'])
def test_a_folder_for_images_that_are_of_none_is_refused(name):
    recorded = loaded(RunRecord(model='x', dataset=name))
    with pytest.raises(ValueError, match=r'data_dir=photos: the images of .*digits come with scikit-learn'):
        source_of(DataOptions(data_dir='photos'), recorded)
    assert source_of(DataOptions(data_dir='photos', dataset=''), recorded)['data_dir'] == 'photos'


@pytest.mark.parametrize('split', ['testing', 'valid', 'eval'])
def test_the_split_that_is_evaluated_has_any_of_its_names(tmp_path, split):
    for name, seed in (('train', 0), (split, 1)):
        fill(tmp_path / name, ['cat', 'dog'], seed=seed)
    assert len(open_place(tmp_path, None)) == 8
    assert source_of(DataOptions(data_dir=str(tmp_path), dataset=''), None)['test'] == split


def test_classes_of_a_plain_run_may_be_folders_in_folders(tmp_path):
    for split, seed in (('train', 0), ('test', 1)):
        fill(tmp_path / split, ['animals/cat', 'animals/dog', 'things/ship'], seed=seed)
        (tmp_path / split / 'animals/cat/0.png').rename(tmp_path / split / 'animals/cat/0.bmp')
    record = RunRecord(model='x', known_classes=('cat', 'dog', 'ship'), data_dir=str(tmp_path))
    images = open_known(DataOptions(), loaded(record), record.known_classes, Preprocessing.of(CONFIG))
    assert (len(images.train), len(images.known)) == (12, 12)


def test_an_open_set_run_takes_the_top_folders_whatever_lies_in_them(tmp_path):
    for split, seed in (('train', 0), ('test', 1)):
        fill(tmp_path / split, ['cat', 'cat/more', 'dog', 'ship/a/b'], seed=seed)
        fill(tmp_path / split, ['cat/.ipynb_checkpoints', '__MACOSX/cat'], seed=7)
    record = RunRecord(model='x', known_classes=('cat', 'dog'), unknown_classes=('ship',), data_dir=str(tmp_path))
    images = open_split(DataOptions(), loaded(record), named_split(DataOptions(), record), Preprocessing.of(CONFIG))
    assert (len(images.train), len(images.known), len(images.unknown)) == (12, 12, 4)


def test_names_that_are_not_utf8_open_and_the_held_out_are_found(tmp_path):
    root = tmp_path / os.fsdecode(b'd\xe9')
    for split, seed in (('train', 0), ('test', 1)):
        fill(root / split, [os.fsdecode(b'caf\xe9'), 'dog', os.fsdecode(b'\xff')], seed=seed)
    names = ('caf\udce9', 'dog')
    whole = open_dataset('', root, 'train')
    held = hold_out(select_classes(whole, names), 0.25)[1]
    record = RunRecord(model='x', known_classes=names, unknown_classes=('\udcff',), data_dir=str(root),
                       held_out=identities(held))
    images = open_split(DataOptions(), loaded(record), named_split(DataOptions(), record), Preprocessing.of(CONFIG))
    assert set(row_names(images.held_out)) == set(record.held_out)
    assert (len(images.train), len(images.known), len(images.unknown)) == (6, 8, 4)
