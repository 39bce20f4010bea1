"""Flags of ``python -m gradmix_timm.study``; what it does is in :mod:`.commands.study`."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from gradmix_timm.choices import ENGINES

from .config_file import ParseKwargs, words
from .errors import ConsoleParser

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ConsoleParser(prog='gradmix-study', description='Run the trainings and evaluations of a study that are '
                           'not done yet, then print its tables. Several machines may share the output folder.')
    add = parser.add_argument
    add('study', metavar='STUDY.yaml', help='axes, flags of train.py, evaluations; see docs/study.md')
    add('--engine', choices=tuple(ENGINES), default='local',
        help='where cells run: on this machine, or by submitit, as Slurm jobs (default: local)')
    add('--jobs', type=int, default=1, metavar='N',
        help='cells at a time; with Slurm: tasks of the array at a time, --engine-kwargs slurm_array_parallelism=N '
             '(default: 1)')
    add('--threads', type=int, metavar='N', help='threads of each cell (default: the cores shared out among --jobs)')
    add('--keep-runs', action='store_true', help='keep run folders with their checkpoints (default: results alone)')
    add('--engine-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
        help="options of submitit's executor: cluster=slurm timeout_min=240 slurm_partition=gpu ...")
    add('--list', action='store_true', help='list the cells and whether they are done; run nothing')
    add('--table', action='store_true', help='print the tables of the cells that are done; run nothing')
    add('--scores', type=words, metavar='A,B,...', help='scores in the tables (default: all)')
    add('--metrics', type=words, default=['auroc', 'oscr'], metavar='A,B,...',
        help='metrics in the tables (default: auroc,oscr)')
    add('--level', type=float, default=0.95, metavar='P', help='coverage of the simultaneous intervals (default: 0.95)')
    add('--write', metavar='FILE.md', help='write the tables there too')
    add('--plot', metavar='FILE', help='draw a metric of a score by level (.png, .svg)')
    add('--plot-metric', default='auroc', metavar='NAME', help='top1, or a metric of a score (default: auroc)')
    add('--plot-score', default='mls', metavar='NAME', help='score of --plot-metric (default: mls)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    from .commands.study import run  # imports PyTorch, which flags need not wait for
    return run(args)
