"""Valid values of training flags (ranges, words, ordered pairs), checked before anything is built."""
from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from typing import Any

from timm.data.transforms_factory import create_transform

from gradmix_timm.registry import nearest

__all__ = ['check_values']

# Range of each flag by its name in the namespace, for each value of a list. Unset flags are not checked.
# Values that timm's script reinterprets (--lr 0 as unset, --grad-accum-steps 0 as 1) are in range.
_RANGES: dict[str, tuple[str, ...]] = {
    '(0, inf)': (
        'lr_base', 'decay_epochs', 'lr_cycle_mul', 'lr_k_decay', 'std', 'crop_pct', 'clip_grad', 'kd_temperature',
        'train_size_schedule_spread', 'scale', 'ratio', 'bce_pos_weight', 'bn_eps', 'lr_stable_timescale',
        'lr_noise_pct'),
    '[0, inf)': (
        'lr', 'warmup_lr', 'min_lr', 'decay_rate', 'lr_cycle_decay', 'lr_noise_std', 'opt_eps', 'weight_decay',
        'color_jitter', 'mixup', 'cutmix', 'aug_repeats', 'distill_loss_weight', 'task_loss_weight', 'epoch_repeats',
        'train_size_probs', 'naflex_patch_size_probs', 'workers', 'warmup_epochs', 'cooldown_epochs',
        'patience_epochs', 'start_epoch', 'mixup_off_epoch', 'recovery_interval', 'tta', 'validation_batch_size',
        'grad_accum_steps', 'osr_trial'),
    '[1, inf)': (
        'epochs', 'batch_size', 'img_size', 'in_chans', 'input_size', 'num_classes', 'lr_base_size', 'lr_cycle_limit',
        'decay_milestones', 'log_interval', 'val_interval', 'checkpoint_hist', 'recount', 'train_img_sizes',
        'train_batch_sizes', 'train_batches_per_epoch', 'train_num_samples', 'val_num_samples',
        'naflex_train_seq_lens', 'naflex_max_seq_len', 'naflex_patch_sizes', 'kd_student_feature_dim',
        'kd_teacher_feature_dim'),
    '[0, 1]': (
        'momentum', 'layer_decay_min_scale', 'layer_decay_no_opt_scale', 'lr_noise', 'hflip', 'vflip',
        'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'reprob', 'cutmix_minmax', 'drop_block',
        'bn_momentum', 'model_ema_decay', 'train_size_random_mix', 'bce_target_thresh'),
    '[0, 1)': ('opt_betas', 'smoothing', 'drop', 'drop_connect', 'drop_path'),
    '(0, 1]': ('layer_decay',),
    f'[0, {2 ** 32 - 1}]': ('seed',),
}

_RESAMPLING = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
# Choices of flags for which timm's parser has none.
_WORDS: dict[str, tuple[str, ...]] = {
    'remode': ('const', 'rand', 'pixel'), 'clip_mode': ('norm', 'value', 'agc'),
    'amp_dtype': ('float16', 'bfloat16'), 'model_dtype': ('float32', 'float16', 'bfloat16'),
    'dist_bn': ('broadcast', 'reduce', ''), 'worker_seeding': ('all', 'part'), 'kd_loss_type': ('kl',),
    'lr_base_scale': ('linear', 'sqrt', ''), 'train_crop_mode': ('rrc', 'rkrc', 'rkrr'),
    'interpolation': (*_RESAMPLING, ''), 'train_interpolation': ('random', *_RESAMPLING, ''),
    'fuser': ('te', 'old', 'legacy', 'nvfuser', 'nvf', ''),
}
# Flags of two numbers, the smaller first.
_PAIRS = ('scale', 'ratio', 'cutmix_minmax')


def check_values(args: argparse.Namespace) -> None:
    """Reject values that timm rejects, or silently ignores.

    Raises:
        ValueError: Naming the flag, what was got and what is expected.
    """
    known = {name: bounds for bounds, names in _RANGES.items() for name in names}
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(name, number, known.get(name))
    for name, words in _WORDS.items():
        value = getattr(args, name)
        if value is not None and value not in words:
            raise ValueError(f'{_flag(name)} {value}: {nearest(value, filter(None, words))}')
    for name in _PAIRS:
        values = getattr(args, name)
        if values is not None and (len(values) != 2 or values[0] > values[1]):
            raise ValueError(f'{_flag(name)} takes two numbers, the smaller first, got {_listed(values)}')
    if args.lr_noise is not None and len(args.lr_noise) > 2:
        raise ValueError(f'--lr-noise takes one or two shares of the epochs, got {_listed(args.lr_noise)}')
    if args.decay_milestones != sorted(args.decay_milestones):
        raise ValueError(f'--decay-milestones takes epochs in rising order, got {_listed(args.decay_milestones)}')
    _check_sizes(args)
    _check_policy(args)


def _check_number(name: str, value: float, bounds: str | None) -> None:
    if not math.isfinite(value):
        raise ValueError(f'{_flag(name)} takes a finite number, got {value}')
    if bounds is None:
        return
    low, high = (float(word) for word in bounds[1:-1].split(','))
    above = value > low if bounds[0] == '(' else value >= low
    below = value < high if bounds[-1] == ')' else value <= high
    if not (above and below):
        raise ValueError(f'{_flag(name)} is {_phrase(bounds)}, got {value}')


def _phrase(bounds: str) -> str:
    """A description of a range."""
    low = bounds[1:].split(',')[0]
    if not bounds.endswith('inf)'):
        return f'in {bounds}'
    return f'above {low}' if bounds[0] == '(' else f'{low} or more'


def _check_sizes(args: argparse.Namespace) -> None:
    """Lists with one value for each image size."""
    sizes = args.train_img_sizes
    for name in ('train_batch_sizes', 'train_size_probs'):
        values = getattr(args, name)
        if sizes is not None and values is not None and len(values) != len(sizes):
            raise ValueError(f'{_flag(name)} has {len(values)} numbers and --train-img-sizes {len(sizes)}; give one '
                             'for each')
    for name in ('train_size_probs', 'naflex_patch_size_probs'):
        values = getattr(args, name)
        if values is not None and not sum(values) > 0:
            raise ValueError(f'{_flag(name)}: one of them is above 0, got {_listed(values)}')
    if args.img_size is not None and args.input_size is not None and args.input_size[1:] != [args.img_size] * 2:
        raise ValueError(f'--img-size {args.img_size} with --input-size {_listed(args.input_size)}: two sizes; leave '
                         'one of them out')
    if args.in_chans is not None and args.input_size is not None and args.input_size[0] != args.in_chans:
        raise ValueError(f'--in-chans {args.in_chans} with --input-size {_listed(args.input_size)}: two numbers of '
                         'channels; leave --in-chans out')


def _check_policy(args: argparse.Namespace) -> None:
    if not args.aa:
        return
    try:
        create_transform(32, is_training=True, auto_augment=args.aa, interpolation='bilinear')
    except (ValueError, AssertionError, KeyError, IndexError) as error:
        raise ValueError(f'--aa {args.aa}: {error or "not a policy"}; expected v0, v0r, original, originalr, 3a, '
                         'rand-m9-mstd0.5, augmix-m5-w4-d2, ...') from error


def _listed(values: Iterable[Any]) -> str:
    return ' '.join(map(str, values))


def _flag(name: str) -> str:
    return f'--{name.replace("_", "-")}'
