"""What the commands that tell known from unknown share: flags, the scores with a bar, pixel statistics, the table."""
from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from gradmix_timm.checkpoint import Loaded
from gradmix_timm.cli.config_file import words
from gradmix_timm.data import CutDataset
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.extract import head_of
from gradmix_timm.openset.judge import Judged, Subjects, judge
from gradmix_timm.openset.pixel_statistics import STATISTICS, compare_statistics, measure, warnings_of
from gradmix_timm.openset.reports.report import closed_set_line, operating_line, score_table
from gradmix_timm.openset.reports.tables import pretraining_note
from gradmix_timm.openset.scores import Head, list_scores
from gradmix_timm.openset.sensitivity import sensitivity

from .embedding import Subject, rows_of

__all__ = ['add_evaluation_flags', 'classifier_of', 'judge_with_bar', 'pixel_statistics', 'print_results',
           'recorded_top1', 'sensitivity_with_bar', 'trivial_probe']


class _Names(argparse.Action):
    """Names in one word or several: ``msp,mls`` and ``msp mls``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [name for part in values for name in part])


def add_evaluation_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    """Flags of scores, intervals, pixel statistics and output.

    Args:
        parser: Of the command.
        folder: Default name of the output beside the checkpoint.
    """
    add = parser.add_argument_group('Evaluation').add_argument
    add('--scores', type=words, nargs='+', action=_Names, metavar='A,B,...',
        help=f'(default: all of {", ".join(list_scores())}); pytorch-ood:NAME for a detector of that package')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples for the intervals (default: 1000)')
    add('--seed', type=int, default=0, metavar='N', help='of the resamples (default: 0)')
    add('--trivial-images', type=int, default=500, metavar='N',
        help='images of each set whose brightness, sharpness, ... are compared; 0: none (default: 500)')
    add('--duplicates', type=int, default=1000, metavar='N',
        help='unknown images nearest to a known one by features whose pixels are compared; 0: none (default: 1000)')
    add('--sensitivity', action='store_true',
        help='score again with other settings (neighbours, dimensions, percentiles, ...), to see what hangs on them')
    add('--feature-map', type=int, default=1000, metavar='N',
        help='test images in the figure of the features (PCA, t-SNE); 0: none (default: 1000)')
    add('--output', metavar='DIR', help=f'(default: the folder {folder} beside the checkpoint)')


def classifier_of(model: nn.Module) -> tuple[Head | None, str]:
    """The model's head, or None and why there is none."""
    try:
        return head_of(model), ''
    except ValueError as error:
        return None, str(error)


def recorded_top1(loaded: Loaded | None) -> float | None:
    """Closed-set accuracy, in [0, 1], that a checkpoint had on its held-out images; None where it does not say."""
    if loaded is None or loaded.metric is None or (loaded.args or {}).get('eval_metric') != 'top1':
        return None
    return loaded.metric / 100


def judge_with_bar(args: argparse.Namespace, subjects: Subjects) -> Judged:
    """:func:`~gradmix_timm.openset.judge.judge`, with word of which score has its turn."""
    with tqdm(total=len(args.scores or list_scores()), desc='scores', leave=False, delay=2.,
              disable=None, file=sys.stderr) as bar:
        def told(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return judge(subjects, args.scores, args.bootstrap, args.seed, told)


def sensitivity_with_bar(args: argparse.Namespace, subjects: Subjects, names: Sequence[str]) -> dict[str, Any]:
    """The block ``sensitivity`` of results.json; empty without --sensitivity."""
    if not args.sensitivity:
        return {}
    with tqdm(desc='sensitivity', leave=False, delay=2., disable=None, file=sys.stderr) as bar:
        return sensitivity(subjects, names, bar.set_postfix_str)


class _Statistics:
    """A transform: an image to its statistics, measured as the model sees it but for the normalisation."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.transform = preprocessing.transform(normalize=False)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.transform(image).float() / 255
        return torch.from_numpy(measure(pixels.permute(1, 2, 0).numpy(), image.size))


def pixel_statistics(subject: Subject, images: CutDataset, rows: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Statistics of at most --trivial-images images, spread evenly over the set.

    Args:
        subject: Preprocessing and flags.
        images: A set.
        rows: Those of its rows that can be read.

    Returns:
        float64 [n, 8]; none where there is nothing to measure.
    """
    rows = np.asarray(rows)
    count = min(subject.args.trivial_images, len(rows))
    chosen = rows_of(images, rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])
    chosen.transform = _Statistics(subject.preprocessing)
    loader = DataLoader(chosen, batch_size=32, num_workers=subject.workers(count))
    found = torch.cat([torch.empty(0, len(STATISTICS), dtype=torch.float64), *(part[0] for part in loader)]).numpy()
    if not any(getattr(subject.args, name, None) for name in ('codec', 'unknown_codec')):
        found[:, list(STATISTICS).index('bytes')] = [_file_length(chosen, row) for row in range(count)]
    return found


def _file_length(images: CutDataset, row: int) -> float:
    """Log of the bytes of an image's file; NaN where it lies in an archive or an array."""
    try:
        return math.log(os.path.getsize(images.filename(row, absolute=True)))
    except (OSError, ValueError, TypeError):
        return math.nan


def trivial_probe(known: NDArray[np.float64], unknown: NDArray[np.float64], seed: int,
                  whose: str = 'the unknown images') -> dict[str, Any] | None:
    """The block ``trivial`` of results.json, with its warnings; None where nothing was measured."""
    if not len(known) or not len(unknown):
        return None
    compared = compare_statistics(known, unknown, seed)
    return {**compared, 'warnings': warnings_of(compared, whose)}


def print_results(results: dict[str, Any]) -> None:
    """Accuracy, table, what could not be served, and what to beware of."""
    for title, names in results['skipped'].items():
        print(f'skipped {len(names)} of the {title} that cannot be read: {_some(names)}')
    print(f'\n{closed_set_line(results)}\n')
    print(score_table(results))
    print(operating_line(results))
    for name, reason in results['not_served'].items():
        print(f'not served: {name}: {reason}')
    for name, found in (results.get('sensitivity') or {}).items():
        points = ', '.join(f'{value:.4g}{"*" if value == found["used"] else ""} {100 * area:.2f}'
                           for value, area in found['points'])
        print(f'{name} by {found["option"]} (* used): AUROC {points}')
    warnings = [warning for part in (results, *results['groups'].values())
                for warning in (part.get('trivial') or {}).get('warnings', ())]
    lost = (results.get('accuracy_gate') or {}).get('warning')
    for warning in ([lost] if lost else []) + warnings:
        print(f'warning: {warning}')
    if began := pretraining_note(results):
        print(f'note: {began}')
    for warning in (results.get('duplicates') or {}).get('warnings', ()):
        print(f'warning: {warning}')
    if warnings:
        print('A score may owe part of its figure to that: see that both sides went through one resize and one codec '
              '(openset ood has --codec jpeg:85).')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:10]) + (f' and {len(names) - 10} more (all are in results.json)' if len(names) > 10 else '')
