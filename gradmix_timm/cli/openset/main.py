"""``python -m gradmix_timm.openset``: evaluate models on known and unknown classes; write results and a report."""
from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from .parser import build_parser

__all__ = ['build_parser', 'main']


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command."""
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(['gradmix-openset', *(sys.argv[1:] if argv is None else argv)])
    from .each import run_each  # imports PyTorch, which flags need not wait for
    return run_each(args)
