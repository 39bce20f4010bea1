"""A comparison as one HTML page: what differs, by how much, and what it was made from."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .comparison_tables import (
    comparison_rows,
    comparison_title,
    grounds,
    how_decided,
    metrics_of,
    signed,
    title_of,
)
from .html import render_template

__all__ = ['render_comparison']

_FIRST = ('top1', 'auroc', 'oscr')

Values = Mapping[str, Any]


def render_comparison(comparison: Values, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        comparison: Of comparison.json.
        images: PNG files by name, ``differences-METRIC.png``.
    """
    score = 'mls' if 'mls' in comparison['scores'] else next(iter(comparison['scores']))
    metrics = metrics_of(comparison)
    notes = [*comparison['notes'], *(f'{name} is left out: {why}' for name, why in comparison['left_out'].items()),
             *(f'{folder} is left out: it has no partner' for folder in comparison['left_out_runs'])]
    return render_template(
        'comparison.html', comparison_title(comparison), comparison=comparison, images=images, score=score,
        findings=list(_findings(comparison, score)), grounds=grounds(comparison), notes=notes,
        how_decided=how_decided(comparison) if comparison['paired'] else '',
        parts=list(_parts(comparison, [name for name in _FIRST if name in ('top1', *metrics)])),
        others=list(_parts(comparison, [name for name in metrics if name not in _FIRST])))


def _findings(comparison: Values, score: str) -> Iterator[tuple[str, str, str]]:
    """Group, what it is, and by how much, of the headline score; without pairs its mean."""
    entry = comparison['scores'][score]['auroc']
    for group, gap in entry['differences'].items():
        ends = '' if gap['low'] is None else f', from {signed(gap["low"])} to {signed(gap["high"])}'
        verdict = gap['verdict'] or 'no verdict asked for'
        words = {'better': 'is better than', 'worse': 'is worse than',
                 'not distinguishable': 'is not distinguishable from'}.get(verdict, f'against ({verdict})')
        yield group, words, f'{comparison["base"]} ({signed(gap["value"])} points of AUROC{ends})'
    if not entry['differences']:
        for group, mean in entry['groups'].items():
            yield group, 'has an AUROC of', f'{100 * mean["mean"]:.2f}%'


def _parts(comparison: Values, metrics: list[str]) -> Iterator[dict[str, Any]]:
    """Sections by metric, those that have rows."""
    for metric in metrics:
        heads, rows = comparison_rows(comparison, metric)
        title = title_of(metric)
        if rows:
            yield {'title': title[0].upper() + title[1:], 'image': f'differences-{metric}.png', 'heads': heads,
                   'rows': rows, 'values': '; '.join(' '.join(filter(None, row)) for row in rows)}
