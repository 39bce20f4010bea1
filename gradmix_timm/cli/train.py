"""Training: timm's script laid out in stages, with a mixer that sees the live model."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from .args import build_config_parser, build_parser, parse_args

config_parser = build_config_parser()
parser = build_parser()


def _parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, str]:
    return parse_args(config_parser, parser, argv)
