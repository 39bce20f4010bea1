"""Run one cell of a study: claim it, train, evaluate, and keep small result files with their provenance."""
from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradmix_timm import __version__
from gradmix_timm.checkpoint import write_atomic
from gradmix_timm.choices import COMMA_LISTS, SWITCHES

from .forking import run_module
from .plan import CHECKPOINTS, Cell

__all__ = ['CellFailedError', 'claimed', 'is_done', 'result_files', 'run_cell']

_logger = logging.getLogger(__name__)
_RESULTS, _CLAIM, _WORK, _LOG, _TRAINED = 'results.json', 'claim.json', 'work', 'cell.log', 'seconds.json'
# Seconds between renewals of a claim, and seconds without renewal after which it is considered abandoned.
_BEAT, _DEAD_AFTER = 30., 600.
# Tells this process from an earlier one of its number on a host of its name.
_PROCESS = uuid.uuid4().hex
# Flags that leave out pictures: their folder goes as the cell ends, and they take half of a small evaluation's time.
_PLAIN = ('--no-report', '--feature-map', '0')
_UNSEEN = {'osr': _PLAIN, 'ood': _PLAIN}
# Entries of results.json that tables do not read.
_LEFT_OUT = ('per_class', 'trivial', 'duplicates', 'sensitivity', 'fits')


class CellFailedError(RuntimeError):
    """A command of a cell ended with an error; the message holds its last lines."""


def result_files(folder: Path, cell: Cell) -> dict[str, Path]:
    """Command to its result file: results.json of the first, COMMAND/results.json of the others."""
    first = next(iter(cell.evaluate))
    return {command: folder / cell.name / ('' if command == first else command) / _RESULTS
            for command in cell.evaluate}


def is_done(folder: Path, cell: Cell) -> bool:
    """Whether all result files of a cell exist."""
    return all(file.is_file() for file in result_files(folder, cell).values())


def run_cell(folder: Path, cell: Cell, threads: int | None = None, keep_runs: bool = False,
             stop: threading.Event | None = None) -> bool:
    """Train and evaluate one cell in its folder, unless it is done or claimed by another process.

    Interrupted training resumes from its last checkpoint.

    Args:
        folder: Of the study.
        cell: Which.
        threads: Of each command (OMP_NUM_THREADS); None: as set in the environment.
        keep_runs: Keep the run folder with its checkpoints.
        stop: Once set, the command that runs is interrupted.

    Returns:
        Whether the cell was run here.

    Raises:
        CellFailedError: A command ended with an error.
        KeyboardInterrupt: ``stop`` was set.
    """
    stop, lost = stop or threading.Event(), threading.Event()
    try:
        with claimed(folder / cell.name, lost) as mine:
            if not mine or is_done(folder, cell):
                return False
            _fill(folder, cell, threads, keep_runs, lambda: stop.is_set() or lost.is_set())
            return True
    except KeyboardInterrupt:
        if stop.is_set() or not lost.is_set():
            raise
        return False


