"""``python -m gradmix_timm.openset``: entry point of :mod:`gradmix_timm.cli.openset.main`."""
from __future__ import annotations

import sys

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset.main import main

__all__ = ['console']


def console() -> None:
    """Entry point of ``gradmix-openset``."""
    sys.exit(run_console(main))


if __name__ == '__main__':
    console()
