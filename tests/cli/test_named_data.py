"""Data that is no class folder: torchvision's sets by name and tars, cut to known classes, trained on and judged."""
from __future__ import annotations

import json
import pickle
import tarfile

import numpy as np
import pytest
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.cli.training import loaders
from gradmix_timm.data import class_names, open_dataset, select_classes
from gradmix_timm.data.identity import row_names

NAMES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def write_cifar10(root, monkeypatch):
    """Files as torchvision reads them, whose sums are others than the real ones'."""
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *args: True)
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch']:
        labels = np.arange(20) % 10
        content = {'data': rng.integers(0, 256, (20, 3072), dtype=np.uint8), 'labels': labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': NAMES}))
    return 'torch/cifar10', root


def write_mnist(root, monkeypatch):
    folder = root / 'MNIST' / 'raw'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (('train', 100), ('t10k', 20)):
        pixels, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (('images-idx3', pixels), ('labels-idx1', labels)):
            header = np.array([0x800 + array.ndim, *array.shape], dtype='>i4').tobytes()
            (folder / f'{name}-{kind}-ubyte').write_bytes(header + array.tobytes())
    return 'torch/mnist', root


def write_tars(root, monkeypatch):
    """train.tar and test.tar, where folders would be."""
    images = write_images(root / 'images')
    for split in ('train', 'test'):
        with tarfile.open(root / f'{split}.tar', 'w') as tar:
            tar.add(images / split, '.')
    return '', root


@pytest.mark.slow
@pytest.mark.parametrize(('write', 'known', 'flags'), [
    (write_cifar10, ('ship', 'cat', 'dog'), ()),
    (write_cifar10, ('ship', 'cat', 'dog'), ('--cache-images', '--crop-padding', 4)),
    (write_cifar10, None, ('--osr-protocol', 'cifar10', '--osr-trial', 1)),
    (write_mnist, ('7 - seven', '0 - zero'), ('--in-chans', 1)),
    (write_tars, ('dog', 'ant', 'bee'), ()),
], ids=['cifar10', 'cifar10 held', 'protocol', 'mnist', 'tar'])
def test_known_classes_are_cut_out_trained_on_and_judged(write, known, flags, tmp_path, monkeypatch):
    name, root = write(tmp_path / 'data', monkeypatch)
    cut = ('--known-classes', ','.join(known)) if known else ()
    folder = run_tiny(root, tmp_path, '--dataset', name, *cut, *flags, '--osr-val-fraction', 0.25, '--mixup-mode',
                      'gradmix', '--epochs', 1, classes=None)
    record = load_checkpoint(folder / 'last.pth.tar').record
    assert record.dataset == name
    known = known or record.known_classes
    assert record.known_classes == known
    assert float(rows(folder)[0]['train_loss']) > 0
    assert set(record.held_out) < set(row_names(select_classes(open_dataset(name, root, 'train'), known)))
    assert osr.main(['osr', '--checkpoint', str(folder / 'last.pth.tar'), '--device', 'cpu', '--output',
                     str(folder / 'osr'), '--workers', '0', '--bootstrap', '0']) == 0
    results = json.loads((folder / 'osr' / 'results.json').read_text())
    test = open_dataset(name, root, 'test')
    every = class_names(test)
    assert results['known_classes'] == list(known)
    assert set(results['unknown_classes']) == set(every) - set(known)
    assert results['n_known'] == len(select_classes(test, known))
    assert results['n_known'] + results['n_unknown'] == len(test)


@pytest.mark.parametrize(('there', 'judged'), [
    ('val', 'validation'), ('val.tar', 'validation'), ('validation.tar', 'validation'), ('test', 'test'),
    ('test.tar', 'test')])
def test_the_split_that_is_judged_is_the_one_that_is_there(there, judged, tmp_path):
    (tmp_path / there).mkdir() if '.' not in there else (tmp_path / there).touch()
    args, _ = train._parse_args(['--data-dir', str(tmp_path), '--train-split', 'train'])
    assert loaders.split_names(args) == {'train': 'train', 'test': judged}


def test_a_set_that_is_not_there_is_one_line(tmp_path, capsys):
    argv = ['--data-dir', str(tmp_path), *TINY, '--output', str(tmp_path), '--known-classes', 'cat,dog']
    assert train.console([*argv, '--dataset', 'torch/cifar10']) == 2
    assert '--dataset-download' in capsys.readouterr().err.splitlines()[-1]
