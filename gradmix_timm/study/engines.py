"""Engines that run cells: local processes, or an array of Slurm jobs by submitit."""
from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gradmix_timm.choices import ENGINES
from gradmix_timm.registry import nearest

from .cells import CellFailedError, is_done, run_cell
from .plan import Cell, Study

__all__ = ['list_engines', 'run_study']

_logger = logging.getLogger(__name__)
# Cells that a message names at most.
_NAMED = 3
# Seconds between looks at the jobs of an executor that does not queue them.
_LOOK = 0.5


def list_engines() -> dict[str, str]:
    """Engine to its description."""
    return dict(ENGINES)


def run_study(study: Study, engine: str = 'local', jobs: int = 1, threads: int | None = None, keep_runs: bool = False,
              options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Run the cells that are not done; cells that another process holds are left to it, and named in the log.

    Args:
        study: Of :func:`~gradmix_timm.study.plan.read_study`.
        engine: A name of :func:`list_engines`.
        jobs: Cells at a time: processes here, jobs of submitit, or tasks of a Slurm array (unless ``options`` has
            ``slurm_array_parallelism``).
        threads: Of each process; None: the cores of this machine shared out among ``jobs``.
        keep_runs: Keep the run folders with their checkpoints.
        options: Of submitit's executor (``cluster``, ``timeout_min``, ``slurm_partition``, ...).

    Returns:
        Name of each failed cell to its message; a failure does not stop the other cells.

    Raises:
        ValueError: An unknown engine, or submitit is not installed.
    """
    if engine not in list_engines():
        raise ValueError(f'no engine {engine!r}: {nearest(engine, list_engines())}')
    if jobs < 1:
        raise ValueError(f'jobs: {jobs}; expected 1 or more')
    if threads is not None and threads < 1:
        raise ValueError(f'threads: {threads}; expected 1 or more')
    missing = [cell for cell in study.cells if not is_done(study.output, cell)]
    if not missing:
        return {}
    if engine == 'submitit':
        failed = _submit(study, missing, jobs, threads, keep_runs, dict(options or {}))
    else:
        if threads is None:
            threads = max(1, (os.cpu_count() or 1) // jobs)
        failed = _run_here(study, missing, jobs, threads, keep_runs)
    held = [cell.name for cell in missing if cell.name not in failed and not is_done(study.output, cell)]
    if held:
        more = ', ...' if len(held) > _NAMED else ''
        _logger.warning(f'left to other processes, which hold them: {len(held)} of {len(study.cells)} cells '
                        f'({", ".join(held[:_NAMED])}{more}); if one of those ends early, run the study again')
    return failed


def _run_here(study: Study, cells: list[Cell], jobs: int, threads: int, keep_runs: bool) -> dict[str, str]:
    failed: dict[str, str] = {}
    stopped = threading.Event()

    def attempt(cell: Cell) -> bool:
        return not stopped.is_set() and run_cell(study.output, cell, threads, keep_runs, stopped)

    with ThreadPoolExecutor(jobs) as pool, tqdm(
            total=len(study.cells), initial=len(study.cells) - len(cells), desc=study.name, disable=None,
            file=sys.stderr) as bar:
        waiting: dict[Future[bool], Cell] = {pool.submit(attempt, cell): cell for cell in cells}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    cell = waiting.pop(future)
                    try:
                        future.result()
                    except CellFailedError as error:
                        failed[cell.name] = str(error)
                        _logger.error(f'{cell.name}: {error}')
                    bar.update()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


class _Job:
    """A cell as submitit's callable: a job that is about to be preempted is queued again."""

    def __init__(self, folder: Path, cell: Cell, threads: int | None, keep_runs: bool) -> None:
        self.arguments = (folder, cell, threads, keep_runs)

    def __call__(self) -> bool:
        return run_cell(*self.arguments)

    def checkpoint(self) -> Any:
        """Queue the same cell again, which resumes from its last checkpoint."""
        submitit = importlib.import_module('submitit')
        return submitit.helpers.DelayedSubmission(_Job(*self.arguments))


def _submit(study: Study, cells: list[Cell], jobs: int, threads: int | None, keep_runs: bool,
            options: dict[str, Any]) -> dict[str, str]:
    try:
        submitit = importlib.import_module('submitit')
    except ImportError as error:
        raise ValueError('engine submitit needs the package of that name: pip install submitit') from error
    cluster = options.pop('cluster', None)
    executor = submitit.AutoExecutor(folder=study.output / 'jobs', cluster=cluster)
    if executor.cluster == 'slurm':
        options.setdefault('slurm_array_parallelism', jobs)
    executor.update_parameters(name=study.name, **options)
    calls: list[Callable[[], bool]] = [_Job(study.output, cell, threads, keep_runs) for cell in cells]
    if executor.cluster in ('slurm', 'debug'):  # the latter runs a job here once its result is asked for
        with executor.batch():
            submitted = iter([executor.submit(call) for call in calls])
    else:
        submitted = _in_turn(executor, calls, jobs)
    failed = {}
    for cell, job in zip(cells, tqdm(submitted, total=len(cells), desc=study.name, disable=None, file=sys.stderr),
                         strict=True):
        try:
            job.result()
        except Exception as error:  # submitit wraps the job's exception
            failed[cell.name] = ' '.join(str(error).split())[-500:]
            _logger.error(f'{cell.name}: {failed[cell.name]}')
    return failed


def _in_turn(executor: Any, calls: Sequence[Callable[[], bool]], jobs: int) -> Iterator[Any]:
    """Jobs in the order of their calls, of which ``jobs`` run at a time: this machine has no queue of its own."""
    submitted: list[Any] = []
    for place in range(len(calls)):
        while place == len(submitted) or not submitted[place].done():
            running = sum(not job.done() for job in submitted[place:])
            submitted += [executor.submit(call) for call in calls[len(submitted):len(submitted) + jobs - running]]
            time.sleep(_LOOK)
        yield submitted[place]
