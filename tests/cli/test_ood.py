"""`openset ood`: known images against whole data sets; the gate on accuracy, pixels, codecs, cache, broken images."""
from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_checkpoints import CONFIG, class_folders, save_checkpoint

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.data import open_dataset, select_classes
from gradmix_timm.evaluation import model as embedding
from gradmix_timm.evaluation import result
from gradmix_timm.evaluation.opening import head_names
from gradmix_timm.openset.extract import extract

QUICK = ('--bootstrap', '0', '--device', 'cpu', '--trivial-images', '20', '--feature-map', '16')


def run(*argv, command='ood'):
    return run_console(osr.main, [command, *map(str, argv), *QUICK])


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


def arrays_of(folder):
    with np.load(folder / 'arrays.npz') as stored:
        return dict(stored)


def refused(capsys, *argv):
    capsys.readouterr()
    assert run(*argv) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith('error: ')
    assert 'Traceback' not in captured.err
    assert not [row for row in captured.out.splitlines() if row.startswith('|')]
    return line


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """Data with a checkpoint whose head knows cat and ant, and folders of other things."""
    root = tmp_path_factory.mktemp('ood')
    data = class_folders(root / 'data')
    class_folders(root / 'other', ('dog', 'newt'), 7, splits=('test',), seed=1)
    return root, data, save_checkpoint(root / 'run' / 'last.pth.tar', data)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than all else; the run of ``done`` comes before and draws."""
    monkeypatch.setattr(result, 'draw', lambda folder: None)


@pytest.fixture(scope='module')
def done(places):
    """One whole run: (folder, standard output)."""
    root, _, checkpoint = places
    with redirect_stdout(io.StringIO()) as told:
        assert run('--checkpoint', checkpoint, '--unknown', f'folder:pets={root / "other"}', 'noise:uniform',
                   'noise:blobs', '--scores', 'mls', 'knn,mahalanobis', '--made-images', 11, '--near', 'pets',
                   '--far', 'uniform,blobs') == 0
    return root / 'run' / 'ood', told.getvalue()


# ---- a run that goes well

def test_one_group_a_data_set_in_the_shape_of_osr(done):
    results = results_of(done[0])
    assert {'format', 'protocol', 'family', 'trial', 'known_classes', 'unknown_classes', 'n_known', 'n_unknown',
            'closed_set', 'scores', 'groups', 'checkpoint', 'seed', 'versions', 'device', 'created'} <= set(results)
    assert (results['n_known'], results['n_unknown']) == (60, 14 + 11 + 11)
    assert {name: part['n_unknown'] for name, part in results['groups'].items()} == {
        'pets': 14, 'uniform': 11, 'blobs': 11}
    assert all(set(part['scores']) == {'mls', 'knn', 'mahalanobis'} for part in results['groups'].values())
    assert results['known_classes'] == ['cat', 'ant']
    assert results['groups']['pets']['source'].startswith('folder:pets=')


def test_figures_are_those_of_the_model_on_plain_images(places, done):
    """Logits of one unknown set, computed here without the command's loader."""
    from timm.data import create_transform
    images = open_dataset('', places[0] / 'other', 'test')
    images.transform = create_transform(**CONFIG, is_training=False)
    torch.manual_seed(0)
    found = extract(timm.create_model('test_resnet', num_classes=2), torch.utils.data.DataLoader(images, 64), 'cpu')
    arrays = arrays_of(done[0])
    np.testing.assert_allclose(arrays['unknown/mls'][:14], found.logits.amax(1).double(), rtol=1e-4, atol=1e-5)
    assert arrays['unknown_label'].tolist() == [0] * 14 + [1] * 11 + [2] * 11
    assert arrays['known_label'].tolist() == [1] * 30 + [0] * 30  # ant before cat in the folder


def test_near_and_far_are_plain_means_over_the_sets(done):
    results = results_of(done[0])
    groups = results['groups']
    assert results['means']['near']['scores']['knn']['auroc'] == groups['pets']['scores']['knn']['auroc']
    for metric in ('auroc', 'fpr_at_95_known'):
        assert results['means']['far']['scores']['mls'][metric] == pytest.approx(
            (groups['uniform']['scores']['mls'][metric] + groups['blobs']['scores']['mls'][metric]) / 2)
    assert (groups['pets']['kind'], groups['blobs']['kind']) == ('near', 'far')
    with (done[0] / 'results.csv').open() as file:
        assert {'all', 'pets', 'mean far'} <= {row['group'] for row in csv.DictReader(file)}


