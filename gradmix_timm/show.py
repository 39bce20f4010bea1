"""``python -m gradmix_timm.show``: the command of :mod:`gradmix_timm.cli.show`."""
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.show import main

__all__ = ['console']


def console() -> int:
    """The installed command ``gradmix-show``."""
    return run_console(main)


if __name__ == '__main__':
    raise SystemExit(console())
