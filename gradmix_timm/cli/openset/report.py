"""``gradmix-openset report``: figures and pages again, from the files of evaluations."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gradmix_timm.cli.errors import user_errors
from gradmix_timm.evaluation.folder import REPORT, check_output, copy_files, draw
from gradmix_timm.openset.reports.report import check_files, mixes_folder
from gradmix_timm.openset.results import read_results
from gradmix_timm.openset.runs import find_evaluations

from .corrupt import draw_corrupt
from .each import own_folders
from .probe import draw_probe
from .shortcut import draw_shortcut

__all__ = ['run_report']

# Functions that draw the report of each command again; osr and ood write the same files.
_DRAW = {'corrupt': draw_corrupt, 'probe': draw_probe, 'shortcut': draw_shortcut}


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
        copy_files(folder, place, mixes_folder(folder, read_results(folder)))
        _DRAW.get(read_results(place).get('command', ''), draw)(place)
        print(place / REPORT)
    return 0


def _places(folders: Sequence[Path], output: str | None) -> list[Path]:
    """Folder of each page: that of its files, or one below --output."""
    if output is None:
        return list(folders)
    return [Path(output)] if len(folders) == 1 else own_folders(folders, output)
