"""Data sets and loaders of a training run: timm's, restricted to the known classes of an open-set split."""
from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm import utils
from timm.data import (
    AugMixDataset,
    MultiLabelTarget,
    NaFlexMixup,
    create_loader,
    create_naflex_loader,
)
from torch.utils.data import DataLoader, IterableDataset

from gradmix_timm.data import (
    ClassSplit,
    TwoViews,
    check_split,
    class_names,
    collate_views,
    hold_out,
    inner_name,
    is_flat,
    list_splits,
    load_split,
    open_dataset,
    overlap,
    select_classes,
    split_flat,
)
from gradmix_timm.data.images import ImageSource
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.sources import check_root

from .augmentation import build_transforms, set_transforms
from .caching import cached_loader, held_data
from .context import Built, Data, Hardware, Loaders
from .interrupt import leave_signals_to_parent
from .mixing import MixPlan, create_timm_mixup

__all__ = ['build_loaders', 'open_data', 'plan_classes', 'set_learning_rate', 'split_names']

_logger = logging.getLogger('train')
# Fewest n with floor((1 - 0.95) (n + 1)) >= 1: split conformal at the classifier's default acceptance.
_CONFORMAL = 19


def plan_classes(args: argparse.Namespace) -> ClassSplit | None:
    """The open-set split of the flags, before any data is read; sets ``args.num_classes``.

    Raises:
        ValueError: No such protocol, trial or family; --num-classes is another number; no folder at --data-dir.
    """
    if not inner_name(args.dataset) and args.data_dir:
        check_root(args.data_dir)
    if args.osr_protocol:
        split = load_split(args.osr_protocol, args.osr_trial, args.osr_family)
    elif args.known_classes:
        split = ClassSplit(known=tuple(args.known_classes), unknown=())
    else:
        return None
    if args.num_classes not in (None, len(split.known)):
        raise ValueError(f'--num-classes {args.num_classes} with {len(split.known)} known classes: the head has one '
                         f'output for each; leave --num-classes out, or type --num-classes {len(split.known)}')
    args.num_classes = len(split.known)
    return split


def split_names(args: argparse.Namespace) -> dict[str, str]:
    """Names of the split trained on and of the one that the evaluation will read.

    The second is --osr-test-split, else --val-split if the data has it beside the train split, else 'test'.
    """
    return {'train': args.train_split, 'test': args.osr_test_split or _test_split(args)}


def _test_split(args: argparse.Namespace) -> str:
    named = args.val_split
    if not named or named == args.train_split:
        return 'test'
    name = inner_name(args.dataset)
    kind = name.partition('/')[0].lower() if '/' in name else ''
    if kind == 'sklearn' or kind == 'torch':
        return named if named in list_splits(name, args.data_dir) else 'test'
    if kind:
        return str(named)  # unknown without opening it
    # timm treats these names as synonyms.
    words = ('val', 'valid', 'validation', 'eval', 'evaluation')
    tried = [named, *(words if named in words else ())]
    root = Path(args.data_dir or '')
    there = any((root / word).is_dir() or (root / f'{word}.tar').is_file() for word in tried)
    return str(named) if there else 'test'


def open_data(args: argparse.Namespace, built: Built, split: ClassSplit | None) -> Data:
    """Open the training and the validation images; the test split stays closed in an open-set run.

    Raises:
        ValueError: No such data, or it does not hold the classes; more classes than the head has outputs.
    """
    train = _open(args, built, args.train_split, training=True)
    if split is not None:
        split = check_split(split, class_names(train))
        part, flat_test = select_classes(train, split.known), None
        if is_flat(args.dataset, args.data_dir, split_names(args).values()):
            part, flat_test = split_flat(part, seed=args.seed)
        held = None
        if args.osr_val_fraction > 0:
            part, held = hold_out(part, args.osr_val_fraction, args.seed)
            _warn_of_few(args, len(held))
        return Data(part, held, split.known, split, held, flat_test)
    if args.task == 'multilabel' and isinstance(train, ImageSource) and len(train):
        _check_several_labels(args, train.read(0)[1])
    known = _plain_classes(args, train)
    evaluated = _open(args, built, args.val_split, training=False) if args.val_split else None
    _check_same_classes(args, train, evaluated)
    return Data(train, evaluated, known, None, overlap=_validated_on_training(args, train, evaluated))


