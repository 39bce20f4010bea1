"""Tables and plots of a study, from the files of its cells alone."""
from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradmix_timm.openset.comparison import LOWER_IS_BETTER, Compared, Comparison, Gap, GroupMean, compare_runs
from gradmix_timm.openset.metrics.intervals import FEWEST_PAIRS
from gradmix_timm.openset.reports.tables import text_table
from gradmix_timm.openset.runs import CLOSED_SET, Run, read_runs

from .cells import is_done, result_files
from .plan import Cell, Study

__all__ = ['REPLICATES', 'draw_study', 'study_tables']

#: Axes whose levels repeat the same experiment; a table is made for each combination of the other axes.
REPLICATES = ('seed', 'trial', 'fold')
_METRICS = ('auroc', 'oscr')
# Figures whose smaller value is better.
_LOWER = (*LOWER_IS_BETTER, 'mass on the mark', 'fall without the mark')
# Parts of an evaluation by `openset shortcut`, each with its own table.
_VIEWS: dict[str | None, str] = {
    'own': "images with their own class's mark", 'absent': 'images without a mark',
    'conflict': "images with another class's mark"}


_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Block:
    """Cells that differ in the first axis and in replicates only.

    Attributes:
        title: Levels of the other axes.
        runs: Finished cells; the group is the level of the first axis.
        seconds: Level to the training seconds of its cells.
        means: Score and metric to the mean of each level, over all of its cells.
        differences: Level to its difference to the base by score and metric, over the pairs that these two have; a
            level that shares no cell with the base is not there.
    """

    title: str
    runs: Sequence[Run]
    seconds: Mapping[str, Sequence[float]]
    means: Mapping[_Key, Mapping[str, GroupMean]]
    differences: Mapping[str, Mapping[_Key, Gap]]


def study_tables(study: Study, scores: Sequence[str] | None = None, metrics: Sequence[str] = _METRICS,
                 level: float = 0.95) -> str:
    """Markdown: mean ± standard deviation by level of the first axis, and paired differences to the study's base.

    Means are over all cells of a level that are done. Differences are over the pairs of the same trial, seed and fold
    that a level and the base both have, averaged over the seeds and folds of a class split first; their intervals hold
    simultaneously for all differences of the study's tables (Bonferroni); of fewer than five class splits, or runs of
    one split, none is given. ``wins`` counts the pairs in which a level is better than the base; ``cost`` is the ratio
    of median training seconds. Of several evaluations the tables are those of the first.

    Args:
        study: Cells that are not done are left out, and counted.
        scores: Names; None: all that every cell has.
        metrics: Of each score.
        level: Of the intervals, simultaneously.

    Raises:
        ValueError: No finished cell, or cells that do not belong together.
    """
    blocks = list(_blocks(study, scores, metrics, level))
    done = sum(is_done(study.output, cell) for cell in study.cells)
    heading = f'{done} of {len(study.cells)} cells{_of_command(study)}'
    gaps = [gap for block in blocks for row in block.differences.values() for gap in row.values()]
    if gaps:
        heading += f'; differences to {study.base}'
    if any(map(_has_interval, gaps)):
        heading += f' with simultaneous {100 * level:g}% intervals'
    lines = [heading, f'commits: {", ".join(_commits(study))}']
    for block in blocks:
        lines += ['', *([f'**{block.title}**', ''] if block.title else []), *_table(study, block)]
    return '\n'.join(lines) + '\n'


