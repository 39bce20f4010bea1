"""Sections of the report about sets of images: near and far, what pixels alone give away, images left out."""
from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gradmix_timm.openset.pixel_statistics import STATISTICS, WARN_ABOVE

from .html import breakable, cell, table

__all__ = ['render_closest', 'render_pixels', 'render_sensitivity', 'render_sets',
           'render_skipped']

Values = Mapping[str, Any]


def render_sets(results: Values) -> str:
    """AUROC by data set, with means over the near and the far ones; empty where there are none."""
    means = results.get('means')
    if means is None:
        return ''
    parts = [*results['groups'].values(), *means.values()]
    heads = ['score', *map(escape, results['groups']),
             *(f'{escape(kind)}<br>mean of {len(part["data_sets"])}' for kind, part in means.items())]
    rows = [(escape(name), [cell(part['scores'][name]['auroc'], part['scores'][name].get('auroc_ci'))
                            for part in parts], name == results['threshold']['score'])
            for name in results['scores']]
    left_out = ''.join(
        f'<li>{escape(name)}: {part["dropped_images"]:,} images of {len(part["dropped_classes"])} classes that are '
        'known were left out</li>' for name, part in results['groups'].items() if part.get('dropped_images'))
    kept = ''.join(
        f'<li>{escape(name)} has classes of known names ({escape(", ".join(part["known_classes_kept"][:5]))}), judged '
        'as unknown all the same</li>' for name, part in results['groups'].items() if part.get('known_classes_kept'))
    notes = f'<ul class="soft">{left_out}{kept}</ul>' if left_out or kept else ''
    return '<h2>Data sets of unknowns</h2>' + table(
        heads, rows, 'AUROC in percent, each set against all known test images; a mean is over sets, whatever their '
                     'size. The figures at the top pool all unknown images, so there large sets weigh more.') + notes


def render_pixels(results: Values) -> str:
    """How well statistics of pixels tell known from unknown; empty where nothing was measured."""
    found = [('all unknowns', results.get('trivial')),
             *((name, part.get('trivial')) for name, part in (results.get('groups') or {}).items())]
    there = [(name, part) for name, part in found if part]
    if not there:
        return ''
    heads = ['unknown images', *(name.replace('_', ' ') for name in STATISTICS), 'all together']
    rows = []
    for name, part in there:
        values = [part['statistics'].get(statistic) for statistic in STATISTICS] + [part['combined']]
        rows.append((escape(name), ['' if value is None else _marked(value) for value in values], False))
    warnings = ''.join(f'<li>{escape(text)}</li>' for _, part in there for text in part['warnings'])
    words = '; '.join(f'{name.replace("_", " ")}: {what}' for name, what in STATISTICS.items())
    return ('<h2>What pixels alone give away</h2>' + (f'<ul>{warnings}</ul>' if warnings else '') + table(
        heads, rows, f'AUROC in percent of a statistic by itself, whichever side has more; 50 says nothing, above '
                     f'{100 * WARN_ABOVE:.0f} (bold) a score may owe part of its figure to it.')
            + f'<p class="soft">{escape(words)}. Measured at the size that the model sees, at most '
              f'{max(part["n_known"] for _, part in there):,} images a side.</p>')


def render_closest(results: Values, shown: Values) -> str:
    """The unknown images closest to known ones, side by side with them; empty where nothing was looked for."""
    found = results.get('duplicates')
    if not found:
        return ''
    sets = ' and '.join(f'{count:,} known {name} images' for name, count in found['compared_with'].items())
    same = found['n_identical']
    lead = (f'<b>{escape(found["warnings"][0])}</b>.' if same else
            'No unknown image has the pixels of a known one' + (
                '.' if found['looked_at'] else '; none comes close.'))
    return (f'<h2>Unknown images closest to known ones</h2><p>{lead}</p><p class="soft">By the cosine of their '
            f'features, among {sets}: look whether the left image of a pair is of a class that the model knows.</p>'
            f'<ul class="thumbs pairs">{"".join(map(_pair, shown.get("closest", ())))}</ul>')


def render_sensitivity(results: Values) -> str:
    """AUROC over the values of each score's main option; empty where it was not asked for."""
    found = results.get('sensitivity')
    if not found:
        return ''
    width = max(len(part['points']) for part in found.values())
    rows = []
    for name, part in found.items():
        cells = [f'{"<b>" if value == part["used"] else ""}{cell(area)}{"</b>" if value == part["used"] else ""}'
                 f'<small>{value:.4g}</small>' for value, area in part['points']]
        rows.append((escape(name), [escape(part['option']), *cells, *[''] * (width - len(cells))],
                     name == results['threshold']['score']))
    return '<h2>What hangs on the settings</h2>' + table(
        ['score', 'option', *[''] * width], rows,
        'AUROC in percent, the value of the option below it; bold is the one that was used, fixed beforehand. Not to '
        'choose by: these are test images.')


def _pair(item: Values) -> str:
    pictures = ''.join(
        f'<img{" class=tiny" if max(item[f"{side}_size"]) < 48 else ""} '
        f'src="data:image/png;base64,{escape(item[f"{side}_png"])}" alt="{side}: {escape(item[side])}">'
        for side in ('unknown', 'known'))
    return (f'<li><div>{pictures}</div><span class="unknown">{breakable(item["unknown"])}</span>, '
            f'<span class="known">{breakable(item["known"])}</span> ({item["part"]})<br>{item["cosine"]:.4f}</li>')


def render_skipped(results: Values) -> str:
    """Images that could not be read; empty where there are none."""
    lines = ''.join(f'<li>{len(names):,} of the {escape(title)}: {escape(", ".join(names[:20]))}'
                    f'{", ..." if len(names) > 20 else ""}</li>'
                    for title, names in (results.get('skipped') or {}).items())
    return f'<h2>Images left out because they cannot be read</h2><ul class="soft">{lines}</ul>' if lines else ''


def _marked(value: Values) -> str:
    text = cell(value['auroc'], value['auroc_ci'])
    return f'<b>{text}</b>' if value['auroc'] > WARN_ABOVE else text
