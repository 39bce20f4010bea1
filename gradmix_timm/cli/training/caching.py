"""--cache-images: read a run's images once, and augment its training batches on the device."""
from __future__ import annotations

import argparse
import logging
from dataclasses import replace

import torch
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from gradmix_timm.data.batch_augment import BatchAugment
from gradmix_timm.data.cached import CachedLoader, HeldImages, hold_images
from gradmix_timm.data.preprocessing import Preprocessing

from .context import Built, Data, Hardware

__all__ = ['cached_loader', 'held_data']

_logger = logging.getLogger('train')


def held_data(args: argparse.Namespace, built: Built, data: Data) -> Data:
    """The run's images in memory: training images as stored, the others (and with --no-aug all) as timm crops them.

    Raises:
        ValueError: Streamed data, images of different sizes, too many of them.
    """
    preprocessing = built.preprocessing
    if args.no_aug:
        data.train.transform = create_transform(
            preprocessing.input_size, is_training=True, no_aug=True, use_prefetcher=True,
            interpolation=preprocessing.interpolation)
    train = hold_images(data.train, args.workers, transformed=args.no_aug)
    evaluated = None
    if data.eval is not None:
        data.eval.transform = preprocessing.transform(normalize=False)
        evaluated = hold_images(data.eval, args.workers, transformed=True)
    held = sum(part.pixels.numel() for part in (train, evaluated) if part is not None)
    _logger.info(f'Holding {len(train)} training images of {train.image_size[0]} x {train.image_size[1]} pixels; '
                 f'{held / 2 ** 20:.0f} MiB in all.')
    return replace(data, train=train, eval=evaluated)


def cached_loader(args: argparse.Namespace, hardware: Hardware, built: Built, images: HeldImages) -> CachedLoader:
    """Batches of held images, augmented as timm's flags say.

    Raises:
        ValueError: Fewer images than one batch, a crop larger than the images, another resampling.
    """
    preprocessing = built.preprocessing
    erasing = None
    if args.reprob > 0:
        erasing = RandomErasing(args.reprob, mode=args.remode, max_count=args.recount,
                                num_splits=2 if args.resplit else 0, device=hardware.device)
    loader = CachedLoader(
        images, _augment(args, preprocessing, images.image_size), args.batch_size, preprocessing.mean,
        preprocessing.std, hardware.device, hardware.dtype or torch.float32, args.seed, args.rank, args.world_size,
        erasing)
    if len(loader) == 0:
        raise ValueError(f'{len(images)} training images are fewer than one batch of {args.batch_size} in each '
                         'process; type a smaller --batch-size')
    return loader


def _augment(args: argparse.Namespace, preprocessing: Preprocessing, image_size: tuple[int, int]) -> BatchAugment:
    size = preprocessing.input_size[1:]
    if args.no_aug:
        return BatchAugment(size, padding=0, hflip=0.0, color_jitter=0.0)
    if args.crop_padding is not None and any(
            side + 2 * args.crop_padding < wanted for side, wanted in zip(image_size, size, strict=True)):
        raise ValueError(f'--crop-padding {args.crop_padding}: images of {image_size[0]} x {image_size[1]} pixels with '
                         f'that border are smaller than the input of {size[0]} x {size[1]}; type --img-size '
                         f'{min(image_size)}')
    interpolation = args.train_interpolation or preprocessing.interpolation
    if interpolation not in ('random', 'bilinear', 'bicubic'):
        raise ValueError(f'--cache-images resamples bilinear or bicubic, and the model asks for {interpolation}; type '
                         '--train-interpolation random')
    return BatchAugment(
        size, tuple(args.scale), tuple(args.ratio), interpolation, args.hflip, args.vflip, args.color_jitter or 0.0,
        args.color_jitter_prob, args.grayscale_prob or 0.0, args.crop_padding,
        tuple(255 * value for value in preprocessing.mean))
