"""A job of the submitit engine whose commands are stubs, in whatever process it runs."""
from __future__ import annotations

import sys
from pathlib import Path

from gradmix_timm.study import cells, engines


class StubJob(engines._Job):
    """Runs its cell with the stub in place of train.py and gradmix-openset."""

    def __call__(self) -> bool:
        cells._module = lambda name: [sys.executable, str(Path(__file__).with_name('stub.py')), name]
        return super().__call__()
