"""A run that was stopped goes on as if it had not been; a file of another run is refused."""
from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.checkpoint import KEY, load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.errors import RunFailedError, UsageError
from gradmix_timm.cli.training import loop, mixing, run
from gradmix_timm.cli.training.interrupt import StoppedError
from gradmix_timm.cli.training.run_folder import resume_path
from gradmix_timm.cli.training.run_state import STREAMS, AtomicSaver, check_resume
from gradmix_timm.data import UnreadableImageError


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def content(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def equal(left, right):
    """Whether two nested states are the same to the last bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


GRADMIX = ('--mixup-mode', 'gradmix', '--drop', 0.3)


@pytest.mark.parametrize('flags', [
    (*GRADMIX, '--model-ema', '--model-ema-decay', 0.9, '--opt', 'adamw', '--sched-on-updates',
     '--loss-temperature', 'negcos'),
    *(pytest.param(flags, marks=pytest.mark.slow) for flags in (
        (),
        ('--no-prefetcher', '--mixup', 0.4, '--mixup-mode', 'elem', '--drop', 0.3),
        (*GRADMIX, '--known-classes', 'bee,dog,cat', '--osr-val-fraction', 0.3, '--grad-accum-steps', 2),
        (*GRADMIX, '--workers', 2, '--reprob', 0.5))),
], ids=['gradmix', 'plain', 'timm mixup', 'open set', 'workers'])
def test_a_resumed_run_is_the_run_that_was_not_stopped(flags, images, tmp_path):
    classes = None if '--known-classes' in flags else 4
    flags = ('--epochs', 3, *flags)
    straight = run_tiny(images, tmp_path, *flags, name='straight', classes=classes)
    parts = run_tiny(images, tmp_path, *flags, '--resume', 'auto', '--stop-epoch', 1, name='parts', classes=classes)
    assert len(rows(parts)) == 1
    np.random.random(3)  # noqa: NPY002 - what other code draws in between does not matter
    torch.rand(3)
    run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts', classes=classes)
    assert rows(parts) == rows(straight)
    left, right = (content(folder / 'last.pth.tar') for folder in (straight, parts))
    for key in ('state_dict', 'optimizer', 'state_dict_ema'):
        assert (key in left) == (key in right)
        assert equal(left.get(key), right.get(key)), key
    assert equal(left[KEY], right[KEY])


def test_the_checkpoint_loads_without_running_code_and_keeps_its_streams(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--epochs', 1)
    section = content(folder / 'last.pth.tar')[KEY]
    assert set(section[STREAMS][0]) == {'python', 'numpy', 'torch'}
    assert load_checkpoint(folder / 'last.pth.tar').record.known_classes == ('ant', 'bee', 'cat', 'dog')


@pytest.mark.parametrize('updates', [2, 3], ids=['in an epoch', 'after its last update'])
def test_a_run_goes_on_exactly_from_a_recovery_file(updates, images, tmp_path, monkeypatch):
    flags = ('--model-ema', '--drop', 0.3, '--grad-accum-steps', 2, '--recovery-interval', updates)
    straight = run_tiny(images, tmp_path, *flags, name='straight')

    def killed(*args):
        raise SystemExit

    monkeypatch.setattr(run, '_save', killed)
    with pytest.raises(SystemExit):
        run_tiny(images, tmp_path, *flags, name='parts')
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / 'parts').glob('*.pth.tar')} == {f'recovery-0-{updates - 1}.pth.tar'}
    steps, step = [], loop._Epoch.step
    monkeypatch.setattr(loop._Epoch, 'step', lambda self, *args: (steps.append(self.epoch), step(self, *args)))
    parts = run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts')
    assert steps == [0] * (5 - min(2 * updates, 5)) + [1] * 5
    assert rows(parts) == rows(straight)
    left, right = (content(folder / 'last.pth.tar') for folder in (straight, parts))
    assert equal(left['state_dict'], right['state_dict'])
    assert equal(left['state_dict_ema'], right['state_dict_ema'])


def test_auto_goes_on_from_the_newest_file(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--recovery-interval', 1)
    args = argparse.Namespace(resume='auto', output=str(tmp_path), experiment='run')
    assert resume_path(args) == str(folder / 'last.pth.tar')
    newest = max(folder.glob('recovery-*'))
    later = (folder / 'last.pth.tar').stat().st_mtime + 1  # the clock of files may stand still for some milliseconds
    os.utime(newest, (later, later))
    assert resume_path(args) == str(newest)
    for path in folder.glob('*.pth.tar'):
        path.unlink()
    assert resume_path(args) == ''


@pytest.mark.parametrize(('stored', 'now', 'fits'), [
    ('test_resnet', ('test_resnet', 'test_resnet'), True),
    ('test_resnet', ('test_resnet.r160_in1k', 'test_resnet.r160_in1k'), True),
    ('local-dir:/a.b/net', ('test_resnet', 'local-dir:/a.b/net'), True),
    ('local-dir:/a.c/net', ('test_resnet', 'local-dir:/a.b/net'), False),
    ('test_resnet', ('test_vit', 'test_vit'), False)])
def test_a_checkpoint_of_timms_script_is_compared_by_architecture(stored, now, fits, tmp_path):
    file = tmp_path / 'last.pth.tar'
    torch.save({'epoch': 0, 'state_dict': {}, 'args': argparse.Namespace(model=stored, num_classes=4)}, file)
    with nullcontext() if fits else pytest.raises(ValueError, match=f'it is of --model {re.escape(stored)}'):
        check_resume(str(file), now, (), 4)


def test_the_loader_that_draws_its_order_at_once_is_said_not_to_go_on_exactly(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_tiny(images, tmp_path, '--use-multi-epochs-loader', '--stop-epoch', 1)
    run_tiny(images, tmp_path, '--use-multi-epochs-loader', '--resume', 'auto')
    assert 'the order of images starts anew (leave the flag out' in caplog.text


def test_a_plain_run_replaces_an_unreadable_image_and_an_open_set_run_names_it(tmp_path, caplog):
    images = write_images(tmp_path / 'images')
    broken = images / 'train' / 'bee' / '6.png'
    broken.write_bytes(b'')
    run_tiny(images, tmp_path, '--epochs', 1)
    assert f'Skipped sample (index 14). {broken}' in caplog.text
    with pytest.raises(UnreadableImageError, match=re.escape(str(broken))):
        run_tiny(images, tmp_path, '--epochs', 1, '--known-classes', 'ant,bee,cat', name='open', classes=None)


def test_classes_that_validation_lacks_at_the_end_are_warned_of_and_others_are_an_error(tmp_path, caplog):
    images = write_images(tmp_path / 'images')
    first, *_, last = sorted(path for path in (images / 'validation').iterdir())
    shutil.rmtree(last)
    run_tiny(images, tmp_path, '--epochs', 1)
    assert f'{last.name} are not validated' in caplog.text
    shutil.rmtree(first)
    with pytest.raises(ValueError, match=f'their labels differ.*{first.name}'):
        run_tiny(images, tmp_path, '--epochs', 1, name='other')


def test_auto_starts_afresh_where_nothing_is_and_changes_nothing_when_done(images, tmp_path, capsys):
    folder = run_tiny(images, tmp_path, '--resume', 'auto')
    assert '--result' in capsys.readouterr().out
    before = (folder / 'summary.csv').read_bytes()
    run_tiny(images, tmp_path, '--resume', 'auto')
    last = folder / 'last.pth.tar'
    assert capsys.readouterr().out == f'{last}: 2 of 2 epochs are trained already; --epochs N for more.\n'
    assert yaml.safe_load((folder / 'args.yaml').read_text())['resume'] == 'auto'
    run_tiny(images, tmp_path, '--resume', last, '--stop-epoch', 1)
    assert capsys.readouterr().out == f'{last}: 2 of 1 epochs are trained already; --stop-epoch N for more.\n'
    assert (folder / 'summary.csv').read_bytes() == before


@pytest.mark.slow
def test_the_saved_flags_rerun_the_job(images, tmp_path):
    folder = run_tiny(images, tmp_path, *GRADMIX, '--gradmix-layers', -1)
    first = rows(folder)
    train.main(['--config', str(folder / 'args.yaml'), '--experiment', 'again'])
    assert rows(tmp_path / 'again') == first


@pytest.mark.parametrize(('flags', 'words'), [
    (('--model', 'test_efficientnet', '--num-classes', 4), 'test_resnet'),
    (('--num-classes', 5), '4 classes'),
    (('--num-classes', 4, '--opt', 'adamw'), '--no-resume-opt'),
])
def test_a_file_of_another_run_is_refused(flags, words, images, tmp_path):
    folder = run_tiny(images, tmp_path, '--epochs', 1)
    argv = ['--data-dir', str(images), *TINY, *map(str, flags), '--output', str(tmp_path), '--experiment', 'other',
            '--resume', str(folder / 'last.pth.tar')]
    with pytest.raises(UsageError, match=words):
        train.main(argv)
    assert not (tmp_path / 'other' / 'last.pth.tar').exists()


def test_few_held_out_images_are_said_at_the_start(images, tmp_path, caplog):
    flags = ('--epochs', 1, '--known-classes', 'ant,bee,cat')
    run_tiny(images, tmp_path, '--osr-val-fraction', 0.3, *flags, name='few', classes=None)
    assert any(line.startswith('6 images are held out; the classifier needs 19') for line in caplog.messages)
    caplog.clear()
    write_images(tmp_path / 'more', train=22)
    run_tiny(tmp_path / 'more', tmp_path, '--osr-val-fraction', 0.3, *flags, name='enough', classes=None)
    assert not any('held out' in line for line in caplog.messages)


def test_classes_in_another_order_are_refused(images, tmp_path):
    flags = ('--osr-val-fraction', 0.3, '--epochs', 1)
    folder = run_tiny(images, tmp_path, *flags, '--known-classes', 'ant,bee,cat', classes=None)
    with pytest.raises(UsageError, match="class 0 of its head is 'ant' and of this run 'bee'"):
        run_tiny(images, tmp_path, *flags, '--known-classes', 'bee,ant,cat', '--resume', folder / 'last.pth.tar',
                 name='b', classes=None)


def test_a_file_that_trained_on_the_validation_images_is_refused(images, tmp_path):
    flags = ('--osr-val-fraction', 0.3, '--known-classes', 'ant,bee,cat')
    run_tiny(images, tmp_path, *flags, '--stop-epoch', 1, classes=None)
    with pytest.raises(UsageError, match='held out'):
        run_tiny(images, tmp_path, *flags, '--resume', 'auto', '--seed', 1, classes=None)


@pytest.mark.parametrize('more', [(), ('--clip-grad', 5)])
def test_an_option_that_an_older_version_did_not_have_is_named(more, images, tmp_path, caplog, monkeypatch):
    flags = ('--mixup-mode', 'gradmix', '--gradmix-label', 'area', '--stop-epoch')
    with monkeypatch.context() as older:
        older.setattr(mixing, '_trained_options', dict)
        run_tiny(images, tmp_path, *flags, 1)
    path = tmp_path / 'run' / 'last.pth.tar'
    state = torch.load(path, weights_only=False)
    del state[KEY]['mixer_options']['confidence']
    torch.save(state, path)
    caplog.clear()
    run_tiny(images, tmp_path, *flags, 2, '--resume', 'auto', *more)
    assert "the mixer's confidence 0.0, now 0.9" in caplog.text


def test_options_of_a_version_with_other_defaults_are_named(images, tmp_path, caplog, monkeypatch):
    flags = ('--mixup-mode', 'gradmix', '--stop-epoch')
    with monkeypatch.context() as older:
        older.setattr(mixing, '_trained_options', dict)
        run_tiny(images, tmp_path, *flags, 1)
    caplog.clear()
    run_tiny(images, tmp_path, *flags, 2, '--resume', 'auto')
    assert ("it was trained with other flags: the mixer's label 'area', now 'keep'; the mixer's confidence 0.0, now 0.9"
            in caplog.text)
    caplog.clear()
    run_tiny(images, tmp_path, *flags, 2, '--resume', 'auto')
    assert 'other flags' not in caplog.text


def test_flags_that_changed_are_named(images, tmp_path, caplog):
    """A run went on with another mixer, or without its moving average, silently."""
    run_tiny(images, tmp_path, '--stop-epoch', 1, '--model-ema')
    caplog.clear()
    run_tiny(images, tmp_path, '--resume', 'auto', '--stop-epoch', 1, '--model-ema', '--log-interval', 7)
    assert 'other flags' not in caplog.text
    run_tiny(images, tmp_path, '--resume', 'auto', '--mixup-mode', 'cutmix', '--stop-epoch', 1)
    assert "it was trained with other flags: mixup_mode 'batch', now 'cutmix'; model_ema True, now False" in caplog.text


def test_one_image_a_batch_is_refused_where_the_model_normalises_over_it(images, tmp_path):
    with pytest.raises(UsageError, match=r'--batch-size 1: .* type 2 or more'):
        run_tiny(images, tmp_path, '-b', 1)


def test_what_is_no_checkpoint_is_refused(images, tmp_path):
    (tmp_path / 'x.pth.tar').write_text('hello')
    with pytest.raises(UsageError, match='not a training checkpoint'):
        run_tiny(images, tmp_path, '--resume', tmp_path / 'x.pth.tar')
    torch.save([1, 2], tmp_path / 'list.pth.tar')
    with pytest.raises(UsageError, match='it holds a list'):
        run_tiny(images, tmp_path, '--resume', tmp_path / 'list.pth.tar')
    with pytest.raises(UsageError, match='no such file'):
        run_tiny(images, tmp_path, '--resume', tmp_path / 'none.pth.tar')


def test_a_checkpoint_of_timm_without_our_section_resumes(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--stop-epoch', 1)
    state = content(folder / 'last.pth.tar')
    del state[KEY]
    torch.save(state, tmp_path / 'timm.pth.tar')
    again = run_tiny(images, tmp_path, '--resume', tmp_path / 'timm.pth.tar', name='again')
    assert [line['epoch'] for line in rows(again)] == ['1']


# ---- whole files

def test_a_save_that_breaks_leaves_the_old_file_and_nothing_else(images, tmp_path, monkeypatch):
    folder = run_tiny(images, tmp_path, '--epochs', 1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half(state, path):
        with open(path, 'wb') as file:
            file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('timm.utils.checkpoint_saver.torch.save', half)
    with pytest.raises(RunFailedError, match='No space'):
        run_tiny(images, tmp_path, '--resume', 'auto')
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == set(before)
    for name in ('last.pth.tar', 'checkpoint-0.pth.tar', 'model_best.pth.tar'):
        assert after[name] == before[name]


@pytest.mark.parametrize('links', [True, False])
def test_copies_are_made_whole_and_leave_nothing_beside(links, tmp_path, monkeypatch):
    saver = AtomicSaver(torch.nn.Linear(1, 1), None, checkpoint_dir=str(tmp_path))
    if not links:
        def refuse(*args):
            raise OSError('no links here')
        monkeypatch.setattr('os.link', refuse)
    (tmp_path / 'a').write_text('new')
    (tmp_path / 'b').write_text('old')
    for _ in range(2):  # the second time both names are one file
        saver._duplicate(str(tmp_path / 'a'), str(tmp_path / 'b'))
    assert (tmp_path / 'b').read_text() == 'new'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']


@pytest.mark.parametrize(('number', 'error'), [
    (signal.SIGTERM, StoppedError), (0, RuntimeError)], ids=['stopped', 'killed alone'])
def test_a_worker_that_dies_of_the_signal_is_a_stop(number, error, images, tmp_path, monkeypatch):
    """The signal can meet a worker that has just started and does not leave it to the main process yet."""
    def train(run, *_):
        if number:
            run.interrupt.hold(number, None)
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Terminated. ')

    monkeypatch.setattr('gradmix_timm.cli.training.run._train', train)
    with pytest.raises(error, match='stopped by SIGTERM' if number else 'killed by signal') as failure:
        run_tiny(images, tmp_path)
    assert failure.value.__notes__ == ['last checkpoint: none yet']
