"""The progress bar of a run, where somebody watches."""
from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

__all__ = ['open_bar']


def open_bar(updates: int) -> Any:
    """A bar over all updates with the time that is left, on a terminal; None elsewhere."""
    if not (sys.stderr.isatty() and _columns()):
        return None
    return tqdm(total=updates, unit='update', dynamic_ncols=True)


def _columns() -> int:
    """Width of the terminal; 0 of one that has none (some containers and recorders), where a bar would be blank."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80
