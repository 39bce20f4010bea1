"""``gradmix-study``: many trainings and their evaluations from one YAML file, resumable; tables from their files."""
from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from gradmix_timm.checkpoint import atomic_path, write_atomic
from gradmix_timm.study import draw_study, list_engines, read_study, run_study, study_tables
from gradmix_timm.study.cells import is_done

from .config_file import words
from .errors import ConsoleParser, user_errors

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ConsoleParser(prog='gradmix-study', description='Run the trainings and evaluations of a study that are '
                           'not done yet, then print its tables. Several machines may share the output folder.')
    add = parser.add_argument
    add('study', metavar='STUDY.yaml', help='axes, flags of train.py, evaluations; see docs/study.md')
    add('--engine', choices=tuple(list_engines()), default='local', help='(default: local)')
    add('--jobs', type=int, default=1, metavar='N', help='cells at a time (default: 1)')
    add('--threads', type=int, metavar='N', help='threads of each cell (default: the cores shared out among --jobs)')
    add('--keep-runs', action='store_true', help='keep run folders with their checkpoints (default: results alone)')
    add('--engine-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
        help="of submitit's executor: cluster=slurm timeout_min=240 slurm_partition=gpu ...")
    add('--list', action='store_true', help='list the cells and whether they are done; run nothing')
    add('--table', action='store_true', help='print the tables of the cells that are done; run nothing')
    add('--scores', type=words, metavar='A,B,...', help='in the tables (default: all)')
    add('--metrics', type=words, default=['auroc', 'oscr'], metavar='A,B,...', help='(default: auroc,oscr)')
    add('--level', type=float, default=0.95, metavar='P', help='of the simultaneous intervals (default: 0.95)')
    add('--write', metavar='FILE.md', help='write the tables there too')
    add('--plot', metavar='FILE', help='draw a metric of a score by level (.png, .svg)')
    add('--plot-metric', default='auroc', metavar='NAME', help='top1, or a metric of a score (default: auroc)')
    add('--plot-score', default='mls', metavar='NAME', help='(default: mls)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing cells, then print the tables."""
    args = build_parser().parse_args(argv)
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
    for name, message in failed.items():
        print(f'failed: {name}: {message}')
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
