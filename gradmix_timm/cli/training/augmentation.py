"""Image transforms besides timm's (pipelines and cached images): checks of their flags, and what they make."""
from __future__ import annotations

import argparse
import logging
from typing import Any

from torch.utils.data import IterableDataset

from gradmix_timm.cli.recipes import find_recipe
from gradmix_timm.data.transforms import Pipelines, PipelineTransform, build_pipeline, read_pipelines

from .context import Built
from .timm_flags import default_of

__all__ = ['build_transforms', 'check_augmentation', 'chosen_pipelines', 'set_transforms']

_logger = logging.getLogger('train')

# timm's flags that shape an image before the loader; a pipeline from a file replaces what they do.
_REPLACED = ('no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob',
             'grayscale_prob', 'gaussian_blur_prob', 'aa', 'train_interpolation')
# Defaults of flags that are not timm's.
_OURS = {'aug_backend': 'timm', 'objective': 'ce'}


def check_augmentation(args: argparse.Namespace) -> None:
    """Reject flags that contradict the chosen transforms, and invalid pipeline files, before anything is built.

    Raises:
        ValueError: The message names both flags, or the file and its error.
        OSError: The file cannot be read.
    """
    if args.crop_padding is not None and (not args.cache_images or args.crop_padding < 0):
        raise ValueError(f'--crop-padding {args.crop_padding}: expected a number from 0 on, with --cache-images')
    if args.cache_images:
        _check_cache(args)
    if args.aug_backend == 'timm':
        if args.aug_config:
            raise ValueError(f'--aug-config {args.aug_config} goes with --aug-backend albumentations')
        return
    if not args.aug_config:
        raise ValueError('--aug-backend albumentations takes its pipelines from a file: --aug-config FILE.yaml (ready '
                         'ones: aug/light, aug/cifar, aug/imagenet)')
    _refuse(args, '--aug-backend albumentations', _REPLACED, 'the pipeline says it in its place')
    for name, on in (('--aug-splits', args.aug_splits > 0), ('--naflex-loader', args.naflex_loader),
                     ('--train-img-sizes', args.train_img_sizes is not None),
                     ('--reprob with --no-prefetcher', args.reprob > 0 and args.no_prefetcher)):
        if on:
            raise ValueError(f"{name} with --aug-backend albumentations: it is part of timm's transform, which the "
                             'pipeline replaces; leave one of them out')
    chosen_pipelines(args)


def chosen_pipelines(args: argparse.Namespace) -> Pipelines | None:
    """The pipelines of --aug-config, a file or the name of a ready one; None where timm transforms the images.

    Raises:
        ValueError: Neither, or an invalid file.
        OSError: The file cannot be read.
    """
    if args.aug_backend == 'timm':
        return None
    return read_pipelines(find_recipe(args.aug_config, '--aug-config'))


def _check_cache(args: argparse.Namespace) -> None:
    """Reject augmentations of timm that have no version for batches of cached images."""
    wanted = '--cache-images'
    _refuse(args, wanted, ('train_crop_mode', 'gaussian_blur_prob', 'aa', 'aug_splits', 'aug_repeats', 'naflex_loader',
                           'train_img_sizes', 'no_prefetcher', 'aug_backend', 'objective', 'epoch_repeats'),
            'held images are cropped, flipped and coloured in batches alone')
    if args.crop_padding is not None:
        _refuse(args, '--crop-padding', ('scale', 'ratio', 'train_interpolation', 'no_aug'), 'nothing is resized')
    elif args.train_interpolation not in ('random', 'bilinear', 'bicubic', ''):
        raise ValueError(f'--train-interpolation {args.train_interpolation} with {wanted}: expected random, bilinear '
                         'or bicubic')


def _refuse(args: argparse.Namespace, wanted: str, names: tuple[str, ...], reason: str) -> None:
    """Raise for the first flag that is not at its default."""
    for name in names:
        if getattr(args, name) != (_OURS[name] if name in _OURS else default_of(name)):
            raise ValueError(f'--{name.replace("_", "-")} with {wanted}: {reason}; leave one of them out')


def build_transforms(args: argparse.Namespace, built: Built) -> dict[str, PipelineTransform]:
    """The transforms of the run by split, tried on blank images; empty if timm's are used.

    Raises:
        ValueError: A pipeline that does not fit the model's input.
    """
    pipelines = chosen_pipelines(args)
    if pipelines is None:
        return {}
    preprocessing, normalize = built.preprocessing, not args.prefetcher
    found = {'train': build_pipeline(
        pipelines.train, f'{pipelines.path}: train', preprocessing.input_size, preprocessing.mean, preprocessing.std,
        preprocessing.crop_pct, normalize)}
    if preprocessing.pipeline is not None:
        found['eval'] = preprocessing.transform(normalize)
    return found


def set_transforms(transforms: dict[str, PipelineTransform], train: Any, evaluated: Any) -> None:
    """Replace the transforms that timm's loaders have set, and try the new ones on the first image of each.

    Raises:
        ValueError: An image that the pipeline cannot take.
    """
    for split, loader in (('train', train), ('eval', evaluated)):
        if split in transforms and loader is not None:
            loader.dataset.transform = transforms[split]
            if not isinstance(loader.dataset, IterableDataset):
                loader.dataset[0]
