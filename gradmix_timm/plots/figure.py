"""The look of all figures: a figure of its own or the caller's axes, one style, and PNG files for reports."""
from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from PIL import Image

__all__ = ['COLOURS', 'DASHES', 'DPI', 'KNOWN', 'UNKNOWN', 'WIDTH', 'NotebookFigure', 'drawable', 'finished',
           'grid_axes', 'legend_columns', 'plain_percent', 'plain_words', 'png', 'shortened', 'single_axes', 'styled']

# Okabe and Ito's colours, distinct under every kind of colour vision; yellow is left out, it vanishes on white.
KNOWN, UNKNOWN = '#0072B2', '#D55E00'
COLOURS = (KNOWN, UNKNOWN, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', (0, (5, 2)), (0, (1, 1.5)))
# A figure is as wide as a phone shows it, 343 CSS pixels or so: 10 points are then 11 pixels.
WIDTH, DPI = 4.5, 160
_FONT = {'family': 'DejaVu Sans', 'size': 10.}
# Letters of a legend's two columns together that fit below a figure of that width.
_LEGEND_LETTERS = 44


class NotebookFigure(Figure):
    """A figure that pyplot does not keep, so that nothing has to be closed, and that a notebook shows once.

    Args:
        width: Inches.
        height: Inches.
        dpi: Pixels per inch.
    """

    def __init__(self, width: float, height: float, dpi: float = DPI) -> None:
        super().__init__(figsize=(width, height), dpi=dpi, layout='constrained', facecolor='white')
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format='png')
        return file.getvalue()


def single_axes(ax: Axes | None, height: float) -> Axes:
    """The caller's axes, or those of a new figure; with a light grid.

    Args:
        ax: The caller's.
        height: Of a new figure, in inches; its width is :data:`WIDTH`.
    """
    axes = NotebookFigure(WIDTH, height).add_subplot() if ax is None else ax
    return styled(axes)


def styled(axes: Axes) -> Axes:
    """The same axes with a light grid behind the data and two spines."""
    axes.grid(color='#E2E2E2', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    return axes


def grid_axes(ax: Axes | None, rows: int, columns: int, cell: tuple[float, float], dpi: float) -> Any:
    """Axes for a table of pictures without ticks, in a new figure or within the bounds of the caller's axes.

    Args:
        ax: Bounds of the table; its own frame is hidden. None: a new figure.
        rows: Of the table.
        columns: Of the table.
        cell: Width and height of a cell in inches, in a new figure.
        dpi: Of a new figure.

    Returns:
        Array of axes, [rows, columns].

    Raises:
        ValueError: Axes that are no subplot.
    """
    if ax is None:
        figure = NotebookFigure(cell[0] * columns + 0.3, cell[1] * rows + 0.3, dpi)
        axes = figure.subplots(rows, columns, squeeze=False)
    else:
        place = ax.get_subplotspec()
        if place is None:
            raise ValueError('ax is no subplot, and pictures are laid out within one; make it by plt.subplots()')
        ax.set_axis_off()
        inner = GridSpecFromSubplotSpec(rows, columns, place)
        axes = np.array([[ax.figure.add_subplot(inner[row, column]) for column in range(columns)]
                         for row in range(rows)])
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
    return axes


def finished(axes: Axes, own: bool, legend: bool = True) -> Figure:
    """The figure of the axes, its legend drawn and its words plain text (:func:`plain_words`).

    Args:
        axes: Those with the labelled lines.
        own: The figure was made for them alone, so that the legend stands below the axes and fonts are set.
        legend: Draw one.

    Returns:
        Theirs.
    """
    figure: Any = axes.figure
    handles = axes.get_legend_handles_labels()
    if legend and not own:
        axes.legend(*handles, fontsize=8.5, frameon=False, handlelength=2.2)
    elif legend:
        below = figure.legend(*handles, loc='outside lower center', ncols=legend_columns(handles[1]), frameon=False,
                              fontsize=9.5, handlelength=2.2, columnspacing=1.4)
        for handle in below.legend_handles:
            if isinstance(handle, PathCollection):  # a cloud's points are too small and pale for a legend
                handle.set(sizes=[40], alpha=1)
    for one in figure.axes if own else ():
        for text in (one.xaxis.label, one.yaxis.label, *one.get_xticklabels(), *one.get_yticklabels()):
            text.set(**_FONT)
    plain_words(figure if own else axes)
    return figure


def legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend below a figure of :data:`WIDTH`: two where the longest labels of both fit, else one.

    Example:
        >>> legend_columns(['mls 90.1%', 'chance 50.0%']), legend_columns(['mahalanobis:shrinkage=1e-06 80.3%'] * 2)
        (2, 1)
    """
    half = -(-len(labels) // 2)  # matplotlib fills a column first
    longest = (max(map(len, part), default=0) for part in (labels[:half], labels[half:]))
    return 2 if sum(longest) <= _LEGEND_LETTERS else 1


def shortened(name: str, letters: int) -> str:
    """A name of at most so many letters, with its middle left out: names of classes often differ at their ends.

    Example:
        >>> shortened('red_winged_blackbird', 12), shortened('cat', 12)
        ('red_wi…kbird', 'cat')
    """
    if len(name) <= letters:
        return name
    return f'{name[:letters // 2]}…{name[len(name) - (letters - 1) // 2:]}'


def plain_words(artist: Artist) -> None:
    """Draw all words of a figure or of axes as they are: names of classes are no formulas, and of any script."""
    words: Any = artist.findobj(Text)
    for text in words:
        text.set_parse_math(False)
        if not text.get_text().isascii():
            fonts = dict.fromkeys(_fonts_of(frozenset(text.get_text())).values())
            text.set_fontfamily([*text.get_fontfamily(), *(name for name in fonts if name != _FONT['family'])])


def drawable(name: str) -> str:
    r"""A name in which letters that no font of this machine has, and control characters, are escapes.

    Example:
        >>> print(drawable('two\nlines'))
        two\nlines
    """
    if name.isascii() and name.isprintable():
        return name
    fonts = _fonts_of(frozenset(name))
    return ''.join(letter if letter in fonts else letter.encode('unicode_escape').decode() for letter in name)


@lru_cache(maxsize=64)
def _fonts_of(letters: frozenset[str]) -> dict[str, str]:
    """The installed font of each letter: DejaVu Sans, else one without serifs, else any; not of letters without one."""
    found: dict[str, str] = {}
    regular = {entry.name: entry.fname for entry in fontManager.ttflist
               if entry.style == 'normal' and entry.weight == 400 and 'Last Resort' not in entry.name
               and os.path.isfile(entry.fname)}
    for name in sorted(regular, key=lambda name: (name != _FONT['family'], 'Sans' not in name, name)):
        if rest := {letter for letter in letters - set(found) if letter.isprintable()}:
            font = get_font(regular[name])
            found |= {letter: name for letter in rest if font.get_char_index(ord(letter))}
    return found


def png(figure: Figure) -> bytes:
    """The figure as a PNG file of 128 colours, the same bytes for the same figure.

    128 colours are enough for lines and one scale, at a third of the bytes.
    """
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()  # once; savefig would draw twice
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    drawn.quantize(128, dither=Image.Dither.NONE).save(file, format='PNG', optimize=True)
    return file.getvalue()


def plain_percent() -> FuncFormatter:
    """0.1% and 10%, whatever the axis spans."""
    return FuncFormatter(lambda rate, _: f'{100 * rate:.3g}%')
