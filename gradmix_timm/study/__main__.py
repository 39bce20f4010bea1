"""``python -m gradmix_timm.study``: entry point of :mod:`gradmix_timm.cli.study`."""
from __future__ import annotations

import sys

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.study import main

__all__ = ['console']


def console() -> None:
    """Entry point of ``gradmix-study``."""
    sys.exit(run_console(main))


if __name__ == '__main__':
    console()
