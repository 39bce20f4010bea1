"""What a run leaves on disk and finds again: the checkpoint's record, random streams, resuming, whole files."""
from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm import utils
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TokenDistillationTask,
    TrainingTask,
    load_task_ema_checkpoint,
    resume_task_checkpoint,
)
from timm.utils import CheckpointSaver, load_checkpoint_metadata, unwrap_model

from gradmix_timm.checkpoint import KEY, RunRecord
from gradmix_timm.cli.errors import shortened
from gradmix_timm.objectives import JointTask, KeepCleanTask, MocoTask

__all__ = [
    'RECORDED_TASKS', 'STREAMS', 'AtomicSaver', 'Recorded', 'check_resume', 'check_writable', 'gather_streams',
    'restore_streams', 'resume', 'resume_path']

_logger = logging.getLogger('train')

#: Entry of the record's section with the random streams at the end of the epoch, one dict a process.
STREAMS = 'random_streams'


class Recorded:
    """Adds the run's section to a task's checkpoints; mixed in before a timm task.

    Attributes:
        section: Makes the section at the moment of saving; None: no section.
    """

    section: Callable[[], dict[str, Any]] | None = None

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn: Callable[..., Any] = unwrap_model) -> dict[str, Any]:
        """The task's own entries and, once a checkpoint, the section."""
        state = super().get_checkpoint_state(ema=ema, unwrap_fn=unwrap_fn)  # type: ignore[misc]
        if not ema and self.section is not None:
            state[KEY] = self.section()
        return state


def _recorded(task: type[TrainingTask]) -> Any:
    return type(task.__name__, (Recorded, task), {'__doc__': task.__doc__})


#: timm's tasks by the value of --task or --kd-distill-type, and ours of
#: --gradmix-keep-clean and --objective, with the section in their checkpoints.
RECORDED_TASKS: dict[str, Any] = {
    'classification': _recorded(ClassificationTask),
    'multilabel': _recorded(MultiLabelClassificationTask),
    'logit': _recorded(LogitDistillationTask),
    'feature': _recorded(FeatureDistillationTask),
    'token': _recorded(TokenDistillationTask),
    'keep-clean': _recorded(KeepCleanTask),
    'supcon+ssl': _recorded(JointTask),
    'simclr': _recorded(JointTask),
    'moco': _recorded(MocoTask),
}


class AtomicSaver(CheckpointSaver):
    """timm's saver, in which a file is replaced whole or not at all, and a broken save leaves nothing behind."""

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        try:
            super()._save(save_path, epoch, metric)
        except BaseException as error:
            Path(save_path).unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):  # torch's writer raises the latter on a full disk
                error.add_note(f'{save_path} could not be written (is the disk full?); earlier checkpoints are whole, '
                               'go on with --resume auto')
            raise

    def _replace(self, src: str, dst: str) -> None:
        Path(src).replace(dst)

    def _duplicate(self, src: str, dst: str) -> None:
        if Path(dst).exists() and os.path.samefile(src, dst):
            return
        temporary = f'{dst}.new'
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.link(src, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(src, temporary)
        Path(temporary).replace(dst)

    def last_good(self) -> str | None:
        """Path of the newest checkpoint of this run, or None."""
        path = Path(self.checkpoint_dir) / f'last{self.extension}'
        return str(path) if path.is_file() else self.curr_recovery_file or None


# ---- random streams

def _streams(device: torch.device) -> dict[str, Any]:
    """The state of every random stream of this process, as values that a weights-only load takes."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - timm's mixers draw from it
    state = {
        'python': random.getstate(),
        'numpy': (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        'torch': torch.get_rng_state()}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def gather_streams(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Random streams of every process, by rank; a collective, all processes call it."""
    own = _streams(device)
    if not args.distributed:
        return [own]
    gathered: list[Any] = [None] * args.world_size
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def restore_streams(path: str, args: argparse.Namespace, device: torch.device) -> bool:
    """Continue the random streams where the run that wrote ``path`` stood; False where it does not say."""
    checkpoint = load_checkpoint_metadata(path)
    section = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    streams = (section or {}).get(STREAMS)
    if not streams or len(streams) != args.world_size:
        return False
    own = streams[args.rank]
    version, words, gauss = own['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = own['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(own['torch'])
    if device.type == 'cuda' and 'cuda' in own:
        torch.cuda.set_rng_state(own['cuda'], device)
    return True


# ---- resuming

def resume_path(args: argparse.Namespace) -> str:
    """The file to resume from, '' for a fresh run; 'auto' is last.pth.tar of the run folder, where there is one.

    Raises:
        ValueError: No such file.
    """
    if args.resume == 'auto':
        path = Path(output_root(args)) / args.experiment / 'last.pth.tar'
        return str(path) if path.is_file() else ''
    if args.resume and not Path(args.resume).is_file():
        raise ValueError(f'--resume {args.resume}: no such file; give a checkpoint of a run (last.pth.tar)')
    return str(args.resume)


def output_root(args: argparse.Namespace) -> str:
    """Folder in which the run folder is made."""
    return args.output or './output/train'


def check_writable(args: argparse.Namespace) -> None:
    """Refuse an output folder that cannot be made or written, before anything is computed.

    Raises:
        ValueError: With the part of the path that stands in the way.
    """
    folder = Path(output_root(args)) / args.experiment
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f'--output: {existing} is a file, expected a folder; choose another, --output DIR')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f'--output: no right to write in {existing}; choose another folder, --output DIR')


