"""A claim is trusted, renewed and given up by what is known of its holder."""
from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gradmix_timm import __version__
from gradmix_timm.study import cells as cells_module
from gradmix_timm.study import run_study
from gradmix_timm.study.cells import claimed


@pytest.fixture
def gone() -> int:
    """Number of a process that has ended."""
    with subprocess.Popen([sys.executable, '-c', 'pass']) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize('other', ['boot', 'namespace'])
@pytest.mark.parametrize('ours', [False, True])
def test_numbers_of_another_machine_or_container_of_this_name_say_nothing(tmp_path, gone, other, ours, monkeypatch):
    monkeypatch.setattr(cells_module, '_numbering', lambda: {'host': 'here', 'boot': 'first', 'namespace': 'own'})
    holder = {**cells_module._holder(), 'pid': os.getpid() if ours else gone, 'process': 'another', other: 'another'}
    (tmp_path / 'claim.json').write_text(json.dumps(holder))
    with claimed(tmp_path) as mine:
        assert not mine
    os.utime(tmp_path / 'claim.json', (0, 0))
    with claimed(tmp_path) as mine:
        assert mine


def test_without_proc_a_host_is_known_by_its_name(tmp_path, gone, monkeypatch):
    def missing(*_):
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(os, 'readlink', missing)
        patch.setattr(Path, 'read_text', missing)
        host = cells_module._numbering()
    assert host == {'host': os.uname().nodename}
    monkeypatch.setattr(cells_module, '_numbering', lambda: host)
    (tmp_path / 'claim.json').write_text(json.dumps({**host, 'pid': gone}))
    with claimed(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize('fault', ['unreadable', 'empty'])
def test_a_claim_that_cannot_be_read_for_a_moment_is_still_renewed(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(cells_module, '_BEAT', 0.05)
    real, faults = Path.read_text, []

    def flaky(file, *words, **options):
        if file.name == 'claim.json' and not faults:
            faults.append(file)
            if fault == 'unreadable':
                raise OSError(errno.ESTALE, 'Stale file handle')
            return ''
        return real(file, *words, **options)

    monkeypatch.setattr(Path, 'read_text', flaky)
    with claimed(tmp_path):
        time.sleep(0.3)
        assert faults
        os.utime(tmp_path / 'claim.json', (0, 0))
        time.sleep(0.3)
        assert (tmp_path / 'claim.json').stat().st_mtime > 0


def test_a_cell_whose_claim_was_taken_over_is_left_to_the_other(make, stubbed, monkeypatch, caplog):
    monkeypatch.setattr(cells_module, '_BEAT', 0.1)
    study = make(axes={'mixer': ['slow', 'none'], 'seed': [0]})
    slow, quick = (study.output / cell.name for cell in study.cells)

    def take_over() -> None:
        while not (slow / 'work' / 'run' / 'last.pth.tar').exists():
            time.sleep(0.05)
        (slow / 'claim.json').write_text(json.dumps({'host': 'another', 'pid': 1, 'process': 'another'}))

    threading.Thread(target=take_over, daemon=True).start()
    began = time.monotonic()
    assert run_study(study) == {}
    assert time.monotonic() - began < 50, 'the training sleeps for a minute'
    assert (slow / 'claim.json').exists()
    assert (quick / 'results.json').exists(), 'the other cells go on'
    said = [record.getMessage() for record in caplog.records]
    assert [slow.name in line for line in said] == [True, True]
    assert said[0].startswith(f'{slow.name}: left to another process, which has taken over the claim')


def test_the_commit_is_of_a_repository_that_has_the_package(tmp_path, monkeypatch):
    """Not of one around the environment that it is installed in."""
    def git(*words) -> None:
        subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *words], check=True)

    (tmp_path / 'package').mkdir()
    copied = shutil.copy(cells_module.__file__, tmp_path / 'package')
    (tmp_path / 'own.py').write_text('')
    monkeypatch.setattr(cells_module, '__file__', str(copied))
    assert cells_module._commit() == __version__
    git('init', '--quiet')
    git('add', 'own.py')
    git('commit', '--quiet', '-m', 'own')
    assert cells_module._commit() == __version__
    git('add', 'package')
    git('commit', '--quiet', '-m', 'package')
    assert len(cells_module._commit()) == 12
    Path(copied).write_text('')
    assert cells_module._commit().endswith('+')
