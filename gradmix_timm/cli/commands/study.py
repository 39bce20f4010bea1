"""``gradmix-study``: many trainings and their evaluations from one YAML file, resumable; tables from their files."""
from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from gradmix_timm.checkpoint import atomic_path, write_atomic
from gradmix_timm.cli.errors import user_errors
from gradmix_timm.study import draw_study, read_study, run_study, study_tables
from gradmix_timm.study.cells import is_done

__all__ = ['run']


def run(args: argparse.Namespace) -> int:
    """Run the missing cells, then print the tables.

    Raises:
        UsageError: An error that the user can fix; what to type is in the message.
    """
    with user_errors():
        if not 0 < args.level < 1:
            raise ValueError(f'--level {args.level:g}: expected a coverage between 0 and 1')
        study = read_study(args.study)
    if args.list:
        for cell in study.cells:
            print(f'{"done" if is_done(study.output, cell) else "    "}  {cell.name}')
        return 0
    failed: dict[str, str] = {}
    if not args.table:
        # A scheduler's signal ends a study like Ctrl-C: running cells write a checkpoint.
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with user_errors():
                failed = run_study(study, args.engine, args.jobs, args.threads, args.keep_runs, args.engine_kwargs)
        finally:
            signal.signal(signal.SIGTERM, previous)
    for name in failed:  # the message was logged when the cell failed
        print(f'failed: {name}')
    with user_errors():
        tables = study_tables(study, args.scores, args.metrics, args.level)
        print(tables, end='')
        if args.write:
            write_atomic(Path(args.write), tables)
        if args.plot:
            figure = draw_study(study, args.plot_metric, args.plot_score, args.level)
            with atomic_path(args.plot) as temporary:
                figure.savefig(temporary, dpi=150)
    return 1 if failed else 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
