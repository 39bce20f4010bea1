"""Checks of parsed training flags: older spellings folded, values that depend on others set, contradictions refused."""
from __future__ import annotations

import argparse
import difflib
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from timm.loss import create_classification_loss, load_class_stats, resolve_class_weights
from timm.optim import list_optimizers
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from gradmix_timm.cli.errors import one_line
from gradmix_timm.data import inner_name
from gradmix_timm.mixers import TIMM_MODES, GradMix, Mixer
from gradmix_timm.objectives import LossTemperature, TemperedLoss
from gradmix_timm.registry import nearest

from .augmentation import check_augmentation
from .flag_ranges import check_values
from .mixing import MixPlan, plan_mixing, set_temperature
from .objectives import check_objective, complete_objective
from .own_flags import VAL_FRACTION
from .tracking import check_tracking

__all__ = ['check_args', 'create_loss', 'judge_as_trained', 'scheduled_epochs']

_logger = logging.getLogger(__name__)

_SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'plateau', 'none')


def check_args(args: argparse.Namespace, given: set[str]) -> None:
    """Fold, complete and check the flags of a training run, in place.

    Args:
        args: Every flag; ``loss``, ``loss_pos_weight``, ``data_dir`` and what --task multilabel or --sched wsd default
            to are set.
        given: Names of the flags that the user set.

    Raises:
        ValueError: Flags contradict each other, or timm does not accept a value.
    """
    args.data_dir = args.data_dir or args.data
    _fold_loss_flags(args)
    _complete(args, given)
    complete_objective(args, given)
    _check_folder(args)
    inner_name(args.dataset)  # refuses options that a shortcut does not take
    if args.drop_connect is not None:
        _logger.warning('--drop-connect is deprecated and unused: --drop-path')
    check_values(args)
    _check_loaders(args)
    check_augmentation(args)
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise ValueError(f'--amp with --model-dtype {args.model_dtype}: mixed precision keeps a float32 model; leave '
                         'one of them out')
    _check_task(args)
    plan = plan_mixing(args)
    create_loss(args, plan)
    check_objective(args, plan)
    _check_open_set(args)
    _check_names(args)
    check_tracking(args)
    scheduled_epochs(args)