def test_tables_page_and_mistakes(done):
    folder, out = done
    lines = out.strip().splitlines()
    assert next(i for i, line in enumerate(lines) if line.startswith('closed-set accuracy ')) < next(
        i for i, line in enumerate(lines) if line.startswith('| mls '))
    assert any('| pets | uniform | blobs | near (mean of 1) | far (mean of 2) |' in ' '.join(line.split())
               for line in lines)
    assert lines[-1] == str(folder / 'report.html')
    assert 'All unknown images together' not in out  # no data set has most of them
    pixels = [line.startswith('warning: pixels alone') for line in lines]
    assert lines[len(pixels) - pixels[::-1].index(True)].startswith(
        'note: part of these scores may come from such pixel statistics; check that known and unknown images were')
    assert (folder / 'figures' / 'features.png').is_file()
    page = (folder / 'report.html').read_text()
    assert 'Data sets of unknowns' in page
    assert 'What pixels alone give away' in page
    assert '## AUROC by data set' in (folder / 'results.md').read_text()
    mistakes = json.loads((folder / 'mistakes.json').read_text())
    arrays, results = arrays_of(folder), results_of(folder)
    closest = results['duplicates']['closest']
    assert [pair['cosine'] for pair in closest] == sorted((pair['cosine'] for pair in closest), reverse=True)
    assert [pair['unknown'] for pair in mistakes['closest']] == [pair['unknown'] for pair in closest]
    top = int(np.argmax(arrays['unknown/mls']))
    assert mistakes['accepted'][0]['class'] == results['unknown_classes'][arrays['unknown_label'][top]]


def test_made_images_have_the_sizes_of_known_ones(places, done):
    assert results_of(done[0])['manifest']['data']['n_uniform'] == 11
    probe = results_of(done[0])['groups']['uniform']['trivial']
    # Every known image here is 24 by 20, so shape cannot tell made ones.
    assert probe['statistics']['aspect']['auroc'] == probe['statistics']['size']['auroc'] == 0.5
    assert 'bytes' not in probe['statistics'], 'made images are no files'
    assert 'bytes' in results_of(done[0])['groups']['pets']['trivial']['statistics']


def test_pixels_that_tell_the_sides_apart_are_said(done):
    results = results_of(done[0])
    assert results['groups']['uniform']['trivial']['warnings']
    assert 'warning: pixels alone separate uniform' in done[1]


def test_osr_compares_pixels_too(places, tmp_path, capsys):
    """The middle colour of three is the unknown class: brightness between the two known."""
    assert run('--checkpoint', places[2], '--scores', 'mls', '--output', tmp_path / 'osr', command='osr') == 0
    trivial = results_of(tmp_path / 'osr')['trivial']
    assert (trivial['n_known'], trivial['n_unknown']) == (20, 20)
    assert trivial['combined']['auroc'] > 0.9
    assert '- warning: pixels alone separate the unknown images' in (tmp_path / 'osr' / 'results.md').read_text()
    assert run_console(osr.main, ['osr', '--checkpoint', str(places[2]), '--scores', 'mls', '--bootstrap', '0',
                                  '--device', 'cpu', '--trivial-images', '0', '--output', str(tmp_path / 'no')]) == 0
    assert results_of(tmp_path / 'no')['trivial'] is None


# ---- where the known images are

def test_known_images_of_a_folder(places, tmp_path, capsys):
    """Another test folder in the place of the checkpoint's, with one of its two classes."""
    class_folders(tmp_path / 'mine', ('zebra', 'ant'), 5, splits=('test',), seed=2)
    assert run('--checkpoint', places[2], '--known', tmp_path / 'mine', '--unknown', 'noise:clouds', '--scores',
               'mls,knn', '--made-images', 4, '--output', tmp_path / 'out') == 0
    results = results_of(tmp_path / 'out')
    assert results['n_known'] == 5
    assert arrays_of(tmp_path / 'out')['known_label'].tolist() == [1] * 5
    assert 'none of its classes' in refused(capsys, '--checkpoint', places[2], '--known', places[0] / 'other',
                                            '--unknown', 'noise:clouds')


