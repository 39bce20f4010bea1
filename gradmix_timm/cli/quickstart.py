"""``gradmix-quickstart``: train on embedded images, evaluate, print the table and write the report."""
from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from . import train
from .errors import ConsoleParser
from .openset import main as openset

__all__ = ['build_parser', 'main']

_NAME = 'quickstart'


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ConsoleParser(
        prog='gradmix-quickstart',
        description="Train a small network with GradMix on six of scikit-learn's ten digits, which need no download; "
                    'evaluate how well it tells the other four from them; print the table and write the report. A '
                    f'few minutes on two CPU cores. The recipe is {_NAME}: gradmix-train -c {_NAME}.')
    parser.add_argument('--output', default='output', metavar='DIR',
                        help=f'the run is written to DIR/{_NAME}, in place of an earlier one (default: output)')
    parser.add_argument('--epochs', type=int, metavar='N', help='a shorter or longer training')
    parser.add_argument('--mixup-mode', metavar='NAME', help='another mixer, to compare: none, cutmix, random-box, ...')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, then evaluate."""
    args = build_parser().parse_args(argv)
    flags = ['--config', _NAME, '--output', args.output, '--experiment', _NAME, '--overwrite']
    flags += [] if args.epochs is None else ['--epochs', str(args.epochs)]
    flags += [] if args.mixup_mode is None else ['--mixup-mode', args.mixup_mode]
    with redirect_stdout(io.StringIO()):  # the metrics as JSON, which programs read; the log is on stderr
        train.main(flags)
    # Of 86 held-out images several epochs get the same number right, and model_best is the first of them.
    return openset.main(['osr', '--checkpoint', str(Path(args.output) / _NAME / 'last.pth.tar')])
