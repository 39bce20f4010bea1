"""Figures of an evaluation: curves, histograms, confusions, reliability; drawn from results and arrays alone.

Each ``plot_*`` returns a matplotlib figure. Those of one panel take ``ax``, axes of the caller's to draw into.
"""
from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from gradmix_timm.openset.metrics.curves import oscr_curve, roc_curve
from gradmix_timm.plots.figure import (
    COLOURS,
    DASHES,
    KNOWN,
    UNKNOWN,
    WIDTH,
    NotebookFigure,
    drawable,
    finished,
    legend_columns,
    plain_percent,
    shortened,
    single_axes,
    styled,
)
from gradmix_timm.registry import nearest

__all__ = ['figure_name', 'plot_confusions', 'plot_differences', 'plot_features', 'plot_oscr', 'plot_panels',
           'plot_reliability', 'plot_roc', 'plot_scores']

# With more curves than colours, only the best are coloured and the others are grey.
_DISTINCT = len(COLOURS)
# Of a class in the table of confusions, whose cells need room beside it.
_LETTERS = 20

Floats = NDArray[np.float64]
Results = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]


def figure_name(title: str) -> str:
    """Name of a PNG file for a title that may hold anything: one part of a path, of harmless letters.

    Example:
        >>> figure_name('histogram-knn:k=5'), figure_name('histogram-x/../../a')
        ('histogram-knn:k=5.png', 'histogram-x_.._.._a-de092bec.png')
    """
    plain = re.sub(r'[^\w.,:=+-]', '_', title, flags=re.ASCII)[:80]
    # Two titles never share a name.
    return f'{plain}.png' if plain == title else f'{plain}-{hashlib.sha256(title.encode()).hexdigest()[:8]}.png'


def plot_roc(results: Results, arrays: Arrays, scores: Sequence[str] | None = None, ax: Axes | None = None) -> Figure:
    """Known images accepted over unknown images accepted, one curve per score; the diagonal is chance.

    With many scores the best by AUROC have colours, the others are grey.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz: knownness float64 [N] of known and [M] of unknown images.
        scores: Names; None: all.
        ax: Axes to draw into.

    Raises:
        ValueError: A score that was not evaluated.
    """
    strokes = _strokes(results, scores, 'auroc')
    axes = single_axes(ax, WIDTH + 0.24 * _rows(strokes))
    for name, stroke in strokes.items():
        curve = roc_curve(arrays[f'known/{name}'], arrays[f'unknown/{name}'])
        axes.plot(curve.x, curve.y, **stroke)
    axes.plot([0, 1], [0, 1], color='#767676', linewidth=1, label='chance 50.0%')
    _rates(axes, 'unknowns accepted', 'knowns accepted')
    return finished(axes, ax is None)


