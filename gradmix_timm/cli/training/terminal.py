"""Log lines of a training run, set up before PyTorch is imported."""
from __future__ import annotations

import logging

from typing_extensions import override

__all__ = ['log_to_terminal']


def log_to_terminal() -> None:
    """Log as timm's script does, unless logging is set up already; warnings once, and in the first process alone."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainInfo('%(levelname)s: %(message)s'))
    handler.addFilter(_WarnedOnce())
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)


class _PlainInfo(logging.Formatter):
    """Information without its level."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.levelno == logging.INFO else super().format(record)


class _WarnedOnce(logging.Filter):
    """Lets a warning pass once, and in the first process alone; other records as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[str]()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        message = record.getMessage()
        new = message not in self.seen
        self.seen.add(message)
        from .first_process import is_first
        return new and is_first()
