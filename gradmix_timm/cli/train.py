"""Training: timm's flags and ours, parsed before PyTorch is imported, then :mod:`.training.run`."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import run_console
from .training.args import build_config_parser, build_parser, parse_args
from .training.terminal import log_to_terminal

if TYPE_CHECKING:
    from timm.models import create_model

__all__ = ['config_parser', 'console', 'create_model', 'main', 'parser']

config_parser = build_config_parser()
parser = build_parser()


def __getattr__(name: str) -> Any:
    if name == 'create_model':  # timm's, as its script has it; a replacement in this module takes effect
        from timm.models import create_model
        return create_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, str]:
    return parse_args(config_parser, parser, argv)


def console(argv: Sequence[str] | None = None) -> int:
    """The command ``gradmix-train``; exit status as in :mod:`.errors`."""
    return run_console(main, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a training by its flags.

    Args:
        argv: Flags without the program's name; None: those of the process.

    Raises:
        SystemExit: The flags are invalid, status 2.
        UsageError: Another error that the user can fix, before training begins.
        Exception: Training failed, or KeyboardInterrupt; with a note that names the last checkpoint.
    """
    log_to_terminal()
    args, args_text = _parse_args(argv)
    from .training.run import run_training
    run_training(args, args_text, sys.modules[__name__].create_model)


if __name__ == '__main__':
    sys.exit(console())
