"""A training run by its flags, in timm's order: device, model, mixer, data, task, resuming, epochs, results."""
from __future__ import annotations

import argparse
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm import utils
from timm.utils import trim_summary, update_summary
from tqdm.contrib.logging import logging_redirect_tqdm

from gradmix_timm.checkpoint import RunRecord, versions
from gradmix_timm.cli.errors import one_line, user_errors
from gradmix_timm.data import canonical_name
from gradmix_timm.objectives import TemperedLoss

from .context import Built, Data, Hardware
from .first_process import said_once
from .flag_checks import scheduled_epochs
from .interrupt import Interrupt, StoppedError, held_signals
from .linear_head import Probe, check_head, fit_heads
from .loaders import build_loaders, open_data, plan_classes, set_learning_rate, split_names
from .loop import Run, train_one_epoch
from .mixing import MixPlan, asked_confidence, create_step_mixer, plan_mixing, set_temperature
from .objectives import objective_options
from .run_folder import RunFolder, check_writable, resume_path
from .run_state import (
    AtomicSaver,
    Position,
    Section,
    check_resume,
    gather_streams,
    own_streams,
    recorded_streams,
    resume,
    set_streams,
    set_up_average,
)
from .setup import (
    build_mixer,
    build_model,
    build_optimizer,
    build_schedule,
    build_task,
    compile_task,
    live_model,
    start,
)
from .tracking import Tracker, open_bar
from .validation import check_metric, share_norms, validate_run

__all__ = ['run_training']

_logger = logging.getLogger('train')
# Share of the last epoch's images below which a training says that it hardly mixed.
_FEW_MIXED = .05


@dataclass(frozen=True)
class Span:
    """Which epochs a run trains.

    Attributes:
        first: Index of the first.
        stop: Index after the last.
        resumed: File to resume from, or ''.
    """

    first: int
    stop: int
    resumed: str


def run_training(args: argparse.Namespace, args_text: str, create_model: Callable[..., Any]) -> None:
    """Train by checked flags.

    Args:
        args: Of :func:`~gradmix_timm.cli.training.args.parse_args`.
        args_text: The same, for args.yaml.
        create_model: timm's.
    """
    with RunFolder(args) as folder:
        _run(args, args_text, folder, create_model)


def _run(args: argparse.Namespace, args_text: str, folder: RunFolder, create_model: Callable[..., Any]) -> None:
    with said_once(), user_errors(RuntimeError, AssertionError):
        run, span, data, built, plan = _set_up(args, args_text, folder, create_model)
    results: list[dict[str, Any]] = []
    picture = partial(_picture_mixes, run, data, built, plan)
    interrupted = _run_epochs(run, span, results, picture)
    if args.distributed:  # not after an error: it could wait for processes that have ended
        torch.distributed.destroy_process_group()
    _report(run, span, results)
    if interrupted is not None:
        raise interrupted
    if args.probe_epochs and run.output_dir is not None:
        _probe(run, span, data, built)
    if run.samples and run.output_dir is not None and _can_show(run):
        picture()


def _run_epochs(run: Run, span: Span, results: list[dict[str, Any]],
                picture: Callable[[], bool]) -> KeyboardInterrupt | None:
    """Train all epochs; after any failure or interrupt the message names the last checkpoint."""
    try:
        with held_signals(run.interrupt), logging_redirect_tqdm() if run.bar is not None else nullcontext():
            _train(run, span, results, picture)
    except (Exception, KeyboardInterrupt) as failure:
        good = run.saver.last_good() if run.saver is not None else None
        stop = run.interrupt.ended_by(failure)
        (stop or failure).add_note(f'last checkpoint: {good or "none yet"}')
        if stop is None:
            raise
        return stop
    finally:
        for open_one in (run.bar, run.tracker):
            if open_one is not None:
                open_one.close()
    return None


