"""OpenOOD's suites from lists of images: near, far, full spectrum, the leaderboard's rows; lists that are wrong."""
from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import save_checkpoint

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.data.image_lists import SUITES, read_list, suite_images
from gradmix_timm.data.protocols import class_names_of

QUICK = ('--bootstrap', '0', '--device', 'cpu', '--trivial-images', '0', '--feature-map', '0', '--duplicates', '0')
NAMES = class_names_of('cifar10')


def write(root, part, labels, suite='cifar10'):
    """A list and its images, one colour a label and file."""
    file, folder = SUITES[suite].files(part)
    rng, lines = np.random.default_rng(len(part)), []
    for number, label in enumerate(labels):
        name = f'{part}/{number}.png'
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / folder / name)
        lines.append(f'{name} {label}')
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text('\n'.join(lines) + '\n')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """All lists of the suite cifar10, and a checkpoint whose head has the classes in another order."""
    root = tmp_path_factory.mktemp('suite')
    for part, labels in (('train', list(range(10)) * 2), ('val', range(10)), ('test', list(range(10)) * 2),
                         ('cifar10c', range(10)), *((name, [-1] * 6) for name in (
                             'cifar100', 'tin', 'mnist', 'svhn', 'texture', 'places365'))):
        write(root, part, labels)
    save_checkpoint(root / 'last.pth.tar', root, held=(), known_classes=NAMES[::-1], unknown_classes=())
    return root


def run(root, *argv, output):
    return run_console(osr.main, ['ood', '--checkpoint', str(root / 'last.pth.tar'), '--ood-suite-root', str(root),
                                  '--output', str(output), *map(str, argv), *QUICK])


@pytest.mark.slow
def test_near_and_far_and_the_rows_of_the_leaderboard(place, tmp_path, capsys):
    assert run(place, '--ood-suite', 'cifar10', '--scores', 'msp', 'knn:k=3', output=tmp_path) == 0
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['means']['near']['data_sets'] == ['cifar100', 'tin']
    assert results['means']['far']['data_sets'] == ['mnist', 'svhn', 'texture', 'places365']
    assert (results['n_known'], results['n_unknown'], results['preset']['name']) == (20, 36, 'openood')
    with (tmp_path / 'openood.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:7] == ['score', 'dataset', 'FPR@95', 'AUROC', 'AUPR_IN', 'AUPR_OUT', 'ACC']
    assert [row['dataset'] for row in rows if row['score'] == 'msp'] == [
        'cifar100', 'tin', 'nearood', 'mnist', 'svhn', 'texture', 'places365', 'farood']
    assert 'nearood' in capsys.readouterr().out
    # Labels of the lists are classes by name: the head has them in reverse.
    with (tmp_path / 'predictions.csv').open() as file:
        assert [row['label'] for row in csv.DictReader(file)][:10] == list(NAMES)


def test_the_full_spectrum_counts_shifted_images_as_known(place, tmp_path, undrawn):
    assert run(place, '--ood-suite', 'cifar10', '--full-spectrum', '--scores', 'msp', output=tmp_path) == 0
    assert json.loads((tmp_path / 'results.json').read_text())['n_known'] == 30


@pytest.mark.parametrize(('words', 'argv'), [
    ("did you mean 'cifar10'", ('--ood-suite', 'cifar1')),
    ('--ood-suite cifar100 has 100 known classes', ('--ood-suite', 'cifar100')),
    ('leave out --unknown', ('--ood-suite', 'cifar10', '--unknown', 'noise:uniform')),
    ('add --ood-suite NAME', ('--full-spectrum', '--unknown', 'noise:uniform')),
])
def test_what_does_not_go_together_is_refused(place, tmp_path, capsys, words, argv):
    assert run(place, *argv, output=tmp_path / 'out') == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('error: ')
    assert words in line


def test_lists_are_read_as_openood_writes_them(tmp_path):
    (tmp_path / 'images').mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'images' / 'a.png')
    file = tmp_path / 'list.txt'
    file.write_text("a.png 3\na.png -1\na.png {'x': 1}\n\n")
    assert [label for _, label in read_list(file, tmp_path / 'images')] == [3, -1, -1]
    file.write_bytes(b'\xef\xbb\xbfa.png 3\r\na.png 5\r\n')  # as Windows' editors write
    assert read_list(file, tmp_path / 'images') == [(str(tmp_path / 'images/a.png'), label) for label in (3, 5)]
    for text, words in (('../a.png 1', 'leads out'), ('/etc/a.png 1', 'leads out'), ('a.png', 'PATH LABEL'),
                        ('a.png one', 'PATH LABEL'), ('', 'names no image'), ('b.png 1', 'not there')):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_list(file, tmp_path / 'images')
    with pytest.raises(ValueError, match='ood_suite_root'):
        read_list(tmp_path / 'nowhere.txt', tmp_path)


@pytest.mark.parametrize(('suite', 'part', 'file', 'folder'), [
    ('imagenet', 'test', 'test_imagenet', 'images_largescale'),
    ('imagenet', 'textures', 'test_textures', 'images_classic'),
    ('imagenet200', 'imagenet_r', 'test_imagenet200_r', 'images_largescale'),
    ('imagenet', 'imagenet_es', 'test_imagenet_es', 'images_largescale'),
    ('cifar100', 'tin', 'test_tin', 'images_classic')])
def test_files_of_the_other_suites(suite, part, file, folder):
    assert SUITES[suite].files(part) == (f'benchmark_imglist/{suite}/{file}.txt', folder)


def test_a_label_that_is_no_class(tmp_path):
    write(tmp_path, 'test', [0, 10])
    with pytest.raises(ValueError, match='label 10 is none of the 10'):
        suite_images(SUITES['cifar10'], tmp_path, ('test',), NAMES, {})
