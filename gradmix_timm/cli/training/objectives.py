"""The training objective: defaults of its flags, checks of their combination with others, and the task."""
from __future__ import annotations

import argparse
from typing import Any

from timm.task import TrainingTask
from timm.utils import world_info_from_env
from torch import nn

from gradmix_timm.data import inner_name
from gradmix_timm.objectives import JointConfig, guiding_mixer

from .mixing import MixPlan, create_step_mixer
from .run_state import RECORDED_TASKS

__all__ = [
    'METRIC', 'build_objective_task', 'check_objective', 'complete_objective', 'objective_options']

#: Validation metric of contrastive objectives: nearest-neighbour accuracy, in percent.
METRIC = 'knn_top1'

_SHARED: dict[str, Any] = {'objective_temperature': 0.05, 'objective_dim': 128, 'objective_hidden': None,
                           'probe_epochs': 10}
# Options of each objective by their name in the namespace, with their defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    'ce': {},
    'supcon+ssl': {**_SHARED, 'objective_gamma': 1.0, 'objective_ssl_weight': 1.0},
    'simclr': _SHARED,
    'moco': {**_SHARED, 'objective_queue': 4096, 'objective_momentum': 0.999},
}
_NAMES = tuple(dict.fromkeys(name for options in _DEFAULTS.values() for name in options))


def complete_objective(args: argparse.Namespace, given: set[str]) -> None:
    """Set the objective's defaults; reject options of another one.

    Args:
        args: Every flag; the objective's options and ``eval_metric`` are set.
        given: Names of the flags that the user set.

    Raises:
        ValueError: An option that this objective does not have.
    """
    defaults = _DEFAULTS[args.objective]
    for name in _NAMES:
        if getattr(args, name) is None:
            setattr(args, name, defaults.get(name))
        elif name not in defaults:
            homes = [objective for objective, options in _DEFAULTS.items() if name in options]
            raise ValueError(f'--{name.replace("_", "-")} goes with --objective {" or ".join(homes)}; this run has '
                             f'--objective {args.objective}')
    if args.objective != 'ce' and 'eval_metric' not in given:
        args.eval_metric = METRIC


def check_objective(args: argparse.Namespace, plan: MixPlan) -> None:
    """Reject flags that contradict a contrastive objective, before anything is built.

    Raises:
        ValueError: The message names both flags and the remedy.
    """
    if args.objective == 'ce':
        return
    wanted = f'--objective {args.objective}'
    for name, on, reason in _contradictions(args, plan):
        if on:
            raise ValueError(f'{name} with {wanted}: {reason}')
    if args.probe_epochs < 0:
        raise ValueError(f'--probe-epochs is 0 or more, got {args.probe_epochs}')
    _check_numbers(args)
    if plan.in_step:
        try:
            guiding_mixer(create_step_mixer(plan, 2))
        except ValueError as error:
            raise ValueError(f'{wanted}: {error}') from error