def plot_oscr(results: Results, arrays: Arrays, scores: Sequence[str] | None = None, ax: Axes | None = None) -> Figure:
    """Known images accepted with their own class over unknown images accepted (log scale), one curve per score.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz: knownness float64 [N] of known and [M] of unknown images, ``correct`` bool [N].
        scores: Names; None: all.
        ax: Axes to draw into.

    Raises:
        ValueError: A score that was not evaluated.
    """
    strokes = _strokes(results, scores, 'oscr')
    axes = single_axes(ax, WIDTH + 0.24 * _rows(strokes))
    size = max(results['n_unknown'], 2)
    for name, stroke in strokes.items():
        curve = oscr_curve(arrays[f'known/{name}'], arrays[f'correct/{name}'], arrays[f'unknown/{name}'])
        # A log axis has no zero: points at zero are drawn at half an unknown image.
        x = np.maximum(curve.x, 0.5 / size)
        axes.plot(x, curve.y, **stroke)
    top1 = results['closed_set']['top1']
    axes.axhline(top1, color='#767676', linewidth=1, label=f'closed set {top1:.1%}')
    axes.set_xscale('log')
    axes.set_xlim(0.5 / size, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel('unknowns accepted (log scale)')
    axes.set_ylabel('knowns accepted and correct')
    axes.xaxis.set_major_formatter(plain_percent())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return finished(axes, ax is None)


def plot_scores(results: Results, arrays: Arrays, score: str | None = None, ax: Axes | None = None) -> Figure:
    """Distribution of a score over known and unknown images; the outer half percent is gathered in the end bars.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz: knownness float64 [N] of known and [M] of unknown images.
        score: Its name; None: the one that the threshold is set on, which is drawn as a line.
        ax: Axes to draw into.

    Raises:
        ValueError: A score that was not evaluated.
    """
    threshold = results['threshold']
    score, = _chosen(results, None if score is None else [score], default=threshold['score'])
    known, unknown = arrays[f'known/{score}'], arrays[f'unknown/{score}']
    axes = single_axes(ax, 2.9)
    both = np.concatenate([known, unknown])
    finite = both[np.isfinite(both)]
    low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0., 1.)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    bins = np.linspace(low, high, 41)
    for side, values, colour in (('known', known, KNOWN), ('unknown', unknown, UNKNOWN)):
        share = np.histogram(np.clip(values, low, high), bins)[0] / len(values)
        axes.stairs(share, bins, color=colour, fill=True, alpha=0.25)
        axes.stairs(share, bins, color=colour, linewidth=1.6, linestyle='-' if side == 'known' else '--',
                    label=f'{side} ({len(values):,})')
    value = threshold['value']
    if score == threshold['score'] and value is not None and low <= value <= high:
        axes.axvline(value, color='black', linewidth=1.2, linestyle=':', label='threshold')
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # values of a narrow range have many digits
    axes.set_xlabel(f'{score}: knownness')
    axes.set_ylabel('share of images')
    axes.yaxis.set_major_formatter(plain_percent())
    return finished(axes, ax is None)