def test_a_model_by_name_and_folders_alone(places, tmp_path, capsys):
    """No training data: scores that are fit on it are left out, and the class folders are the classes."""
    torch.manual_seed(0)
    torch.save(timm.create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'bare.pth')
    argv = ('--checkpoint', tmp_path / 'bare.pth', '--model', 'test_resnet', '--img-size', 32, '--unknown',
            'noise:clouds', '--made-images', 4, '--known')
    assert run(*argv, places[1]) == 0
    results = results_of(tmp_path / 'ood')
    assert results['known_classes'] == ['ant', 'bee', 'cat']
    assert 'mls' in results['scores']
    assert 'mahalanobis' in results['not_served']
    assert '2 classes and the head 3 outputs' in refused(capsys, *argv, places[0] / 'other')


@pytest.mark.parametrize(('split', 'name', 'kind', 'link'), [
    ('train', 'cat', '(training|held-out)', False), ('test', 'ant', 'test', True)])
def test_known_images_under_another_name_are_refused(places, tmp_path, capsys, split, name, kind, link):
    _, data, checkpoint = places
    (shutil.copytree, lambda source, to: to.symlink_to(source))[link](data / split / name, tmp_path / 'pets')
    line = refused(capsys, '--checkpoint', checkpoint, '--unknown', f'folder:pets={tmp_path}', '--scores', 'mls')
    assert re.search(f'of the 30 images of pets are known {kind} images, by path or by content', line)


@pytest.mark.parametrize('folders', [('n02123045', 'n01440764'), ('tabby cat', 'Tinca_tinca')], ids=['synset', 'name'])
def test_imagenet_folders_are_found_by_synset_or_name(folders):
    net = SimpleNamespace(num_classes=1000, pretrained_cfg={'num_classes': 1000})
    names = head_names(net, folders, 'x')
    assert (len(names), names.index(folders[1]), names.index(folders[0])) == (1000, 0, 281)
    assert names[1] == 'n01443537'


# ---- the gate

def gated(tmp_path, data, metric, args=True):
    checkpoint = save_checkpoint(tmp_path / 'gate' / 'last.pth.tar', data)
    state = torch.load(checkpoint, weights_only=False)
    state['metric'] = metric
    if args:
        state['args'] = argparse.Namespace(eval_metric='top1', model='test_resnet')
    torch.save(state, checkpoint)
    return checkpoint


def test_a_checkpoint_that_lost_its_accuracy_is_refused_before_unknowns_are_read(places, tmp_path, capsys, monkeypatch):
    checkpoint = gated(tmp_path, places[1], 99.5)
    titles = []
    plain = embedding.extract
    monkeypatch.setattr(embedding, 'extract',
                        lambda *args, **kwargs: titles.append(kwargs['progress']) or plain(*args, **kwargs))
    argv = ('--checkpoint', checkpoint, '--unknown', 'noise:clouds', '--scores', 'mls', '--made-images', 4)
    line = refused(capsys, *argv)
    assert 'the checkpoint says 99.50%' in line
    assert '--no-accuracy-gate' in line
    assert titles == ['known test images', 'held-out images']
    assert not (tmp_path / 'gate' / 'ood').exists()
    assert run(*argv, '--no-accuracy-gate') == 0
    assert 'switched off' in results_of(tmp_path / 'gate' / 'ood')['accuracy_gate']['source']


def test_osr_warns_of_a_checkpoint_that_lost_its_accuracy(places, tmp_path, capsys):
    argv = ('--checkpoint', gated(tmp_path, places[1], 99.5), '--scores', 'mls')
    assert run(*argv, command='osr') == 0
    gate = results_of(tmp_path / 'gate' / 'osr')['accuracy_gate']
    assert f'warning: {gate["warning"]}' in capsys.readouterr().out
    assert 'the checkpoint says 99.50%' in gate['warning']
    gated(tmp_path, places[1], 50.)
    assert run(*argv, command='osr') == 0
    assert 'warning' not in results_of(tmp_path / 'gate' / 'osr')['accuracy_gate']


