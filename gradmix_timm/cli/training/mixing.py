"""The mixer of a command line, and checks of its combination with other flags, before data is read."""
from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup

from gradmix_timm.attribution import CONTROLS
from gradmix_timm.mixers import OPTIONS, TIMM_MODES, GradMix, Mixer, create_mixer, list_mixers
from gradmix_timm.mixers.timm_mix import check_timm_options
from gradmix_timm.objectives import check_keep_clean
from gradmix_timm.registry import nearest

__all__ = [
    'GRADMIX_NAMES', 'MixPlan', 'SwitchedCollate', 'asked_confidence', 'create_step_mixer', 'create_timm_mixup',
    'plan_mixing', 'set_temperature',
]

_logger = logging.getLogger(__name__)

#: Mixers with GradMix's options.
GRADMIX_NAMES = ('gradmix', 'random-box', 'center-box')
# The mixers whose alpha is a flag of timm's.
_ALPHA_FLAGS = {'mixup': 'mixup', 'cutmix': 'cutmix'}
# As YAML has them; timm's reading of KEY=VALUE knows Python's words alone.
_BOOLEANS = {'true': True, 'false': False}


@dataclass(frozen=True)
class MixPlan:
    """The mixer of a run.

    Attributes:
        name: timm's mode, a registered name or ``a+b``; None: nothing is mixed.
        timm: timm's own classes, where timm runs them; else a registered mixer in the step, with the live model.
        options: Its keyword arguments, without num_classes and rank.
    """

    name: str | None = None
    timm: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def in_step(self) -> bool:
        """A registered mixer runs in the training step."""
        return self.name is not None and not self.timm


    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> MixPlan:
        """The plan with the normalisation of the images for pixmix, which undoes it, unless it was typed."""
        names = (self.name or '').split('+')
        if not self.in_step or 'pixmix' not in names:
            return self
        undone = {'mean': tuple(mean), 'std': tuple(std)}
        if len(names) == 1:
            return replace(self, options={**undone, **self.options})
        parts = self.options['parts']
        return replace(self, options={**self.options, 'parts': {**parts, 'pixmix': {**undone, **parts['pixmix']}}})


class SwitchedCollate(FastCollateMixup):
    """timm's mixing collate function with a switch that also reaches running loader workers.

    Workers hold a copy of the collate function; a flag in shared memory reaches the copies, so --mixup-off-epoch
    takes effect with workers as well.
    """

    def __init__(self, **options: Any) -> None:
        self._enabled = torch.ones(1, dtype=torch.uint8).share_memory_()
        super().__init__(**options)

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed; False gives smoothed one-hots."""
        return bool(self._enabled.item())

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        self._enabled.fill_(int(value))


def plan_mixing(args: argparse.Namespace) -> MixPlan:
    """The mixer that the flags ask for.

    Raises:
        ValueError: An unknown mixer or option, or flags that contradict it; the message names both.
    """
    names = args.mixup_mode.split('+')
    registered = list_mixers()
    for name in names:
        if name not in registered:
            raise ValueError(f'--mixup-mode {args.mixup_mode}: no mixer {name!r}: {nearest(name, registered)} '
                             '(--device-modules MODULE imports your own)')
    _refuse_foreign_options(args, names)
    plan = _timm_plan(args) if args.mixup_mode in TIMM_MODES else _step_plan(args, names)
    mixer = create_step_mixer(plan, 2) if plan.in_step else None
    if args.unknown_output:
        _check_unknown_output(args, mixer)
    if plan.name is not None:
        _refuse_conflicts(args, plan, mixer)
    return plan


def create_step_mixer(plan: MixPlan, num_classes: int, rank: int = 0, sigmoids: bool = False) -> Mixer:
    """The registered mixer of a plan.

    Args:
        plan: Of :func:`plan_mixing`.
        num_classes: Width of the head.
        rank: Of the process.
        sigmoids: Whether the loss is a binary cross-entropy, which --gradmix-confidence then judges by.
    """
    mixer = create_mixer(str(plan.name), num_classes=num_classes, rank=rank, **plan.options)
    for part in mixer.parts:
        if isinstance(part, GradMix):
            part.sigmoids = sigmoids
    return mixer


def create_timm_mixup(plan: MixPlan, num_classes: int, multi_label: bool, collate: bool) -> Mixup:
    """Timm's mixer of a plan: its collate function, or its mixer in the step."""
    return (SwitchedCollate if collate else Mixup)(num_classes=num_classes, multi_label=multi_label, **plan.options)


