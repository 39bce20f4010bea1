"""Tables for a paper: LaTeX with booktabs, figures in percent."""
from __future__ import annotations

import re
from collections.abc import Sequence

from gradmix_timm.openset.results import Group, OpenSetResults, RankMetric, ScoreFigures

from .tables import interval_of

__all__ = ['escape_latex', 'latex_table', 'results_latex']

_SPECIAL = {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}',
    '>': r'\textgreater{}', '|': r'\textbar{}', '"': r'\textquotedbl{}', '±': r'$\pm$', '−': '$-$',
    **{mark: f'\\{mark}' for mark in '&%$#_{}'}}
_COLUMNS: dict[RankMetric, str] = {
    'auroc': 'AUROC', 'aupr_in': 'AUPR in', 'aupr_out': 'AUPR out', 'fpr_at_95_known': 'FPR95 known',
    'fpr_at_95_unknown': 'FPR95 unknown', 'oscr': 'OSCR'}


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX; unsupported characters, line breaks among them, become spaces.

    Example:
        >>> escape_latex('a_b 5% \\input{x}')
        'a\\_b 5\\% \\textbackslash{}input\\{x\\}'
    """
    return ''.join(_SPECIAL.get(mark, mark if mark.isprintable() else ' ') for mark in text)


def latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str,
                text: Sequence[str] = ()) -> str:
    r"""A floating table for ``\usepackage{booktabs}``; the first column is text, the others are figures.

    Args:
        heads: Of the columns, plain text.
        rows: Cells, plain text.
        caption: Plain text.
        label: For ``\ref``; characters that a label may not hold become dashes.
        text: Heads of other columns that are text.
    """
    def line(cells: Sequence[str]) -> str:
        # A bracket or a star after the end of a row would be read as its option.
        start = '    {}' if cells[0].startswith(('[', '*')) else '    '
        return start + ' & '.join(map(escape_latex, cells)) + r' \\'

    columns = 'l' + ''.join('l' if head in text else 'r' for head in heads[1:])
    label = re.sub(r'[^\w:.+-]+', '-', label, flags=re.ASCII)
    return '\n'.join([
        r'% needs \usepackage{booktabs}', r'\begin{table}', r'  \centering', f'  \\caption{{{escape_latex(caption)}}}',
        f'  \\label{{{label}}}', f'  \\begin{{tabular}}{{{columns}}}', r'    \toprule', line(heads), r'    \midrule',
        *map(line, rows), r'    \bottomrule', r'  \end{tabular}', r'\end{table}']) + '\n'


def results_latex(results: OpenSetResults) -> str:
    """The scores of an evaluation, a table for all unknowns and one for each group, with 95% intervals.

    Args:
        results: Of results.json.
    """
    what = f'Open set evaluation of {results["manifest"]["model"]}'
    named = {'protocol': results['protocol'], 'family': results['family'], 'trial': results['trial']}
    where = ', '.join(f'{word} {value}' for word, value in named.items() if value is not None)
    parts: list[tuple[str, str, OpenSetResults | Group]] = [('', 'all', results)]
    parts += [(f', {name}', name, part) for name, part in results['groups'].items()]
    return '\n'.join(
        latex_table(['score', *_COLUMNS.values()], [
            [name, *(_cell(values, key) for key in _COLUMNS)] for name, values in part['scores'].items()],
            f'{what}{f" ({where})" if where else ""}{title}: percent, with 95% intervals. '
            f'{part["n_known"]} known and {part["n_unknown"]} unknown images.', f'tab:osr-{label}')
        for title, label, part in parts)


def _cell(values: ScoreFigures, key: RankMetric) -> str:
    ends = interval_of(values, key)
    return f'{100 * values[key]:.1f}' + (f' [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]' if ends else '')
