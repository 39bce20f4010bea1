"""Commands that are stubs, and a job of the submitit engine that runs them in whatever process it is."""
from __future__ import annotations

from gradmix_timm.study import cells, engines, forking

_command = cells._command


def stub_command(words, *rest) -> None:
    """``python -m stub MODULE FLAGS`` in place of ``python -m MODULE FLAGS``."""
    _command(['stub', *words], *rest)


class StubJob(engines._Job):
    """Runs its cell with the stub in place of train.py and gradmix-openset."""

    def __call__(self) -> bool:
        forking._PRELOADED, cells._command = [], stub_command
        return super().__call__()