def test_a_checkpoint_that_is_as_good_as_it_was(places, tmp_path, capsys):
    """The untrained head says one class to all: half of the held-out images are right."""
    right = 100 * 20 / 40
    checkpoint = gated(tmp_path, places[1], right)
    argv = ('--checkpoint', checkpoint, '--unknown', 'noise:clouds', '--scores', 'mls', '--made-images', 4)
    code = run(*argv)
    gate = results_of(tmp_path / 'gate' / 'ood')['accuracy_gate'] if code == 0 else capsys.readouterr().err
    assert code == 0, gate
    assert gate['n'] == 40


def test_a_reference_by_hand(places, tmp_path, capsys):
    argv = ('--checkpoint', places[2], '--unknown', 'noise:clouds', '--scores', 'mls', '--made-images', 4, '--output',
            tmp_path / 'out')
    assert '--reference-top1 99 says 99.00%' in refused(capsys, *argv, '--reference-top1', 99)
    assert run(*argv, '--reference-top1', 20) == 0
    assert 'from 1 to 100' in refused(capsys, *argv, '--reference-top1', 200)


def test_a_checkpoint_that_does_not_say(done):
    assert 'note: no reference accuracy is known; pass --reference-top1 PERCENT' in done[1]
    assert results_of(done[0])['accuracy_gate'] is None


# ---- codecs

@pytest.mark.slow
def test_a_codec_for_all_and_one_for_the_unknown(places, tmp_path, capsys):
    """JPEG at quality 5 changes logits; the known ones only where it is asked for."""
    argv = ('--checkpoint', places[2], '--unknown', f'folder:pets={places[0] / "other"}', '--scores', 'mls', '--output')
    found = {}
    for name, flags in (('plain', ()), ('png', ('--codec', 'png')), ('both', ('--codec', 'jpeg:5')),
                        ('one', ('--unknown-codec', 'jpeg:5'))):
        assert run(*argv, tmp_path / name, *flags) == 0
        found[name] = arrays_of(tmp_path / name)
    for side in ('known/mls', 'unknown/mls'):
        np.testing.assert_array_equal(found['plain'][side], found['png'][side])
        assert not np.allclose(found['plain'][side], found['both'][side])
    np.testing.assert_array_equal(found['plain']['known/mls'], found['one']['known/mls'])
    np.testing.assert_array_equal(found['both']['unknown/mls'], found['one']['unknown/mls'])
    assert results_of(tmp_path / 'one')['manifest']['data']['unknown_codec'] == 'jpeg:5'


# ---- the cache

def test_a_second_run_reads_no_image_and_gives_the_same(places, tmp_path, capsys, monkeypatch):
    argv = ('--checkpoint', places[2], '--unknown', 'noise:uniform', '--made-images', 6, '--scores', 'mls,knn',
            '--cache', tmp_path / 'cache')
    assert run(*argv, '--output', tmp_path / 'one') == 0
    plain = embedding.extract
    monkeypatch.setattr(embedding, 'extract', lambda *args, **kwargs: pytest.fail('a set was embedded again'))
    assert run(*argv, '--output', tmp_path / 'two') == 0
    one, two = results_of(tmp_path / 'one'), results_of(tmp_path / 'two')
    assert one['scores'] == two['scores']
    assert two['manifest']['extraction']['from_cache'] == [
        'known test images', 'held-out images', 'known training images', 'images of uniform']
    monkeypatch.setattr(embedding, 'extract', plain)
    assert run('--checkpoint', places[2], '--scores', 'mls', '--cache', tmp_path / 'cache', '--output',
               tmp_path / 'osr', command='osr') == 0
    assert 'known test images' in results_of(tmp_path / 'osr')['manifest']['extraction']['from_cache']


@pytest.mark.parametrize('change', ['weights', *(
    pytest.param(change, marks=pytest.mark.slow) for change in ('size', 'image', 'codec', 'seed'))])
