"""Rows as text: Markdown that a terminal shows aligned, and CSV."""
from __future__ import annotations

import csv
import html
import io
import itertools
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gradmix_timm.openset.results import (
    Interval,
    Manifest,
    OpenSetResults,
    PixelStatistics,
    RankMetric,
    Results,
    ScoreFigures,
)

__all__ = [
    'columns_of', 'csv_text', 'facts_lines', 'interval_of', 'padded', 'pixel_statistics_of', 'pooled_line',
    'pretraining_note', 'tables_within', 'text_table', 'warnings_of', 'without_guard']

# Characters that a spreadsheet reads as the start of a formula, or strips before looking for one.
_FORMULA = ('=', '+', '-', '@', '\t', '\n', ' ')


# Vowels and final consonants of Hangul, drawn in the cell of the consonant before them (names of files on macOS).
_HANGUL = (range(0x1160, 0x1200), range(0xD7B0, 0xD800))
_EMOJI_STYLE = '\ufe0f'
# Between letters of Persian, or the parts of one emoji; they steer no terminal.
_JOINERS = '\u200c\u200d'


def columns_of(text: str) -> int:
    """Columns of a terminal that a printable text takes: two for a wide letter or emoji, none for a combining mark.

    Example:
        >>> columns_of('cat'), columns_of('猫'), columns_of('e\u0301')
        (3, 2, 1)
    """
    widths: list[int] = []
    for before, mark in itertools.pairwise(f' {text}'):
        wide = unicodedata.east_asian_width(mark) in 'WF'
        if mark == _EMOJI_STYLE and widths:  # the character before it, in the size of an emoji
            widths[-1] = 2
        elif not (unicodedata.category(mark) in ('Mn', 'Me') or mark in _JOINERS or (wide and before == _JOINERS[1])
                  or any(ord(mark) in block for block in _HANGUL)):
            widths.append(2 if wide else 1)
    return sum(widths)


def padded(text: str, width: int, right: bool = False) -> str:
    """Text filled with spaces to a number of columns of a terminal.

    Args:
        text: Printable.
        width: In columns; a wider text stays as it is.
        right: To the right.

    Example:
        >>> padded('猫', 4) + '|', padded('1', 4, right=True) + '|'
        ('猫  |', '   1|')
    """
    space = ' ' * (width - columns_of(text))
    return space + text if right else text + space


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None,
               texts: Collection[int] = (0,)) -> str:
    """Markdown that is readable in a terminal too, whatever the script of its names.

    Names come from files and folders, so characters that would end a cell or control a terminal are escaped.

    Args:
        heads: Of the columns.
        rows: Cells.
        width: In columns of a terminal. A wider table has its longest heads broken at spaces over several lines, as far
            as that goes (no longer Markdown). None: any.
        texts: Places of the columns that hold text, on the left of their cells; the others hold figures, on the right.

    Example:
        >>> print(text_table(['score', 'AUROC'], [['mls', '90.1']]))
        | score |  AUROC |
        |-------|-------:|
        | mls   |   90.1 |
        >>> print(text_table(['score', 'unknowns caught'], [['mls', '90.1']], width=20))
        |       | unknowns |
        | score |   caught |
        |-------|---------:|
        | mls   |     90.1 |
    """
    heads, rows = [_in_a_cell(head) for head in heads], [[_in_a_cell(cell) for cell in row] for row in rows]
    # Figures are at most six wide (100.00); so are their columns, that those of several tables are alike.
    cells = [max([0 if column in texts else 6, *(columns_of(row[column]) for row in rows)])
             for column in range(len(heads))]
    widths = [max(cell, columns_of(head)) for cell, head in zip(cells, heads, strict=True)]
    narrow = [max(cell, *map(columns_of, head.split(' '))) for cell, head in zip(cells, heads, strict=True)]
    for column in sorted(range(len(heads)), key=lambda column: narrow[column] - widths[column]):
        if width is not None and sum(widths) + 3 * len(widths) + 1 > width:
            widths[column] = narrow[column]
    above = [_folded(head, wide) for head, wide in zip(heads, widths, strict=True)]
    lines = max(map(len, above))

    def line(cells: Sequence[str]) -> str:
        return '| ' + ' | '.join(padded(cell, wide, right=place not in texts)
                                 for place, (cell, wide) in enumerate(zip(cells, widths, strict=True))) + ' |'

    head = [line(cells) for cells in zip(*([''] * (lines - len(words)) + words for words in above), strict=True)]
    rule = ''.join('|' + '-' * (wide + 1) + ('-' if place in texts else ':') for place, wide in enumerate(widths)) + '|'
    return '\n'.join([*head, rule, *map(line, rows)])


def _folded(head: str, width: int) -> list[str]:
    """The lines of a head, broken at spaces."""
    lines: list[str] = []
    for word in head.split():
        if lines and columns_of(f'{lines[-1]} {word}') <= width:
            lines[-1] += f' {word}'
        else:
            lines.append(word)
    return lines or ['']


