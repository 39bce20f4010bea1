"""``python -m gradmix_timm.quickstart``: the command of :mod:`gradmix_timm.cli.quickstart`."""
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.quickstart import main

__all__ = ['console']


def console() -> int:
    """The installed command ``gradmix-quickstart``."""
    return run_console(main)


if __name__ == '__main__':
    raise SystemExit(console())
