"""Docstrings for the site: ``Example:`` is a section of doctests, and Sphinx's roles become plain code."""
from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r':(?:func|class|meth|attr|mod|data):`~?(?:[\w.]+\.)?(\w+)`')


class Docstrings(griffe.Extension):
    """Applied to every object as it is read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring; griffe's Google sections know ``Examples:`` alone."""
        if obj.docstring is not None:
            text = _ROLE.sub(r'``\1``', obj.docstring.value)
            obj.docstring.value = re.sub(r'^(\s*)Example:$', r'\1Examples:', text, flags=re.MULTILINE)
