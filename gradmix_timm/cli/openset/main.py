"""``python -m gradmix_timm.openset``: evaluate models on known and unknown classes; write results, figures, a report.

One parser for all sub-commands; a command over several checkpoints runs once for each.
"""
from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradmix_timm.cli.errors import ConsoleParser, user_errors
from gradmix_timm.evaluation.folder import REPORT, check_output, copy_files, draw
from gradmix_timm.evaluation.processes import PartDoneError, processes
from gradmix_timm.openset.reports.report import check_files
from gradmix_timm.openset.results import read_results
from gradmix_timm.openset.runs import find_evaluations

from .compare import add_compare
from .corrupt import add_corrupt, draw_corrupt
from .ood import add_ood
from .osr import add_osr
from .probe import add_probe, draw_probe
from .shortcut import add_shortcut, draw_shortcut

__all__ = ['build_parser', 'main', 'own_folders']

# Functions that draw the report of each command again; osr and ood write the same files.
_DRAW = {'corrupt': draw_corrupt, 'probe': draw_probe, 'shortcut': draw_shortcut}


def build_parser() -> argparse.ArgumentParser:
    """The command's parser with a parser for each sub-command."""
    parser = ConsoleParser(prog='gradmix-openset',
                           description='Evaluate how well a model separates known from unknown classes.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=ConsoleParser)
    add_osr(commands)
    report = commands.add_parser('report', help='draw figures and page again from the files of an evaluation',
                                 description='Draw figures and page again from results.json and arrays.npz.')
    report.add_argument('folders', nargs='+', metavar='DIR',
                        help='folders that `osr`, `ood`, `corrupt`, `probe` or `shortcut` wrote, run folders, or '
                             'folders above')
    report.add_argument('--output', metavar='DIR', help='write there, files and all (default: where the files are)')
    report.set_defaults(run=run_report)
    add_ood(commands)
    add_compare(commands)
    add_corrupt(commands)
    add_probe(commands)
    add_shortcut(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command."""
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(['gradmix-openset', *(sys.argv[1:] if argv is None else argv)])
    with processes():
        return _run_each(args)


# ---- report

def run_report(args: argparse.Namespace) -> int:
    """Figures and pages again, from files."""
    with user_errors():
        folders = find_evaluations(args.folders)
        for folder in folders:
            check_files(folder)
        places = _places(folders, args.output)
        for place in places:
            check_output(place)
    for folder, place in zip(folders, places, strict=True):
        copy_files(folder, place)
        _DRAW.get(read_results(place).get('command', ''), draw)(place)
        print(place / REPORT)
    return 0


def _places(folders: Sequence[Path], output: str | None) -> list[Path]:
    """Folder of each page: that of its files, or one below --output."""
    if output is None:
        return list(folders)
    return [Path(output)] if len(folders) == 1 else own_folders(folders, output)


# ---- several checkpoints

def _run_each(args: argparse.Namespace) -> int:
    """Run a command for each of its checkpoints, in order.

    Args:
        args: With ``run``; where there is a ``checkpoint``, None or a list of files, ``run`` gets one at a time.

    Returns:
        The last exit status.

    Raises:
        UsageError: A file is missing, or two would write to one folder; raised before any is evaluated.
    """
    status = 0
    parts = list(_parts(args))
    for number, part in enumerate(parts):
        if len(parts) > 1:
            print(f'\n== {part.checkpoint} ({number + 1} of {len(parts)})', flush=True)
        try:
            status = args.run(part)
        except PartDoneError:
            status = 0
        except (Exception, KeyboardInterrupt) as error:
            if len(parts) > 1:
                error.add_note(f'at {part.checkpoint}, after {number} of {len(parts)} checkpoints')
            raise
    return status


def _parts(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The arguments, once for each checkpoint."""
    files: Sequence[str] | None = getattr(args, 'checkpoint', None)
    if files is None:
        yield args
        return
    outputs: list[str | None] = [args.output] * len(files)
    if len(files) > 1:
        with user_errors():
            outputs = list(_outputs(files, args.output))
    for file, output in zip(files, outputs, strict=True):
        yield argparse.Namespace(**{**vars(args), 'checkpoint': file, 'output': output})


def _outputs(files: Sequence[str], output: str | None) -> Sequence[str | None]:
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise ValueError(f'there is no checkpoint {missing[0]} ({len(missing)} of {len(files)} are not there)')
    parents = [Path(file).resolve().parent for file in files]
    twice = [parent for parent, count in Counter(parents).items() if count > 1]
    if output is not None:
        places = [Path(file).resolve().with_suffix('') if parent in twice else parent
                  for file, parent in zip(files, parents, strict=True)]
        return [str(folder) for folder in own_folders(places, output)]
    if twice:
        raise ValueError(f'{twice[0]} holds two of the checkpoints, whose results would go to one folder; name '
                         'another, --output DIR, or one checkpoint a folder')
    return [None] * len(files)


def own_folders(folders: Sequence[Path], output: str | Path) -> list[Path]:
    """A folder below ``output`` for each of several, in the same relative layout.

    Raises:
        ValueError: A folder is named twice.

    Example:
        >>> [str(folder) for folder in own_folders([Path('/runs/a/osr'), Path('/runs/b/osr')], 'out')]
        ['out/a/osr', 'out/b/osr']
    """
    whole = [folder.absolute() for folder in folders]
    twice = [folder for folder, count in Counter(whole).items() if count > 1]
    if twice:
        raise ValueError(f'{twice[0]} is named twice; name it once')
    above = os.path.commonpath(whole)
    return [Path(output) / folder.relative_to(above) for folder in whole]