def draw_study(study: Study, metric: str = 'auroc', score: str = 'mls', level: float = 0.95) -> Any:
    """A matplotlib figure: one panel a block, a point and an interval a level of the first axis, dots for the cells.

    Args:
        study: As for :func:`study_tables`.
        metric: ``top1`` (accuracy; ``score`` is ignored) or a metric of a score.
        score: Name of a score.
        level: Of the intervals of the means.

    Raises:
        ValueError: As :func:`study_tables`, or the cells lack this metric.
    """
    from matplotlib.figure import Figure
    key = (CLOSED_SET, 'top1') if metric == 'top1' else (score, metric)
    blocks = list(_blocks(study, None, (), level))
    figure = Figure(figsize=(max(4., 2.4 * len(blocks)), 0.6 + 0.35 * len(next(iter(study.axes.values())))),
                    layout='constrained')
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    drawn = [_values(study, block, key) for block in blocks]
    names = [name for name in next(iter(study.axes.values())) if any(name in found for found in drawn)]
    for panel, block, found in zip(panels, blocks, drawn, strict=True):
        for name, values in found.items():
            row = names.index(name)
            mean = block.means[key][name]
            panel.plot(values, [row] * len(values), '.', color='0.7', markersize=4)
            panel.plot([mean['mean']], [row], 'o', color='C0')
            if mean['low'] is not None:
                panel.plot([mean['low'], mean['high']], [row, row], '-', color='C0')
        panel.set_title(block.title, fontsize='small')
        panel.set_xlabel('accuracy' if metric == 'top1' else f'{metric} ({score})')
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def _values(study: Study, block: _Block, key: _Key) -> dict[str, list[float]]:
    """Level to the figures of its cells."""
    found: dict[str, list[float]] = {}
    for run in block.runs:
        if key in run.values:
            found.setdefault(run.group, []).append(run.values[key])
    if key not in block.means:
        there = sorted({score for run in block.runs for score, _ in run.values} - {CLOSED_SET})
        raise ValueError(f'not all cells of {study.source} have {key[1]} of {key[0] or "the closed set"}; scores of '
                         f'some: {", ".join(there)}')
    return found


# ---- from files to blocks

def _blocks(study: Study, scores: Sequence[str] | None, metrics: Sequence[str], level: float) -> Iterator[_Block]:
    first, *others = study.axes
    apart = [axis for axis in others if axis not in REPLICATES]
    cells = [cell for cell in study.cells if is_done(study.output, cell)]
    if not cells:
        raise ValueError(f'{study.source}: none of its {len(study.cells)} cells is done')
    views: dict[str | None, str] = {None: ''}
    if next(iter(cells[0].evaluate)) == 'shortcut':
        views = dict(_VIEWS)
    parts: list[tuple[str, list[Run], dict[str, list[float]]]] = []
    for *levels, view in itertools.product(*(study.axes[axis] for axis in apart), views):
        chosen = [cell for cell in cells if all(cell.levels[axis] == level for axis, level in
                                                zip(apart, levels, strict=True))]
        if chosen:
            words = [f'{axis} {name}' for axis, name in zip(apart, levels, strict=True)]
            parts.append((', '.join([*words, views[view]] if view else words),
                          *_read(study, chosen, first, view, scores, metrics)))
    family = sum(len(_paired(runs, study.base)) * len(runs[0].values) for _, runs, _ in parts)
    each = 1 - (1 - level) / max(family, 1)
    for title, runs, seconds in parts:
        means = {key: entry['groups'] for key, entry in _figures(compare_runs(runs, level=level)).items()}
        differences = {}
        for name in _paired(runs, study.base):
            two = [run for run in runs if run.group in (name, study.base)]
            compared = compare_runs(two, study.base, paired=True, common=True, level=each)
            differences[name] = {key: entry['differences'][name] for key, entry in _figures(compared).items()
                                 if key in means}
        yield _Block(title, runs, seconds, means, differences)


def _paired(runs: Sequence[Run], base: str) -> list[str]:
    """Levels that share a trial, seed and fold with the base."""
    cells = {run.cell for run in runs if run.group == base}
    return list(dict.fromkeys(run.group for run in runs if run.group != base and run.cell in cells))


def _read(study: Study, cells: Sequence[Cell], first: str, part: str | None, scores: Sequence[str] | None,
          metrics: Sequence[str]) -> tuple[list[Run], dict[str, list[float]]]:
    runs: list[Run] = []
    seconds: dict[str, list[float]] = {}
    for cell in cells:
        file = next(iter(result_files(study.output, cell).values()))
        run, = read_runs([file.parent], ['folder'], part)
        results = json.loads(file.read_text(encoding='utf-8'))
        values = {key: value for key, value in run.values.items()
                  if key[0] == CLOSED_SET or ((scores is None or key[0] in scores)
                                              and (not metrics or key[1] in metrics))}
        if scores is not None and not {score for score, _ in values} >= set(scores):
            lacking = next(name for name in scores if name not in {score for score, _ in values})
            raise ValueError(f'{file} has no score {lacking}')
        if part == 'own' and 'evidence' in results:  # of the attribution map, as a share and in log-odds
            name = results['evidence']['attribution']
            shown = {'mass on the mark': results['evidence']['mass'],
                     'fall without the mark': results['evidence']['fall_difference']}
            values |= {(name, key): value for key, value in shown.items() if value is not None}
        if 'corruption' in results:
            values['of corrupted images', 'accuracy'] = 1 - results['corruption']['mean_error']
        runs.append(replace(run, group=cell.levels[first], values=values, seed=_number(study, cell, 'seed', run.seed),
                            trial=_number(study, cell, 'trial', run.trial)))
        seconds.setdefault(cell.levels[first], []).append(float(results['manifest']['study']['seconds']['train']))
    return runs, seconds


