"""Report of probes of frozen features, from their results alone: table, CSV, Markdown, figure and the page."""
from __future__ import annotations

from collections.abc import Mapping

from gradmix_timm.openset.results import ProbeResults, RankMetric
from gradmix_timm.plots.figure import png

from .figures import plot_panels
from .html import render_template, run_name
from .latex import latex_table
from .tables import csv_text, facts_lines, tables_within

__all__ = ['probe_csv', 'probe_figures', 'probe_latex', 'probe_line', 'probe_markdown', 'probe_table', 'render_probe']

_METRICS: tuple[RankMetric, ...] = ('auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'oscr')
_WORDS = ('Accuracy on the test images of known classes. Every probe was fitted on training images without '
          'augmentation, through the frozen model in evaluation mode; what is chosen (the strength of the linear '
          "probe's penalty) was chosen on held-out training images. Few shots: mean over draws, with its deviation.")


def probe_line(results: ProbeResults) -> str:
    """The first probe's accuracy and what it was measured on."""
    name, group = next(iter(results['groups'].items()))
    low, high = group['closed_set']['top1_ci']
    return (f'{name} probe: accuracy {group["closed_set"]["top1"]:.2%} (95% interval {low:.2%} to {high:.2%}), '
            f'{results["n_known"]} test images of {len(results["known_classes"])} classes, '
            f'{group["n_train"]} training images')


def probe_table(results: ProbeResults, width: int | None = None) -> str:
    """One row per probe, in percent, aligned.

    Args:
        results: Of results.json.
        width: Of a terminal, in characters, that the tables keep to; None: any.
    """
    heads, rows = _cells(results)
    return tables_within(width, heads, rows)


def probe_csv(results: ProbeResults) -> str:
    """One row per probe; fractions."""
    rows = []
    for name, group in results['groups'].items():
        closed = group['closed_set']
        row: dict[str, str | float | None] = {
            'probe': name, 'n_train': group['n_train'], 'n_known': group['n_known'], 'top1': closed['top1'],
            'top1_low': closed['top1_ci'][0], 'top1_high': closed['top1_ci'][1], 'top1_sd': group.get('top1_sd'),
            'held_out_top1': group.get('held_out_top1')}
        for score, values in group['scores'].items():
            row |= {f'{score}_{key}': values[key] for key in _METRICS}
        rows.append(row)
    return csv_text(rows)


def probe_latex(results: ProbeResults) -> str:
    """The table for a paper, percent."""
    return latex_table(*_cells(results), f'{_title(results)}: {probe_line(results)}; percent.', 'tab:probe')


def probe_markdown(results: ProbeResults) -> str:
    """The table, and what it was measured on."""
    lines = [f'# {_title(results)}', '', f'{probe_line(results)}.', '', probe_table(results), '',
             f'Percent. {_WORDS}', '']
    lines += [f'- not served: {name}: {reason}' for name, reason in results['not_served'].items()]
    lines += [f'- warning: {warning}' for warning in results['warnings']]
    return '\n'.join([*lines, *facts_lines(results)]) + '\n'


def probe_figures(results: ProbeResults) -> dict[str, bytes]:
    """``shots.png``: accuracy over shots with the other probes as lines; nothing without few-shot probes."""
    points = [(float(group['parameters']['shots']), closed['top1'], closed['top1_ci'][0], closed['top1_ci'][1])
              for group in results['groups'].values() if group['probe'] == 'few-shot'
              for closed in [group['closed_set']]]
    if not points:
        return {}
    lines = {name: group['closed_set']['top1'] for name, group in results['groups'].items()
             if group['probe'] != 'few-shot'}
    return {'shots.png': png(plot_panels(
        {'class means of a few shots': {'few-shot': points}}, 'training images of a class', 'accuracy', lines))}


def render_probe(results: ProbeResults, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        results: Of results.json.
        images: PNG files by name.
    """
    heads, rows = _cells(results)
    shots = ', '.join(f'{name} {group["closed_set"]["top1"]:.1%}' for name, group in results['groups'].items())
    return render_template('probe.html', _title(results), results=results, images=images, heads=heads, rows=rows,
                           words=_WORDS, shots=f'Accuracy: {shots}')


def _title(results: ProbeResults) -> str:
    return f'{run_name(results["manifest"])}: probes of frozen features'


def _cells(results: ProbeResults) -> tuple[list[str], list[list[str]]]:
    scores = list(dict.fromkeys(name for group in results['groups'].values() for name in group['scores']))
    heads = ['probe', 'accuracy', '95% interval', 'deviation', 'held out', 'training images',
             *(f'{name} AUROC' for name in scores)]
    rows = []
    for name, group in results['groups'].items():
        low, high = group['closed_set']['top1_ci']
        values = [group.get('top1_sd'), group.get('held_out_top1')]
        aurocs = [group['scores'][score]['auroc'] if score in group['scores'] else None for score in scores]
        rows.append([name, f'{100 * group["closed_set"]["top1"]:.2f}', f'{100 * low:.2f} to {100 * high:.2f}',
                     *map(_percent, values), str(group['n_train']), *map(_percent, aurocs)])
    return heads, rows


def _percent(value: float | None) -> str:
    return '' if value is None else f'{100 * value:.2f}'
