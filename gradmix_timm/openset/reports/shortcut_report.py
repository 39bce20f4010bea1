"""Report of an evaluation of a shortcut, from its results alone: table, CSV, Markdown, LaTeX and the page."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradmix_timm.openset.results import RankMetric, ShortcutResults

from .html import render_template, run_name
from .latex import latex_table
from .tables import csv_text, facts_lines, tables_within

__all__ = ['evidence_lines', 'render_shortcut', 'shortcut_csv', 'shortcut_latex', 'shortcut_line', 'shortcut_markdown',
           'shortcut_table']

_VIEWS = {'own': ("its own class's mark", "a known class's mark"), 'absent': ('no mark', 'no mark'),
          'conflict': ("another class's mark", "a known class's mark")}
_METRICS: tuple[RankMetric, ...] = ('auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'oscr')
_WORDS = ('A model that recognises the objects is equally accurate in every row; one that relies on the mark fails '
          'where the mark is of another class, and accepts an unknown object with a known mark as known.')


def shortcut_line(results: ShortcutResults) -> str:
    """The mark, and accuracy with the mark of another class."""
    closed, mark = results['groups']['conflict']['closed_set'], results['shortcut']
    low, high = closed['top1_ci']
    return (f'accuracy {closed["top1"]:.2%} under conflict (95% interval {low:.2%} to {high:.2%}): {mark["kind"]} of '
            f'{mark["side"]} px, on {mark["share"]:.0%} of the training images, place {mark["place"]}')


def shortcut_table(results: ShortcutResults, width: int | None = None) -> str:
    """One row per view, in percent, aligned.

    Args:
        results: Of results.json.
        width: Of a terminal, in characters, that the tables keep to; None: any.
    """
    heads, rows = _cells(results)
    return tables_within(width, heads, rows)


def shortcut_csv(results: ShortcutResults) -> str:
    """One row per view; fractions."""
    rows = []
    for view, group in results['groups'].items():
        closed = group['closed_set']
        row: dict[str, str | float | None] = {
            'view': view, 'n_known': group['n_known'], 'n_unknown': group['n_unknown'], 'top1': closed['top1'],
            'top1_low': closed['top1_ci'][0], 'top1_high': closed['top1_ci'][1]}
        for score, values in group['scores'].items():
            row |= {f'{score}_{key}': values[key] for key in _METRICS if key in values}
            row |= {f'{score}_auroc_{end}': value for end, value in zip(('low', 'high'), values['auroc_ci'],
                                                                        strict=True)}
        rows.append(row)
    return csv_text(rows)


def shortcut_latex(results: ShortcutResults) -> str:
    """The table for a paper, percent."""
    return latex_table(*_cells(results), f'{_title(results)}: {shortcut_line(results)}; percent.', 'tab:shortcut')


def shortcut_markdown(results: ShortcutResults) -> str:
    """The table, the evidence on the mark, and what it was measured on."""
    lines = [f'# {_title(results)}', '', f'{shortcut_line(results)}.', '', shortcut_table(results), '',
             f'Percent. {_WORDS}', '', *(f'- {line}' for line in evidence_lines(results)), *facts_lines(results)]
    return '\n'.join(lines) + '\n'


def evidence_lines(results: ShortcutResults) -> list[str]:
    """Mass of the map on the mark and the deletion test, in words; first, how many images lose their mark."""
    part = results['evidence']
    cut, whole = part.get('cut_off', 0), part['n'] + part['left_out']  # older files do not count them
    lost = [f"the model's resize and crop leave nothing of the mark in {cut} of {whole} test images, so that no row "
            'tells how far the model relies on it there; train with `--crop-pct 1` or a larger side, which keep it'
            ] if cut else []
    if part['mass'] is None:
        return lost if cut == whole else [
            *lost, f'no map of {part["attribution"]} is informative about the mark on any image']
    where = f' at {", ".join(part["layers"])}' if part['layers'] else ''
    return [
        *lost,
        f'{part["attribution"]}{where}: {part["mass"]:.1%}{_share_ends(part["mass_ci"])} of the map lies on the mark, '
        f'which has {part["area"]:.1%} of the pixels; the peak does in '
        f'{part["peak"]:.1%}{_share_ends(part["peak_ci"])} of {part["n"]} images',
        f'log-odds of the label fall by {part["fall"]:.2f}{_ends(part["fall_ci"])} when the mark is hidden, by '
        f'{part["random_fall"]:.2f}{_ends(part["random_fall_ci"])} when its shape is hidden at a random place; '
        f'difference {part["fall_difference"]:.2f}{_ends(part["fall_difference_ci"])}']


def render_shortcut(results: ShortcutResults, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        results: Of results.json.
        images: PNG files by name.
    """
    heads, rows = _cells(results)
    return render_template('shortcut.html', _title(results), results=results, images=images, heads=heads, rows=rows,
                           words=_WORDS, evidence=evidence_lines(results), line=shortcut_line(results))


def _title(results: ShortcutResults) -> str:
    return f'{run_name(results["manifest"])}: {results["shortcut"]["kind"]} as a shortcut'


def _cells(results: ShortcutResults) -> tuple[list[str], list[list[str]]]:
    heads = ['known images bear', 'accuracy', '95% interval', 'unknown images bear']
    for name in results['scores']:
        heads += [f'{name} AUROC', '95% interval']
    rows = []
    for view, group in results['groups'].items():
        low, high = group['closed_set']['top1_ci']
        mine, theirs = _VIEWS.get(view, (view, ''))
        row = [mine, f'{100 * group["closed_set"]["top1"]:.2f}', f'{100 * low:.2f} to {100 * high:.2f}', theirs]
        for name in results['scores']:
            values = group['scores'][name]
            low, high = values['auroc_ci']
            row += [f'{100 * values["auroc"]:.2f}', f'{100 * low:.2f} to {100 * high:.2f}']
        rows.append(row)
    return heads, rows


def _share_ends(ends: Any) -> str:
    return f' ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})' if ends else ''


def _ends(ends: Any) -> str:
    return f' ({ends[0]:.2f} to {ends[1]:.2f})' if ends else ''
