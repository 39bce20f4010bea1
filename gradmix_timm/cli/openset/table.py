"""Output of the evaluation commands: progress and tables."""
from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from gradmix_timm.openset.reports.preset_table import preset_table
from gradmix_timm.openset.reports.report import FPR95_WORDS, closed_set_line, operating_line, score_table
from gradmix_timm.openset.reports.tables import pixel_statistics_of, pooled_line, pretraining_note, warnings_of
from gradmix_timm.openset.results import OpenSetResults
from gradmix_timm.openset.scores import list_scores

__all__ = ['folded', 'print_results', 'score_bar', 'table_width']

_WIDTH = 80


@contextmanager
def score_bar(names: Sequence[str] | None) -> Iterator[Callable[[str], None]]:
    """A progress bar on a terminal that names the current score."""
    with tqdm(total=len(names or list_scores()), desc='scores', leave=False, delay=2., disable=None,
              file=sys.stderr) as bar:
        def on_score(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        yield on_score


def table_width(args: argparse.Namespace) -> int | None:
    """Characters that printed tables keep to; None with --wide."""
    return None if args.wide else _WIDTH


def folded(text: str, width: int | None) -> str:
    """Lines of a text broken at spaces to keep to a width."""
    return text if width is None else '\n'.join(textwrap.fill(line, width) for line in text.splitlines())


def print_results(results: OpenSetResults, width: int | None) -> None:
    """Print accuracy, table, scores that could not be served, and warnings.

    Args:
        results: Of results.json.
        width: Of :func:`table_width`.
    """
    for title, names in results.get('skipped', {}).items():
        print(f'skipped {len(names)} of the {title} that cannot be read: {_some(names)}')
    print(f'\n{folded(closed_set_line(results), width)}\n')
    if line := pooled_line(results):
        print(f'{folded(line, width)}\n')
    print(score_table(results, width=width))
    print(f'\n{folded(FPR95_WORDS, width)}\n\n{folded(operating_line(results), width)}')
    if table := preset_table(results, width):
        print(f'\nBy the conventions of {results["preset"]["name"]}, percent\n\n{table}\n')
    for name, reason in results['not_served'].items():
        print(f'not served: {name}: {reason}')
    for name, choice in (results['tuning']['scores'] if 'tuning' in results else {}).items():
        best = choice['tried'][choice['chosen']]
        print(f'picked on validation images: {choice["chosen"]} for {name} (AUROC {100 * best:.2f} there, of '
              f'{len(choice["tried"])} tried)')
    for name, found in (results.get('sensitivity') or {}).items():
        points = ', '.join(f'{value:.4g}{"*" if value == found["used"] else ""} {100 * area:.2f}'
                           for value, area in found['points'])
        print(f'{name} by {found["option"]} (* used): AUROC {points}')
    for warning in warnings_of(results):
        print(f'warning: {warning}')
    if any(part and part['warnings'] for part in pixel_statistics_of(results)):
        print('note: part of these scores may come from such pixel statistics; check that known and unknown images '
              'were resized and compressed alike (gradmix-openset ood --codec jpeg:85 re-encodes both)')
    if note := pretraining_note(results['manifest']):
        print(f'note: {note}')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:10]) + (f' and {len(names) - 10} more (all are in results.json)' if len(names) > 10 else '')
