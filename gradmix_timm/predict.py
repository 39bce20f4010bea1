"""``python -m gradmix_timm.predict``: the command of :mod:`gradmix_timm.cli.predict`."""
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.predict import main

__all__ = ['console']


def console() -> int:
    """The installed command ``gradmix-predict``."""
    return run_console(main)


if __name__ == '__main__':
    raise SystemExit(console())
