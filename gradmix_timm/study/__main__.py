"""``python -m gradmix_timm.study``: the command of :mod:`gradmix_timm.cli.study`."""
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.study import main

__all__ = ['console']


def console() -> int:
    """The installed command ``gradmix-study``."""
    return run_console(main)


if __name__ == '__main__':
    raise SystemExit(console())
