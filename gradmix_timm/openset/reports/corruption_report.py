"""Report of an evaluation under corruption, from its results alone: tables, CSV, Markdown, figures and the page."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from gradmix_timm.openset.results import Corruption, CorruptionGroup, CorruptionResults, RankMetric
from gradmix_timm.plots.figure import png

from .figures import plot_panels
from .html import render_template, run_name
from .latex import latex_table
from .tables import csv_text, facts_lines, tables_within

__all__ = ['corruption_csv', 'corruption_figures', 'corruption_latex', 'corruption_line', 'corruption_markdown',
           'corruption_table', 'render_corruption']

Images = Mapping[str, bytes]
Panels = dict[str, dict[str, list[tuple[float, float, float, float]]]]
Side = Literal['corrupted', 'clean']
_METRICS: tuple[RankMetric, ...] = get_args(RankMetric)


def corruption_line(results: CorruptionResults) -> str:
    """Clean accuracy, mean error and mCE in one line."""
    part = results['corruption']
    low, high = part['mean_error_ci']
    parts = [f'clean error {part["clean_error"]:.2%}',
             f'mean error under {_counted(part)} {part["mean_error"]:.2%} (95% interval {low:.2%} to {high:.2%})']
    parts += [f'{title} {value:.2%} of {part.get("reference")}' for title, value in _divided(part)]
    return '; '.join(parts) + f'; {part["source"]}'


def corruption_table(results: CorruptionResults, width: int | None = None) -> str:
    """One row per corruption: its error at each severity, their mean, and what else there is; percent, aligned.

    Args:
        results: Of results.json.
        width: Of a terminal, in characters, that the tables keep to; None: any.
    """
    heads, rows = _cells(results)
    return tables_within(width, heads, rows)


def corruption_csv(results: CorruptionResults) -> str:
    """One row per corruption and severity; fractions."""
    rows = []
    clean: CorruptionGroup = {
        'corruption': 'clean', 'severity': 0, 'family': '', 'n_known': results['n_known'],
        'n_unknown': results['n_unknown'], 'closed_set': results['closed_set'],
        'error': results['corruption']['clean_error'],
        'error_ci': [1 - end for end in reversed(results['closed_set']['top1_ci'])], 'scores': results['scores']}
    for group in (clean, *results['groups'].values()):
        low, high = group['error_ci']
        row: dict[str, str | float] = {
            'corruption': group['corruption'], 'severity': group['severity'], 'n_known': group['n_known'],
            'n_unknown': group['n_unknown'], 'error': group['error'], 'error_low': low, 'error_high': high}
        for scores, prefix in ((group['scores'], ''), (group.get('scores_clean_unknown', {}), 'clean_unknown_')):
            for name, values in scores.items():
                for key in _METRICS:
                    row[f'{prefix}{name}_{key}'] = values[key]
                    if key == 'auroc' and (ends := values.get('auroc_ci')):
                        row[f'{prefix}{name}_auroc_low'], row[f'{prefix}{name}_auroc_high'] = ends
        rows.append(row)
    return csv_text(rows)


def corruption_latex(results: CorruptionResults) -> str:
    """The table for a paper, percent."""
    return latex_table(*_cells(results), f'{_title(results)}: {corruption_line(results)}; percent.', 'tab:corruption')


def corruption_markdown(results: CorruptionResults) -> str:
    """The table in percent, the data it was measured on, and its limits."""
    part = results['corruption']
    lines = [f'# {_title(results)}', '', f'{corruption_line(results)}.', '', corruption_table(results), '',
             'Percent. ' + _words(part), '']
    lines += [f'- no {title}: {reason}' for title, reason in (
        (_mce(part), part.get('no_mce')), (f'relative {_mce(part)}', part.get('no_relative_mce'))) if reason]
    lines += facts_lines(results, ('images', part['source']), ('images of known classes', results['n_known']))
    return '\n'.join(lines) + '\n'


def corruption_figures(results: CorruptionResults) -> dict[str, bytes]:
    """``severity.png`` (error), and with unknown classes ``auroc.png``, each a PNG file."""
    part = results['corruption']
    low, high = (1 - end for end in reversed(results['closed_set']['top1_ci']))
    clean = (0., part['clean_error'], low, high)
    panels: Panels = {}
    for group in results['groups'].values():
        lines = panels.setdefault(group['family'], {})
        low, high = group['error_ci']
        lines.setdefault(group['corruption'].replace('_', ' '), [clean]).append(
            (group['severity'], group['error'], low, high))
    x = f'severity (0: clean), {"official files" if part["official"] else "generated"}'
    drawn = {'severity.png': png(plot_panels(panels, x, 'closed-set error'))}
    if results['scores']:
        drawn['auroc.png'] = png(plot_panels(_auroc(results), x, 'AUROC, mean over corruptions', {'chance': 0.5}))
    return drawn


def render_corruption(results: CorruptionResults, images: Images) -> str:
    """The page.

    Args:
        results: Of results.json.
        images: PNG files by name.
    """
    part = results['corruption']
    references = [(f'{value:.1%}', f'{title} (reference: {part.get("reference")})') for title, value in _divided(part)]
    errors = ', '.join(f'severity {name} {row["error"]:.1%}' for name, row in part['by_severity'].items())
    figures = [
        ('severity.png', 'Error over severity', 'Flat lines are robust; the mean hides which corruption hurts. Bands: '
         '95% intervals.', f'Mean errors: clean {part["clean_error"]:.1%}, {errors}'),
        ('auroc.png', 'Known against unknown', 'Corrupted knowns against unknowns corrupted alike, and against clean '
         'ones. A drop against clean unknowns alone shows that the score responds to corruption.',
         'Clean AUROC: ' + ', '.join(f'{name} {entry["auroc"]:.1%}' for name, entry in results['scores'].items()))]
    heads, rows = _cells(results)
    return render_template(
        'corruption.html', _title(results), results=results, images=images, counted=_counted(part),
        references=references, figures=figures, heads=heads, rows=rows, words=_words(part), sides=_sides(part),
        severity_heads=[f'severity {severity}' for severity in part['severities']])


# ---- pieces

def _title(results: CorruptionResults) -> str:
    made = 'official files' if results['corruption']['official'] else 'generated'
    return f'{run_name(results["manifest"])}: under corruption ({made})'


def _counted(part: Corruption) -> str:
    many, severities = len(part['by_corruption']), part['severities']
    return (f'{many} corruption{"s" if many > 1 else ""} at {"severities" if len(severities) > 1 else "severity"} '
            f'{_range(severities)}')


def _range(severities: Sequence[int]) -> str:
    whole = list(severities) == list(range(severities[0], severities[-1] + 1))
    return f'{severities[0]} to {severities[-1]}' if whole and len(severities) > 2 else ' and '.join(
        ', '.join(map(str, part)) for part in (severities[:-1], severities[-1:]) if part)


def _mce(part: Corruption) -> str:
    return 'mCE' if part['complete'] else f'mean CE of {len(part["by_corruption"])} corruptions'


def _divided(part: Corruption) -> list[tuple[str, float]]:
    """Title and value of mCE and relative mCE, as far as there are any."""
    values = {_mce(part): part.get('mce'), f'relative {_mce(part)}': part.get('relative_mce')}
    return [(title, value) for title, value in values.items() if value is not None]


def _words(part: Corruption) -> str:
    words = ('Error of the closed set at each severity. ' if part['complete'] else
             "Error of the closed set at each severity; not all of the benchmark's corruptions and severities, so the "
             'means are not comparable with published ones. ')
    if not part['official']:
        words += ("The images were generated here, with the benchmark's constants, and are not its files: figures are "
                  'for comparing models with each other. Names that end in approx follow another definition. ')
    if 'mce' in part:
        words += ('CE: error over that of the reference; relative CE: what corruption adds to the clean error, over '
                  "what it adds to the reference's. ")
    if any(row['auroc'] for row in part['by_corruption'].values()):
        words += f'AUROC: corrupted knowns against {dict(_sides(part))[_side(part)]}. '
    return words.strip()


def _cells(results: CorruptionResults) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table by corruption, text."""
    part = results['corruption']
    by_corruption = part['by_corruption'].values()
    divided = [(title, column, mean) for title, column, mean in (
        ('CE', [row.get('ce') for row in by_corruption], part.get('mce')),
        ('relative CE', [row.get('relative_ce') for row in by_corruption], part.get('relative_mce')))
        if None not in column]
    scores = list(next(iter(by_corruption))['auroc'])
    heads = ['corruption', *(f'severity {severity}' for severity in part['severities']), 'mean',
             *(title for title, _, _ in divided), *(f'{score} AUROC' for score in scores)]
    errors = {(group['corruption'], group['severity']): group['error'] for group in results['groups'].values()}
    rows = []
    for place, (name, row) in enumerate(part['by_corruption'].items()):
        values = [errors.get((name, severity)) for severity in part['severities']]
        values += [row['error'], *(column[place] for _, column, _ in divided),
                   *(row['auroc'][score][_side(part)] for score in scores)]
        rows.append([name, *('' if value is None else f'{100 * value:.1f}' for value in values)])
    means: list[float | None] = [part['by_severity'][str(severity)]['error'] for severity in part['severities']]
    means += [part['mean_error'], *(mean for _, _, mean in divided)]
    means += [sum(row['auroc'][score][_side(part)] for row in part['by_corruption'].values()) / len(rows)
              for score in scores]
    rows.append(['mean', *('' if value is None else f'{100 * value:.1f}' for value in means)])
    return heads, rows


def _side(part: Corruption) -> Side:
    """'corrupted' where there are unknowns corrupted alike, else 'clean'."""
    rows = [sides for row in part['by_corruption'].values() for sides in row['auroc'].values()]
    return 'corrupted' if all('corrupted' in sides for sides in rows) else 'clean'


def _sides(part: Corruption) -> list[tuple[Side, str]]:
    both: list[tuple[Side, str]] = [('corrupted', 'unknowns corrupted alike'), ('clean', 'clean unknowns')]
    return both if _side(part) == 'corrupted' else both[1:]


def _auroc(results: CorruptionResults) -> Panels:
    """Score to line to points; an interval would need the images' pairing, so the band is the line itself."""
    panels: Panels = {}
    for score, values in results['scores'].items():
        area = values['auroc']
        clean = (0., area, area, area)
        sides = _sides(results['corruption'])
        panels[score] = {title: [clean] for _, title in sides}
        for severity, row in results['corruption']['by_severity'].items():
            for side, title in sides:
                value = row['auroc'][score][side]
                panels[score][title].append((int(severity), value, value, value))
    return panels