def _contradictions(args: argparse.Namespace, plan: MixPlan) -> list[tuple[str, bool, str]]:
    label = args.gradmix_label or plan.options.get('label')
    labels = 'labels enter through the contrastive loss, there is no other; leave it out'
    batches = 'a batch is two views of every image, at one size; leave it out'
    streamed = inner_name(args.dataset).partition('/')[0].lower() in ('hfids', 'tfds', 'wds')
    return [
        ('--bce-loss' if args.bce_loss else '--jsd-loss' if args.jsd_loss else '--loss', args.loss is not None, labels),
        ('--loss-pos-weight', args.loss_pos_weight is not None, labels),
        ('--loss-class-weight', args.loss_class_weight is not None, labels),
        ('--class-stats', args.class_stats is not None, labels),
        ('--loss-temperature', args.loss_temperature is not None,
         'its losses are of similarities, whose temperature is --objective-temperature; leave one of them out'),
        ('--kd-model-name', args.kd_model_name is not None, 'a distillation teaches logits; leave one of them out'),
        ('--task multilabel', args.task == 'multilabel', 'positives are images of one class; leave one of them out'),
        ('--aug-splits', args.aug_splits > 0, 'it makes two views itself; leave --aug-splits out'),
        ('--split-bn', args.split_bn, 'both views share one set of statistics; leave it out'),
        ('--aug-repeats', args.aug_repeats > 0, 'a repeated image would be its own negative; leave it out'),
        ('--naflex-loader', args.naflex_loader, batches),
        ('--cache-images', args.cache_images, 'held images come in one view; leave it out'),
        ('--train-img-sizes', args.train_img_sizes is not None, batches),
        ('--torchscript', args.torchscript, 'the features before the classifier are read; leave it out'),
        ('--tta', args.tta > 1, 'validation compares single images with their neighbours; leave it out'),
        (f'--mixup-mode {args.mixup_mode}', plan.timm,
         "timm's mixers mix all views and do not report the share; type --mixup-mode mixup or cutmix"),
        ('--objective-ssl-weight 0', args.objective_ssl_weight == 0 and plan.in_step and plan.name != 'none',
         f'the mixed term has that weight too, so that nothing would be mixed; type another, or leave --mixup-mode '
         f'{args.mixup_mode} out'),
        (f'--gradmix-label {label}' if args.gradmix_label else f'--mixup-kwargs label={label}',
         label not in (None, 'area'),
         'its mixed term goes by the share of own pixels and mixes no labels; leave it out'),
        ('--batch-size 1', args.batch_size < 2, 'an image needs others to differ from; type a larger one'),
        (f'--dataset {args.dataset}', streamed, 'validation compares with all training images, which a stream gives '
                                                'once; use the form on disk'),
        (f'--eval-metric {args.eval_metric}', args.eval_metric != METRIC,
         f'validation gives {METRIC}, the accuracy of nearest neighbours; leave it out'),
    ]


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ('temperature', 'dim', 'hidden', 'queue'):
        value = getattr(args, f'objective_{name}')
        if value is not None and not value > 0:
            raise ValueError(f'--objective-{name} is above 0, got {value}')
    if args.objective_momentum is not None and not 0 <= args.objective_momentum <= 1:
        raise ValueError(f'--objective-momentum is in [0, 1], got {args.objective_momentum}')
    if args.objective == 'supcon+ssl':
        _joint_config(args)
    processes = world_info_from_env()[2]
    if args.objective_queue is not None and args.objective_queue < args.batch_size * processes:
        raise ValueError(
            f'--objective-queue {args.objective_queue} with --batch-size {args.batch_size} and {processes} '
            f'process{"es" if processes > 1 else ""}: the queue takes the keys of a whole batch, of all processes; '
            f'type {args.batch_size * processes} or more')


def _joint_config(args: argparse.Namespace) -> JointConfig:
    if args.objective == 'simclr':
        return JointConfig(gamma=0.0, temperature=args.objective_temperature)
    try:
        return JointConfig(args.objective_gamma, args.objective_ssl_weight, args.objective_temperature)
    except ValueError as error:
        raise ValueError(f'--objective-gamma, --objective-ssl-weight, --objective-temperature: {error}') from error


def objective_options(args: argparse.Namespace) -> dict[str, Any]:
    """The objective's options for the record of a run, by their names without the prefix."""
    return {name.removeprefix('objective_'): getattr(args, name) for name in _DEFAULTS[args.objective]
            if name != 'probe_epochs'}


def build_objective_task(args: argparse.Namespace, model: nn.Module, mixer: Any, common: dict[str, Any],
                         ) -> TrainingTask:
    """The task of a contrastive objective.

    Args:
        args: Checked flags.
        model: The classifier.
        mixer: Registered mixer of the run, or None.
        common: Device, dtype and verbosity.
    """
    options: dict[str, Any] = {'dim': args.objective_dim, 'hidden': args.objective_hidden, **common}
    if args.objective == 'moco':
        options.update(queue=args.objective_queue, momentum=args.objective_momentum,
                       temperature=args.objective_temperature)
    else:
        options['config'] = _joint_config(args)
    task: TrainingTask = RECORDED_TASKS[args.objective](model, mixer, **options)
    return task
