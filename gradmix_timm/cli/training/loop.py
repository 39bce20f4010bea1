"""One epoch of training: timm's step, with a registered mixer applied to the live model before the forward pass."""
from __future__ import annotations

import argparse
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from timm import utils
from timm.task import TrainingTask
from torch import Tensor, nn

from gradmix_timm.cli.errors import RunFailedError, UsageError
from gradmix_timm.mixers import BatchMixer
from gradmix_timm.objectives import TemperedLoss

from .context import Hardware, Loaders
from .interrupt import Interrupt
from .mixing import set_temperature
from .run_state import AtomicSaver, Position, Section, gather_position, own_streams, set_streams
from .setup import trainable
from .tracking import LossParts, MixStats, Tracker

__all__ = ['NonFiniteLossError', 'Run', 'train_one_epoch']

_logger = logging.getLogger('train')
# Images of the last first batch kept for the picture of mixes.
_SAMPLES = 16


class NonFiniteLossError(RunFailedError):
    """The loss became infinite or NaN, which further training would only spread."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """State shared by the epochs of a run.

    Attributes:
        args: Checked flags.
        hardware: Device and precision.
        task: Model, loss, moving average.
        optimizer: Of the task's parameters.
        loaders: Of both kinds of batches.
        mixer: Registered mixer in the step, or None.
        model: The live model that the mixer sees, or None.
        scheduler: timm's, or None.
        saver: On the first process, else None.
        output_dir: On the first process, else None.
        epochs: Length of the schedule.
        bar: Progress bar over all updates of the run, or None.
        interrupt: Whether a signal asks it to stop.
        section: Of its checkpoints.
        position: Position in an epoch to resume from; None: at the start of one.
        samples: Images and labels of the newest epoch's first batch, before mixing; filled where a mixer is on.
        tracker: On the first process, else None.
        mixes: How much of the newest epoch was mixed, by this process.
    """

    args: argparse.Namespace
    hardware: Hardware
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    loaders: Loaders
    mixer: Any
    model: nn.Module | None
    scheduler: Any
    saver: AtomicSaver | None
    output_dir: str | None
    epochs: int
    bar: Any
    interrupt: Interrupt
    section: Section
    position: Position | None = None
    samples: list[Tensor] = field(default_factory=list)
    tracker: Tracker | None = None
    mixes: dict[str, float] = field(default_factory=dict)

    def save_position(self, position: Position, update: int | None = None) -> None:
        """Write the run's position in an epoch, as a recovery file if it has an update; all processes call it."""
        self.section.streams = gather_position(self.args, self.task, position)
        if self.saver is not None:
            self.saver.save_position(position.epoch, update)
        self.section.streams = None

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates an epoch; the last may sum fewer batches."""
        return math.ceil(len(self.loaders.train) / self.args.grad_accum_steps)

    @property
    def rate(self) -> float:
        """Mean learning rate over the parameter groups."""
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return float(sum(rates) / len(rates))


def train_one_epoch(run: Run, epoch: int) -> OrderedDict[str, float]:
    """Train on every batch once.

    Returns:
        ``loss``: mean over the batches, over all processes; of a task with several losses each, ``loss_NAME``.

    Raises:
        NonFiniteLossError: The message has the step and the learning rate.
        StoppedError: A signal stopped it, after a checkpoint.
    """
    _set_epoch(run.loaders.train, epoch)
    criterion = getattr(run.task, 'criterion', None)
    if isinstance(criterion, TemperedLoss):
        criterion.set_epoch(epoch)
        set_temperature(run.mixer, criterion.temperature)
    if run.args.mixup_off_epoch and epoch >= run.args.mixup_off_epoch:
        run.loaders.switch_off_mixing()
        if run.mixer is not None:
            run.mixer.mixup_enabled = False
    trainable(run.task).train()
    pass_ = _Epoch(run, epoch)
    run.optimizer.zero_grad()
    batches = enumerate(run.loaders.train)
    if run.position is not None and run.position.epoch == epoch:
        pass_.skip(batches, run.position)
        if run.position.metrics is not None:
            return OrderedDict(run.position.metrics)
    for index, (input, target) in batches:
        pass_.step(index, input, target)
        pass_.save_if_due(index)
    if hasattr(run.optimizer, 'sync_lookahead'):
        run.optimizer.sync_lookahead()
    if not pass_.losses.count:
        raise NonFiniteLossError(f'no batch of epoch {epoch} had a finite loss, learning rate {run.rate:.3g}')
    run.mixes.clear()
    run.mixes.update(pass_.mixes.values())
    means = OrderedDict(loss=pass_.losses.avg, **pass_.parts.means())
    if run.args.distributed:
        own = torch.tensor(list(means.values()), device=run.hardware.device, dtype=torch.float32)
        means = OrderedDict(zip(means, utils.reduce_tensor(own, run.args.world_size).tolist(), strict=True))
    return means


def _set_epoch(loader: Any, epoch: int) -> None:
    if hasattr(loader.dataset, 'set_epoch'):
        loader.dataset.set_epoch(epoch)
    for sampler in (loader.batch_sampler, loader.sampler):
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return


class _Epoch:
    """One pass over the training batches: its meters and its place."""

    def __init__(self, run: Run, epoch: int) -> None:
        self.run, self.args, self.epoch = run, run.args, epoch
        self.update_time, self.data_time = utils.AverageMeter(), utils.AverageMeter()
        self.mix_time, self.losses, self.parts = utils.AverageMeter(), utils.AverageMeter(), LossParts()
        self.views = getattr(run.task, 'views', 1)  # rows of a batch that are one image
        self.second_order = bool(getattr(run.optimizer, 'is_second_order', False))
        self.can_skip_sync = run.args.distributed and hasattr(run.task.get_trainable_module(), 'no_sync')
        self.batches = len(run.loaders.train)
        self.updates = epoch * run.updates_per_epoch
        self.images = 0
        self.mixes = MixStats(run.mixer, run.hardware.device)
        self.dropped = False  # the update at the end of this window
        self.data_start = self.update_start = time.time()
        self.start = self.before = own_streams(run.hardware.device)

    def skip(self, batches: Iterator[tuple[int, Any]], position: Position) -> None:
        """Resume an interrupted epoch: skip the batches already trained on, and restore the meters.

        Raises:
            UsageError: The epoch now has other batches.
        """
        device = self.run.hardware.device
        finished = position.metrics is not None  # of such an epoch the first batch is read, for the picture of mixes
        if not finished and position.total != self.batches:
            raise UsageError(f'--resume: the run stopped after {position.batches} of {position.total} batches '
                             f'of epoch {self.epoch}, and now an epoch has {self.batches}, with other images in each; '
                             'type the flags of that run')
        last = 0 if finished else position.batches - 1
        if not finished and utils.is_primary(self.args):
            _logger.info(f'Epoch {self.epoch} goes on after {position.batches} of {self.batches} batches; they are '
                         'read again.')
        if last == 0:
            set_streams(position.before, device)
        index = -1
        for _, (index, (input, target)) in zip(range(last + 1), batches, strict=False):
            if index == 0:
                self._keep_sample(*self._placed(input, target))
            if index == last - 1:
                set_streams(position.before, device)
        position.restore(self.run.task, device)
        if not finished:
            self.before = position.now
            self.updates += -(-position.batches // self.args.grad_accum_steps)
            self._restore(position.meters)

    def save_if_due(self, index: int) -> None:
        """After an update, write a recovery file where one is due, and stop with a checkpoint if a signal requested it.

        Raises:
            StoppedError: A stop was requested.
        """
        updated = index == self.batches - 1 or (index + 1) % self.args.grad_accum_steps == 0
        number, interval = index // self.args.grad_accum_steps, self.args.recovery_interval
        streams = own_streams(self.run.hardware.device)
        if updated and interval and (number + 1) % interval == 0:
            self.run.save_position(self._position(index, streams), number)
        if updated and index < self.batches - 1 and self.run.interrupt.agreed():
            self.run.save_position(self._position(index, streams))
            self.run.interrupt.check()
        self.before = streams

    def _position(self, index: int, streams: dict[str, Any]) -> Position:
        return Position(epoch=self.epoch, batches=index + 1, total=self.batches, start=self.start, before=self.before,
                        now=streams, meters=self._meters())

    def _meters(self) -> dict[str, Any]:
        """The state of the epoch's meters, as plain values and tensors."""
        return {'losses': [self.losses.sum, self.losses.count], 'sums': dict(self.parts.sums),
                'counts': dict(self.parts.counts), 'mix_counts': self.mixes.sums}

    def _restore(self, meters: dict[str, Any]) -> None:
        device = self.run.hardware.device
        self.losses.sum, self.losses.count = meters['losses']
        self.losses.avg = self.losses.sum / max(self.losses.count, 1)
        self.parts.sums = {name: value.to(device) for name, value in meters['sums'].items()}
        self.parts.counts = {name: value.to(device) for name, value in meters['counts'].items()}
        self.mixes.sums = meters['mix_counts']

    def step(self, index: int, input: Any, target: Tensor) -> None:
        """One batch: mix, forward, backward and, at the end of its window, an update."""
        full = self.args.grad_accum_steps
        last = index == self.batches - 1
        update = last or (index + 1) % full == 0
        window = min(full, self.batches - index // full * full)  # the last one may be shorter
        input, target = self._placed(input, target)
        self.data_time.update(window * (time.time() - self.data_start))
        count = input['patches'].shape[0] if self.run.loaders.naflex else input.shape[0] // self.views
        input, target = self._mixed(index, input, target, window)
        if self.can_skip_sync and not update:
            with self.run.task.no_sync():
                loss = self._learn(input, target, window, count, update)
        else:
            loss = self._learn(input, target, window, count, update)
        if not self.dropped:
            self.losses.update(self._checked(index, loss.item() * window), count)
        self.images += count * self.args.world_size
        if update:
            self._updated(index, last, loss, input)
        self.data_start = time.time()

    def _placed(self, input: Any, target: Tensor) -> tuple[Any, Tensor]:
        """Move a batch to the device and memory format, and mix it if timm mixes in the step."""
        hardware = self.run.hardware
        if not self.args.prefetcher:
            input, target = input.to(device=hardware.device, dtype=hardware.dtype), target.to(device=hardware.device)
        if self.run.loaders.mixup is not None:
            input, target = self.run.loaders.mixup(input, target)
        if self.args.channels_last and isinstance(input, Tensor):
            input = input.contiguous(memory_format=torch.channels_last)
        return input, target

    def _mixed(self, index: int, input: Any, target: Tensor, window: int) -> tuple[Any, Tensor]:
        """Mix by the registered mixer, which uses the live model outside the forward's autocast and no_sync."""
        run = self.run
        if run.mixer is None:
            return input, target
        if index == 0:
            self._keep_sample(input, target)
        began = time.time()
        run.mixer.set_step(self.epoch, index)
        if getattr(run.task, 'mixes', False):  # inside, with the maps of its own clean forward
            return input, target
        # A separate autocast context: the step must not reuse weights that were cast here under no_grad from its cache.
        with self.mixes.timed(), run.hardware.autocast():
            if isinstance(run.mixer, BatchMixer):
                mixed = run.mixer.mix(input, target, run.model)
                input, target = mixed.input, mixed.target
                self.mixes.update(mixed.draw)
            else:
                input, target = run.mixer(input, target, run.model)
        self.mix_time.update(window * (time.time() - began))
        return input, target

    def _keep_sample(self, input: Tensor, target: Tensor) -> None:
        """Keep some images of the first batch for the picture of mixes, if a registered mixer runs."""
        if self.run.mixer is not None:
            shown = min(_SAMPLES, len(target) // self.views)
            self.run.samples[:] = [input[:shown].detach().clone(), target[:shown].clone()]

    def _learn(self, input: Any, target: Tensor, window: int, count: int, update: bool) -> Tensor:
        """Forward and backward; the loss of the batch over its window."""
        before = [b.clone() for b in self.run.task.buffers()] if self.args.skip_nonfinite else None
        with self.run.hardware.autocast():
            result = self.run.task(input, target)
        loss: Tensor = result['loss']
        if before is not None and (self.dropped or not self._finite_everywhere(loss)):
            self.dropped = True
            for buffer, old in zip(self.run.task.buffers(), before, strict=True):
                buffer.copy_(old)  # BatchNorm has included the broken batch in its averages
            return loss.detach()
        self.parts.update(result, count)
        self.mixes.update(result.get('draw'))
        if window > 1:
            loss /= window
        self._backward(loss if self.run.loaders.scaling is None else self._scaled(loss, count), update)
        return loss

    def _scaled(self, loss: Tensor, count: int) -> Tensor:
        """The loss by the size of a batch that varies."""
        loaders = self.run.loaders
        power = {'none': 0.0, 'sqrt': 0.5, 'linear': 1.0}[loaders.scaling or 'none']
        loss = loss * (count / loaders.batch_reference) ** power
        if loaders.naflex and self.args.distributed:
            mine = torch.tensor(count, device=self.run.hardware.device, dtype=torch.float32)
            loss = loss * (self.args.world_size * count / utils.reduce_tensor(mine, 1))
        return loss

    def _backward(self, loss: Tensor, update: bool) -> None:
        args, run = self.args, self.run
        clipped = None
        if args.clip_grad is not None:
            clipped = run.task.get_clip_parameters(exclude_head='agc' in args.clip_mode)
        if run.hardware.scaler is not None:
            run.hardware.scaler(
                loss, run.optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, parameters=clipped,
                create_graph=self.second_order, need_update=update)
            return
        loss.backward(create_graph=self.second_order)
        if update:
            if args.clip_grad is not None:
                utils.dispatch_clip_grad(clipped, value=args.clip_grad, mode=args.clip_mode)
            run.optimizer.step()

    def _finite_everywhere(self, loss: Tensor) -> bool:
        """Whether the loss is finite on every process, so that all drop the update or none does."""
        finite = loss.detach().isfinite().float()
        return bool((utils.reduce_tensor(finite, self.args.world_size) if self.args.distributed else finite) == 1)

    def _checked(self, index: int, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise NonFiniteLossError(
            f'the loss is {loss} at epoch {self.epoch}, batch {index}, learning rate {self.run.rate:.3g}. A lower '
            '--lr, --clip-grad 1 or --amp-dtype bfloat16 may help; --skip-nonfinite drops such updates')

    def _updated(self, index: int, last: bool, loss: Tensor, input: Any) -> None:
        """After an update: moving average, logs, schedule."""
        run, args = self.run, self.args
        self.updates += 1
        number = index // args.grad_accum_steps
        run.optimizer.zero_grad()
        if self.dropped:
            _logger.warning(f'epoch {self.epoch}, update {number}: dropped, its loss is not finite (--skip-nonfinite)')
        else:
            run.task.update_ema(step=self.updates)
        self.dropped = False
        if args.synchronize_step and run.hardware.device.type in ('cuda', 'npu'):
            getattr(torch, run.hardware.device.type).synchronize()
        now = time.time()
        self.update_time.update(now - self.update_start)
        self.update_start = now
        if number % args.log_interval == 0 or last:
            self._log(index, loss, input)
        if run.bar is not None:
            run.bar.set_description(f'epoch {self.epoch + 1}/{run.epochs}', refresh=False)
            run.bar.set_postfix(loss=f'{self.losses.avg:#.3g}', lr=f'{run.rate:.2e}', refresh=False)
            run.bar.update()
        if run.scheduler is not None:
            run.scheduler.step_update(num_updates=self.updates, metric=self.losses.avg)
        self.images = 0

    def _log(self, index: int, loss: Tensor, input: Any) -> None:
        """Timm's line, with the time of mixing where it is apart from the forward; all processes call it."""
        run, average, newest = self.run, self.losses.avg, self.losses.val
        number = index // self.args.grad_accum_steps
        if self.args.distributed:
            average, newest = (utils.reduce_tensor(loss.new([value]), self.args.world_size).item()
                               for value in (average, newest))
        if not utils.is_primary(self.args):
            return
        total, took, data = run.updates_per_epoch, self.update_time, self.data_time
        mix = f'  Mix: {self.mix_time.val:.3f} ({self.mix_time.avg:.3f})' if self.mix_time.count else ''
        _logger.info(
            f'Train: {self.epoch} [{number:>4d}/{total} ({100. * (number + 1) / total:>3.0f}%)]  '
            f'Loss: {newest:#.3g} ({average:#.3g})  Time: {took.val:.3f}s, {self.images / took.val:>7.2f}/s  '
            f'({took.avg:.3f}s, {self.images / took.avg:>7.2f}/s)  LR: {run.rate:.3e}  '
            f'Data: {data.val:.3f} ({data.avg:.3f}){mix}{self.mixes.line()}')
        if self.args.save_images and run.output_dir and isinstance(input, Tensor):
            path = Path(run.output_dir) / f'train-batch-{index}.jpg'
            torchvision.utils.save_image(input, path, padding=0, normalize=True)
