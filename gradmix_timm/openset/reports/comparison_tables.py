"""A comparison as text: tables for a terminal, Markdown, LaTeX and CSV; figures in percent except in CSV."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradmix_timm.openset.comparison import Compared, Comparison, Gap, GroupMean
from gradmix_timm.openset.metrics.intervals import FEWEST_PAIRS

from .latex import latex_table
from .tables import csv_text, text_table

__all__ = [
    'METRICS', 'comparison_csv', 'comparison_latex', 'comparison_markdown', 'comparison_rows', 'comparison_title',
    'grounds', 'how_decided', 'is_long', 'left_out_scores', 'metrics_of', 'signed',
    'title_of']

#: Key and name, the most used first.
METRICS = {
    'auroc': 'AUROC', 'oscr': 'OSCR', 'fpr_at_95_known': 'FPR95 (knowns kept)', 'aupr_in': 'AUPR in',
    'aupr_out': 'AUPR out', 'fpr_at_95_unknown': 'FPR95 (unknowns caught)', 'detection_error': 'detection error',
    'top1': 'closed-set accuracy'}


def metrics_of(comparison: Comparison) -> list[str]:
    """Metrics of any score, those of METRICS first and in their order."""
    there = dict.fromkeys(metric for part in comparison['scores'].values() for metric in part)
    return [name for name in METRICS if name in there] + [name for name in there if name not in METRICS]


def title_of(metric: str) -> str:
    """Display name of a metric."""
    rate = metric.removeprefix('ccr_at_fpr_')
    return METRICS.get(metric) or (metric if rate == metric else f'right at FPR {100 * float(rate):g}%')


def grounds(comparison: Comparison) -> str:
    """What means and intervals are taken over, in a sentence."""
    level, unit = f'{comparison["level"]:.0%}', comparison['unit']
    pairs = next(iter(comparison['groups'].values()))['n_runs']
    if not comparison['paired']:
        return f'Mean ± standard deviation {_over(comparison)}; no differences were asked for, --paired gives them.'
    if unit == 'image':
        figures = (f'{level} intervals of AUROC are over images, so they say nothing of another training run'
                   if _has_intervals(comparison) else
                   'no intervals: those of AUROC over images need arrays.npz of `openset osr` or `ood` beside both '
                   'results.json')
        words = f'Figures of one run each; {figures}'
    else:
        words = f'Mean ± standard deviation and {level} intervals {_over(comparison)}'
    return (f'{words}; {pairs} pair{"" if pairs == 1 else "s"} of the same trial and seed, differences to '
            f'{comparison["base"]}.')


def _over(comparison: Comparison) -> str:
    """What a mean is taken over."""
    averaged = '(trials of the same classes and seeds are averaged first)'
    if comparison['unit'] == 'class split':
        return f'over {comparison["n_distinct"]} different class splits {averaged}'
    if comparison['n_distinct'] == 1:
        return 'over runs of one class split, so they hold for that split alone'
    single = [name for name, facts in comparison['groups'].items() if facts['n_distinct'] == 1]
    if len(single) == len(comparison['groups']):
        return 'over runs of one class split a group, and not of the same one, so groups do not compare'
    return f'over class splits {averaged}, of {", ".join(single)} over runs of one split, so groups do not compare'


def _has_intervals(comparison: Comparison) -> bool:
    return any(gap['low'] is not None for part in comparison['scores'].values() for entry in part.values()
               for gap in entry['differences'].values())


def how_decided(comparison: Comparison) -> str:
    """A sentence on how verdicts are decided."""
    return (f'A verdict goes by its p-value, corrected after Holm over all {comparison["tests"]} differences that are '
            f'tested here, against {1 - comparison["level"]:.2g}, and needs {FEWEST_PAIRS} pairs.')


def is_long(comparison: Comparison) -> bool:
    """Whether tables have a row for each group, as more than three in columns fit no page."""
    return len(comparison['groups']) > 3


def comparison_rows(comparison: Comparison, metric: str) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of one metric's table: means by group, then differences to the base.

    A row a score with the groups in columns; of more than three groups one row per score and group.

    Args:
        comparison: Of :func:`~gradmix_timm.openset.comparison.compare_runs`.
        metric: A key.

    Returns:
        Heads, and rows of as many cells in percent; no rows where no score has the metric.
    """
    parts = {'': comparison['closed_set']} if metric == 'top1' else comparison['scores']
    entries = {score: part[metric] for score, part in parts.items() if metric in part}
    return (_long_rows if is_long(comparison) else _wide_rows)(comparison, entries)


def _wide_rows(comparison: Comparison, entries: Mapping[str, Compared]) -> tuple[list[str], list[list[str]]]:
    groups, base = list(comparison['groups']), comparison['base']
    others = [name for name in groups if comparison['paired'] and name != base]
    heads = ['score', *groups]
    for name in others:
        heads += [f'{name} − {base}', 'p (Holm)', 'verdict']
    rows = []
    for score, entry in entries.items():
        row = [score or 'classifier', *(_mean(entry['groups'][name]) for name in groups)]
        for name in others:
            row += _difference(entry['differences'][name])
        rows.append(row)
    return heads, rows