def _number(study: Study, cell: Cell, axis: str, recorded: int | None) -> int | None:
    """Number of a replicate: the level of that axis, or its place among the levels; as recorded without an axis."""
    if axis not in cell.levels:
        return recorded
    level = cell.levels[axis]
    return int(level) if level.lstrip('-').isdecimal() else study.axes[axis].index(level)


def _figures(comparison: Comparison) -> dict[_Key, Compared]:
    """Each figure by score and metric, the accuracy first."""
    return {(score, metric): entry for score, row in ((CLOSED_SET, comparison['closed_set']),
                                                      *comparison['scores'].items()) for metric, entry in row.items()}


def _of_command(study: Study) -> str:
    """For the heading: whose figures the tables show, where that is not plain."""
    first, *others = next(cell for cell in study.cells if is_done(study.output, cell)).evaluate
    also = f' (also done: {", ".join(others)})' if others else ''
    if first == 'corrupt':
        return f'; corrupt{also}: accuracy of clean images, and the mean over the corruptions'
    return f'; {first}{also}' if others else ''


def _commits(study: Study) -> list[str]:
    files = [next(iter(result_files(study.output, cell).values())) for cell in study.cells
             if is_done(study.output, cell)]
    found = {str(json.loads(file.read_text(encoding='utf-8'))['manifest']['study'].get('commit')) for file in files}
    return sorted(found)


# ---- the table

def _table(study: Study, block: _Block) -> list[str]:
    """Figures by level; levels are the rows if they outnumber the figures."""
    first = next(iter(study.axes))
    levels = [name for name in study.axes[first] if any(run.group == name for run in block.runs)]
    table = [['', *levels]]
    for key in block.means:
        title = 'accuracy' if key[0] == CLOSED_SET else f'{key[1]} {key[0]}'
        table.append([title, *(_entry(study, block, key, name) for name in levels)])
    base = statistics.median(block.seconds[study.base]) if study.base in block.seconds else None
    if base:
        table.append(['cost', *(f'{statistics.median(block.seconds[name]) / base:.2f}' for name in levels)])
    table.append(['cells', *(str(sum(run.group == name for run in block.runs)) for name in levels)])
    if len(levels) > len(table):
        table = [list(row) for row in zip(*table, strict=True)]
    return text_table(table[0], table[1:], texts=range(len(table[0]))).splitlines()


def _entry(study: Study, block: _Block, key: _Key, name: str) -> str:
    mean = block.means[key][name]
    text = f'{mean["mean"]:.3f}' + ('' if mean['sd'] is None else f' ± {mean["sd"]:.3f}')
    if name not in block.differences:
        return text
    gap = block.differences[name][key]
    won, pairs = _wins(study, block, key, name)
    interval = f' [{gap["low"]:+.3f}, {gap["high"]:+.3f}]' if _has_interval(gap) else ''
    return f'{text} ({gap["value"]:+.3f}{interval}, wins {won}/{pairs})'


def _has_interval(gap: Gap) -> bool:
    return gap['n'] >= FEWEST_PAIRS and gap['low'] is not None


def _wins(study: Study, block: _Block, key: _Key, name: str) -> tuple[int, int]:
    """Pairs of equal trial, seed and fold in which a level is better than the base, and all pairs."""
    bases = {run.cell: run.values[key] for run in block.runs if run.group == study.base}
    gaps = [run.values[key] - bases[run.cell] for run in block.runs if run.group == name and run.cell in bases]
    sign = -1 if key[1] in _LOWER else 1
    return sum(sign * gap > 0 for gap in gaps), len(gaps)
