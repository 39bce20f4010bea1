"""Pieces of a page as HTML: the frame, tables, figures, small words; names and text are escaped by who calls."""
from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from string import Template
from typing import Any

__all__ = ['breakable', 'cell', 'figure', 'folded', 'frame', 'interval', 'number', 'rate', 'table', 'told', 'uri']


def frame(title: str, body: str) -> str:
    """A whole page that needs no other file and no network.

    Args:
        title: Plain text.
        body: HTML.
    """
    page = resources.files(__package__) / 'templates' / 'report.html'
    return Template(page.read_text(encoding='utf-8')).substitute(title=escape(title), body=body)


def folded(content: str, rows: int, what: str) -> str:
    """A long table behind a line to click on."""
    return content if rows <= 30 else f'<details><summary>{rows} {what}</summary>{content}</details>'


def table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]], caption: str) -> str:
    """A table that scrolls sideways by itself; heads and cells are HTML, a row is (head, cells, marked)."""
    top = ''.join(f'<th scope="col">{head}</th>' for head in heads)
    lines = ''.join(
        f'<tr{" class=headline" if marked else ""}><th scope="row">{head}</th>'
        + ''.join(f'<td>{content}</td>' for content in cells) + '</tr>' for head, cells, marked in rows)
    # The words stand above the box: a caption would be as wide as the table and scroll out of sight.
    label = f'table-{sha256((caption + lines).encode()).hexdigest()[:8]}'
    return (f'<p class="soft caption" id="{label}">{caption}</p><div class="scroll" tabindex="0" role="region" '
            f'aria-labelledby="{label}"><table aria-labelledby="{label}"><thead><tr>{top}</tr></thead><tbody>{lines}'
            '</tbody></table></div>')


def figure(png: bytes, title: str, words: str) -> str:
    """A picture with words below; ``words`` is HTML."""
    alt = escape(f'{title}. {words}'.strip())
    return (f'<figure><img src="{uri(png)}" alt="{alt}"><figcaption><b>{escape(title)}.</b> {words}</figcaption>'
            '</figure>')


def told(value: Any) -> str:
    """Any plain value, a dict as lines."""
    if isinstance(value, Mapping):
        return '<br>'.join(f'{escape(str(key).replace("_", " "))}: {told(entry)}' for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ', '.join(told(entry) for entry in value)
    if isinstance(value, float):
        return f'{value:.6g}'
    return escape(str(value))


def rate(value: float) -> str:
    """A share in percent with its sign."""
    return f'{value:.1%}'


def breakable(name: str) -> str:
    """A name that may go on in the next line after an underscore."""
    return escape(name).replace('_', '_<wbr>')


def number(value: float | None) -> str:
    """Three digits; None stands for an infinity."""
    if value is None:
        return '&infin;'
    return f'{value:.3f}' if 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def interval(ends: Sequence[float]) -> str:
    """Ends in percent, in words."""
    return f'{100 * ends[0]:.1f} to {100 * ends[1]:.1f}'


def cell(value: float | None, ends: Sequence[float] | None = None) -> str:
    """A share in percent without a sign, its interval small below."""
    if value is None:
        return ''
    small = f'<small>{100 * ends[0]:.1f}&thinsp;&ndash;&thinsp;{100 * ends[1]:.1f}</small>' if ends else ''
    return f'{100 * value:.1f}{small}'


def uri(png: bytes) -> str:
    """A PNG file inside the page."""
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