def check_resume(path: str, model: str, known: tuple[str, ...], num_classes: int,
                 held: Mapping[str, Any] | None = None, objective: str = 'ce') -> None:
    """Refuse a file of another model, of other classes, or one that trained on images now held out.

    Args:
        path: The file.
        model: Name of the model now.
        known: Its classes in head order, as far as they are known.
        num_classes: Width of its head.
        held: What its record would keep of its held-out images; None: not known yet.
        objective: Of this run.

    Raises:
        ValueError: It is of another run, or no checkpoint at all.
    """
    try:
        checkpoint = load_checkpoint_metadata(path)
    except Exception as error:  # whatever a reader raises on foreign bytes
        raise ValueError(f'--resume {path}: not a training checkpoint; give last.pth.tar of a run') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'--resume {path}: it holds a {type(checkpoint).__name__}, not a training checkpoint; give '
                         'last.pth.tar of a run')
    section = checkpoint.get(KEY)
    if section is None:
        stored = getattr(checkpoint.get('args'), 'model', None) if isinstance(checkpoint, dict) else None
        classes: tuple[str, ...] = ()
        width = getattr(checkpoint.get('args'), 'num_classes', None) if stored else None
    else:
        record = RunRecord.from_state(section)
        stored, classes = record.model, record.known_classes
        width = record.model_kwargs.get('num_classes')
    was = 'ce' if section is None else record.objective
    if was != objective and {was, objective} != {'supcon+ssl', 'simclr'}:  # the same parts, weighed otherwise
        raise ValueError(f'--resume {path}: it is of --objective {was} and this run is of --objective {objective}; to '
                         'start from its weights alone type --initial-checkpoint in place of --resume')
    if stored is not None and stored != model:
        raise ValueError(f'--resume {path}: it is of --model {stored} and this run is of --model {model}')
    if width is not None and width != num_classes:
        raise ValueError(f'--resume {path}: its head has {width} classes and this one {num_classes}')
    if classes and known and classes != known:
        place = next(i for i, (a, b) in enumerate(zip(classes, known, strict=True)) if a != b)
        raise ValueError(f'--resume {path}: class {place} of its head is {classes[place]!r} and of this run '
                         f'{known[place]!r}; train on the same classes in the same order')
    # A record of an earlier version has numbers alone.
    names = ('held_out', 'flat_test') if section is not None and record.held_out else ('val_indices',)
    if held is not None and section is not None and any(held[name] != getattr(record, name) for name in names):
        raise ValueError(f'--resume {path}: other images were held out for validation, so that it has trained on some '
                         'of these; type its --seed and --osr-val-fraction, and undo what was added to the training '
                         'images, renamed or removed since')


def resume(path: str, args: argparse.Namespace, task: TrainingTask, optimizer: torch.optim.Optimizer,
           scaler: Any) -> int | None:
    """Load weights, optimizer and loss scale; the epoch to go on with.

    Raises:
        ValueError: The weights do not fit, or the state is of another optimizer.
    """
    was = getattr(load_checkpoint_metadata(path).get('args'), 'opt', args.opt)
    if was != args.opt and not args.no_resume_opt:
        raise ValueError(f'--resume {path}: it is of --opt {was} and this run is of --opt {args.opt}; to go on with '
                         'another optimizer from its first state type --no-resume-opt')
    try:
        return resume_task_checkpoint(
            task, path, optimizer=None if args.no_resume_opt else optimizer,
            loss_scaler=None if args.no_resume_opt else scaler, log_info=utils.is_primary(args))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'--resume {path}: its weights or optimizer do not fit this run ({shortened(error)})'
                         ) from error


def set_up_average(path: str, args: argparse.Namespace, task: TrainingTask) -> None:
    """The moving average of the weights, continued from ``path`` where that is given; before DDP wraps the model."""
    if not args.model_ema:
        return
    task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
                   device=torch.device('cpu') if args.model_ema_force_cpu else None)
    if path:
        load_task_ema_checkpoint(task, path)


class Section:
    """The run's section of a checkpoint: its record and, at the end of an epoch, the random streams.

    Attributes:
        record: What the run is.
        streams: Set while an epoch's checkpoint is saved; a recovery file in mid-epoch has none.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = replace(record)
        self.streams: list[dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        """The section as plain values."""
        state = self.record.to_state()
        return state if self.streams is None else {**state, STREAMS: self.streams}
