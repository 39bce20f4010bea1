"""Pages from the templates beside: autoescaped, with an outline that the sections of a page fill."""
from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gradmix_timm.openset.results import Manifest, Results

__all__ = ['render_template', 'run_name']


def render_template(template: str, title: str, **values: Any) -> str:
    """A whole page that needs no other file and no network.

    Args:
        template: Name of a file in ``templates``.
        title: Of the page, plain text.
        **values: What the template shows; escaped there.
    """
    return _environment().get_template(template).render(title=title, outline=_Outline(), **values)


def run_name(manifest: Manifest) -> str:
    """Model, mixer and run in a line.

    Example:
        >>> run_name({'model': 'resnet18', 'mixer': 'gradmix', 'run_folder': '/runs/first'})
        'resnet18, gradmix, run first'
    """
    mixer = manifest.get('mixer') or ''
    parts = [manifest['model'], 'unmixed' if mixer == 'none' else mixer]
    run = Path(manifest.get('run_folder', '')).name
    return ', '.join(filter(None, [*parts, run and f'run {run}']))


class _Outline:
    """Of one page: anchors and titles of its sections in their order, and labels that no other element has."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, str]] = []
        self._labels = 0

    def section(self, title: str) -> str:
        anchor = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-') or 'section'
        if any(anchor == other for other, _ in self.sections):
            anchor = f'{anchor}-{len(self.sections)}'
        self.sections.append((anchor, title))
        return anchor

    def label(self) -> str:
        self._labels += 1
        return f'table-{self._labels}'


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or '', 'templates'), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        'breakable': _breakable, 'number': _number, 'percent': '{:.1%}'.format, 'provenance': _provenance,
        'spaced': lambda name: str(name).replace('_', ' '), 'uri': _uri}
    return environment


def _breakable(name: str) -> Markup:
    """A name that may wrap after an underscore."""
    return Markup('_<wbr>').join(escape(name).split('_'))


def _number(value: float | None) -> str:
    """Three digits; None means an infinity."""
    if value is None:
        return '∞'
    return f'{value:.3f}' if 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def _provenance(results: Results) -> list[tuple[str, Any]]:
    """Names and values of an evaluation's provenance, without empty ones."""
    whole: Mapping[str, Any] = results
    first = {'run seed' if key == 'seed' else key: whole[key] for key in (
        'checkpoint', 'seed', 'device', 'created', 'known_classes', 'unknown_classes', 'calibration') if key in whole}
    lines = {**first, **whole['manifest'], 'versions': whole['versions']}
    return [(name, value) for name, value in lines.items() if value not in (None, {}, [])]


def _uri(png: bytes) -> str:
    """A PNG file inside the page."""
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
