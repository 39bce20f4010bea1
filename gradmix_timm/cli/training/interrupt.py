"""Ctrl-C, SIGTERM and SIGUSR1 stop a run between two updates, on all its processes at once.

Python raises KeyboardInterrupt at an arbitrary point; inside the clean-up of a loader it is printed and dropped,
and a loader whose workers received the signal raises another error. SIGTERM and SIGUSR1 are a scheduler's warning that
the time is nearly up (Slurm: ``--signal=USR1@300``); by default they end a process at once.
"""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

__all__ = ['Interrupt', 'StoppedError', 'held_signals', 'leave_signals_to_parent']

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, 'SIGUSR1') else [])]
# With torchrun a terminal's Ctrl-C reaches a process twice; within this time it counts once.
_ECHO_SECONDS = 2.0


class StoppedError(KeyboardInterrupt):
    """A signal stopped the run; a KeyboardInterrupt, so that handlers of failures let it pass.

    Attributes:
        exit_status: 128 + the signal's number, as a shell reports a process that a signal ended: 130 for Ctrl-C, 143
            for SIGTERM, 138 for SIGUSR1 (on Linux), by which a job script knows that the run is to be queued again.
        silent: Of several processes the first one prints the line.
    """

    def __init__(self, number: int) -> None:
        super().__init__('interrupted' if number == signal.SIGINT else f'stopped by {signal.Signals(number).name}')
        self.exit_status = 128 + number
        self.silent = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0


class Interrupt:
    """Tracks whether a signal has requested the run to stop.

    Args:
        device: Of a run of several processes, for their agreement; None for one process.

    Attributes:
        requested: Number of the first signal to this process, or 0.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device, self.requested, self.since = device, 0, 0.0

    def agreed(self) -> int:
        """Number of a signal received by any process, else 0; a collective, which all processes call."""
        if self.device is not None:
            wish = torch.tensor(self.requested, device=self.device)
            torch.distributed.all_reduce(wish, torch.distributed.ReduceOp.MAX)
            self.requested = int(wish.item())
        return self.requested

    def check(self) -> None:
        """Stop here if any process was requested to; a collective.

        Raises:
            StoppedError: A stop was requested.
        """
        if self.agreed():
            raise StoppedError(self.requested)

    def ended_by(self, failure: BaseException) -> KeyboardInterrupt | None:
        """The interrupt that a failure is, or that caused it; None for another failure.

        A loader's worker that has just started dies of the signal, which PyTorch reports as a RuntimeError.
        """
        if isinstance(failure, KeyboardInterrupt):
            return failure
        if self.requested and isinstance(failure, RuntimeError) and 'DataLoader worker' in str(failure):
            return StoppedError(self.requested)
        return None

    def hold(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: records the request; a second Ctrl-C stops at once."""
        if self.requested and number == signal.SIGINT and time.monotonic() - self.since > _ECHO_SECONDS:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self.since = int(number), time.monotonic()


@contextmanager
def held_signals(interrupt: Interrupt) -> Iterator[None]:
    """Inside the block, signals only set ``interrupt``.

    Forked processes inherit this, so a loader's workers survive the signal. Outside the main thread it has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, interrupt.hold) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def leave_signals_to_parent() -> None:
    """Ignore signals in a loader's worker: terminals and schedulers signal all processes, and the main one decides.

    A SIGTERM from the main process, which ends its workers that way, still ends the worker.
    """
    for number in _SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS, where PyTorch's handler stays: any SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    main = multiprocessing.parent_process()  # os.getppid() is that of the server where one starts the workers
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (os.getppid() if main is None else main.pid):
        pass
    os._exit(0)
