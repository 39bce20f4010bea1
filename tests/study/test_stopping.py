"""A command that is stopped ends soon, with the processes that it started."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from gradmix_timm.cli.commands import study as study_command
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.study import main
from gradmix_timm.study import engines, forking, run_study

# Its loader's workers are shielded from signals as those of a training are.
LOADING = """
import os, pathlib, sys, time
import torch
from gradmix_timm.cli.training.interrupt import Interrupt, held_signals, leave_signals_to_parent

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 10 ** 6

    def __getitem__(self, place):
        time.sleep(0.01)
        return place

def shield(number):
    leave_signals_to_parent()
    pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {os.getppid()}')

if __name__ == '__main__':
    interrupt = Interrupt()
    with held_signals(interrupt):
        method = {'multiprocessing_context': sys.argv[2]} if sys.argv[2:] else {}
        loader = torch.utils.data.DataLoader(Numbers(), num_workers=1, worker_init_fn=shield, **method)
        Interrupt.kept = iter(loader)  # to the end, as by the frames of an error
        for _ in Interrupt.kept:
            interrupt.check()
"""


def alive(number: int) -> bool:
    with suppress(OSError):
        return ' Z ' not in Path(f'/proc/{number}/stat').read_text()
    return False


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='looks processes up in /proc')
@pytest.mark.parametrize('method', [[], pytest.param(['forkserver'], marks=pytest.mark.slow)])
def test_a_command_with_workers_ends_when_it_is_stopped(tmp_path, monkeypatch, method):
    (tmp_path / 'loading.py').write_text(LOADING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(forking, '_PRELOADED', [])
    stop, found = threading.Event(), tmp_path / 'processes'
    asked: list[float] = []

    def stop_once_it_loads() -> None:
        while not (found.exists() and found.read_text()):
            time.sleep(0.05)
        time.sleep(1)
        asked.append(time.monotonic())
        stop.set()

    threading.Thread(target=stop_once_it_loads, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        forking.run_module(['loading', str(found), *method], tmp_path / 'log', dict(os.environ), stop.is_set)
    assert time.monotonic() - asked[0] < 30
    time.sleep(1)
    assert not any(alive(int(number)) for number in found.read_text().split())


def test_workers_of_a_command_are_started_as_those_of_one_typed_by_hand(tmp_path, monkeypatch):
    (tmp_path / 'asked.py').write_text('import multiprocessing\nprint(multiprocessing.get_start_method())\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(forking, '_PRELOADED', [])
    assert forking.run_module(['asked'], tmp_path / 'log', dict(os.environ), threading.Event().is_set) == 0
    assert (tmp_path / 'log').read_text().strip() in ('fork', 'spawn')


def test_a_study_that_a_scheduler_stops_says_so_by_its_status(make, stubbed, monkeypatch, capsys):
    def stopped(*_) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(study_command, 'run_study', stopped)
    monkeypatch.setattr(study_command, '_check_flags', lambda study: None)
    assert run_console(main, [str(make().source)]) == 143
    assert 'stopped by SIGTERM' in capsys.readouterr().err


@pytest.mark.parametrize('jobs', [1, 2])
def test_submitit_starts_as_many_cells_of_this_machine_as_are_asked_for(make, monkeypatch, jobs):
    running: list[str] = []
    most: list[int] = []

    def run_cell(folder, cell, *_) -> bool:
        running.append(cell.name)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(cell.name)
        if cell.name.startswith('none-1-'):
            raise ValueError('of one cell')
        return True

    with ThreadPoolExecutor(8) as pool:
        class Executor:
            cluster = 'local'

            def __init__(self, **_) -> None:
                self.submit = pool.submit

            def update_parameters(self, **_) -> None:
                """Nothing to set."""

        submitit = ModuleType('submitit')
        submitit.AutoExecutor = Executor
        monkeypatch.setitem(sys.modules, 'submitit', submitit)
        monkeypatch.setattr(engines, 'run_cell', run_cell)
        monkeypatch.setattr(engines, '_LOOK', 0.01)
        failed = run_study(make(), 'submitit', jobs=jobs, options={'cluster': 'local'})
    assert list(failed.values()) == ['of one cell']
    assert len(most) == 6
    assert max(most) == jobs
