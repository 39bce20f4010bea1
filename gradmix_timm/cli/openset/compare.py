"""``gradmix-openset compare``: groups of evaluated runs against each other, from their files alone."""
from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradmix_timm.checkpoint import write_atomic
from gradmix_timm.cli.errors import UsageError, user_errors
from gradmix_timm.evaluation.folder import check_output
from gradmix_timm.openset.comparison import Comparison, compare_runs
from gradmix_timm.openset.reports.comparison_page import render_comparison
from gradmix_timm.openset.reports.comparison_tables import (
    METRICS,
    comparison_csv,
    comparison_latex,
    comparison_markdown,
    comparison_rows,
    comparison_title,
    grounds,
    how_decided,
    is_long,
    left_out_scores,
    metrics_of,
    title_of,
)
from gradmix_timm.openset.reports.figures import plot_differences
from gradmix_timm.openset.reports.tables import tables_within
from gradmix_timm.openset.results import ARRAYS, read_arrays
from gradmix_timm.openset.runs import Run, find_runs, read_runs
from gradmix_timm.plots.figure import png
from gradmix_timm.registry import nearest

from .table import folded, table_width

__all__ = ['run_compare']

_NAME = 'comparison'
_DRAWN = ('auroc', 'oscr')


def run_compare(args: argparse.Namespace) -> int:
    """Read, compare, print, write; the page's path comes last."""
    folder = Path(args.output)
    with user_errors():
        for name in ('by', 'scores', 'metrics', 'part'):
            if getattr(args, name) in ([], ''):
                raise UsageError(f'--{name}: got no name, expected one or more, as in --{name} A,B')
        check_output(folder)
        runs = _with_scores(read_runs(find_runs(args.runs), args.by, args.part), args.scores)
        comparison = compare_runs(runs, args.base, args.paired, args.common, args.level, _arrays, args.metrics)
        comparison['part'] = args.part
        known = metrics_of(comparison)
        for metric in args.metrics:
            if known and metric not in known:  # without unknown images there is no score, and accuracy alone
                raise UsageError(f'--metrics: no metric {metric!r}: {nearest(metric, known)}')
    _print(comparison, args.metrics, table_width(args))
    _write(folder, comparison)
    print(folder / f'{_NAME}.html')
    return 0


def _with_scores(runs: list[Run], names: list[str] | None) -> list[Run]:
    """The runs with these scores alone."""
    if names is None:
        return runs
    there = {score for run in runs for score, _ in run.values if score}
    for name in names:
        if name not in there:
            raise UsageError(f'--scores: no score {name!r} in these runs: {nearest(name, there)}')
    wanted = {'', *names}
    return [replace(run, values={key: value for key, value in run.values.items() if key[0] in wanted}) for run in runs]


def _arrays(run: Run) -> dict[str, Any] | None:
    """arrays.npz; None where there is none, and of the commands that keep no scores of images there."""
    if run.facts.get('command') != 'osr' or not (run.folder / ARRAYS).is_file():
        return None
    arrays = read_arrays(run.folder, {score for score, _ in run.values if score})
    if run.part is None:
        return arrays
    rows = np.isin(arrays['unknown_label'], run.part)
    return {name: array[rows] if name.startswith('unknown') else array for name, array in arrays.items()}


def _print(comparison: Comparison, metrics: list[str], width: int | None) -> None:
    print(folded(f'\n{comparison_title(comparison)}\n{grounds(comparison)}', width))
    for metric in ('top1', *metrics):
        heads, rows = comparison_rows(comparison, metric)
        if rows:
            print(f'\n{title_of(metric)}, percent\n{_tables(comparison, heads, rows, width)}')
    print(folded(f'\n{how_decided(comparison)}\n', width) if comparison['paired'] else '')
    for note in comparison['notes']:
        print(f'note: {note}')
    for line in left_out_scores(comparison):
        print(folded(f'left out: {line}', width))
    for name in comparison['left_out_runs']:
        print(f'left out: {name}: no partner')


def _tables(comparison: Comparison, heads: list[str], rows: list[list[str]], width: int | None) -> str:
    """Means of the groups, then difference, p and verdict of each: within a width, or all in one row."""
    if width is None:
        return tables_within(None, heads, rows)
    means = 2 if is_long(comparison) else 1 + len(comparison['groups'])
    parts = [tables_within(width, heads[:means], [row[:means] for row in rows])]
    if len(heads) > means:
        gaps = [row[:1] + row[means:] for row in rows]
        parts.append(tables_within(width, heads[:1] + heads[means:], gaps, together=3))
    return '\n\n'.join(parts)


def _write(folder: Path, comparison: Comparison) -> None:
    """Write each file atomically."""
    write_atomic(folder / f'{_NAME}.json', json.dumps(comparison, indent=1, allow_nan=False) + '\n')
    write_atomic(folder / f'{_NAME}.csv', comparison_csv(comparison))
    write_atomic(folder / f'{_NAME}.md', comparison_markdown(comparison))
    write_atomic(folder / f'{_NAME}.tex', comparison_latex(comparison))
    images = {}
    for metric in _DRAWN:
        gaps = _gaps(comparison, metric)
        name = f'differences-{metric}.png'
        if gaps:
            images[name] = png(plot_differences(gaps, f'difference in {METRICS[metric]} to {comparison["base"]}'))
            write_atomic(folder / name, images[name])
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier comparison
    write_atomic(folder / f'{_NAME}.html', render_comparison(comparison, images))


def _gaps(comparison: Comparison, metric: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Group to score to (value, low, high), where there are intervals."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for score, entries in comparison['scores'].items():
        for group, gap in entries[metric]['differences'].items() if metric in entries else ():
            if gap['low'] is not None and gap['high'] is not None:
                found.setdefault(group, {})[score] = (gap['value'], gap['low'], gap['high'])
    return found
