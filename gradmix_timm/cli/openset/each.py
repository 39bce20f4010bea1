"""A command over several checkpoints runs once for each."""
from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from gradmix_timm.cli.errors import user_errors
from gradmix_timm.evaluation.processes import PartDoneError, processes

__all__ = ['own_folders', 'run_each']


def run_each(args: argparse.Namespace) -> int:
    """Run a command for each of its checkpoints, in order.

    Args:
        args: With ``command``; where there is a ``checkpoint``, None or a list of files, it gets one at a time.

    Returns:
        The last exit status.

    Raises:
        UsageError: A file is missing, or two would write to one folder; raised before any is evaluated.
    """
    run = getattr(import_module(f'.{args.command}', __package__), f'run_{args.command}')
    with processes():
        return _run_parts(run, list(_parts(args)))


def _run_parts(run: Callable[[argparse.Namespace], int], parts: Sequence[argparse.Namespace]) -> int:
    status = 0
    for number, part in enumerate(parts):
        if len(parts) > 1:
            print(f'\n== {part.checkpoint} ({number + 1} of {len(parts)})', flush=True)
        try:
            status = run(part)
        except PartDoneError:
            status = 0
        except (Exception, KeyboardInterrupt) as error:
            if len(parts) > 1:
                error.add_note(f'at {part.checkpoint}, after {number} of {len(parts)} checkpoints')
            raise
    return status


def _parts(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The arguments, once for each checkpoint."""
    files: Sequence[str] | None = getattr(args, 'checkpoint', None)
    if files is None:
        yield args
        return
    outputs: list[str | None] = [args.output] * len(files)
    if len(files) > 1:
        with user_errors():
            outputs = list(_outputs(files, args.output))
    for file, output in zip(files, outputs, strict=True):
        yield argparse.Namespace(**{**vars(args), 'checkpoint': file, 'output': output})


def _outputs(files: Sequence[str], output: str | None) -> Sequence[str | None]:
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise ValueError(f'there is no checkpoint {missing[0]} ({len(missing)} of {len(files)} are not there)')
    parents = [Path(file).resolve().parent for file in files]
    twice = [parent for parent, count in Counter(parents).items() if count > 1]
    if output is not None:
        places = [Path(file).resolve().with_suffix('') if parent in twice else parent
                  for file, parent in zip(files, parents, strict=True)]
        return [str(folder) for folder in own_folders(places, output)]
    if twice:
        raise ValueError(f'{twice[0]} holds two of the checkpoints, whose results would go to one folder; name '
                         'another, --output DIR, or one checkpoint a folder')
    return [None] * len(files)


def own_folders(folders: Sequence[Path], output: str | Path) -> list[Path]:
    """A folder below ``output`` for each of several, in the same relative layout.

    Raises:
        ValueError: A folder is named twice.

    Example:
        >>> [str(folder) for folder in own_folders([Path('/runs/a/osr'), Path('/runs/b/osr')], 'out')]
        ['out/a/osr', 'out/b/osr']
    """
    whole = [folder.absolute() for folder in folders]
    twice = [folder for folder, count in Counter(whole).items() if count > 1]
    if twice:
        raise ValueError(f'{twice[0]} is named twice; name it once')
    above = os.path.commonpath(whole)
    return [Path(output) / folder.relative_to(above) for folder in whole]
