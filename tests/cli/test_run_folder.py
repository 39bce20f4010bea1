"""A run folder holds one run: another is refused, continued or replaced by name; a lock says who writes."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.errors import UsageError, run_console
from gradmix_timm.cli.training import run_folder

#: Takes the lock of the folder that it is given, says so, and waits.
HOLDER = """
import argparse, sys, time
from gradmix_timm.cli.training.run_folder import RunFolder
args = argparse.Namespace(output=sys.argv[1], experiment='run', overwrite=False, resume='', rank=0, distributed=False)
with RunFolder(args) as folder:
    folder.claim()
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder of a run which has written nothing yet."""
    process = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_not_replaced_unless_asked(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--epochs', 1)
    before = content(folder)
    with pytest.raises(UsageError, match=r'holds a run already.*--resume auto.*--overwrite.*--experiment'):
        run_tiny(images, tmp_path, '--epochs', 1, '--seed', 1)
    assert content(folder) == before
    (folder / 'notes.txt').write_text('mine')
    run_tiny(images, tmp_path, '--epochs', 1, '--val-interval', 2, '--overwrite', '--checkpoint-hist', 1)
    assert (folder / 'last.pth.tar').read_bytes() != before['last.pth.tar']
    assert (folder / 'notes.txt').read_text() == 'mine'


def test_the_old_run_goes_whole_and_only_once_the_new_one_is_set_up(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--epochs', 2)
    before = content(folder)
    with pytest.raises(UsageError):
        run_tiny(images / 'nothing', tmp_path, '--overwrite')
    assert content(folder) == before
    run_tiny(images, tmp_path, '--epochs', 1, '--overwrite')
    assert not (folder / 'checkpoint-1.pth.tar').exists()
    assert [row['epoch'] for row in rows(folder)] == ['0']


def test_the_saved_flags_of_a_replacing_run_do_not_replace_it(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--epochs', 1, '--overwrite')
    with pytest.raises(UsageError, match='holds a run already'):
        train.main(['--config', str(folder / 'args.yaml')])


def test_a_file_of_another_folder_does_not_open_this_one(images, tmp_path):
    other = run_tiny(images, tmp_path, '--stop-epoch', 1, name='other')
    run_tiny(images, tmp_path, '--stop-epoch', 1)
    with pytest.raises(UsageError, match='holds a run already'):
        run_tiny(images, tmp_path, '--resume', other / 'last.pth.tar')
    folder = run_tiny(images, tmp_path, '--resume', other / 'last.pth.tar', '--overwrite')
    assert [row['epoch'] for row in rows(folder)] == ['1']


@pytest.mark.parametrize('flags', [('--resume', 'auto'), ('--resume', '{last}')])
def test_to_continue_and_to_replace_is_a_contradiction(flags, images, tmp_path):
    folder = run_tiny(images, tmp_path, '--stop-epoch', 1)
    before = content(folder)
    with pytest.raises(UsageError, match='leave one out'):
        run_tiny(images, tmp_path, '--overwrite', *(flag.format(last=folder / 'last.pth.tar') for flag in flags))
    assert content(folder) == before


def test_checkpoints_without_the_last_are_not_written_over_by_auto(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--stop-epoch', 1)
    (folder / 'last.pth.tar').unlink()
    with pytest.raises(UsageError, match=r'no last\.pth\.tar; name the file'):
        run_tiny(images, tmp_path, '--resume', 'auto')


def test_what_ended_before_its_first_checkpoint_is_no_run(images, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('args.yaml', 'tmp.pth.tar', 'mixes.png'):
        (folder / name).write_text('x')
    run_tiny(images, tmp_path, '--epochs', 1)
    assert load_checkpoint(folder / 'last.pth.tar').epoch == 0


def test_a_set_up_that_fails_leaves_no_folder(images, tmp_path):
    with pytest.raises(UsageError):
        run_tiny(images / 'nothing', tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_unnamed_runs_of_one_second_get_folders_of_their_own(images, tmp_path):
    flags = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--epochs', '1', '--output', str(tmp_path)]
    for _ in range(2):
        train.main(flags)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert all('-test_resnet-32' in name for name in names)
    assert all((tmp_path / name / 'last.pth.tar').exists() for name in names)


# ---- the lock

@pytest.mark.slow
def test_a_folder_that_is_being_written_to_is_refused_by_process_host_and_start(images, tmp_path, holder, capsys):
    argv = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path), '--experiment', 'run']
    for flags in ([], ['--overwrite'], ['--resume', 'auto']):
        assert run_console(train.main, argv + flags) == 2
        error, = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
        started = json.loads((tmp_path / 'run' / 'run.lock').read_text())['started']
        assert f'process {holder.pid} on {socket.gethostname()}, started {started}' in error
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['run.lock']


@pytest.mark.slow
def test_the_lock_of_a_killed_run_is_taken_over_with_a_line(images, tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    assert (tmp_path / 'run' / 'run.lock').exists()
    folder = run_tiny(images, tmp_path, '--epochs', 1)
    assert f'process {holder.pid} on' in next(line for line in caplog.messages if 'taken over' in line)
    assert (folder / 'last.pth.tar').exists()
    assert not (folder / 'run.lock').exists()


def test_without_locks_of_the_file_system_the_content_decides(images, tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(37, 'No locks available')
    monkeypatch.setattr(run_folder.fcntl, 'lockf', refuse)
    folder = tmp_path / 'run'
    folder.mkdir()

    def lock(pid, host):
        (folder / 'run.lock').write_text(json.dumps({'pid': pid, 'host': host, 'started': 'noon'}))

    lock(os.getppid(), socket.gethostname())
    with pytest.raises(UsageError, match='another run is writing here'):
        run_tiny(images, tmp_path, '--epochs', 1)
    lock(1, 'elsewhere')
    with pytest.raises(UsageError, match=r'on elsewhere, started noon.*remove .*run\.lock'):
        run_tiny(images, tmp_path, '--epochs', 1)
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    lock(ended.pid, socket.gethostname())
    run_tiny(images, tmp_path, '--epochs', 1)
    assert any('taken over' in line for line in caplog.messages)
    assert not (folder / 'run.lock').exists()


# ---- where it is

@pytest.mark.parametrize('name', ['../..', '../other', '/tmp/other', 'a/../../b', '..'])
def test_a_name_that_leaves_the_output_is_refused(name, images, tmp_path, capsys):
    argv = ['--data-dir', str(images), *TINY, '--output', str(tmp_path / 'out'), '--experiment', name]
    assert run_console(train.main, argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'error: --experiment {name} leaves the folder of runs')
    assert not (tmp_path / 'out').exists()


def test_a_name_may_have_folders(images, tmp_path):
    assert (run_tiny(images, tmp_path, '--epochs', 1, name='sweep/a') / 'last.pth.tar').exists()
