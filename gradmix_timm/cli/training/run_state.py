"""State of a run on disk: the checkpoint's record, random streams, resuming, atomic saving."""
from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm import utils
from timm.models import split_model_name_tag
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
from torch import Tensor

from gradmix_timm.checkpoint import KEY, RunRecord
from gradmix_timm.cli.errors import RunFailedError, shortened
from gradmix_timm.objectives import JointTask, KeepCleanTask, LateLabelTask, MocoTask
from gradmix_timm.options import OPTIONS
from gradmix_timm.schema import shown

__all__ = [
    'RECORDED_TASKS', 'STREAMS', 'AtomicSaver', 'Position', 'Recorded', 'Section', 'check_resume', 'gather_position',
    'gather_streams', 'own_streams', 'recorded_streams', 'resume', 'set_streams', 'set_up_average']

_logger = logging.getLogger('train')

#: Entry of the record's section with the random streams at the end of the epoch, one dict a process.
STREAMS = 'random_streams'
_POSITION = 'position'
# Flags that decide where a run is written, how long it goes on and what it prints, not what a step computes.
_INCIDENTAL = frozenset((
    'resume', 'overwrite', 'output', 'experiment', 'epochs', 'start_epoch', 'stop_epoch', 'save_epochs', 'log_interval',
    'checkpoint_hist', 'recovery_interval', 'workers', 'pin_mem', 'no_resume_opt', 'rank', 'local_rank', 'device'))


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
    'late-labels': _recorded(LateLabelTask),
    'supcon+ssl': _recorded(JointTask),
    'simclr': _recorded(JointTask),
    'moco': _recorded(MocoTask),
}


class AtomicSaver(CheckpointSaver):
    """timm's saver, with atomic replacement of files; a failed save leaves no partial file."""

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        try:
            super()._save(save_path, epoch, metric)
        except BaseException as error:
            Path(save_path).unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):  # torch's writer raises the latter on a full disk
                raise RunFailedError(
                    f'{save_path} could not be written ({shortened(error)}; is the disk full?); earlier checkpoints '
                    'are whole, continue with --resume auto') from error
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

    def save_position(self, epoch: int, update: int | None = None) -> None:
        """Save the run's present state, within an epoch, as its newest checkpoint or as a recovery file.

        Args:
            epoch: In which it is. What is written names the one before, -1 for the first, so that a reader that knows
                no position trains it from its start.
            update: Of the epoch, for timm's recovery files, of which the newest two are kept; None: the checkpoint.
        """
        names = ('tmp', 'last') if update is None else (
            f'{self.recovery_prefix}_tmp', f'{self.recovery_prefix}-{epoch}-{update}')
        part, whole = (str(Path(self.checkpoint_dir) / f'{name}{self.extension}') for name in names)
        self._save(part, epoch - 1)
        self._replace(part, whole)
        if update is not None:
            if self.prev_recovery_file:
                Path(self.prev_recovery_file).unlink(missing_ok=True)
            self.prev_recovery_file, self.curr_recovery_file = self.curr_recovery_file, whole

    def last_good(self) -> str | None:
        """Path of the newest checkpoint of this run, or None."""
        path = Path(self.checkpoint_dir) / f'last{self.extension}'
        return str(path) if path.is_file() else self.curr_recovery_file or None


# ---- random streams