def test_whatever_changes_is_embedded_again(change, tmp_path, capsys, monkeypatch):
    data = class_folders(tmp_path / 'data', count=4)
    checkpoint = save_checkpoint(tmp_path / 'last.pth.tar', data, held=())
    argv = ['--checkpoint', checkpoint, '--unknown', 'noise:uniform', '--made-images', 3, '--scores', 'mls',
            '--cache', tmp_path / 'cache', '--output', tmp_path / 'out']
    titles, plain = [], embedding.extract
    monkeypatch.setattr(embedding, 'extract',
                        lambda *args, **kwargs: titles.append(kwargs['progress']) or plain(*args, **kwargs))
    assert run(*argv) == 0
    titles.clear()
    if change == 'weights':
        net = timm.create_model('test_resnet', num_classes=2)
        net.fc.bias.data[0] += 1e-6
        save_checkpoint(checkpoint, data, held=(), net=net)
    elif change == 'size':
        argv += ['--img-size', 40]
    elif change == 'image':
        path = data / 'test' / 'ant' / '00.png'
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    elif change == 'codec':
        argv += ['--unknown-codec', 'png']
    else:
        argv += ['--seed', 1]
    assert run(*argv) == 0
    assert titles == {'image': ['known test images'], 'codec': ['images of uniform'], 'seed': ['images of uniform']
                      }.get(change, ['known test images', 'images of uniform'])


# ---- broken images

@pytest.mark.slow
def test_broken_images_are_left_out_and_named_where_asked(places, tmp_path, capsys):
    data = shutil.copytree(places[1], tmp_path / 'data')
    other = shutil.copytree(places[0] / 'other', tmp_path / 'other')
    (data / 'test' / 'ant' / '03.png').write_bytes(b'no image')
    (other / 'test' / 'dog' / '01.png').write_bytes(b'')
    (other / 'test' / 'dog' / '04.png').write_bytes(b'GIF89a')
    argv = ('--checkpoint', places[2], '--data-dir', data, '--unknown', f'folder:pets={other}', 'noise:uniform',
            '--made-images', 3, '--scores', 'mls,knn', '--cache', tmp_path / 'cache', '--output', tmp_path / 'out')
    assert 'ant/03.png' in refused(capsys, *argv)
    assert run(*argv, '--skip-bad') == 0
    out = capsys.readouterr().out
    assert 'skipped 1 of the known test images that cannot be read: ant/03.png' in out
    assert 'skipped 2 of the images of pets that cannot be read: dog/01.png, dog/04.png' in out
    results, arrays = results_of(tmp_path / 'out'), arrays_of(tmp_path / 'out')
    assert (results['n_known'], results['groups']['pets']['n_unknown']) == (59, 12)
    assert results['skipped']['images of pets'] == ['dog/01.png', 'dog/04.png']
    # The rest are the rows that they are without the broken ones.
    assert run('--checkpoint', places[2], '--unknown', f'folder:pets={places[0] / "other"}', 'noise:uniform',
               '--made-images', 3, '--scores', 'mls,knn', '--output', tmp_path / 'whole') == 0
    whole = arrays_of(tmp_path / 'whole')
    for side, rows in (('known', [3]), ('unknown', [1, 4])):
        np.testing.assert_allclose(np.delete(whole[f'{side}/mls'], rows), arrays[f'{side}/mls'], rtol=1e-5)
    assert arrays['unknown_index'].tolist() == [0, 2, 3, *range(5, 17)]
    # A cache filled so serves no run that does not ask to skip.
    assert 'ant/03.png' in refused(capsys, *argv)


@pytest.mark.slow
def test_several_loader_processes_skip_too(places, tmp_path, capsys):
    data = shutil.copytree(places[1], tmp_path / 'data')
    (data / 'test' / 'cat' / '00.png').write_bytes(b'no image')
    for command, more in (('osr', ()), ('ood', ('--unknown', 'noise:uniform', '--made-images', 2))):
        assert run('--checkpoint', places[2], '--data-dir', data, '--scores', 'mls', '--workers', 2, '--skip-bad',
                   '--output', tmp_path / command, *more, command=command) == 0
        assert results_of(tmp_path / command)['n_known'] == 59


def test_a_set_without_one_readable_image(places, tmp_path, capsys):
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad' / 'a.png').write_bytes(b'')
    assert 'none of the 1 images of bad can be read' in refused(
        capsys, '--checkpoint', places[2], '--unknown', f'folder:{tmp_path / "bad"}', '--skip-bad', '--scores', 'mls')


# ---- what a user gets wrong

