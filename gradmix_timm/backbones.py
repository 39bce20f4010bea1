"""``python -m gradmix_timm.backbones MODEL``: the layers of a timm model where an attribution map can be taken."""
from gradmix_timm.cli.backbones import main
from gradmix_timm.cli.errors import run_console

__all__ = ['console']


def console() -> int:
    """The installed command ``gradmix-backbones``."""
    return run_console(main)


if __name__ == '__main__':
    raise SystemExit(console())