def tables_within(width: int | None, heads: Sequence[str], rows: Sequence[Sequence[str]], together: int = 1) -> str:
    """:func:`text_table` within a width: where it is wider, with heads folded, then as several tables.

    Args:
        width: Of a terminal, in characters; a first column and one group of columns may take more. None: any.
        heads: Of the columns; each table has the first.
        rows: Cells.
        together: Columns that stay in one table, counted from the second on.

    Example:
        >>> print(tables_within(20, ['score', 'a', 'b'], [['mls', '1', '2']]))
        | score |      a |
        |-------|-------:|
        | mls   |      1 |
        <BLANKLINE>
        | score |      b |
        |-------|-------:|
        | mls   |      2 |
    """
    if width is None:
        return text_table(heads, rows)
    tables: list[list[int]] = []
    for start in range(1, len(heads), together):
        columns = [*range(start, min(start + together, len(heads)))]
        wider = [*tables[-1], *columns] if tables else []
        if tables and columns_of(_columns(heads, rows, wider, width).partition('\n')[0]) <= width:
            tables[-1] = wider
        else:
            tables.append([0, *columns])
    return '\n\n'.join(_columns(heads, rows, columns, width) for columns in tables)


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int], width: int) -> str:
    return text_table([heads[place] for place in places], [[row[place] for place in places] for row in rows], width)


def csv_text(rows: Iterable[Mapping[str, Any]], fields: Sequence[str] | None = None) -> str:
    """Rows with a head; columns in the order in which rows first name them, unless ``fields`` gives them.

    Text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay as they are.

    Args:
        rows: Cells by column; missing ones are left empty.
        fields: Columns, the only ones that are written.

    Example:
        >>> print(csv_text([{'a': 1}, {'a': 2, 'b': 3}]), end='')
        a,b
        1,
        2,3
    """
    rows = list(rows)
    names = list(fields or dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(map(_no_formula, names))
    writer.writerows([_no_formula(row.get(name, '')) for name in names] for row in rows)
    return file.getvalue()


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace('\r', ' ')  # unquoted, it would end the row
    return f"'{text}" if _is_guarded(text) else text


def _is_guarded(text: str) -> bool:
    """Whether a text gets an apostrophe, or has one: one that begins as if guarded gets another."""
    return text.lstrip("'").startswith(_FORMULA)


def without_guard(text: str) -> str:
    """Text of a cell without the apostrophe that :func:`csv_text` put in front.

    Example:
        >>> without_guard("'=1.png"), without_guard("''=1.png"), without_guard("'80s")
        ('=1.png', "'=1.png", "'80s")
    """
    return text.removeprefix("'") if _is_guarded(text) else text


def _in_a_cell(text: str) -> str:
    return ''.join(mark if mark.isprintable() or mark in _JOINERS else '\ufffd' for mark in text).replace('|', '\\|')


def pooled_line(results: OpenSetResults) -> str:
    """Words above the table of ``ood`` where one of several data sets has most of the unknown images; else ''."""
    groups = results['groups']
    if results.get('means') is None or len(groups) < 2:
        return ''
    name = max(groups, key=lambda group: groups[group]['n_unknown'])
    most, total = groups[name]['n_unknown'], results['n_unknown']
    if most <= total / 2:
        return ''
    return f'All unknown images together ({100 * most // total}% are of {name}); by data set below.'


def pretraining_note(manifest: Manifest) -> str:
    """A sentence if the net did not start from scratch, else empty.

    Example:
        >>> pretraining_note({'model': 'resnet18', 'pretraining': 'resnet18.a1_in1k'})[:52]
        'the weights started from resnet18.a1_in1k, which may'
    """
    began = manifest.get('pretraining')
    return '' if began in (None, 'none') else (
        f'the weights started from {began}, which may have seen the unknown classes; do not set these figures beside '
        'those of nets trained from scratch')


def pixel_statistics_of(results: OpenSetResults) -> list[PixelStatistics | None]:
    """Those of all unknown images, then of each group."""
    return [results.get('trivial'), *(group.get('trivial') for group in results['groups'].values())]


def warnings_of(results: OpenSetResults) -> list[str]:
    """Warnings to show before the figures: low accuracy, pixel statistics that separate the sets, duplicates."""
    gate, duplicates = results.get('accuracy_gate'), results.get('duplicates')
    return [*([gate['warning']] if gate and 'warning' in gate else []),
            *(warning for part in pixel_statistics_of(results) if part for warning in part['warnings']),
            *(duplicates['warnings'] if duplicates else [])]


def facts_lines(results: Results, *first: tuple[str, object]) -> list[str]:
    """What was measured on what, as the end of a Markdown file: entries of the caller's, then those of all commands."""
    known, unknown = (html.escape(', '.join(results[side]), quote=False)  # names of folders
                      for side in ('known_classes', 'unknown_classes'))
    return [f'- {name}: {value}' for name, value in (
        *first, ('known', known), ('unknown', unknown or 'none'), ('checkpoint', f'`{results["checkpoint"]}`'),
        ('seed', results['seed']), ('device', results['device']), ('created', results['created'])) if value is not None]


def interval_of(values: ScoreFigures, metric: RankMetric) -> Interval | None:
    """The 95% interval of a metric, if there is one."""
    ends: Mapping[str, Any] = {**values}
    return ends.get(f'{metric}_ci')