def plot_confusions(results: Results, arrays: Arrays, ax: Axes | None = None) -> Figure:
    """Predictions with the threshold applied, as shares of each true class.

    Columns are the true classes, the unknown ones in a block of their own at the right; the last row is 'rejected'.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz; ``confusion`` int64 [K + 1, K + U].
        ax: Axes to draw into.
    """
    counts = arrays['confusion']
    share = counts / np.maximum(counts.sum(0), 1)
    known, unknown = ([shortened(drawable(name), _LETTERS) for name in results[f'{side}_classes']]
                      for side in ('known', 'unknown'))
    few = share.shape[1] <= 24
    if not few:  # one row in hundreds could not be seen
        share = np.concatenate([share, np.repeat(share[-1:], len(known) // 12, axis=0)])
    rows, columns = share.shape
    axes = single_axes(ax, min(max(WIDTH * rows / columns, 1.6), 6.) + (1.5 if few else 0.9))
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1, aspect='auto', interpolation='nearest')
    if few:
        long = max(map(len, [*known, *unknown])) * columns > 36
        axes.set_xticks(range(columns), [*known, *unknown], rotation=90 if long else 0)
        axes.set_yticks(range(rows), [*known, 'rejected'])
        _write_shares(axes, share)
    else:
        axes.set_xticks([len(known) / 2, len(known) + len(unknown) / 2], ['known', 'unknown'])
        axes.set_yticks([len(known) / 2, (rows + len(known)) / 2], ['known classes', 'rejected'])
    axes.axvline(len(known) - 0.5, color='black', linewidth=1.6)
    axes.axhline(len(known) - 0.5, color='black', linewidth=1.6)
    axes.set_xlabel('true class (right of the line: unknown)' if few else 'true class')
    axes.set_ylabel('predicted')
    axes.grid(False)
    if not few:
        axes.figure.colorbar(image, ax=axes, format=PercentFormatter(1), label='share of the true class')
    return finished(axes, ax is None, legend=False)


def plot_reliability(results: Results, arrays: Arrays, ax: Axes | None = None) -> Figure:
    """Accuracy over confidence of the closed-set prediction, in bins of equal width; the diagonal is calibrated.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz: ``bin_confidence``, ``bin_accuracy``, ``bin_share`` float64 [bins], in [0, 1].
        ax: Axes to draw into.
    """
    confidence, accuracy, share = (arrays[f'bin_{name}'] for name in ('confidence', 'accuracy', 'share'))
    axes = single_axes(ax, WIDTH)
    filled = share > 0
    edges = np.linspace(0, 1, len(share) + 1)
    axes.bar(edges[:-1], share, width=np.diff(edges), align='edge', color='#B8B8B8', label='share of images')
    axes.plot([0, 1], [0, 1], color='#767676', linewidth=1, label='confidence = accuracy')
    axes.plot(confidence[filled], accuracy[filled], color=KNOWN, marker='o', markersize=5, linewidth=1.6,
              label=f'known images, ECE {results["calibration"]["ece"]:.1%}')
    _rates(axes, 'confidence (largest softmax)', 'accuracy')
    return finished(axes, ax is None)


def plot_differences(gaps: Mapping[str, Mapping[str, tuple[float, float, float]]], what: str,
                     ax: Axes | None = None) -> Figure:
    """Differences with their intervals: one row per score and a mark for each group, or a row for each of many groups.

    Args:
        gaps: Group to score to (value, low, high), fractions.
        what: Label of the axis.
        ax: Axes to draw into.
    """
    gaps, what = {drawable(group): part for group, part in gaps.items()}, drawable(what)
    scores = list(dict.fromkeys(score for part in gaps.values() for score in part))
    apart, names = len(gaps) > len(COLOURS), scores
    if apart:  # colours would repeat
        names = [group if len(scores) == 1 else f'{score}, {group}' for score in scores for group in gaps]
    axes = single_axes(ax, 1.2 + 0.24 * max(len(scores) * len(gaps), 4))
    for place, (group, part) in enumerate(gaps.items()):
        at = [scores.index(score) + 0.7 * ((place + 0.5) / len(gaps) - 0.5) for score in part]
        if apart:
            at = [scores.index(score) * len(gaps) + place for score in part]
        value, low, high = (100 * np.array([entry[i] for entry in part.values()]) for i in range(3))
        kind = 0 if apart else place
        axes.errorbar(value, at, xerr=[value - low, high - value], fmt='os^Dv'[kind % 5], markersize=4.5,
                      linewidth=1.4, capsize=2.5, color=COLOURS[kind], label=group)
    axes.axvline(0, color='#767676', linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    # Characters of the axis label that fit beside the longest names of scores.
    axes.set_xlabel(textwrap.fill(f'{what}, percentage points', 32))
    return finished(axes, ax is None, legend=not apart)


def plot_features(arrays: Arrays) -> Figure:
    """Where the images lie in the plane: a panel a projection, known and unknown in two colours and shapes.

    Args:
        arrays: Of arrays.npz; ``plane/known`` bool [N] and ``plane/PCA`` or ``plane/t-SNE`` [N, 2].
    """
    known = arrays['plane/known']
    planes = {name: arrays[f'plane/{name}'] for name in ('PCA', 't-SNE') if f'plane/{name}' in arrays}
    figure = NotebookFigure(WIDTH, 0.4 + 3.1 * len(planes))
    for place, (name, plane) in enumerate(planes.items()):
        axes = figure.add_subplot(len(planes), 1, place + 1)
        for side, colour, mark in ((True, KNOWN, 'o'), (False, UNKNOWN, '^')):
            rows = known == side
            axes.scatter(plane[rows, 0], plane[rows, 1], s=7, marker=mark, color=colour, alpha=0.45, linewidths=0,
                         label=f'{"known" if side else "unknown"} ({rows.sum():,})')
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(name)
        axes.spines[['top', 'right']].set_visible(False)
    return finished(figure.axes[0], own=True)


def plot_panels(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]], x: str, y: str,
                lines: Mapping[str, float] | None = None) -> Figure:
    """Rates over a few whole numbers, a panel a group, one line per entry, all on one scale; bands are intervals.

    Args:
        panels: Title to name to points (x, value, low, high); values are fractions.
        x: What the whole numbers are.
        y: What the values are.
        lines: Name to a level that is drawn across every panel.
    """
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    shared = len({tuple(entries) for entries in panels.values()}) == 1
    figure = NotebookFigure(WIDTH, 0.7 + (2.9 if columns == 2 else 3.2) * rows)
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, entries) in zip(grid.flat, panels.items(), strict=False):
        for place, (name, points) in enumerate(entries.items()):
            at, value, low, high = np.array(points, dtype=float).T
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(at, value, marker='os^Dv'[place % 5], markersize=4.5, linewidth=1.6, color=colour, label=name)
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        for place, (name, level) in enumerate((lines or {}).items()):
            axes.axhline(level, color='#767676' if len(lines or {}) == 1 else COLOURS[3 + place % 4], linewidth=1.2,
                         linestyle=DASHES[1 + place % 2], label=name)
        axes.set_xticks(sorted({point[0] for points in entries.values() for point in points}))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        styled(axes)
        axes.set_title(title, fontsize=10, loc='left')
        if not shared:
            axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.1), fontsize=8.5, frameon=False, handlelength=1.6,
                        borderaxespad=0.2, labelspacing=0.25)
    if not lines:
        grid[0, 0].set_ylim(bottom=0)
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    if shared:  # above the panels, clear of the axis labels
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside upper center', ncols=2, frameon=False,
                      fontsize=9.5, handlelength=2.2, columnspacing=1.4)
    return finished(grid[0, 0], own=True, legend=False)


