"""Tables for a paper: LaTeX that needs no package, figures in percent."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ['escape_latex', 'latex_table', 'results_latex']

_SPECIAL = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$',
            '−': '$-$', **{mark: f'\\{mark}' for mark in '&%$#_{}'}}
_COLUMNS = {'auroc': 'AUROC', 'aupr_in': 'AUPR in', 'aupr_out': 'AUPR out', 'fpr_at_95_known': 'FPR95 known',
            'fpr_at_95_unknown': 'FPR95 unknown', 'oscr': 'OSCR'}


def escape_latex(text: str) -> str:
    r"""Text as LaTeX shows it.

    Example:
        >>> escape_latex('a_b 5%')
        'a\\_b 5\\%'
    """
    return ''.join(_SPECIAL.get(mark, mark) for mark in text)


def latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    r"""A floating table; the first column is text, the others are figures.

    Args:
        heads: Of the columns, plain text.
        rows: Cells, plain text.
        caption: Plain text.
        label: For ``\ref``.
    """
    def line(cells: Sequence[str]) -> str:
        return '    ' + ' & '.join(map(escape_latex, cells)) + r' \\'

    return '\n'.join([
        r'\begin{table}', r'  \centering', f'  \\caption{{{escape_latex(caption)}}}', f'  \\label{{{label}}}',
        f'  \\begin{{tabular}}{{l{"r" * (len(heads) - 1)}}}', r'    \hline', line(heads), r'    \hline',
        *map(line, rows), r'    \hline', r'  \end{tabular}', r'\end{table}']) + '\n'


def results_latex(results: Mapping[str, Any]) -> str:
    """The scores of an evaluation, a table for all unknowns and one for each group, half the 95% interval beside each.

    Args:
        results: Of results.json.
    """
    what = f'Open set evaluation of {results["manifest"]["model"]}'
    where = ', '.join(f'{word} {results[word]}' for word in ('protocol', 'family', 'trial')
                      if results.get(word) is not None)
    parts = [('', 'all', results), *((f', {name}', name, part) for name, part in results.get('groups', {}).items())]
    return '\n'.join(
        latex_table(['score', *_COLUMNS.values()], [
            [name, *(_cell(values, key) for key in _COLUMNS)] for name, values in part['scores'].items()],
            f'{what}{f" ({where})" if where else ""}{title}: percent, with 95% intervals. '
            f'{part["n_known"]} known and {part["n_unknown"]} unknown images.', f'tab:osr-{label}')
        for title, label, part in parts)


def _cell(values: Mapping[str, Any], key: str) -> str:
    if values.get(key) is None:
        return ''
    ends = values.get(f'{key}_ci')
    return f'{100 * values[key]:.1f}' + (f' [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]' if ends else '')