def _set_up(args: argparse.Namespace, args_text: str, folder: RunFolder,
            create_model: Callable[..., Any]) -> tuple[Run, Span, Data, Built, MixPlan]:
    """Everything before the first step, in timm's order; a registered mixer is checked before data is opened."""
    check_metric(args)
    _check_span(args)
    check_writable(args)
    plan = plan_mixing(args)
    hardware = start(args)
    folder.claim()
    split = plan_classes(args)
    resumed = resume_path(args)
    built = build_model(args, hardware, create_model)
    if resumed:
        check_resume(resumed, (built.name, args.model), split.known if split else (), built.kwargs['num_classes'],
                     objective=args.objective)
    if args.objective != 'ce':
        check_head(args, built.model)
    plan = plan.with_normalisation(built.preprocessing.mean, built.preprocessing.std)
    mixer = build_mixer(args, plan, built)
    data = open_data(args, built, split)
    if resumed:
        check_resume(resumed, (built.name, args.model), data.known, built.kwargs['num_classes'], data.record,
                     args.objective)
    loaders = build_loaders(args, hardware, built, plan, data)
    set_learning_rate(args, loaders)
    task = build_task(args, plan, built, hardware, mixer)
    record = _record(args, plan, built, mixer, data)
    section = Section(record)
    task.section = section  # type: ignore[assignment]
    optimizer = build_optimizer(args, task)
    first = resume(resumed, args, task, optimizer, hardware.scaler, record.mixer_options) if resumed else None
    set_up_average(resumed, args, task)
    compile_task(args, task, hardware)
    decreasing = args.eval_metric == 'loss' or loaders.eval is None
    output_dir = folder.open(built.preprocessing.input_size[-1], args_text)
    saver = _open_saver(args, output_dir, task, optimizer, hardware, decreasing)
    updates = -(-len(loaders.train) // args.grad_accum_steps)
    scheduler, epochs = build_schedule(args, optimizer, updates, decreasing)
    streams = recorded_streams(resumed, args) if resumed and args.start_epoch in (None, first) else None
    position = Position.from_state(streams) if streams else None
    first = position.epoch if position else first
    span = Span(first=int(args.start_epoch if args.start_epoch is not None else first or 0),
                stop=args.stop_epoch or epochs, resumed=resumed)
    _wind_on(args, scheduler, span.first, updates, position)
    _continue_folder(span, saver, output_dir)
    if resumed and span.first == first:
        if args.use_multi_epochs_loader:
            _logger.info('The loader of --use-multi-epochs-loader draws its order before streams are restored: the '
                         'order of images starts anew (leave the flag out to go on exactly).')
        _continue_streams(streams, position, hardware,
                          exact=args.workers == 0 or plan.in_step or data.split is not None)
    bar = open_bar(max(span.stop - span.first, 0) * updates) if utils.is_primary(args) else None
    run = Run(args=args, hardware=hardware, task=task, optimizer=optimizer, loaders=loaders, mixer=mixer,
              model=live_model(task) if mixer is not None else None, scheduler=scheduler, saver=saver,
              output_dir=output_dir, epochs=epochs, bar=bar, section=section, position=position,
              interrupt=Interrupt(hardware.device if args.distributed else None),
              tracker=_open_tracker(args, output_dir, span.first))
    return run, span, data, built, plan


def _check_span(args: argparse.Namespace) -> None:
    """--start-epoch, --stop-epoch and --save-epochs within the schedule.

    Raises:
        ValueError: One of them is outside.
    """
    epochs = scheduled_epochs(args)
    for flag, values in (('--stop-epoch', [args.stop_epoch]), ('--save-epochs', args.save_epochs or [])):
        outside = [value for value in values if value is not None and not 1 <= value <= epochs]
        if outside:
            raise ValueError(f'{flag} {outside[0]}: the schedule has {epochs} epochs; choose 1 to {epochs}')
    if args.start_epoch is not None and args.start_epoch >= epochs:
        raise ValueError(f'--start-epoch {args.start_epoch}: the schedule has {epochs} epochs, counted from 0; choose '
                         f'0 to {epochs - 1}')
    if args.start_epoch is not None and args.stop_epoch is not None and args.start_epoch >= args.stop_epoch:
        raise ValueError(f'--start-epoch {args.start_epoch} with --stop-epoch {args.stop_epoch}: no epoch lies '
                         'between, counted from 0; choose a later --stop-epoch')


def _record(args: argparse.Namespace, plan: MixPlan, built: Built, mixer: Any, data: Data) -> RunRecord:
    split = data.split
    options = mixer.options if mixer is not None else {k: v for k, v in plan.options.items() if k != 'mode'}
    return RunRecord(
        model=built.name, model_kwargs=built.kwargs, known_classes=data.known, unknown_output=args.unknown_output,
        unknown_classes=split.unknown if split else (), protocol=split.protocol if split else None,
        family=split.family if split else None, trial=split.trial if split else None,
        dataset=canonical_name(args.dataset),
        data_dir=str(Path(args.data_dir).absolute()) if args.data_dir else None, splits=split_names(args),
        **data.record, data_config=built.preprocessing.as_config(), mixer=plan.name,
        mixer_options=options, objective=args.objective, objective_options=objective_options(args), seed=args.seed,
        versions=versions())


def _open_saver(args: argparse.Namespace, output_dir: str | None, task: Any, optimizer: torch.optim.Optimizer,
                hardware: Hardware, decreasing: bool) -> AtomicSaver | None:
    if output_dir is None:
        return None
    return AtomicSaver(
        model=task.get_trainable_module(), optimizer=optimizer, args=args, amp_scaler=hardware.scaler,
        checkpoint_dir=output_dir, recovery_dir=output_dir, decreasing=decreasing, max_history=args.checkpoint_hist,
        task=task)


def _open_tracker(args: argparse.Namespace, output_dir: str | None, first: int) -> Tracker | None:
    if output_dir is None or not (args.log_tensorboard or args.log_wandb):
        return None
    return Tracker(args, output_dir, Path(output_dir).name, first)


def _wind_on(args: argparse.Namespace, scheduler: Any, epoch: int, updates_per_epoch: int,
             position: Position | None) -> None:
    """Set the schedule to the start of an epoch, or to a position within it."""
    done = -(-position.batches // args.grad_accum_steps) if position else 0
    if scheduler is not None and epoch + done > 0:
        if args.sched_on_updates:
            scheduler.step_update(epoch * updates_per_epoch + done)
        elif epoch > 0:
            scheduler.step(epoch)


def _continue_folder(span: Span, saver: AtomicSaver | None, output_dir: str | None) -> None:
    """Truncate an existing run folder's table and list of checkpoints to the start of this run."""
    if saver is None or output_dir is None:
        return
    trim_summary(str(Path(output_dir) / 'summary.csv'), span.first)
    if span.resumed and Path(span.resumed).resolve().parent == Path(output_dir).resolve():
        saver.load_state_dict_from_checkpoint(span.resumed)


def _continue_streams(streams: dict[str, Any] | None, position: Position | None, hardware: Hardware,
                      exact: bool) -> None:
    if streams is None:
        _logger.info('The checkpoint holds no random streams of as many processes: the order of images starts anew.')
        return
    set_streams(position.start if position else streams, hardware.device)
    if not exact:
        _logger.info("Loader workers of timm's plain run have streams that no checkpoint holds: the order of images "
                     'goes on, their augmentation is drawn anew (--workers 0 goes on exactly).')


def _train(run: Run, span: Span, results: list[dict[str, Any]], picture: Callable[[], bool]) -> None:
    """Train the epochs; each validated one adds its metrics to ``results``, and some write a picture of mixes."""
    device = run.hardware.device
    for epoch in range(span.first, span.stop):
        start = own_streams(device)
        train_metrics = train_one_epoch(run, epoch)
        share_norms(run, run.task.get_trainable_module())
        if not _is_judged(run, span, epoch + 1):
            if run.scheduler is not None:
                run.scheduler.step(epoch + 1, metric=None)
            continue
        now = own_streams(device)
        try:
            run.interrupt.check()
            eval_metrics = validate_run(run)
        except StoppedError:
            batches = len(run.loaders.train)
            run.save_position(Position(epoch=epoch, batches=batches, total=batches, start=start, before=start, now=now,
                                       metrics=dict(train_metrics)))
            raise
        metric = (eval_metrics or train_metrics)[run.args.eval_metric if eval_metrics else 'loss']
        run.section.streams = gather_streams(run.args, own_streams(device))
        _track(run, epoch, train_metrics, eval_metrics, picture)
        _save(run, epoch, train_metrics, eval_metrics, metric)
        run.section.streams = None
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric)
        results.append({'epoch': epoch, 'train': train_metrics,
                        **({'validation': eval_metrics} if eval_metrics else {})})


def _is_judged(run: Run, span: Span, completed: int) -> bool:
    """Whether the epoch ends in validation and a checkpoint: at the interval, the end, and every milestone."""
    return (completed % run.args.val_interval == 0 or completed == span.stop
            or completed in (run.args.save_epochs or ()))


def _track(run: Run, epoch: int, train_metrics: OrderedDict[str, float], eval_metrics: OrderedDict[str, float] | None,
           picture: Callable[[], bool]) -> None:
    """Log an epoch to TensorBoard and W&B, beyond what timm's summary sends to W&B."""
    if run.tracker is None:
        return
    metrics = {**{f'train/{name}': value for name, value in train_metrics.items()},
               **{f'eval/{name}': value for name, value in (eval_metrics or {}).items()}}
    run.tracker.log(epoch, {**metrics, 'lr': run.rate}, run.mixes)
    if run.samples and run.tracker.wants_picture(epoch) and _can_show(run) and picture():
        run.tracker.picture(epoch, Path(str(run.output_dir)) / 'mixes.png')


def _save(run: Run, epoch: int, train_metrics: OrderedDict[str, float], eval_metrics: OrderedDict[str, float] | None,
          metric: float) -> None:
    """Write the line of summary.csv, the checkpoint and the milestone."""
    if run.saver is None or run.output_dir is None:
        return
    update_summary(epoch, train_metrics, eval_metrics, filename=str(Path(run.output_dir) / 'summary.csv'), lr=run.rate,
                   log_wandb=run.args.log_wandb)
    run.saver.save_checkpoint(epoch, metric=metric)
    if epoch + 1 in (run.args.save_epochs or ()):
        run.saver.save_milestone(epoch + 1)


def _report(run: Run, span: Span, results: list[dict[str, Any]]) -> None:
    """Print the best metric, and the ten best epochs as JSON for programs; or that no epoch was left to train."""
    if run.saver is None:
        return
    if not results:
        if span.first >= span.stop:
            flag = '--stop-epoch' if run.args.stop_epoch else '--epochs'
            print(f'{span.resumed}: {span.first} of {span.stop} epochs are trained already; {flag} N for more.')
        return
    share = run.mixes.get('mix/mixed_by_maps', run.mixes.get('mix/mixed_images', 1.))
    if share < _FEW_MIXED * run.args.mixup_prob * run.args.mixup_prob_elem and asked_confidence(run.mixer):
        which = "GradMix's images" if 'mix/mixed_by_maps' in run.mixes else 'the images'
        _logger.warning(f'{share:.1%} of {which} of the last epoch were mixed: the model gave few labels '
                        f'{asked_confidence(run.mixer)} of the probability that they ask for. '
                        '--gradmix-confidence 0.5 mixes more of them, --gradmix-confidence 0 every image')
    if run.saver.best_metric is not None:
        _logger.info(f'*** Best metric: {run.saver.best_metric} (epoch {run.saver.best_epoch})')
    name = run.args.eval_metric if run.loaders.eval is not None else 'loss'
    ranked = sorted(results, key=lambda line: line.get('validation', line['train']).get(name, 0),
                    reverse=run.saver.decreasing)
    print(f'--result\n{json.dumps(ranked[-10:], indent=4)}')


def _probe(run: Run, span: Span, data: Data, built: Built) -> None:
    """Fit a class head to the finished features, on the first process."""
    if span.stop < run.epochs:
        _logger.info(f'No class head yet: it is fitted after the last of {run.epochs} epochs, --resume goes on.')
        return
    fit_heads(Probe(run.args, run.hardware, built, data, live_model(run.task)), str(run.output_dir))


def _can_show(run: Run) -> bool:
    """Whether a picture of mixes would show the training: with two views, maps are not of a class."""
    if run.args.task == 'multilabel':
        _logger.info('No mixes.png: its captions are of one label per image.')
        return False
    if run.args.objective == 'ce' or not run.mixer.requires_model:
        return True
    _logger.info(f'No mixes.png: the maps of --objective {run.args.objective} are of a pair of views.')
    return False


def _picture_mixes(run: Run, data: Data, built: Built, plan: MixPlan) -> bool:
    """Write a picture of mixes; one that cannot be made is a warning, as the training does not depend on it."""
    try:
        _write_mixes(run, data, built, plan)
    except Exception as error:  # of a user's mixer, of matplotlib, of a full disk
        _logger.warning(f'No mixes.png of {plan.name}: {type(error).__name__}: {one_line(error)}')
        return False
    return True


def _write_mixes(run: Run, data: Data, built: Built, plan: MixPlan) -> None:
    """Write mixes.png and mixes.json: one batch mixed at the end of training."""
    from gradmix_timm.cli.commands.show import save_mixes  # matplotlib, after training
    names = data.known or tuple(map(str, range(run.args.num_classes)))
    names = (*names, 'no class') if run.args.unknown_output else names
    (images, labels), mixer = run.samples, run.mixer
    if min(plan.options['prob'], plan.options['prob_elem']) < 1:  # a picture should not show unmixed images
        always = replace(plan, options={**plan.options, 'prob': 1.0, 'prob_elem': 1.0})
        mixer = create_step_mixer(always, mixer.num_classes, run.args.rank, run.args.loss == 'bce')
        criterion = getattr(run.task, 'criterion', None)
        set_temperature(mixer, criterion.temperature if isinstance(criterion, TemperedLoss) else 1.)
    assert run.model is not None  # a run with a mixer has it
    save_mixes(str(run.output_dir), run.model, images, labels, mixer, names, built.preprocessing.as_config())

