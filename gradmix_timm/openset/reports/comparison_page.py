"""A comparison as one HTML page: what differs, by how much, and what it was made from."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gradmix_timm.openset.comparison import Comparison
from gradmix_timm.openset.runs import CLOSED_SET

from .comparison_tables import (
    comparison_rows,
    comparison_title,
    grounds,
    how_decided,
    is_long,
    left_out_scores,
    metrics_of,
    signed,
    title_of,
)
from .html import render_template

__all__ = ['render_comparison']

_FIRST = ('top1', 'auroc', 'oscr')


def render_comparison(comparison: Comparison, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        comparison: What comparison.json holds.
        images: PNG files by name, ``differences-METRIC.png``.

    Returns:
        HTML that needs no other file and no network.
    """
    score = 'mls' if 'mls' in comparison['scores'] else next(iter(comparison['scores']), CLOSED_SET)
    metrics = metrics_of(comparison)
    notes = [*comparison['notes'], *(f'left out: {line}' for line in left_out_scores(comparison)),
             *(f'{folder} is left out: it has no partner' for folder in comparison['left_out_runs'])]
    return render_template(
        'comparison.html', comparison_title(comparison), comparison=comparison, images=images, score=score,
        findings=list(_findings(comparison, score)), grounds=grounds(comparison), notes=notes,
        how_decided=how_decided(comparison) if comparison['paired'] else '',
        parts=list(_parts(comparison, [name for name in _FIRST if name in ('top1', *metrics)])),
        others=list(_parts(comparison, [name for name in metrics if name not in _FIRST])))


def _findings(comparison: Comparison, score: str) -> Iterator[tuple[str, str]]:
    """Of the headline score: a group or a verdict, and what is to say of it; without pairs groups and their means.

    Of the accuracy where there is no score.
    """
    entry = comparison['scores'][score]['auroc'] if score else comparison['closed_set']['top1']
    base, metric = comparison['base'], 'AUROC' if score else 'accuracy'
    gaps = entry['differences']
    verdicts = {group: gap['verdict'] or 'no verdict asked for' for group, gap in gaps.items()}
    if not gaps:
        for group, mean in entry['groups'].items():
            yield group, f' has an {metric} of {100 * mean["mean"]:.2f}%'
    elif is_long(comparison):
        for verdict in dict.fromkeys(verdicts.values()):
            members = [f'{group} ({signed(gap["value"])})' for group, gap in gaps.items() if verdicts[group] == verdict]
            than = {'better': ' than', 'worse': ' than', 'not distinguishable': ' from'}.get(verdict, ', against')
            yield f'{verdict}{than} {base}', f' in points of {metric}: {", ".join(members)}'
    else:
        for group, gap in gaps.items():
            low, high = gap['low'], gap['high']
            ends = '' if low is None or high is None else f', from {signed(low)} to {signed(high)}'
            words = {'better': 'is better than', 'worse': 'is worse than',
                     'not distinguishable': 'is not distinguishable from'}.get(
                         verdicts[group], f'against ({verdicts[group]})')
            yield group, f' {words} {base} ({signed(gap["value"])} points of {metric}{ends})'


def _parts(comparison: Comparison, metrics: list[str]) -> Iterator[dict[str, Any]]:
    """Sections by metric, those that have rows."""
    for metric in metrics:
        heads, rows = comparison_rows(comparison, metric)
        title = title_of(metric)
        if rows:
            yield {'title': title[0].upper() + title[1:], 'image': f'differences-{metric}.png', 'heads': heads,
                   'rows': rows, 'values': '; '.join(' '.join(filter(None, row)) for row in rows)}