def set_temperature(mixer: Mixer | None, temperature: float) -> None:
    """Let --gradmix-confidence judge the logits as the loss does, divided by its temperature of the epoch."""
    for part in () if mixer is None else mixer.parts:
        if isinstance(part, GradMix):
            part.temperature = temperature


def asked_confidence(mixer: Mixer | None) -> float:
    """The probability that a mixer asks for before it mixes an image; 0: none."""
    return max((part.config.confidence for part in (() if mixer is None else mixer.parts) if isinstance(part, GradMix)),
               default=0.)


def _refuse_foreign_options(args: argparse.Namespace, names: list[str]) -> None:
    given = [name for name in OPTIONS if getattr(args, f'gradmix_{name}') is not None]
    if given and not set(names) & set(GRADMIX_NAMES):
        raise ValueError(f'--gradmix-{given[0].replace("_", "-")} has no effect with --mixup-mode {args.mixup_mode}; '
                         'expected --mixup-mode gradmix, random-box or center-box')
    if args.multi_label_mix is not None and args.mixup_mode in TIMM_MODES:
        raise ValueError(f'--multi-label-mix goes with a registered mixer; --mixup-mode {args.mixup_mode} mixes '
                         'labels by weight in any case')
    if 'attribution' in given and not {'gradmix'} & set(names):
        raise ValueError(f'--mixup-mode {args.mixup_mode} fixes the attribution; for --gradmix-attribution '
                         f'{args.gradmix_attribution} type --mixup-mode gradmix')
    for prob in ('mixup_prob', 'mixup_prob_elem', 'mixup_switch_prob'):
        if not 0 <= getattr(args, prob) <= 1:
            raise ValueError(f'--{prob.replace("_", "-")} is a probability in [0, 1], got {getattr(args, prob)}')


def _timm_plan(args: argparse.Namespace) -> MixPlan:
    options = {
        'mixup_alpha': args.mixup, 'cutmix_alpha': args.cutmix, 'cutmix_minmax': args.cutmix_minmax,
        'prob': args.mixup_prob, 'switch_prob': args.mixup_switch_prob, 'mode': args.mixup_mode,
        'label_smoothing': args.smoothing, **_mixup_kwargs(args)}
    known = set(inspect.signature(Mixup).parameters) - {'num_classes', 'multi_label', 'mode'}
    for key in args.mixup_kwargs:
        if key not in known:
            raise ValueError(f'--mixup-kwargs {key}: {args.mixup_mode!r} has no such option: {nearest(key, known)}')
    try:
        check_timm_options(options)
    except ValueError as error:
        raise ValueError(f'--mixup-mode {args.mixup_mode}: {error}') from error
    active = options['mixup_alpha'] > 0 or options['cutmix_alpha'] > 0 or options['cutmix_minmax'] is not None
    if args.mixup_prob_elem != 1:
        raise ValueError(f"--mixup-prob-elem goes with registered mixers; --mixup-mode {args.mixup_mode} is timm's, "
                         'whose elem mode applies --mixup-prob to each image. Type --mixup-mode cutmix or mixup')
    if not active:
        if args.mixup_kwargs:
            raise ValueError(f'--mixup-kwargs has no effect: --mixup-mode {args.mixup_mode} mixes only with --mixup, '
                             '--cutmix or --cutmix-minmax')
        return MixPlan()
    return MixPlan(args.mixup_mode, True, options)


def _step_plan(args: argparse.Namespace, names: list[str]) -> MixPlan:
    if args.cutmix_minmax is not None:
        raise ValueError(f"--cutmix-minmax is an option of timm's modes and not of --mixup-mode {args.mixup_mode}; "
                         'leave it out, or type --mixup-mode batch')
    _warn_unused(args, names)
    shared = {'label_smoothing': args.smoothing, 'prob': args.mixup_prob, 'prob_elem': args.mixup_prob_elem,
              'seed': args.seed}
    if args.multi_label_mix is not None:
        shared['multi_label_mix'] = args.multi_label_mix
    if args.unknown_output:
        shared['unknown_output'] = True
    parts = {name: _own_options(args, name) for name in names}
    for key, value in _mixup_kwargs(args).items():
        part, name = _addressed(key, names)
        if name in ('num_classes', 'rank'):
            raise ValueError(f'--mixup-kwargs {name} is set by the run; leave it out')
        if name in ('label_smoothing', 'multi_label_mix', 'unknown_output'):  # the loss, the head go by these too
            flag = 'smoothing' if name == 'label_smoothing' else name.replace('_', '-')
            raise ValueError(f'--mixup-kwargs {key} has a flag of its own, which the loss and the head of the model go '
                             f'by as well: type --{flag}')
        parts[part][name] = value
    if 'gradmix' in parts and _classifies(args):
        parts['gradmix'] = _trained_options(parts['gradmix'])
    if len(names) == 1:
        options = {**shared, **parts[names[0]]}
    else:
        options = {**shared, 'switch_prob': args.mixup_switch_prob, 'parts': parts}
    try:
        # Refuses what it does not take.
        _warn_of_small_copies(create_mixer(args.mixup_mode, num_classes=args.num_classes or 2, **options))
    except TypeError as error:
        raise ValueError(f'--mixup-kwargs: a value that --mixup-mode {args.mixup_mode} does not take ({error})'
                         ) from error
    return MixPlan(args.mixup_mode, False, options)