def own_streams(device: torch.device) -> dict[str, Any]:
    """The state of every random stream of this process, as values that a weights-only load takes."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - timm's mixers draw from it
    state = {
        'python': random.getstate(),
        'numpy': (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        'torch': torch.get_rng_state()}
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def gather_streams(args: argparse.Namespace, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Random streams of every process, by rank; a collective, which all processes call."""
    if not args.distributed:
        return [own]
    gathered: list[Any] = [None] * args.world_size
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def set_streams(own: dict[str, Any], device: torch.device) -> None:
    """Continue the random streams from :func:`own_streams`."""
    version, words, gauss = own['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = own['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(own['torch'])
    if device.type == 'cuda' and 'cuda' in own:
        torch.cuda.set_rng_state(own['cuda'], device)


def recorded_streams(path: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """The random streams of this process as saved in ``path``; None without them."""
    checkpoint = load_checkpoint_metadata(path)
    section = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    streams = (section or {}).get(STREAMS)
    return streams[args.rank] if streams and len(streams) == args.world_size else None


# ---- the place in an epoch


@dataclass(frozen=True, kw_only=True)
class Position:
    """Position in an epoch at which a run was saved, kept for each process beside its random streams.

    A resumed run reads the epoch's batches again from ``start`` on, without training on those that are done. For the
    last of them the streams of ``before`` are set: loaders read one batch ahead.

    Attributes:
        epoch: Its index.
        batches: Trained on already.
        total: Batches of the epoch.
        start: Streams at the start of the epoch.
        before: Streams before the last of those batches was requested.
        now: Streams when it was saved.
        meters: State of the epoch's meters.
        metrics: Of an epoch that is trained and not validated yet; else None.
        norms: Of several processes, running statistics of the norms and of their moving average by buffer: within an
            epoch each process has its own, and the checkpoint's are those of the first one.
    """

    epoch: int
    batches: int
    total: int
    start: dict[str, Any]
    before: dict[str, Any]
    now: dict[str, Any]
    meters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] | None = None
    norms: dict[str, Tensor] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """The streams when the run was saved, with the position as an entry."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**state.pop('now'), _POSITION: state}

    @classmethod
    def from_state(cls, streams: dict[str, Any]) -> Position | None:
        """The position stored with streams; None if they are of the end of an epoch."""
        now = dict(streams)
        state = now.pop(_POSITION, None)
        return cls(now=now, **state) if state is not None else None

    def restore(self, task: TrainingTask, device: torch.device) -> None:
        """Set the random streams and the norms."""
        set_streams(self.now, device)
        for name, buffer in task.named_buffers():
            if name in self.norms:
                buffer.copy_(self.norms[name])


def gather_position(args: argparse.Namespace, task: TrainingTask, position: Position) -> list[dict[str, Any]]:
    """The position of every process, by rank, as :func:`gather_streams` has their streams; a collective."""
    norms = {name: buffer.cpu().clone() for name, buffer in task.named_buffers()
             if args.distributed and 'running_' in name}
    return gather_streams(args, replace(position, norms=norms).to_state())


# ---- resuming

def check_resume(path: str, models: Sequence[str], known: tuple[str, ...], num_classes: int,
                 held: Mapping[str, Any] | None = None, objective: str = 'ce') -> None:
    """Reject a file of another model or other classes, or one that was trained on images now held out.

    Args:
        path: The file.
        models: Names of the model now, timm's and that of --model, which may have a source before it; weights' tags
            are not compared.
        known: Its classes in head order, as far as they are known.
        num_classes: Width of its head.
        held: The record of this run's held-out images; None: not known yet.
        objective: Of this run.

    Raises:
        ValueError: It is of another run, or not a checkpoint.
    """
    try:
        checkpoint = load_checkpoint_metadata(path)
    except Exception as error:  # readers raise any type on foreign bytes
        raise ValueError(f'--resume {path}: not a training checkpoint, or a damaged one; give last.pth.tar or '
                         'model_best.pth.tar of a run') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'--resume {path}: it holds a {type(checkpoint).__name__}, not a training checkpoint; give '
                         'last.pth.tar of a run')
    section = checkpoint.get(KEY)
    if section is None:
        stored = getattr(checkpoint.get('args'), 'model', None)
        classes: tuple[str, ...] = ()
        width = getattr(checkpoint.get('args'), 'num_classes', None) if stored else None
    else:
        record = RunRecord.from_state(section, f'--resume {path}')
        stored, classes = record.model, record.known_classes
        width = record.model_kwargs.get('num_classes')
    was = 'ce' if section is None else record.objective
    if was != objective and {was, objective} != {'supcon+ssl', 'simclr'}:  # the same parts, weighed otherwise
        raise ValueError(f'--resume {path}: it is of --objective {was} and this run is of --objective {objective}; to '
                         'start from its weights alone type --initial-checkpoint in place of --resume')
    if stored is not None and _architecture(stored) not in map(_architecture, models):
        raise ValueError(f'--resume {path}: it is of --model {stored} and this run is of --model {models[0]}')
    if width is not None and width != num_classes:
        raise ValueError(f'--resume {path}: its head has {width} classes and this one {num_classes}')
    if classes and known and classes != known:
        place = next(i for i, (a, b) in enumerate(zip(classes, known, strict=True)) if a != b)
        raise ValueError(f'--resume {path}: class {place} of its head is {classes[place]!r} and of this run '
                         f'{known[place]!r}; train on the same classes in the same order')
    if held is not None and section is not None and any(held[name] != getattr(record, name)
                                                        for name in ('held_out', 'flat_test')):
        raise ValueError(f'--resume {path}: other images were held out for validation, so that it has trained on some '
                         'of these; type its --seed and --osr-val-fraction, and undo what was added to the training '
                         'images, renamed or removed since')


def _architecture(name: str) -> str:
    """The name without the tag of its weights; one with a source (hf-hub:, local-dir:) as it is."""
    return name if ':' in name else str(split_model_name_tag(name)[0])


def resume(path: str, args: argparse.Namespace, task: TrainingTask, optimizer: torch.optim.Optimizer,
           scaler: Any, mixer_options: Mapping[str, Any]) -> int | None:
    """Load weights, optimizer and loss scale; returns the epoch to continue with.

    Raises:
        ValueError: The weights do not fit, or the state is of another optimizer.
    """
    checkpoint = load_checkpoint_metadata(path)
    recorded = vars(checkpoint.get('args') or argparse.Namespace())
    if (was := recorded.get('opt', args.opt)) != args.opt and not args.no_resume_opt:
        raise ValueError(f'--resume {path}: it is of --opt {was} and this run is of --opt {args.opt}; to go on with '
                         'another optimizer from its first state type --no-resume-opt')
    changed = [f'{name} {shown(was)}, now {shown(vars(args)[name])}' for name, was in recorded.items()
               if name not in _INCIDENTAL and vars(args).get(name, was) != was]
    if checkpoint.get(KEY):  # flags that were not typed, and a version with other defaults or options
        before = RunRecord.from_state(checkpoint[KEY], f'--resume {path}').mixer_options
        unrecorded = {name: OPTIONS[name].default for name in mixer_options.keys() & OPTIONS.keys() - before.keys()
                      if before and OPTIONS[name].default is not None}
        before = {**before, **unrecorded}
        now = {name: mixer_options[name] for name in before if name in mixer_options and (
            not changed or (name in OPTIONS and recorded.get(f'gradmix_{name}') == vars(args).get(f'gradmix_{name}')))}
        changed += [f"the mixer's {name} {shown(before[name])}, now {shown(value)}" for name, value in now.items()
                    if json.dumps(before[name], default=str) != json.dumps(value, default=str)]  # tuples are lists
    if changed and utils.is_primary(args):
        _logger.warning(f'--resume {path}: it was trained with other flags: {"; ".join(changed)}')
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
    """The run's section of a checkpoint: its record and the random streams.

    Attributes:
        record: What the run is.
        streams: Set while a checkpoint is saved.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.streams: list[dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        """The section as plain values."""
        state = self.record.to_state()
        return state if self.streams is None else {**state, STREAMS: self.streams}
