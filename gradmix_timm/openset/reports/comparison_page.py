"""A comparison as one HTML page: what differs, by how much, and what it was made from."""
from __future__ import annotations

from collections.abc import Mapping
from html import escape
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
from .html import breakable, figure, frame, table

__all__ = ['render_comparison']

_FIRST = ('auroc', 'oscr')

Values = Mapping[str, Any]


def render_comparison(comparison: Values, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        comparison: Of comparison.json.
        images: PNG files by name, ``differences-METRIC.png``.
    """
    title = comparison_title(comparison)
    first = [metric for metric in metrics_of(comparison) if metric in _FIRST]
    rest = [metric for metric in metrics_of(comparison) if metric not in _FIRST]
    parts = [f'<h1>{escape(title)}</h1>', f'<p class="lead">{_lead(comparison)}</p>',
             f'<p class="soft">{escape(_words(comparison))}</p>', _notes(comparison), _section(comparison, 'top1'),
             *(_section(comparison, metric, images.get(f'differences-{metric}.png')) for metric in first)]
    others = ''.join(_section(comparison, metric) for metric in rest)
    if others:
        parts.append(f'<details><summary>The other {len(rest)} metrics</summary>{others}</details>')
    return frame(title, '\n'.join([*parts, _runs(comparison)]))


def _words(comparison: Values) -> str:
    return f'{grounds(comparison)} {how_decided(comparison)}' if comparison['paired'] else grounds(comparison)


def _lead(comparison: Values) -> str:
    """The headline score's differences in words; without pairs its means."""
    name = 'mls' if 'mls' in comparison['scores'] else next(iter(comparison['scores']))
    entry = comparison['scores'][name]['auroc']
    told = []
    for group, gap in entry['differences'].items():
        ends = '' if gap['low'] is None else f', from {signed(gap["low"])} to {signed(gap["high"])}'
        verdict = gap['verdict'] or 'no verdict asked for'
        words = {'better': 'is better than', 'worse': 'is worse than',
                 'not distinguishable': 'is not distinguishable from'}.get(verdict, f'against ({verdict})')
        told.append(f'<b>{escape(group)}</b> {words} {escape(comparison["base"])} '
                    f'({signed(gap["value"])} points of AUROC{ends})')
    if not told:
        told = [f'<b>{escape(group)}</b> has an AUROC of {100 * mean["mean"]:.2f}%'
                for group, mean in entry['groups'].items()]
    return f'By {escape(name)}, {"; ".join(told)}.'


def _notes(comparison: Values) -> str:
    lines = [*comparison['notes'], *(f'{score} is left out: {why}' for score, why in comparison['left_out'].items()),
             *(f'{folder} is left out: it has no partner' for folder in comparison['left_out_runs'])]
    return f'<ul class="soft">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ''


def _section(comparison: Values, metric: str, png: bytes | None = None) -> str:
    heads, rows = comparison_rows(comparison, metric)
    if not rows:
        return ''
    title = title_of(metric)
    title = title[0].upper() + title[1:]
    words = 'Percent; differences in percentage points with their interval.'
    shown = table([escape(head) for head in heads], [
        (escape(row[0]), [escape(cell) for cell in row[1:]], False) for row in rows], words)
    picture = '' if png is None else '<div class="figures">' + figure(
        png, f'Differences in {title}', 'An interval that crosses the line says that either may be the better one.'
    ) + '</div>'
    return f'<h2>{escape(title)}</h2>{picture}{shown}'


def _runs(comparison: Values) -> str:
    rows = ''.join(
        f'<tr><th scope="row">{escape(name)}</th><td>{facts["n_runs"]} runs, {facts["n_distinct"]} class splits, '
        f'trials {_listed(facts["trials"])}, seeds {_listed(facts["seeds"])}<br>'
        + '<br>'.join(breakable(folder) for folder in facts['runs']) + '</td></tr>'
        for name, facts in comparison['groups'].items())
    return (f'<h2>What was compared</h2><div class="scroll manifest"><table><tbody>{rows}</tbody></table></div>')


def _listed(values: list[Any]) -> str:
    return escape(', '.join(map(str, values)) or 'not known')