def _fill(folder: Path, cell: Cell, threads: int | None, keep_runs: bool, stopped: Callable[[], bool]) -> None:
    """Run the commands of a cell that this process holds, and keep their results."""
    place = folder / cell.name
    environment = {**os.environ, **({} if threads is None else {
        name: str(threads) for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')})}
    run = place / _WORK / 'run'
    train = [*_launched('gradmix_timm.cli.train', cell.processes), *as_flags(cell.train),
             '--output', str(place / _WORK), '--experiment', 'run']
    shown = _shown(train, place)
    seconds = _train(train, run, environment, stopped)
    found = {}
    # Side by side on a GPU machine, 16 cells with four loader processes each took ten times as long to read as
    # without: cells of one thread read by themselves.
    alone: dict[str, Any] = {'workers': 0} if threads == 1 else {}
    for command, flags in cell.evaluate.items():
        started = time.time()
        output = place / _WORK / command
        _command(['gradmix_timm.openset', command, '--checkpoint', str(_checkpoint(run, cell.checkpoint)),
                  *as_flags({**alone, **flags}), *(() if keep_runs else _UNSEEN.get(command, ())),
                  '--output', str(output)],
                 place, environment, stopped)
        seconds[command] = time.time() - started
        found[command] = json.loads((output / _RESULTS).read_text(encoding='utf-8'))
    commands = [shown, *(f'openset {command} {" ".join(as_flags(flags))}'.rstrip()
                                        for command, flags in cell.evaluate.items())]
    for command, file in result_files(folder, cell).items():
        kept = {key: value for key, value in found[command].items() if key not in _LEFT_OUT}
        kept['manifest'] = {**kept['manifest'], 'study': {
            'levels': dict(cell.levels), 'commands': commands, 'commit': _commit(),
            'seconds': {key: round(value, 3) for key, value in seconds.items()},
            'machine': f'{os.cpu_count()} cores', 'threads': threads}}
        write_atomic(file, _without_folders(json.dumps(kept, indent=1, allow_nan=False), place) + '\n')
    (place / _LOG).unlink(missing_ok=True)
    if not keep_runs:
        shutil.rmtree(place / _WORK, ignore_errors=True)


def as_flags(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line.

    Example:
        >>> as_flags({'epochs': 3, 'amp': True, 'channels_last': False, 'scores': ['msp', 'mls']})
        ['--epochs', '3', '--amp', '--scores', 'msp', 'mls']
        >>> as_flags({'gradmix_correct_lam': False})  # on by default
        ['--no-gradmix-correct-lam']
        >>> as_flags({'known_classes': ['cat', 'dog, wild']})
        ['--known-classes', 'cat,"dog, wild"']
    """
    words: list[str] = []
    for key, value in flags.items():
        flag = f'--{key.replace("_", "-")}'
        if isinstance(value, bool):
            off = [f'--no-{flag[2:]}'] if key in SWITCHES else []  # other flags are off unless they are there
            words += [flag] if value else off
        elif isinstance(value, Mapping):
            words += [flag, *(f'{name}={inner}' for name, inner in value.items())]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [flag, *([_with_commas(value)] if key in COMMA_LISTS else map(str, value))]
        else:
            words += [flag, str(value)]
    return words


def _with_commas(values: Sequence[Any]) -> str:
    """A list as one word, which the command line reads as a row of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator='').writerow(values)
    return text.getvalue()


# ---- claims

@contextmanager
def claimed(place: Path, lost: threading.Event | None = None) -> Iterator[bool]:
    """Hold a cell's folder; yields False where another process does.

    The claim is a file made by exclusive creation, which is atomic on shared file systems too, and renewed while it is
    held. A claim of a process that ended on this machine, or that was not renewed for ten minutes, is taken over,
    whatever is in it, by one process; ``lost`` is set where that happens to this one, as after a suspension.
    """
    place.mkdir(parents=True, exist_ok=True)
    file = place / _CLAIM
    if not _claim(file):
        yield False
        return
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_BEAT):
            if _names_us(file) is False:
                _logger.warning(f'{place.name}: left to another process, which has taken over the claim: it was not '
                                f'renewed for {_DEAD_AFTER:g} s')
                if lost is not None:
                    lost.set()
                return
            with suppress(OSError):  # of a network file system, for a moment
                os.utime(file)

    keeper = threading.Thread(target=renew, daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        ended.set()
        keeper.join()
        if _names_us(file):  # else it was taken over while this process was suspended
            file.unlink(missing_ok=True)


def _claim(file: Path) -> bool:
    """Make a claim, or take over one that is abandoned.

    Takeovers have turns, and each looks again in its own: the claim that it found abandoned may have been taken over
    since, and be held.
    """
    if _made(file):
        return True
    if not _abandoned(file):
        return False
    turn = file.with_name(f'{_CLAIM}.takeover')
    if _abandoned(turn):
        turn.unlink(missing_ok=True)
    if not _made(turn):
        return False
    try:
        if _abandoned(file):
            file.unlink(missing_ok=True)
        return _made(file)
    finally:
        turn.unlink(missing_ok=True)


def _made(file: Path) -> bool:
    """Make a file that names this process; False if there is one."""
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, 'w') as opened:
            json.dump(_holder(), opened)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return True


def _holder() -> dict[str, Any]:
    return {**_numbering(), 'pid': os.getpid(), 'process': _PROCESS}


def _numbering() -> dict[str, str]:
    """What numbers of processes belong to: containers and copies of a machine may have one host name.

    Without /proc, the name alone.
    """
    found = {'host': socket.gethostname()}
    with suppress(OSError):
        found['boot'] = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    with suppress(OSError):
        found['namespace'] = os.readlink('/proc/self/ns/pid')
    return found


def _names_us(file: Path) -> bool | None:
    """Whether a claim names this process; None where it cannot be read."""
    try:
        holder = json.loads(file.read_text())
        return (holder.get('pid'), holder.get('process')) == (os.getpid(), _PROCESS)
    except (OSError, ValueError, AttributeError):
        return None


def _abandoned(file: Path) -> bool:
    """Whether the process that made a claim has ended, where its number is of this machine, or has not renewed it."""
    try:
        if time.time() - file.stat().st_mtime > _DEAD_AFTER:
            return True
        holder = json.loads(file.read_text())
        if all(holder.get(name) == value for name, value in _numbering().items()):
            if int(holder['pid']) == os.getpid():  # or of an earlier one of that number, as in a container
                return bool(holder.get('process') != _PROCESS)
            os.kill(int(holder['pid']), 0)
    except ProcessLookupError:
        return True
    except (OSError, LookupError, ValueError, TypeError, AttributeError):  # gone, being written, or of another user
        return False
    return False


# ---- commands

def _train(words: list[str], run: Path, environment: Mapping[str, str],
           stopped: Callable[[], bool]) -> dict[str, float]:
    """Train, or resume from the last checkpoint; returns the seconds of all attempts by command."""
    trained, place = run.parent / _TRAINED, run.parent.parent
    spent = json.loads(trained.read_text()) if trained.is_file() else {'train': 0., 'finished': False}
    if not spent['finished']:
        if (run / 'last.pth.tar').is_file():
            words = [*words, '--resume', str(run / 'last.pth.tar')]
        elif run.is_dir():
            shutil.rmtree(run)  # interrupted before its first checkpoint
        began = time.time()
        try:
            _command(words, place, environment, stopped)
            spent['finished'] = True
        finally:
            spent['train'] += time.time() - began
            write_atomic(trained, json.dumps(spent))
    return {'train': spent['train']}


def _launched(module: str, processes: int) -> list[str]:
    """A module as the first words of a command, under torchrun if it takes more than one process."""
    if processes == 1:
        return [module]
    return ['torch.distributed.run', '--standalone', '--nproc-per-node', str(processes), '-m', module]


def _checkpoint(run: Path, which: str) -> Path:
    chosen = run / CHECKPOINTS[which]
    return chosen if chosen.is_file() else run / CHECKPOINTS['last']  # 'best' needs validation images


def _command(words: Sequence[str], place: Path, environment: Mapping[str, str],
             stopped: Callable[[], bool]) -> None:
    """Run a module with flags; its output goes to a log that is kept where it fails."""
    log = place / _LOG
    if code := run_module(words, log, environment, stopped):
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        raise CellFailedError(f'{_shown(words, place)} ended with status {code}: {" / ".join(lines[-3:])[-500:]} '
                              f'(all of it: {log})')


def _shown(words: Sequence[str], place: Path) -> str:
    return _without_folders(f'-m {" ".join(words)}', place).replace('-m gradmix_timm.cli.train', 'train.py')


def _without_folders(text: str, place: Path) -> str:
    """The text without what this machine alone has: a cell's run folder by its name, data below the current folder."""
    work = place / _WORK
    return text.replace(f'{work.resolve()}', _WORK).replace(f'{work}', _WORK).replace(f'{Path.cwd()}/', '')


def _commit() -> str:
    """Git commit of the running code, with a plus if files differ from it; where no repository has it, its version."""
    file = Path(__file__).resolve()
    try:  # a repository around an environment, which has this file untracked, is another's
        _, commit, changed = [subprocess.run(['git', '-C', str(file.parent), *words], capture_output=True, text=True,
                                             check=True, timeout=10).stdout.strip()
                              for words in (('ls-files', '--error-unmatch', file.name),
                                            ('rev-parse', '--short=12', 'HEAD'),
                                            ('status', '--porcelain', '-uno', '--', str(file.parent)))]
    except (OSError, subprocess.SubprocessError):
        return __version__
    return commit + ('+' if changed else '')
