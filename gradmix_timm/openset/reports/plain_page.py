"""A report page of headline, boxes, sections and manifest, for evaluations that have no known against unknown."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from .html import figure, frame, table, told

__all__ = ['Section', 'render_plain']


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a heading; text is HTML.

    Attributes:
        title: Of the section.
        words: Above its tables.
        tables: (heads, rows as :func:`~gradmix_timm.openset.reports.html.table` takes them, caption).
        figures: (PNG file, title, words).
    """

    title: str
    words: str = ''
    tables: Sequence[tuple[Sequence[str], Sequence[tuple[str, Sequence[str], bool]], str]] = ()
    figures: Sequence[tuple[bytes, str, str]] = field(default=())


def render_plain(title: str, lead: str, note: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section],
                 results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        title: Plain text.
        lead: The finding in a sentence, HTML.
        note: What it was measured on, HTML.
        facts: (figure, what it is), plain text.
        sections: In order; empty ones are left out.
        results: Of results.json, for the manifest at the end.
    """
    boxes = ''.join(f'<div><b>{escape(value)}</b><span>{escape(words)}</span></div>' for value, words in facts)
    body = [f'<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>\n<p class="soft">{note}</p>',
            f'<div class="facts">{boxes}</div>']
    body += [_section(part) for part in sections if part.tables or part.figures or part.words]
    return frame(title, '\n'.join([*body, _manifest(results)]))


def _section(part: Section) -> str:
    tables = ''.join(table(heads, rows, caption) for heads, rows, caption in part.tables)
    shown = ''.join(figure(png, name, words) for png, name, words in part.figures)
    shown = f'<div class="figures">{shown}</div>' if shown else ''
    words = f'<p>{part.words}</p>' if part.words else ''
    return f'<h2>{escape(part.title)}</h2>{words}{shown}{tables}'


def _manifest(results: Mapping[str, Any]) -> str:
    lines = [('checkpoint', results['checkpoint']), ('run seed', results['seed']), ('device', results['device']),
             ('created', results['created']), ('known classes', results['known_classes']),
             ('unknown classes', results['unknown_classes']), *results['manifest'].items(),
             ('versions', results['versions'])]
    rows = ''.join(f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{told(value)}</td></tr>'
                   for name, value in lines if value not in (None, {}, []))
    return ('<h2>How it was made</h2><details><summary>Checkpoint, data, settings, versions</summary>'
            f'<div class="scroll manifest"><table><tbody>{rows}</tbody></table></div></details>')
