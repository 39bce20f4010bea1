"""``python -m gradmix_timm.quickstart``: a door to :mod:`gradmix_timm.cli.quickstart`."""
from __future__ import annotations

import sys

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.quickstart import main

__all__ = ['console']


def console() -> None:
    """Entry point of ``gradmix-quickstart``."""
    sys.exit(run_console(main))


if __name__ == '__main__':
    console()