def scheduled_epochs(args: argparse.Namespace) -> int:
    """Epochs of the whole schedule: cycles, warm-up prefix and cool-down included.

    Raises:
        ValueError: timm's schedule does not take the flags.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    try:
        # Many updates an epoch, so that a decay over part of an epoch is not rounded away.
        return int(create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=1000)[1])
    except (AssertionError, TypeError) as error:
        raise ValueError(f'--sched {args.sched}: {error}') from error


def judge_as_trained(mixer: Mixer, args: Mapping[str, Any], epoch: int) -> None:
    """Let the confidence of a run's mixer look at logits as the run's loss did in an epoch, counted from 0.

    Args:
        mixer: Of the run.
        args: Its flags, of a checkpoint; those that another version or script lacks are as if not given.
        epoch: Of the checkpoint.

    Raises:
        ValueError: The flags are invalid.
    """
    for part in mixer.parts:
        if isinstance(part, GradMix):
            part.sigmoids = bool(args.get('loss') == 'bce' or args.get('bce_loss'))
    if args.get('loss_temperature') is not None:
        schedule = LossTemperature.parse(str(args['loss_temperature']))
        try:
            epochs = scheduled_epochs(argparse.Namespace(**args))
        except AttributeError as error:
            raise ValueError(f'the flags of the run have a loss temperature and not its epochs: {error}') from error
        set_temperature(mixer, schedule.at(epoch, epochs))


def create_loss(args: argparse.Namespace, plan: MixPlan, num_classes: int | None = None) -> nn.Module:
    """The training criterion, by timm's rules: soft targets where a mixer is on, else smoothing in the loss.

    Args:
        args: Checked flags.
        plan: The mixer of the run.
        num_classes: Width of the head; weights and counts must have one entry for each. None: not known yet.

    Raises:
        ValueError: A combination that the loss does not take; weights of another length; no temperature.
    """
    kind = args.loss or ('bce' if args.task == 'multilabel' else 'ce')
    try:
        stats = load_class_stats(args.class_stats)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f'--class-stats {args.class_stats}: expected JSON with pos_counts and num_samples '
                         f'({one_line(error)})') from error
    # The union of labels is as binary as they are.
    binary = kind in ('twoway', 'zlpr') and args.multi_label_mix == 'union' and not args.smoothing
    options: dict[str, Any] = {'smoothing': args.smoothing, 'soft_targets': plan.name is not None and not binary}
    for name in ('pos_weight', 'class_weight'):
        try:
            options[name] = resolve_class_weights(
                getattr(args, f'loss_{name}'), name, stats, power=args.loss_weight_power)
        except ValueError as error:
            raise ValueError(f'--loss-{name.replace("_", "-")} {getattr(args, f"loss_{name}")}: {error}') from error
        _check_length(f'--loss-{name.replace("_", "-")}', options[name], num_classes)
    options.update(bce_target_thresh=args.bce_target_thresh, bce_sum=args.bce_sum)
    if kind == 'poly':
        options.update(poly_gamma=args.poly_gamma, poly_epsilon=args.poly_epsilon)
    elif kind == 'jsd':
        options.update(jsd_splits=args.aug_splits, soft_targets=False)
    elif kind == 'db' and stats is not None:
        options.update(class_counts=stats[0], num_samples=stats[1])
        _check_length('--class-stats', stats[0], num_classes)
    try:
        loss = create_classification_loss(kind, multi_label=args.task == 'multilabel', **options)
    except ValueError as error:
        raise ValueError(f'--loss {kind}: {error}') from error
    if args.loss_temperature is None:
        return loss
    try:
        schedule = LossTemperature.parse(str(args.loss_temperature))
    except ValueError as error:
        raise ValueError(f'--loss-temperature {args.loss_temperature}: {error}') from error
    return TemperedLoss(loss, schedule, scheduled_epochs(args))


def _check_length(flag: str, values: Any, num_classes: int | None) -> None:
    if num_classes is not None and isinstance(values, torch.Tensor) and len(values) != num_classes:
        raise ValueError(f'{flag} has {len(values)} entries but the model has {num_classes} classes')


def _fold_loss_flags(args: argparse.Namespace) -> None:
    """--bce-loss, --jsd-loss and --bce-pos-weight into --loss and --loss-pos-weight."""
    for on, name in ((args.jsd_loss, 'jsd'), (args.bce_loss, 'bce')):
        if on and args.loss not in (None, name):
            raise ValueError(f'--{name}-loss with --loss {args.loss}: one loss; leave one of them out')
        if on:
            args.loss = name
    if args.bce_pos_weight is not None:
        weight = str(args.bce_pos_weight)
        if args.loss_pos_weight not in (None, weight):
            raise ValueError(f'--bce-pos-weight {weight} with --loss-pos-weight {args.loss_pos_weight}: they are the '
                             'same setting; leave one of them out')
        args.loss_pos_weight = weight


def _complete(args: argparse.Namespace, given: set[str]) -> None:
    """Defaults that depend on other flags."""
    if args.task == 'multilabel':
        if 'eval_metric' not in given:
            args.eval_metric = 'map'
        if 'smoothing' not in given:
            args.smoothing = 0.0
    if args.sched in ('wsd', 'rsqrt') and 'decay_epochs' not in given:
        args.decay_epochs = None


def _check_folder(args: argparse.Namespace) -> None:
    """Check that the run folder is inside --output."""
    if not args.experiment:
        if args.resume == 'auto':
            raise ValueError('--resume auto continues the run in --output/--experiment; name it, --experiment NAME')
        if args.overwrite:
            raise ValueError('--overwrite replaces the run in --output/--experiment; name it, --experiment NAME')
        return
    if os.path.isabs(args.experiment) or os.path.normpath(args.experiment).split(os.sep)[0] == os.pardir:
        raise ValueError(f'--experiment {args.experiment} leaves the folder of runs; type a name, and where it is to '
                         'be with --output DIR')


def _check_loaders(args: argparse.Namespace) -> None:
    if args.naflex_loader:
        _check_patches(args)
    for name in ('train_batch_sizes', 'train_size_probs', 'train_batches_per_epoch'):
        if args.train_img_sizes is None and getattr(args, name) is not None:
            raise ValueError(f'--{name.replace("_", "-")} goes with --train-img-sizes')
    if args.aug_splits == 1 or args.aug_splits < 0:
        raise ValueError(f'--aug-splits is 0, or 2 and more, got {args.aug_splits}')
    if args.aug_splits and args.no_prefetcher:
        raise ValueError("--aug-splits with --no-prefetcher: timm's prefetcher is what joins the splits; leave one out")
    if args.split_bn and not (args.aug_splits > 1 or args.resplit):
        raise ValueError('--split-bn keeps statistics for each augmentation split: type --aug-splits 2 too')
    if args.sync_bn and args.device == 'cpu':
        raise ValueError('--sync-bn with --device cpu: PyTorch synchronises norms on accelerators only; leave it out')
    if args.sync_bn and (args.split_bn or args.torchscript):
        raise ValueError('--sync-bn goes neither with --split-bn nor with --torchscript; leave one out')


def _check_patches(args: argparse.Namespace) -> None:
    """Reject flags that do not apply to batches of patch sequences; timm's script fails on some and ignores others."""
    for flag, on in (('--train-img-sizes', args.train_img_sizes is not None),
                     ('--use-multi-epochs-loader', args.use_multi_epochs_loader),
                     ('--aug-splits', args.aug_splits > 0), ('--aug-repeats', args.aug_repeats > 0),
                     ('--no-prefetcher', args.no_prefetcher), ('--save-images', args.save_images),
                     ('--cutmix-minmax', args.cutmix_minmax is not None)):
        if on:
            raise ValueError(f'--naflex-loader with {flag}: its batches are patch sequences of many lengths; leave one '
                             'of them out')
    sizes, probs = args.naflex_patch_sizes or (), args.naflex_patch_size_probs
    if probs is not None and len(probs) != len(sizes):
        raise ValueError(f'--naflex-patch-size-probs has {len(probs)} numbers and --naflex-patch-sizes {len(sizes)}; '
                         'give one for each')
    if args.mixup_mode in TIMM_MODES and args.mixup_mode != 'batch' and (args.mixup > 0 or args.cutmix > 0):
        _logger.warning(f'--mixup-mode {args.mixup_mode} unused: the mixing of --naflex-loader has one mode')