@pytest.mark.parametrize(('argv', 'words'), [
    (('noise:unifrom',), "did you mean 'uniform'"),
    (('folder:a={gone}',), '--unknown folder:a=/'),
    (('noise:uniform', 'made:uniform'), 'is taken'),
    (('torchvision:svhn',), 'torchvision:svhn=DIR says where it is'),
    (('folder:{data}',), "has 2 of 3 classes that the model knows ('ant', 'cat')"),
    (('noise:uniform', '--near', 'blobs'), '--near and --far name each of the unknown sets'),
    (('noise:uniform', '--codec', 'gif'), 'jpeg:QUALITY'),
    (('noise:uniform', '--made-images', '0'), '--made-images 0: expected 1 or more'),
    (('noise:uniform', '--scores', 'mls', 'enrgy'), "did you mean 'energy'"),
    (('noise:uniform', '--known', '{gone}'), 'no folder at')])
def test_mistakes_end_in_one_line(argv, words, places, tmp_path, capsys):
    given = [word.format(gone=tmp_path / 'gone', data=places[1]) for word in argv]
    assert words in refused(capsys, '--checkpoint', places[2], '--output', tmp_path / 'out', '--unknown', *given)
    assert not (tmp_path / 'out').exists()


def test_known_classes_can_be_left_out_of_an_unknown_set(places, tmp_path, capsys):
    """The whole known data set as unknown: only the class that is not known remains."""
    assert run('--checkpoint', places[2], '--unknown', f'folder:rest={places[1]}', '--overlap', 'drop', '--scores',
               'mls', '--output', tmp_path / 'out') == 0
    part = results_of(tmp_path / 'out')['groups']['rest']
    assert (part['n_unknown'], part['dropped_classes'], part['dropped_images']) == (30, ['ant', 'cat'], 60)
    rest = select_classes(open_dataset('', places[1], 'test'), ['bee'])
    assert arrays_of(tmp_path / 'out')['unknown_index'].tolist() == list(range(len(rest)))


def test_a_data_set_with_most_of_the_unknown_images_is_named_above_the_table(places, tmp_path, capsys):
    assert run('--checkpoint', places[2], '--unknown', f'folder:pets={places[0] / "other"}', 'noise:uniform',
               '--made-images', 11, '--scores', 'mls', '--output', tmp_path) == 0
    told = capsys.readouterr().out
    line = 'All unknown images together (56% are of pets); by data set below.'
    assert told.index('closed-set accuracy') < told.index(line) < told.index('| mls') < told.index('AUROC by data set')
    page = (tmp_path / 'results.md').read_text()
    assert page.index(line) < page.index('| mls')
    assert run_console(osr.main, ['report', str(tmp_path)]) == 0
    assert line in (tmp_path / 'report.html').read_text()


def test_options_are_picked_on_a_set_apart_from_the_test(places, tmp_path, capsys):
    """Refused where it has an image or a class that is evaluated, or is the test set itself."""
    root, _, checkpoint = places
    apart = class_folders(tmp_path / 'apart', ('yak', 'zebu'), 6, splits=('test',))
    rng = np.random.default_rng(0)
    for path in apart.rglob('*.png'):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    argv = ('--checkpoint', checkpoint, '--unknown', f'folder:other={root / "other"}', '--scores', 'scale',
            '--no-accuracy-gate', '--output', tmp_path / 'out')
    assert run(*argv, '--tune', f'folder:validation={apart}') == 0
    results = results_of(tmp_path / 'out')
    tuning = results['tuning']
    assert (tuning['n_unknown'], list(tuning['scores'])) == (12, ['scale'])
    assert list(results['scores']) == [tuning['scores']['scale']['chosen']]
    assert 'picked on validation images: scale' in capsys.readouterr().out
    for place, words in ((root / 'other', 'shares'), (root / 'other' / 'test', 'shares')):
        assert words in refused(capsys, *argv, '--tune', f'folder:validation={place}')
    same = class_folders(tmp_path / 'same', ('newt', 'yak'), 3, splits=('test',))
    for path in same.rglob('*.png'):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    assert '1 classes of other' in refused(capsys, *argv, '--tune', f'folder:validation={same}')
    assert 'did you mean' in refused(capsys, *argv, '--tune', 'noise:unifrm')
