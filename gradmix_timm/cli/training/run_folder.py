"""The folder of a run: refused if another run is in it, and locked while this one writes."""
from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from timm import utils
from timm.models import safe_model_name

from gradmix_timm.checkpoint import write_atomic
from gradmix_timm.cli.errors import one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ['RunFolder', 'check_writable', 'output_root', 'resume_path']

_logger = logging.getLogger('train')

_LAST, _LOCK = 'last.pth.tar', 'run.lock'
# Files of a run, which --overwrite removes.
_RESULTS = ('*.pth.tar', 'summary.csv')
_REST = ('mixes.png', 'mixes.json', 'train-batch-*.jpg', 'events.out.tfevents.*')
_UNFINISHED = ('tmp.pth.tar', 'recovery_tmp.pth.tar')


def output_root(args: argparse.Namespace) -> str:
    """Folder in which the run folder is made."""
    return args.output or './output/train'


def check_writable(args: argparse.Namespace) -> None:
    """Reject an output folder that cannot be created or written to, before anything is computed.

    Raises:
        ValueError: The message names the part of the path that prevents it.
    """
    folder = Path(output_root(args)) / args.experiment
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f'--output: {existing} is a file, expected a folder; choose another, --output DIR')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f'--output: no right to write in {existing}; choose another folder, --output DIR')


def resume_path(args: argparse.Namespace) -> str:
    """The file to resume from, '' for a fresh run; 'auto' is the newest checkpoint or recovery file in its folder.

    Raises:
        ValueError: No such file.
    """
    if args.resume == 'auto':
        folder = Path(output_root(args)) / args.experiment
        files = [*folder.glob(_LAST), *folder.glob('recovery-*.pth.tar')]
        return str(max(files, key=lambda path: path.stat().st_mtime_ns)) if files else ''
    if args.resume and not Path(args.resume).is_file():
        raise ValueError(f'--resume {args.resume}: no such file; give a checkpoint of a run (last.pth.tar)')
    return str(args.resume)


class RunFolder:
    """The folder of a run, locked against other processes until the block ends.

    The first process holds ``run.lock`` in it: a POSIX record lock, which the system releases however the process
    ends, on another host too where the network file system has such locks. Where it has none the file's content
    decides: a process of this host that has ended holds no lock, one of another host does.

    Args:
        args: Checked flags.

    Attributes:
        path: The folder, on the first process once it is taken; else None.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.path: Path | None = None
        self._lock: IO[str] | None = None
        self._made: list[Path] = []

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._release()

    def claim(self) -> None:
        """Take the folder that --experiment names, before data is read. All processes call it.

        Raises:
            ValueError: Another run is in it, or is writing to it; on every process.
        """
        refusal: list[Any] = [None]
        if self.args.experiment and utils.is_primary(self.args):
            try:
                self._take(Path(output_root(self.args)) / self.args.experiment)
            except (ValueError, OSError) as error:
                refusal = [one_line(error)]
        if self.args.distributed:
            torch.distributed.broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise ValueError(refusal[0])

    def open(self, size: int, flags: str) -> str | None:
        """The folder, on the first process: a new one by date, model and size where --experiment names none.

        Args:
            size: Side of the images.
            flags: Content of args.yaml.
        """
        if not utils.is_primary(self.args):
            return None
        if self.path is None:
            stem = '-'.join([datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(self.args.model), str(size)])
            for number in count():
                with suppress(ValueError):  # another run of the same second
                    self._take(Path(output_root(self.args)) / (f'{stem}-{number}' if number else stem))
                    break
        assert self.path is not None
        if self.args.overwrite:
            for old in _matches(self.path, _RESULTS + _REST):
                old.unlink()
        write_atomic(self.path / 'args.yaml', flags)
        return str(self.path)

    def _take(self, path: Path) -> None:
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        try:
            self.path, self._lock = path, _locked(path / _LOCK)
            self._check_vacant(path)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._lock is not None and self.path is not None:
            (self.path / _LOCK).unlink(missing_ok=True)
            self._lock.close()
        self.path = self._lock = None
        with suppress(OSError):  # the folders that this run made, where nothing was written to them
            for folder in self._made:
                folder.rmdir()
        self._made = []

    def _check_vacant(self, path: Path) -> None:
        """Refuse to overwrite a run without --resume or --overwrite.

        Raises:
            ValueError: The message gives the three remedies.
        """
        results = [file.name for file in _matches(path, _RESULTS) if file.name not in _UNFINISHED]
        inside = bool(self.args.resume) and Path(resume_path(self.args)).resolve().parent == path.resolve()
        if self.args.overwrite and (self.args.resume == 'auto' or inside):
            raise ValueError(f'--overwrite removes the run that --resume {self.args.resume} continues; leave one out')
        if self.args.overwrite or inside or not results:
            return
        if self.args.resume == 'auto':
            if not any(name.endswith('.pth.tar') for name in results):
                return  # it ended in its first epoch
            raise ValueError(f'--resume auto: {path} has no {_LAST}; name the file to continue from, --resume '
                             f'{path / results[-1]}, or type --overwrite to start again')
        raise ValueError(f'{path} holds a run already ({", ".join(results[:3])}{", ..." if len(results) > 3 else ""}); '
                         'continue it with --resume auto, replace it with --overwrite, or choose another --experiment '
                         'NAME')


def _matches(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (path for pattern in patterns for path in sorted(folder.glob(pattern)))


# ---- the lock

def _locked(path: Path) -> IO[str]:
    """An open file that this process alone has locked.

    Raises:
        ValueError: Another process has it; with its number, host and start.
    """
    while True:
        try:
            file, new = open(path, 'x+', encoding='utf-8'), True  # noqa: SIM115 - it stays open
        except FileExistsError:
            try:
                file, new = open(path, 'r+', encoding='utf-8'), False  # noqa: SIM115
            except FileNotFoundError:
                continue
        owner = _owner(file)
        if not _lock_free(file, new, owner):
            file.close()
            raise ValueError(f'{path.parent}: another run is writing here ({_named(owner)}); choose another '
                             f'--experiment NAME, or wait for its end. If no such process runs, remove {path}')
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # its owner ended, and removed it, in between
    if owner:
        _logger.warning(f'{path.parent}: taken over from a run that was killed ({_named(owner)}).')
    record = {'pid': os.getpid(), 'host': socket.gethostname(),
              'started': datetime.now().astimezone().isoformat(timespec='seconds')}
    file.seek(0)
    file.truncate()
    file.write(json.dumps(record))
    file.flush()
    return file


def _lock_free(file: IO[str], new: bool, owner: dict[str, Any]) -> bool:
    """Whether the file could be locked."""
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
    return new or not _alive(owner)  # a file system without locks


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the process may still run: one of this host that is gone does not."""
    if not isinstance(owner.get('pid'), int) or owner.get('host') != socket.gethostname():
        return True
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _owner(file: IO[str]) -> dict[str, Any]:
    """Content of the lock file; empty if it cannot be read."""
    try:
        record = json.loads(file.read(4096))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return 'a process that has just begun'
    return f'process {owner.get("pid")} on {owner.get("host")}, started {owner.get("started")}'
