"""Cache of small images in memory: read once, then shuffled and augmented in batches on the device."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data.loader import adapt_to_chs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.transforms.functional import pil_to_tensor

from .batch_augment import BatchAugment

__all__ = ['CachedLoader', 'EpochOrder', 'HeldImages', 'hold_images']

# Rows read by one task of a worker, and augmented at once on the CPU (more would leave its cache).
_READ, _SLICE = 256, 128
# A data set up to this size goes to the GPU as a whole.
_ON_DEVICE = 4 * 2 ** 30


class HeldImages(Dataset):
    """Images of one size in memory, as a data set for timm's loader and as tensors.

    Args:
        pixels: uint8 [N, H, C, W]: in this order resampling copies nothing.
        targets: [N] or [N, K].
    """

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        self.pixels, self.targets = pixels, targets
        self.transform: Any = None  # timm's loader sets one; cached images are already transformed

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[3]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        target = self.targets[index]
        return self.pixels[index].transpose(0, 1), int(target) if target.dim() == 0 else target


def hold_images(dataset: Any, workers: int = 0, transformed: bool = False) -> HeldImages:
    """Read every image of a data set once.

    Args:
        dataset: Map-style, items (image, target).
        workers: Processes that read.
        transformed: Hold what its transform makes (uint8 tensors [C, H, W]) rather than the stored images.

    Raises:
        ValueError: A streamed data set, images of different sizes, or more than half of this machine's memory.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError('--cache-images holds data sets that have rows by number; this one is streamed')
    kept = dataset.transform
    dataset.transform = kept if transformed else pil_to_tensor
    try:
        return _read(dataset, workers)
    finally:
        dataset.transform = kept


def _read(dataset: Any, workers: int) -> HeldImages:
    # Its own generator, since a loader's iterator otherwise draws from the global stream.
    reader: DataLoader[Any] = DataLoader(
        dataset, batch_size=_READ, num_workers=min(workers, len(dataset) // _READ), collate_fn=_stacked,
        generator=torch.Generator())
    pixels: Tensor | None = None
    targets, done = [], 0
    for images, labels in reader:
        if pixels is None:
            _check_room(images[0].numel() * len(dataset))
            pixels = torch.empty((len(dataset), *images.shape[1:]), dtype=torch.uint8)
        if images.shape[1:] != pixels.shape[1:]:
            raise _sizes_differ(images[0], pixels[0])
        pixels[done:done + len(images)] = images
        targets.append(labels)
        done += len(images)
    if pixels is None:
        raise ValueError('--cache-images: the data set is empty')
    return HeldImages(pixels, torch.cat(targets))


def _stacked(rows: list[tuple[Tensor, Any]]) -> tuple[Tensor, Tensor]:
    images = [image.transpose(0, 1) for image, _ in rows]
    for image in images:
        if image.dtype != torch.uint8:
            raise ValueError(f'--cache-images holds 8-bit images, got {image.dtype}')
        if image.shape != images[0].shape:
            raise _sizes_differ(image, images[0])
    return torch.stack(images), torch.as_tensor(np.array([np.asarray(target) for _, target in rows]))


def _sizes_differ(one: Tensor, other: Tensor) -> ValueError:
    sizes = ' and '.join(f'{image.shape[0]} x {image.shape[2]}' for image in (other, one))
    return ValueError(f'--cache-images holds images of one size, got {sizes} pixels; resize them on disk, or leave '
                      '--cache-images out')


def _check_room(size: int) -> None:
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if size > memory / 2:
        raise ValueError(f'--cache-images would hold {size / 2 ** 30:.1f} GiB, more than half of the '
                         f'{memory / 2 ** 30:.1f} GiB of this machine; leave it out')


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Use one thread on the CPU, where a slice is too little work to amortise synchronisation."""
    threads = torch.get_num_threads()
    if device.type == 'cpu':
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == 'cpu':
            torch.set_num_threads(threads)


class EpochOrder:
    """Which images each process sees in an epoch, shuffled: a function of (seed, epoch), alike in length for all ranks.

    Args:
        count: Images of the data set.
        seed: Of the shuffle.
        rank: Of this process.
        world: Number of processes; they share the images without overlap.
    """

    def __init__(self, count: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of ``epoch``."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.count // self.world

    def indices(self) -> np.ndarray:
        """Positions in the data set, int64, in order."""
        order = np.random.default_rng([self.seed % 2 ** 64, self.epoch]).permutation(self.count)
        return order[self.rank::self.world][:len(self)]


class CachedLoader:
    """Training batches from held images; iterating it is one epoch, the last partial batch is left out.

    Order and augmentation are functions of (seed, epoch, rank), so a run resumes without saved state.

    Args:
        images: The cached images.
        augment: For each batch.
        batch_size: Images a batch.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        device: Where batches are made.
        dtype: Of the batches.
        seed: Of order and augmentation.
        rank: Of this process.
        world: Number of processes.
        erasing: timm's random erasing of normalised batches, or None.
    """

    batch_sampler = None

    def __init__(self, images: HeldImages, augment: BatchAugment, batch_size: int, mean: tuple[float, ...],
                 std: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0,
                 rank: int = 0, world: int = 1, erasing: Any = None) -> None:
        self.dataset, self.augment, self.batch_size = images, augment, batch_size
        self.sampler = EpochOrder(len(images), seed, rank, world)
        self.device, self.dtype, self.erasing = device, dtype, erasing
        channels = images.pixels.shape[2]
        mean, std = (adapt_to_chs(values, channels) for values in (mean, std))
        self.scale = torch.tensor([1 / (255 * value) for value in std], device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)
        there = device if images.pixels.numel() <= _ON_DEVICE else torch.device('cpu')
        self.pixels, self.targets = images.pixels.to(there), images.targets.to(there)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        sampler = self.sampler
        rng = np.random.default_rng([word % 2 ** 64 for word in (sampler.seed, sampler.epoch, sampler.rank, 1)])
        order = torch.from_numpy(sampler.indices()).to(self.pixels.device)
        for rows in order[:len(self) * self.batch_size].split(self.batch_size):
            with _one_thread(self.device):
                pixels = self.pixels.index_select(0, rows).to(self.device, non_blocking=True)
                batch = self._augmented(pixels.transpose(1, 2), rng)
                if self.erasing is not None:
                    batch = self.erasing(batch)
                targets = self.targets.index_select(0, rows).to(self.device, non_blocking=True)
            yield batch, targets

    def _augmented(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Augmented and normalised, [B, C, h, w]."""
        made = torch.empty(len(pixels), pixels.shape[1], *self.augment.size, dtype=self.dtype, device=self.device)
        step = _SLICE if self.device.type == 'cpu' else len(pixels)
        for first in range(0, len(pixels), step):
            part = pixels[first:first + step]
            draw = self.augment.draw(rng, len(part), self.dataset.image_size)
            made[first:first + step] = torch.addcmul(self.shift, self.augment.apply(part, draw), self.scale)
        return made
