"""Ctrl-C between two batches rather than in the middle of one: nothing is cut in two, and nothing swallows it.

Python raises KeyboardInterrupt wherever it happens to be; inside the clean-up of a loader it is printed and forgotten,
and a loader whose workers got the signal too raises something else.
"""
from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ['Interrupt', 'held_interrupt']


class Interrupt:
    """Whether Ctrl-C was pressed; :meth:`check` is called where a run may stop."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Stop here if it was.

        Raises:
            KeyboardInterrupt: It was.
        """
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def held_interrupt(interrupt: Interrupt) -> Iterator[None]:
    """Ctrl-C sets ``interrupt`` and goes no further; a second one stops at once.

    Processes forked inside hold it too, and so do not die under a loader. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hold(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