def _check_several_labels(args: argparse.Namespace, target: Any) -> None:
    """Check that a target is a list of labels, or a row of them."""
    if not isinstance(target, list | tuple | np.ndarray | torch.Tensor):
        raise ValueError(f'--task multilabel: an image of {args.data_dir or args.dataset} has one label, {target!r}, '
                         'expected a list of labels for each; folders give one. --dataset hfds/NAME, wds/NAME or '
                         'tfds/NAME with --target-key NAME reads lists, or leave --task out')


def _validated_on_training(args: argparse.Namespace, train: Any, evaluated: Any) -> dict[str, int]:
    """Warn about validation images of a plain run that are training images, which timm's script accepts."""
    if not utils.is_primary(args) or any(part is None or isinstance(part, IterableDataset)
                                         for part in (train, evaluated)):
        return {}
    found = overlap(train, evaluated)
    if not found:
        return {}
    _logger.warning(f'{found.describe("validation")}: figures of validation and the choice of model_best are of images '
                    'that were trained on. --val-split names other images.')
    return {'paths': found.paths, 'contents': found.contents, 'images': found.images}


def _warn_of_few(args: argparse.Namespace, count: int) -> None:
    """Warn at the start if `gradmix-predict` would refuse the run's checkpoint."""
    if count < _CONFORMAL and utils.is_primary(args):
        _logger.warning(f'{count} images are held out; the classifier needs {_CONFORMAL} for its threshold, which '
                        'accepts 95% of known images: type a larger --osr-val-fraction, or give it images of its own '
                        'later (predict --validation PATH)')


def _check_same_classes(args: argparse.Namespace, train: Any, evaluated: Any) -> None:
    """Check that both splits number the same classes, since folders of other names would be numbered differently."""
    if evaluated is None or args.task == 'multilabel':
        return
    try:
        known, names = class_names(train, numbers=False), class_names(evaluated, numbers=False)
    except (TypeError, ValueError):  # streamed, without names, or a class map with gaps, which both splits share
        return
    if names and names == known[:len(names)]:
        if names != known:
            _logger.warning(f'--val-split {args.val_split} has {len(names)} of the {len(known)} classes: '
                            f'{", ".join(known[len(names):][:5])}{", ..." if known[len(names) + 5:] else ""} are not '
                            'validated')
    else:
        stray = sorted(set(names) ^ set(known)) or [a for a, b in zip(names, known, strict=True) if a != b]
        raise ValueError(f'--train-split {args.train_split} has {len(known)} classes and --val-split {args.val_split} '
                         f'{len(names)}, and their labels differ ({", ".join(stray[:3])}{", ..." if stray[3:] else ""}'
                         '), so that validation would read labels of other classes; --class-map FILE gives both one '
                         "list of classes, --val-split '' leaves validation out")


def _open(args: argparse.Namespace, built: Built, split: str, training: bool) -> Any:
    options: dict[str, Any] = {
        'is_training': training, 'batch_size': args.batch_size, 'input_key': args.input_key,
        'target_key': args.target_key, 'trust_remote_code': args.dataset_trust_remote_code,
        'num_samples': args.train_num_samples if training else args.val_num_samples}
    if training:
        options.update(seed=args.seed, repeats=args.epoch_repeats)
    if args.task == 'multilabel':
        options['target_transform'] = MultiLabelTarget(args.num_classes, dense=args.target_format == 'multihot')
    # A plain run equals timm's script; in an open-set run the top folder is the class.
    plain = not (args.osr_protocol or args.known_classes)
    dataset = open_dataset(args.dataset, args.data_dir, split, class_map=args.class_map, download=args.dataset_download,
                           timm_rule=plain, **built.preprocessing.reading_options(), **options)
    if plain and isinstance(dataset, ImageSource):
        dataset.replaces_unreadable = True
    return dataset


def _plain_classes(args: argparse.Namespace, dataset: Any) -> tuple[str, ...]:
    """Class names of a plain run, one for each output; empty where the data does not name them."""
    if args.task == 'multilabel':
        return ()
    try:
        names = class_names(dataset)
    except (TypeError, ValueError):
        return ()
    if len(names) > args.num_classes:
        raise ValueError(f'the data has {len(names)} classes and the head {args.num_classes} outputs; type '
                         f'--num-classes {len(names)}')
    if len(names) < args.num_classes:
        _logger.warning(f'The head has {args.num_classes} outputs and the data {len(names)} classes; --num-classes '
                        f'{len(names)} gives one output a class, which an open-set evaluation expects.')
        return ()
    return names