def _rows(strokes: Mapping[str, Mapping[str, Any]]) -> int:
    """Rows of the legend, a straight line among them."""
    labels = [stroke['label'] for stroke in strokes.values() if stroke['label'] is not None] + ['closed set 50.0%']
    return -(-len(labels) // legend_columns(labels))


def _chosen(results: Results, scores: Sequence[str] | None, default: str | None = None) -> list[str]:
    """The scores to draw: all or the default, or those that are named.

    Raises:
        ValueError: A score that was not evaluated.
    """
    have = list(results['scores'])
    if scores is None:
        return have if default is None else [default]
    scores = [scores] if isinstance(scores, str) else scores
    for name in scores:
        if name not in have:
            raise ValueError(f'no score {name!r} in this evaluation: {nearest(name, have)}')
    return list(scores)


def _strokes(results: Results, scores: Sequence[str] | None, metric: str) -> dict[str, dict[str, Any]]:
    """Style of each curve, the grey ones first, since only a few colours are distinct.

    Whatever the metric in the legend, colours go to the best by AUROC, so a score has one colour in all figures.
    """
    entries = {name: results['scores'][name] for name in _chosen(results, scores)}
    area = {name: entry[metric] for name, entry in entries.items()}
    main = results['threshold']['score']
    best = sorted(entries, key=lambda name: (name != main, -entries[name]['auroc']))
    chosen = list(area) if len(area) <= _DISTINCT else [name for name in area if name in best[:_DISTINCT - 1]]
    others = [name for name in area if name not in chosen]
    strokes: dict[str, dict[str, Any]] = {
        name: {'color': '#BDBDBD', 'linewidth': 1., 'label': None if place else f'{len(others)} other scores'}
        for place, name in enumerate(others)}
    for place, name in enumerate(chosen):
        strokes[name] = {
            'color': COLOURS[place], 'linestyle': DASHES[place % len(DASHES)], 'label': f'{name} {area[name]:.1%}',
            'linewidth': 3. if name == main else 1.4, 'zorder': 3 if name == main else 2}
    return strokes


def _rates(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _write_shares(axes: Axes, share: Floats) -> None:
    size = 8.5 if share.shape[1] <= 12 else 6.
    for row, column in np.argwhere(share >= 0.005):
        value = share[row, column]
        axes.text(column, row, f'{100 * value:.0f}', ha='center', va='center', fontsize=size,
                  color='white' if value > 0.55 else 'black')