def _mixup_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    return {key: _BOOLEANS.get(value, value) if isinstance(value, str) else value
            for key, value in args.mixup_kwargs.items()}


def _own_options(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Options of one mixer that have flags of their own."""
    if name in _ALPHA_FLAGS:
        return {'alpha': getattr(args, _ALPHA_FLAGS[name]) or 1.0}
    if name not in GRADMIX_NAMES:
        return {}
    given = {option: getattr(args, f'gradmix_{option}') for option in OPTIONS}
    if name != 'gradmix':
        given['attribution'] = None
        if 'gradmix' in args.mixup_mode.split('+'):  # which takes it; a control asks no model
            given['confidence'] = None
    return {option: tuple(value) if isinstance(value, list) else value
            for option, value in given.items() if value is not None}


def _classifies(args: argparse.Namespace) -> bool:
    """Whether the model is trained on one label an image, whose probability it can give."""
    return bool(args.objective == 'ce' and args.task != 'multilabel')


def _trained_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """GradMix's options with those that a training takes where nothing else is typed, unless they contradict it."""
    if given.get('recipe') == 'authors' or given.get('attribution') in CONTROLS:
        return dict(given)
    return {**{name: option.metadata['trained'] for name, option in OPTIONS.items()
               if option.metadata['trained'] is not None}, **given}


def _addressed(key: str, names: list[str]) -> tuple[str, str]:
    """The mixer and the option that a key of --mixup-kwargs names."""
    part, dot, option = key.partition('.')
    if len(names) == 1:
        return names[0], key if not dot or part != names[0] else option
    if not dot or part not in names:
        raise ValueError(f'--mixup-kwargs {key}: with two mixers a key names its own: '
                         + ' or '.join(f'{name}.{option or key}' for name in names))
    return part, option


def _warn_unused(args: argparse.Namespace, names: list[str]) -> None:
    unused = [name for name in _ALPHA_FLAGS if getattr(args, name) > 0 and name not in names]
    if unused:
        hint = f'; to alternate with it type --mixup-mode {names[0]}+{unused[-1]}' if len(names) == 1 else ''
        _logger.warning(f'{" and ".join(f"--{name}" for name in unused)} unused: --mixup-mode {args.mixup_mode} is not '
                        f'made of it{hint}')
    if len(names) == 1 and args.mixup_switch_prob != 0.5:
        _logger.warning(f'--mixup-switch-prob unused: --mixup-mode {args.mixup_mode} is one mixer')


def _warn_of_small_copies(mixer: Mixer) -> None:
    if any(part.config.attr_scale < 1 and part.config.confidence for part in mixer.parts if isinstance(part, GradMix)):
        _logger.warning('--gradmix-attr-scale below 1: the model has to be sure of the labels of the small copies, so '
                        'far fewer images are mixed; "Mixed:" in the log counts them, --gradmix-confidence 0 mixes all')


def _check_unknown_output(args: argparse.Namespace, mixer: Mixer | None) -> None:
    """The head of a classifier, and a mixer that gives some of its labels to no class."""
    for flag, on in (('--objective', args.objective != 'ce'), ('--kd-model-name', args.kd_model_name is not None),
                     ('--task multilabel', args.task == 'multilabel')):
        if on:
            raise ValueError(f'--unknown-output with {flag}: it is for a classifier that learns from labels alone; '
                             'leave one of them out')
    if mixer is None or not getattr(mixer, 'gives_unknown', False):
        raise ValueError(f'--unknown-output with --mixup-mode {args.mixup_mode}: nothing would go to that output; type '
                         '--mixup-mode openmix')
    if args.num_classes is None and not (args.osr_protocol or args.known_classes):
        raise ValueError('--unknown-output adds one output to those of the classes; say how many they are, type '
                         '--num-classes N')


def _refuse_conflicts(args: argparse.Namespace, plan: MixPlan, mixer: Mixer | None) -> None:
    mode = f'--mixup-mode {plan.name}'
    splits = [flag for flag, on in (('--aug-splits', args.aug_splits > 0),
                                    (_loss_flag(args), args.loss == 'jsd')) if on]
    if splits:
        raise ValueError(f'{splits[0]} with {mode}: augmentation splits of an image must stay apart and mixing joins '
                         'images; leave one of them out')
    if mixer is None:
        sizes = [args.batch_size, *(args.train_batch_sizes or ())]
        odd = [size for size in sizes if size % 2]
        if odd:
            flag = '--batch-size' if args.batch_size % 2 else '--train-batch-sizes'
            raise ValueError(f"{flag} {odd[0]} with {mode}: timm's mixers pair the images of a batch and need an even "
                             'number; type an even one, or --mixup-mode mixup, cutmix or gradmix, which take any')
        return
    if args.naflex_loader:
        raise ValueError(f'--naflex-loader with {mode}: its batches are patch sequences, not images; leave one of them '
                         "out, or use timm's mixing (--mixup-mode batch --mixup 0.8)")
    if args.task == 'multilabel' and not mixer.multi_label:
        raise ValueError(f'--task multilabel with {mode}: say how labels are mixed, --multi-label-mix weight or union, '
                         "or use timm's mixing (--mixup-mode batch --mixup 0.8)")
    if args.multi_label_mix is not None and args.task != 'multilabel':
        raise ValueError('--multi-label-mix goes with --task multilabel')
    if not mixer.rows_sum_to_one:
        _refuse_binary_losses(args, mode)
    _refuse_forward_conflicts(args, plan, mixer)
    if mixer.requires_model:
        _refuse_model_conflicts(args, mode, mixer)


def _loss_flag(args: argparse.Namespace) -> str:
    """The loss as it was typed, one of timm's flags or --loss."""
    return f'--{args.loss}-loss' if getattr(args, f'{args.loss}_loss', False) else f'--loss {args.loss}'


def _keeps_clean(mixer: Mixer) -> bool:
    return any(isinstance(part, GradMix) and part.config.keep_clean for part in mixer.parts)


def _refuse_binary_losses(args: argparse.Namespace, mode: str) -> None:
    wrong = 'its label weights go beyond 1, which binary cross-entropy does not take'
    if args.multi_label_mix == 'weight':
        raise ValueError(f'--multi-label-mix weight with {mode}: {wrong}; type --multi-label-mix union')
    if args.loss == 'bce' and args.multi_label_mix is None:
        raise ValueError(f'{_loss_flag(args)} with {mode}: {wrong}; leave one of them out')


def _refuse_forward_conflicts(args: argparse.Namespace, plan: MixPlan, mixer: Mixer) -> None:
    """A training forward that also serves the mixer is that of one plain classifier."""
    late = getattr(mixer, 'labels_after_forward', False)
    for flag, on in (('--kd-model-name', args.kd_model_name is not None),
                     ('--task multilabel', args.task == 'multilabel'), ('--torchcompile', bool(args.torchcompile)),
                     ('--torchscript', args.torchscript), ('--grad-checkpointing', args.grad_checkpointing),
                     ('--objective', args.objective != 'ce')):
        if on and late:
            raise ValueError(f'{flag} with --mixup-mode {plan.name}: its labels are read from the attention of the '
                             'training forward itself; leave one of them out')
    if not _keeps_clean(mixer):
        return
    for flag, on in (('--kd-model-name', args.kd_model_name is not None),
                     ('--task multilabel', args.task == 'multilabel'),
                     (f'--mixup-mode {plan.name}', plan.name != 'gradmix')):
        if on:
            raise ValueError(f'--gradmix-keep-clean with {flag}: the clean forward serves the attribution of '
                             '--mixup-mode gradmix on one classifier alone; leave one of them out')
    check_keep_clean(mixer)


def _refuse_model_conflicts(args: argparse.Namespace, mode: str, mixer: Mixer) -> None:
    if args.torchscript:
        raise ValueError(f'--torchscript with {mode}: a scripted model has no hooks to read attribution from; leave '
                         'it out, or type --torchcompile')
    half = args.model_dtype == 'float16' or (args.amp and args.amp_dtype == 'float16')
    losses = [part for part in mixer.parts if isinstance(part, GradMix) and part.requires_model
              and part.config.score == 'loss']
    if half and losses:
        raise ValueError(f'float16 with {mode} --gradmix-score loss: gradients of a small loss underflow to empty '
                         'maps; type --amp-dtype bfloat16, or --gradmix-score evidence')
    if args.reprob > 0:
        _logger.warning(f'--reprob with {mode}: attribution sees the erased boxes as well')
    if args.head_init_scale == 0:
        _logger.warning(f'--head-init-scale 0 with {mode}: no map before the first update, boxes are random until then')