def build_loaders(args: argparse.Namespace, hardware: Hardware, built: Built, plan: MixPlan, data: Data) -> Loaders:
    """Timm's loaders for the flags.

    Raises:
        ValueError: Fewer training images than one batch.
    """
    transforms = build_transforms(args, built)
    data = held_data(args, built, data) if args.cache_images else data
    loaders = _create(args, hardware, built, plan, data)
    if args.cache_images:
        multi = args.task == 'multilabel'
        mixup = create_timm_mixup(plan, args.num_classes, multi, collate=False) if plan.timm else None
        loaders = replace(loaders, train=cached_loader(args, hardware, built, data.train), mixup=mixup)
    set_transforms(transforms, loaders.train, loaders.eval)
    if args.objective != 'ce':
        loaders.train.dataset.transform = TwoViews(loaders.train.dataset.transform)
        if loaders.bank is not None:
            loaders.bank.dataset.transform = loaders.eval.dataset.transform
    _check_views(args, loaders.eval)
    for loader in (loaders.train, loaders.eval, loaders.bank):
        inner = getattr(loader, 'loader', loader)
        if isinstance(inner, DataLoader):
            inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)
    return loaders


def _check_views(args: argparse.Namespace, loader: Any) -> None:
    """--tta averages neighbours in a batch: every batch of validation images holds whole groups of them."""
    if args.tta < 2 or loader is None or args.naflex_loader or isinstance(loader.dataset, IterableDataset):
        return
    size, count = args.validation_batch_size or args.batch_size, len(loader.dataset)
    if size % args.tta or count % args.tta:
        raise ValueError(f'--tta {args.tta} averages as many neighbouring images; --validation-batch-size {size} and '
                         f'the {count} validation images are to be multiples of it')


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    """Shield workers from signals, which the main process handles: a loader raises if its workers are killed."""
    leave_signals_to_parent()
    if start is not None:
        start(number)


def _create(args: argparse.Namespace, hardware: Hardware, built: Built, plan: MixPlan, data: Data) -> Loaders:
    preprocessing = built.preprocessing
    common: dict[str, Any] = {
        'mean': preprocessing.mean, 'std': preprocessing.std, 'pin_memory': args.pin_mem,
        'img_dtype': hardware.dtype or torch.float32, 'device': hardware.device, 'distributed': args.distributed,
        'use_prefetcher': args.prefetcher}
    evaluated: dict[str, Any] = {
        **preprocessing.loader_options(), **common, 'batch_size': args.validation_batch_size or args.batch_size,
        'is_training': False, 'num_workers': _eval_workers(args)}
    if args.naflex_loader:
        return _naflex_loaders(args, built, plan, data, common, evaluated)
    mixup = None
    if plan.timm:
        mixup = create_timm_mixup(plan, args.num_classes, args.task == 'multilabel', collate=args.prefetcher)
    contrastive = args.objective != 'ce'
    # With a registered mixer or an open-set split workers are made anew each epoch: their seeds then come from the
    # random stream that a checkpoint keeps, and a resumed run goes on exactly. A plain run keeps timm's own.
    workers: dict[str, Any] = {'persistent_workers': not (plan.in_step or data.split or contrastive)}
    collate = mixup if args.prefetcher else collate_views if contrastive else None
    source: Any = AugMixDataset(data.train, num_splits=args.aug_splits) if args.aug_splits > 1 else data.train
    train = create_loader(
        source, input_size=preprocessing.input_size, collate_fn=collate,
        use_multi_epochs_loader=args.use_multi_epochs_loader, **_sizes(args), **common, **workers,
        **_augmentation(args, preprocessing))
    if len(train) == 0:
        raise ValueError(_no_batch(args, len(data.train)))
    scheduled = args.train_img_sizes is not None
    evaluator, bank = None, None
    if data.eval is not None:
        evaluator = create_loader(data.eval, **workers, **evaluated)
        if contrastive:  # a copy, which has a transform of its own
            bank = create_loader(copy.copy(data.train), **workers, **evaluated)
    return Loaders(
        train, evaluator, None if args.prefetcher else mixup, args.variable_batch_loss_scale if scheduled else None,
        float(train.batch_sampler.average_batch_size if scheduled else args.batch_size), False, bank)


def _no_batch(args: argparse.Namespace, count: int) -> str:
    if args.aug_repeats:
        return (f'--aug-repeats {args.aug_repeats} with {count} training images: timm takes a multiple of 256 of them, '
                'and shares it between the processes; leave it out, or type a smaller --batch-size')
    shared = f' in each of {args.world_size} processes' if args.world_size > 1 else ''
    return f'{count} training images are fewer than one batch of {args.batch_size}{shared}; type a smaller --batch-size'