def _long_rows(comparison: Comparison, entries: Mapping[str, Compared]) -> tuple[list[str], list[list[str]]]:
    paired, rows = comparison['paired'], []
    for score, entry in entries.items():
        for name in comparison['groups']:
            row = [f'{score}, {name}' if len(entries) > 1 else name, _mean(entry['groups'][name])]
            if paired:
                row += _difference(entry['differences'][name]) if name != comparison['base'] else ['', '', '']
            rows.append(row)
    heads = ['score, group' if len(entries) > 1 else 'group', 'mean']
    return heads + ([f'difference to {comparison["base"]}', 'p (Holm)', 'verdict'] if paired else []), rows


def left_out_scores(comparison: Comparison) -> list[str]:
    """Scores that some runs lack, a line for all that as many of them lack."""
    named: dict[str, list[str]] = {}
    for score, why in comparison['left_out'].items():
        named.setdefault(why, []).append(score)
    return [f'{", ".join(scores)}: {why}' for why, scores in named.items()]


def comparison_markdown(comparison: Comparison) -> str:
    """Every metric's table, and what was compared."""
    lines = [f'# {comparison_title(comparison)}', '', grounds(comparison), '']
    for metric in ['top1', *metrics_of(comparison)]:
        heads, rows = comparison_rows(comparison, metric)
        if rows:
            lines += [f'## {title_of(metric)}', '', text_table(heads, rows), '']
    lines += [f'Percent; differences in percentage points with their own interval. {how_decided(comparison)}', '']
    lines += [f'- note: {note}' for note in comparison['notes']]
    lines += [f'- left out: {line}' for line in left_out_scores(comparison)]
    lines += [f'- left out: {folder} has no partner' for folder in comparison['left_out_runs']]
    for name, facts in comparison['groups'].items():
        lines.append(f'- {name}: {facts["n_runs"]} runs, {facts["n_distinct"]} class splits: '
                     + ', '.join(f'`{folder}`' for folder in facts['runs']))
    return '\n'.join(lines) + '\n'


def comparison_latex(comparison: Comparison) -> str:
    """A table each of AUROC, OSCR and accuracy, where some score has it, for a paper, with p-values and verdicts.

    Args:
        comparison: Of :func:`~gradmix_timm.openset.comparison.compare_runs`.
    """
    words = f'{comparison_title(comparison)}. {grounds(comparison)}'
    if comparison['paired']:
        words += f' {how_decided(comparison)}'
    parts = []
    for metric in ('auroc', 'oscr', 'top1'):
        heads, rows = comparison_rows(comparison, metric)
        if rows:
            parts.append(latex_table(heads, rows, f'{title_of(metric)}, percent. {words}', f'tab:compare-{metric}',
                                     text=('verdict',)))
    return '\n'.join(parts)


def comparison_csv(comparison: Comparison) -> str:
    """One row per score, metric and group, fractions; the difference to the base in the row of the group."""
    return csv_text(_csv_rows(comparison), [
        'score', 'metric', 'group', 'n', 'mean', 'sd', 'low', 'high', 'seed_sd', 'base', 'difference',
        'difference_low', 'difference_high', 'p', 'p_holm', 'n_units', 'n_pairs', 'verdict'])


def _csv_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for score, entries in {'': comparison['closed_set'], **comparison['scores']}.items():
        for metric, entry in entries.items():
            for group, mean in entry['groups'].items():
                row = {'score': score, 'metric': metric, 'group': group, **mean}
                gap = entry['differences'].get(group)
                if gap is not None:
                    row |= {'base': comparison['base'], 'difference': gap['value'], 'difference_low': gap['low'],
                            'difference_high': gap['high'], 'p': gap['p'], 'p_holm': gap['p_holm'],
                            'n_units': gap['n'], 'n_pairs': gap['n_pairs'], 'verdict': gap['verdict']}
                yield row


def comparison_title(comparison: Comparison) -> str:
    """The groups compared, and the protocol."""
    groups = ' against '.join(comparison['groups'])
    if is_long(comparison):
        groups = f'{len(comparison["groups"])} groups'
    protocol = comparison['protocol'] or 'chosen classes'
    family = f', class lists of {comparison["family"]}' if comparison['family'] else ''
    part = f', unknown images: {comparison["part"]}' if comparison.get('part') else ''
    return f'{groups} on {protocol}{family}{part}'


def _mean(entry: GroupMean) -> str:
    spread = '' if entry['sd'] is None else f' ± {100 * entry["sd"]:.2f}'
    return f'{100 * entry["mean"]:.2f}{spread}'


def _difference(entry: Gap) -> list[str]:
    value = signed(entry['value'])
    if entry['low'] is not None and entry['high'] is not None:
        value += f' [{signed(entry["low"])}, {signed(entry["high"])}]'
    p = entry['p_holm']
    return [value, '' if p is None else '<0.001' if p < 0.001 else f'{p:.3f}', entry['verdict'] or 'not asked for']


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f'{100 * value:+.2f}'.replace('-', '−')
