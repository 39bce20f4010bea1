"""``python -m gradmix_timm.openset``: the command of :mod:`gradmix_timm.cli.openset.main`."""
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset.main import main

__all__ = ['console']


def console() -> int:
    """The installed command ``gradmix-openset``."""
    return run_console(main)


if __name__ == '__main__':
    raise SystemExit(console())
