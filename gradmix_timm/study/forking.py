"""Commands in processes forked from one that has imported PyTorch: imports take longer than a small training."""
from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ['run_module']

# What train.py and gradmix-openset import; by the server of the first command, for all that follow.
_PRELOADED = ['sklearn.linear_model', 'matplotlib.figure', 'gradmix_timm.cli.training.run', 'gradmix_timm.evaluation',
              'gradmix_timm.cli.openset.main', 'gradmix_timm.openset.reports']
# Each start of a process also asks for the status of all others, which one thread alone may read.
_CHILDREN = threading.Lock()


def run_module(words: Sequence[str], log: Path, environment: Mapping[str, str], stopped: Callable[[], bool]) -> int:
    """``python -m WORDS`` in a process of its own.

    Args:
        words: A module and its flags.
        log: File that its output is appended to.
        environment: All variables of the process.
        stopped: Asked each second; once true, the process gets SIGTERM, and two minutes later SIGKILL.

    Returns:
        Its exit status; of a process that a signal ended, minus the signal's number.

    Raises:
        KeyboardInterrupt: ``stopped`` was true.
    """
    context: ForkServerContext | SpawnContext
    if 'forkserver' in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(_PRELOADED)
    else:  # Windows
        context = multiprocessing.get_context('spawn')
    process = context.Process(target=_run, args=(list(words), str(log.resolve()), dict(environment)))
    with _CHILDREN:
        process.start()
    try:
        while not wait([process.sentinel], 1):
            if stopped():
                raise KeyboardInterrupt
    except BaseException:
        process.terminate()  # training ends at the next batch, with a checkpoint
        if not wait([process.sentinel], 120):
            process.kill()
        raise
    finally:
        with _CHILDREN:
            process.join()
    return process.exitcode or 0


def _end_with_study() -> None:
    """Stop this process as a signal would, with a checkpoint, once the study is gone, also if it was killed."""
    study = multiprocessing.parent_process()
    if study is not None:
        wait([study.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _run(words: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    # The start method of the server holds for the processes that this one starts, too: workers of loaders would each
    # import PyTorch, in a server of their own that outlives an interrupt.
    methods = multiprocessing.get_all_start_methods()
    multiprocessing.set_start_method('fork' if sys.platform == 'linux' else methods[0], force=True)
    with open(log, 'ab') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch = sys.modules.get('torch')
    if torch is not None and 'OMP_NUM_THREADS' in environment:  # read when torch was imported, before the fork
        torch.set_num_threads(int(environment['OMP_NUM_THREADS']))
    threading.Thread(target=_end_with_study, daemon=True).start()
    sys.argv = list(words)
    runpy.run_module(words[0], run_name='__main__', alter_sys=True)