def _eval_workers(args: argparse.Namespace) -> int:
    # Fewer workers, less padding: streamed readers split their files between all workers of all processes.
    streamed = args.distributed and ('tfds' in args.dataset or 'wds' in args.dataset)
    if args.cache_images:
        return 0
    return min(2, args.workers) if streamed else int(args.workers)


def _sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of batches whose image size varies."""
    progressive = args.train_size_schedule == 'progressive'
    return {
        'input_size_choices': args.train_img_sizes, 'batch_size_choices': args.train_batch_sizes,
        'batch_choice_weights': args.train_size_probs, 'batch_choice_seed': args.seed,
        'batch_choice_schedule': args.train_size_schedule,
        'batch_schedule_epochs': args.epochs if progressive else None,
        'batch_schedule_spread': args.train_size_schedule_spread,
        'batch_schedule_random_mix': args.train_size_random_mix, 'num_batches': args.train_batches_per_epoch}


def _augmentation(args: argparse.Namespace, preprocessing: Preprocessing) -> dict[str, Any]:
    """Arguments of the training transform."""
    same = not args.train_interpolation or args.no_aug
    return {
        'batch_size': args.batch_size, 'is_training': True, 'no_aug': args.no_aug, 're_prob': args.reprob,
        're_mode': args.remode, 're_count': args.recount, 're_split': args.resplit,
        'train_crop_mode': args.train_crop_mode, 'scale': args.scale, 'ratio': args.ratio, 'hflip': args.hflip,
        'vflip': args.vflip, 'color_jitter': args.color_jitter, 'color_jitter_prob': args.color_jitter_prob,
        'grayscale_prob': args.grayscale_prob, 'gaussian_blur_prob': args.gaussian_blur_prob, 'auto_augment': args.aa,
        'num_aug_repeats': args.aug_repeats, 'num_aug_splits': args.aug_splits,
        'interpolation': preprocessing.interpolation if same else args.train_interpolation, 'num_workers': args.workers,
        'worker_seeding': args.worker_seeding}


def _naflex_loaders(args: argparse.Namespace, built: Built, plan: MixPlan, data: Data, common: dict[str, Any],
                    evaluated: dict[str, Any]) -> Loaders:
    """Loaders of patch sequences, with timm's own mixer for them."""
    mixup = None
    if plan.timm:
        # It has neither modes nor minmax, and reads the epoch from the data set, also in workers.
        options = {key: value for key, value in plan.options.items() if key not in ('mode', 'cutmix_minmax')}
        mixup = NaFlexMixup(num_classes=args.num_classes, multi_label=args.task == 'multilabel',
                            mixup_off_epoch=args.mixup_off_epoch, **options)
    own = built.patch_size or (16, 16)
    if built.patch_size is None:
        _logger.warning(f'The patch size of the model is unknown; using {own}.')
    patches: dict[str, Any] = {'patch_size': own}
    if args.naflex_patch_sizes:
        patches = {'patch_size_choices': args.naflex_patch_sizes}
        if args.naflex_patch_size_probs:
            patches['patch_size_choice_probs'] = args.naflex_patch_size_probs
    last = not args.naflex_patchify_channels_first
    train = create_naflex_loader(
        dataset=data.train, train_seq_lens=args.naflex_train_seq_lens, mixup_fn=mixup, rank=args.rank,
        world_size=args.world_size, patchify_channels_last=last, **patches, **common,
        **_augmentation(args, built.preprocessing))
    evaluator = None
    if data.eval is not None:
        evaluator = create_naflex_loader(
            dataset=data.eval, patch_size=own, max_seq_len=args.naflex_max_seq_len, patchify_channels_last=last,
            **{name: value for name, value in evaluated.items() if name != 'input_size'})
    return Loaders(train, evaluator, None, args.naflex_loss_scale, float(args.batch_size), True)


def set_learning_rate(args: argparse.Namespace, loaders: Loaders) -> None:
    """Set the learning rate from --lr-base and the images per update, unless --lr gives it."""
    if args.lr:
        return
    batch = loaders.batch_reference * args.world_size * args.grad_accum_steps
    ratio = batch / args.lr_base_size
    if not args.lr_base_scale:
        adaptive = any(word in args.opt.lower() for word in ('ada', 'lamb'))
        args.lr_base_scale = 'sqrt' if adaptive else 'linear'
    if args.lr_base_scale == 'sqrt':
        ratio = ratio ** 0.5
    args.lr = args.lr_base * ratio
    if utils.is_primary(args):
        _logger.info(f'Learning rate ({args.lr}) calculated from base learning rate ({args.lr_base}) and effective '
                     f'global batch size ({batch:g}) with {args.lr_base_scale} scaling.')