def _check_task(args: argparse.Namespace) -> None:
    if args.task == 'multilabel':
        if args.kd_model_name is not None:
            raise ValueError('--kd-model-name distils a classifier with one label per image; leave out --task '
                             'multilabel')
        if not 0 < args.multilabel_threshold < 1:
            raise ValueError(f'--multilabel-threshold is in (0, 1), got {args.multilabel_threshold}')
    elif args.target_format == 'multihot':
        raise ValueError('--target-format multihot goes with --task multilabel')
    if args.loss != 'poly' and (args.poly_gamma != 0 or args.poly_epsilon != 2):
        raise ValueError('--poly-gamma and --poly-epsilon go with --loss poly')


def _check_names(args: argparse.Namespace) -> None:
    optimizers = list_optimizers(exclude_filters=None)
    if args.opt.lower().removeprefix('lookahead_') not in optimizers:
        close = difflib.get_close_matches(args.opt.lower(), optimizers, n=3, cutoff=0.4)
        raise ValueError(f'--opt {args.opt}: timm has no such optimizer; near it: {", ".join(close) or "sgd, adamw"}')
    if args.sched not in _SCHEDULES:
        raise ValueError(f'--sched {args.sched}: {nearest(args.sched, _SCHEDULES)}')


def _check_open_set(args: argparse.Namespace) -> None:
    if args.known_classes and args.osr_protocol:
        raise ValueError('--known-classes with --osr-protocol: a protocol names its known classes; leave one out')
    if not args.osr_protocol:
        for flag, on in (('--osr-trial', args.osr_trial != 0), ('--osr-family', args.osr_family is not None)):
            if on:
                raise ValueError(f'{flag} goes with --osr-protocol NAME')
    if not (args.known_classes or args.osr_protocol):
        if args.osr_val_fraction != VAL_FRACTION:
            raise ValueError('--osr-val-fraction goes with --osr-protocol NAME or --known-classes A,B,...')
        return
    if not 0 <= args.osr_val_fraction < 1:
        raise ValueError(f'--osr-val-fraction is in [0, 1), got {args.osr_val_fraction}')
    if args.task == 'multilabel':
        raise ValueError('--task multilabel has no unknown classes: leave out --known-classes and --osr-protocol')
    if args.known_classes:
        _check_known_classes(args.known_classes)


def _check_known_classes(names: list[str]) -> None:
    if len(names) < 2:
        raise ValueError(f'--known-classes takes at least two, separated by commas, got {names}')
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'--known-classes names {twice!r} twice')
