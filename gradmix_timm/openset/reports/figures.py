"""Figures of an evaluation as PNG files: curves, histograms, confusion, reliability; drawn from arrays alone."""
from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from gradmix_timm.openset.metrics.curves import oscr_curve, roc_curve

__all__ = ['KNOWN', 'UNKNOWN', 'draw_confusion', 'draw_differences', 'draw_features', 'draw_histogram', 'draw_oscr',
           'draw_panels', 'draw_reliability', 'draw_roc', 'figure_name']

# Okabe and Ito's colours, told apart by every kind of colour vision; yellow is left out, it vanishes on white.
KNOWN, UNKNOWN = '#0072B2', '#D55E00'
_COLOURS = (KNOWN, UNKNOWN, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_DASHES = ('-', (0, (5, 2)), (0, (1, 1.5)))
# Curves in colour; with more, those beyond the best are grey.
_TOLD_APART = len(_COLOURS)
# A figure is as wide as a phone shows it, 343 CSS pixels or so: 10 points are then 11 pixels.
_WIDTH, _DPI = 4.5, 160
_FONT = {'family': 'DejaVu Sans', 'size': 10.}

Floats = NDArray[np.float64]


def figure_name(title: str) -> str:
    """Name of a PNG file for a title that may hold anything: one part of a path, of harmless letters.

    Example:
        >>> figure_name('histogram-knn:k=5'), figure_name('histogram-x/../../a')
        ('histogram-knn:k=5.png', 'histogram-x_.._.._a-de092bec.png')
    """
    plain = re.sub(r'[^\w.,:=+-]', '_', title, flags=re.ASCII)[:80]
    # Two titles never share a name.
    return f'{plain}.png' if plain == title else f'{plain}-{hashlib.sha256(title.encode()).hexdigest()[:8]}.png'


def draw_roc(known: Mapping[str, Floats], unknown: Mapping[str, Floats], auroc: Mapping[str, float],
             main: str = '') -> bytes:
    """Knowns accepted over unknowns accepted, one curve a score; the diagonal is chance.

    With many scores the best have colours, the others are grey.

    Args:
        known: Score to knownness of the knowns, float64 [N].
        unknown: The same of the unknowns, float64 [M].
        auroc: Score to area; its scores are drawn.
        main: Score whose curve stands out.

    Returns:
        A PNG file.
    """
    strokes = _strokes(auroc, main)
    figure, axes = _figure(_WIDTH + 0.24 * _rows(strokes))
    for name, stroke in strokes.items():
        curve = roc_curve(known[name], unknown[name])
        axes.plot(curve.x, curve.y, **stroke)
    axes.plot([0, 1], [0, 1], color='#767676', linewidth=1, label='chance 50.0%')
    _rates(axes, 'unknowns accepted', 'knowns accepted')
    return _png(figure, axes)


def draw_oscr(known: Mapping[str, Floats], correct: Mapping[str, NDArray[np.bool_]], unknown: Mapping[str, Floats],
              oscr: Mapping[str, float], top1: float, main: str = '') -> bytes:
    """Knowns accepted with their own class over unknowns accepted (log scale), one curve a score.

    Args:
        known: Score to knownness of the knowns, float64 [N].
        correct: Score to which of them got their own class, bool [N].
        unknown: Score to knownness of the unknowns, float64 [M].
        oscr: Score to area; its scores are drawn.
        top1: The classifier's closed-set accuracy.
        main: Score whose curve stands out.

    Returns:
        A PNG file.
    """
    strokes = _strokes(oscr, main)
    figure, axes = _figure(_WIDTH + 0.24 * _rows(strokes))
    size = max(len(next(iter(unknown.values()))), 2)
    for name, stroke in strokes.items():
        curve = oscr_curve(known[name], correct[name], unknown[name])
        # A log axis has no zero: what stands there is drawn at half an unknown.
        x = np.maximum(curve.x, 0.5 / size)
        axes.plot(x, curve.y, **stroke)
    axes.axhline(top1, color='#767676', linewidth=1, label=f'closed set {top1:.1%}')
    axes.set_xscale('log')
    axes.set_xlim(0.5 / size, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel('unknowns accepted (log scale)')
    axes.set_ylabel('knowns accepted and correct')
    axes.xaxis.set_major_formatter(_plain_percent())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return _png(figure, axes)


def draw_histogram(name: str, known: Floats, unknown: Floats, threshold: float | None = None) -> bytes:
    """How one score is spread over knowns and unknowns; the outer half percent is gathered in the end bars.

    Args:
        name: Of the score.
        known: Knownness of the knowns, float64 [N].
        unknown: Of the unknowns, float64 [M].
        threshold: Drawn as a line where given.

    Returns:
        A PNG file.
    """
    figure, axes = _figure(2.9)
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
    if threshold is not None and low <= threshold <= high:
        axes.axvline(threshold, color='black', linewidth=1.2, linestyle=':', label='threshold')
    axes.set_xlim(low, high)
    axes.set_xlabel(f'{name}: knownness')
    axes.set_ylabel('share of images')
    axes.yaxis.set_major_formatter(_plain_percent())
    return _png(figure, axes)


def draw_confusion(counts: NDArray[np.int64], known: Sequence[str], unknown: Sequence[str]) -> bytes:
    """Where the images of each class go: columns the true classes, unknowns in a block of their own at the right.

    Args:
        counts: Images by answer and true class, int64 [K + 1, K + U]; the last row counts those rejected.
        known: K names in head order.
        unknown: U names.

    Returns:
        A PNG file; shares of each column.
    """
    share = counts / np.maximum(counts.sum(0), 1)
    # Folders' names that are not UTF-8 hold surrogates, which no font can draw.
    known, unknown = ([name.encode('utf-8', 'backslashreplace').decode() for name in names]
                      for names in (known, unknown))
    few = share.shape[1] <= 24
    if not few:  # one row in hundreds could not be seen
        share = np.concatenate([share, np.repeat(share[-1:], len(known) // 12, axis=0)])
    rows, columns = share.shape
    figure, axes = _figure(min(max(_WIDTH * rows / columns, 1.6), 6.) + (1.5 if few else 0.9))
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1, aspect='auto', interpolation='nearest')
    if few:
        axes.set_xticks(range(columns), [*known, *unknown], rotation=90 if _long([*known, *unknown]) else 0)
        axes.set_yticks(range(rows), [*known, 'rejected'])
        _write_shares(axes, share)
    else:
        axes.set_xticks([len(known) / 2, len(known) + len(unknown) / 2], ['known', 'unknown'])
        axes.set_yticks([len(known) / 2, (rows + len(known)) / 2], ['known classes', 'rejected'])
    axes.axvline(len(known) - 0.5, color='black', linewidth=1.6)
    axes.axhline(len(known) - 0.5, color='black', linewidth=1.6)
    axes.set_xlabel('true class (right of the line: unknown)' if few else 'true class')
    axes.set_ylabel('answer')
    axes.grid(False)
    if not few:
        figure.colorbar(image, format=PercentFormatter(1), label='share of the true class')
    return _png(figure)


def draw_reliability(confidence: Floats, accuracy: Floats, share: Floats, error: float) -> bytes:
    """Accuracy over confidence of the closed-set prediction, in bins of equal width; the diagonal is calibrated.

    Args:
        confidence: Mean in each bin, float64 [B], NaN where empty.
        accuracy: The same.
        share: Of the images in each bin, float64 [B].
        error: Expected calibration error, for the legend.

    Returns:
        A PNG file.
    """
    figure, axes = _figure(_WIDTH)
    filled = share > 0
    edges = np.linspace(0, 1, len(share) + 1)
    axes.bar(edges[:-1], share, width=np.diff(edges), align='edge', color='#B8B8B8', label='share of images')
    axes.plot([0, 1], [0, 1], color='#767676', linewidth=1, label='confidence = accuracy')
    axes.plot(confidence[filled], accuracy[filled], color=KNOWN, marker='o', markersize=5, linewidth=1.6,
              label=f'known images, ECE {error:.1%}')
    _rates(axes, 'confidence (largest softmax)', 'accuracy')
    return _png(figure, axes)


def draw_differences(gaps: Mapping[str, Mapping[str, tuple[float, float, float]]], what: str) -> bytes:
    """Differences with their intervals, a row a score, a mark a group; the line is no difference.

    Args:
        gaps: Group to score to (value, low, high), fractions.
        what: Label of the axis.

    Returns:
        A PNG file.
    """
    scores = list(dict.fromkeys(score for part in gaps.values() for score in part))
    figure, axes = _figure(1.2 + 0.24 * max(len(scores) * len(gaps), 4))
    for place, (group, part) in enumerate(gaps.items()):
        rows = [scores.index(score) + 0.7 * ((place + 0.5) / len(gaps) - 0.5) for score in part]
        value, low, high = (100 * np.array([entry[i] for entry in part.values()]) for i in range(3))
        axes.errorbar(value, rows, xerr=[value - low, high - value], fmt='os^Dv'[place % 5], markersize=4.5,
                      linewidth=1.4, capsize=2.5, color=_COLOURS[place % len(_COLOURS)], label=group)
    axes.axvline(0, color='#767676', linewidth=1)
    axes.set_yticks(range(len(scores)), scores)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    # A line holds so many letters beside the longest names of scores.
    axes.set_xlabel(textwrap.fill(f'{what}, percentage points', 32))
    return _png(figure, axes)


def draw_features(points: Mapping[str, Floats], known: NDArray[np.bool_]) -> bytes:
    """Where the images lie in the plane: a panel a projection, knowns and unknowns in two colours and shapes.

    Args:
        points: Name of a projection to float64 [N, 2].
        known: Which images are of known classes, bool [N].

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(_WIDTH, 0.4 + 3.1 * len(points)), dpi=_DPI, layout='constrained', facecolor='white')
    for place, (name, plane) in enumerate(points.items()):
        axes = figure.add_subplot(len(points), 1, place + 1)
        for side, colour, mark in ((True, KNOWN, 'o'), (False, UNKNOWN, '^')):
            rows = known == side
            axes.scatter(plane[rows, 0], plane[rows, 1], s=7, marker=mark, color=colour, alpha=0.45, linewidths=0,
                         label=f'{"known" if side else "unknown"} ({rows.sum():,})')
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(name)
        axes.spines[['top', 'right']].set_visible(False)
    return _png(figure, figure.axes[0])


def draw_panels(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]], x: str, y: str,
                lines: Mapping[str, float] | None = None) -> bytes:
    """Rates over a few whole numbers, a panel a group, a line an entry, all on one scale; bands are intervals.

    Args:
        panels: Title to name to points (x, value, low, high); values are fractions.
        x: What the whole numbers are.
        y: What the values are.
        lines: Name to a level that is drawn across every panel.

    Returns:
        A PNG file.
    """
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    shared = len({tuple(entries) for entries in panels.values()}) == 1
    figure = Figure(figsize=(_WIDTH, 0.7 + (2.9 if columns == 2 else 3.2) * rows), dpi=_DPI, layout='constrained',
                    facecolor='white')
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, entries) in zip(grid.flat, panels.items(), strict=False):
        for place, (name, points) in enumerate(entries.items()):
            at, value, low, high = np.array(points, dtype=float).T
            colour = _COLOURS[place % len(_COLOURS)]
            axes.plot(at, value, marker='os^Dv'[place % 5], markersize=4.5, linewidth=1.6, color=colour, label=name)
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        for place, (name, level) in enumerate((lines or {}).items()):
            axes.axhline(level, color='#767676' if len(lines or {}) == 1 else _COLOURS[3 + place % 4], linewidth=1.2,
                         linestyle=_DASHES[1 + place % 2], label=name)
        axes.set_xticks(sorted({point[0] for points in entries.values() for point in points}))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color='#E2E2E2', linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
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
    if shared:  # above, where the words of the axes do not stand
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside upper center', ncols=2, frameon=False,
                      fontsize=9.5, handlelength=2.2, columnspacing=1.4)
    return _png(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout='constrained', facecolor='white')
    axes = figure.add_subplot()
    axes.grid(color='#E2E2E2', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _plain_percent() -> FuncFormatter:
    """0.1% and 10%, whatever the axis spans."""
    return FuncFormatter(lambda rate, _: f'{100 * rate:.3g}%')


def _rows(strokes: Mapping[str, Mapping[str, Any]]) -> int:
    """Rows of a legend in two columns, chance among them."""
    return (sum(stroke['label'] is not None for stroke in strokes.values()) + 2) // 2


def _strokes(area: Mapping[str, float], main: str) -> dict[str, dict[str, Any]]:
    """How each curve is drawn, the grey ones first; only so many colours can be told apart."""
    best = sorted(area, key=lambda name: (name != main, -area[name]))
    chosen = list(area) if len(area) <= _TOLD_APART else [name for name in area if name in best[:_TOLD_APART - 1]]
    others = [name for name in area if name not in chosen]
    strokes: dict[str, dict[str, Any]] = {
        name: {'color': '#BDBDBD', 'linewidth': 1., 'label': None if place else f'{len(others)} other scores'}
        for place, name in enumerate(others)}
    for place, name in enumerate(chosen):
        strokes[name] = {
            'color': _COLOURS[place], 'linestyle': _DASHES[place % len(_DASHES)], 'label': f'{name} {area[name]:.1%}',
            'linewidth': 3. if name == main else 1.4, 'zorder': 3 if name == main else 2}
    return strokes


def _rates(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _long(names: Sequence[str]) -> bool:
    return max(map(len, names)) * len(names) > 36


def _write_shares(axes: Axes, share: Floats) -> None:
    size = 8.5 if share.shape[1] <= 12 else 6.
    for row, column in np.argwhere(share >= 0.005):
        value = share[row, column]
        axes.text(column, row, f'{100 * value:.0f}', ha='center', va='center', fontsize=size,
                  color='white' if value > 0.55 else 'black')


def _png(figure: Figure, legend: Axes | None = None) -> bytes:
    if legend is not None:
        drawn_legend = figure.legend(
            *legend.get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False, fontsize=9.5,
            handlelength=2.2, columnspacing=1.4)
        for handle in drawn_legend.legend_handles:
            if isinstance(handle, PathCollection):  # the points of a cloud are too small and pale to tell colours by
                handle.set(sizes=[40], alpha=1)
    for axes in figure.axes:
        for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set(**_FONT)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names of classes and scores are no formulas
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()  # once; savefig would draw twice
    # 128 colours are enough for lines and one scale, at a third of the bytes; without metadata, so that the same
    # arrays give the same file.
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    drawn.quantize(128, dither=Image.Dither.NONE).save(file, format='PNG', optimize=True)
    return file.getvalue()
