"""An evaluation by a preset's conventions: the rows of its tables, for a terminal and as CSV, in percent."""
from __future__ import annotations

from collections.abc import Iterator

from gradmix_timm.openset.results import OpenSetResults, PresetFigures

from .tables import csv_text, tables_within

__all__ = ['preset_csv', 'preset_table']


def preset_table(results: OpenSetResults, width: int | None = 80) -> str:
    """One row per score and data set, with the means of near and far sets; '' without a preset.

    Args:
        results: Of results.json.
        width: Of a terminal, in characters, that the tables keep to; None: any.
    """
    if 'preset' not in results:
        return ''
    figures = results['preset']
    heads = ['score and data set', *figures['columns']]
    rows = [[f'{score} {part}', *cells] for score, part, cells in _rows(results, figures)]
    return tables_within(width, heads, rows)


def preset_csv(results: OpenSetResults) -> str:
    """The same with columns ``score``, ``dataset`` and the preset's, two decimals, as OpenOOD writes ood.csv."""
    figures = results['preset']
    heads = ['score', 'dataset', *figures['columns']]
    return csv_text([dict(zip(heads, (score, part, *cells), strict=True))
                     for score, part, cells in _rows(results, figures)], heads)


def _rows(results: OpenSetResults, figures: PresetFigures) -> Iterator[tuple[str, str, list[str]]]:
    means = results.get('means') or {}
    for score, parts in figures['scores'].items():
        rows: dict[str, list[float]] = {}
        for kind, mean in means.items():
            sets = [parts[name] for name in mean['data_sets']]
            rows |= dict(zip(mean['data_sets'], sets, strict=True))
            rows[f'{kind}ood'] = [sum(column) / len(sets) for column in zip(*sets, strict=True)]
        rows |= {name: row for name, row in parts.items() if name not in rows and (name != 'all' or not means)}
        for name, row in rows.items():
            yield score, name, [f'{100 * value:.2f}' for value in row]
