"""Journal of finished evaluation groups, from which an interrupted run resumes."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradmix_timm.checkpoint import write_atomic
from gradmix_timm.evaluation.processes import is_first

__all__ = ['GroupStore']


class GroupStore:
    """A file with one JSON line per group, under a key of everything that the groups depend on.

    A file with another key is started anew; from the first line on that is truncated, altered or of another key, as
    two runs in one folder leave them (each has a digest), groups are computed again.

    Args:
        path: The file; made when the first group is added.
        parts: Everything that the groups depend on, plain values.

    Attributes:
        groups: Those that are done, by name.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        self.path = path
        self.key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        self.groups = self._read()

    def add(self, name: str, group: dict[str, Any]) -> None:
        """Append a group; it is on disk when this returns."""
        self.groups[name] = group
        if not is_first():
            return
        line = json.dumps([name, group, _digest(self.key, name, group)], allow_nan=False) + '\n'
        if len(self.groups) == 1:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps({'key': self.key}) + '\n')
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {}
        lines = self.path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)
        groups: dict[str, Any] = {}
        for place, line in enumerate(lines):
            try:
                value: Any = json.loads(line) if line.endswith('\n') else None
            except (ValueError, RecursionError):
                value = None
            if place == 0:
                if not isinstance(value, dict) or value.get('key') != self.key:
                    return {}
            elif _is_whole(value, self.key):
                groups[value[0]] = value[1]
            else:  # truncated, altered or of another key: dropped, so that later groups follow a complete line
                write_atomic(self.path, ''.join(lines[:place]))
                break
        return groups


def _digest(key: str, name: str, group: Any) -> str:
    return hashlib.sha256(json.dumps([key, name, group]).encode()).hexdigest()


def _is_whole(line: Any, key: str) -> bool:
    if not isinstance(line, list) or len(line) != 3 or not isinstance(line[0], str):
        return False
    return bool(line[2] == _digest(key, *line[:2]))
