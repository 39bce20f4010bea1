"""What is judged, and its pass over images: through the cache where there is one, past unreadable ones where asked."""
from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch import nn
from torch.utils.data import Dataset

from gradmix_timm.checkpoint import Loaded
from gradmix_timm.data import CutDataset, UnreadableImageError, fingerprint
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.cache import EmbeddingCache, weights_hash
from gradmix_timm.openset.extract import extract
from gradmix_timm.records import Embeddings

__all__ = ['Skipping', 'Subject', 'loader_of', 'open_cache', 'rows_of']

# The target of a row whose image could not be read; unknown images have -1.
_UNREADABLE = -2


class Skipping(Dataset):
    """A set whose unreadable images are blank and have the target -2, so that a loader goes on.

    Args:
        images: Whose ``transform`` this one's is.
    """

    def __init__(self, images: CutDataset) -> None:
        self.images = images

    @property
    def transform(self) -> Any:
        """The images' own."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return self.images[index]
        except UnreadableImageError:
            blank = Image.new(self.images.source.input_img_mode or 'RGB', (32, 32))
            return blank if self.transform is None else self.transform(blank), _UNREADABLE


@dataclass(frozen=True)
class Subject:
    """A model ready to be judged.

    Attributes:
        model: In evaluation mode on ``device``.
        name: timm's.
        loaded: Its checkpoint, or None.
        preprocessing: From a file to the model's input.
        device: Where it runs.
        amp_dtype: Of autocast, or None.
        args: Flags of :func:`add_subject_flags`.
        projection: The projection head of a contrastive objective, or None.
        cache: Of --cache, or None.
        skipped: Title of a set to the names of its images that could not be read, with --skip-bad.
    """

    model: nn.Module
    name: str
    loaded: Loaded | None
    preprocessing: Preprocessing
    device: torch.device
    amp_dtype: torch.dtype | None
    args: argparse.Namespace
    projection: nn.Module | None = None
    cache: EmbeddingCache | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def embed(self, images: CutDataset, title: str) -> Embeddings:
        """Embeddings of a set, with the evaluation transform, through the cache.

        Args:
            images: Which.
            title: What they are, for whoever waits.

        Returns:
            ``index`` holds rows of ``images``: all of them, but for those left out by --skip-bad, which are added to
            ``skipped``.

        Raises:
            ValueError: NaN among the logits; an image that cannot be read, or with --skip-bad none that can.
        """
        count = len(images)
        parts = _parts(self, images) if self.cache is not None else None
        if self.cache is None or parts is None:
            found = _pass(self, images, title)
        else:
            def make(start: int, stop: int) -> Embeddings:
                part = f'{title} ({start + 1:,} to {stop:,} of {count:,})' if stop - start < count else title
                return _pass(self, rows_of(images, np.arange(start, stop)), part)

            found = self.cache.fetch(parts, count, make, title)
        bad = (found.label == _UNREADABLE).nonzero().flatten()
        return self._without(found, images, bad, title) if len(bad) else found

    def _without(self, found: Embeddings, images: CutDataset, bad: torch.Tensor, title: str) -> Embeddings:
        """Embeddings of the images that could be read; the others are named."""
        if not getattr(self.args, 'skip_bad', False):
            images.picture(int(bad[0]))  # raises, as the pass would have without the cache
            raise UnreadableImageError(f'{images.filename(int(bad[0]))} could not be read when the cache was filled')
        self.skipped[title] = [images.filename(int(row)) for row in bad]
        if len(bad) == len(images):
            raise UnreadableImageError(
                f'none of the {len(images)} {title} can be read ({self.skipped[title][0]}, ...)')
        return found.rows(found.label != _UNREADABLE)

    def workers(self, count: int) -> int:
        """Loader processes for so many images."""
        if self.args.workers is not None:
            return int(self.args.workers)
        # Starting processes takes longer than reading a few small images.
        return 0 if count < 2000 else min(4, os.cpu_count() or 1)


def rows_of(images: CutDataset, rows: np.ndarray) -> CutDataset:
    """Rows of a set, by position in it."""
    return CutDataset(images.source, images.indices[rows], images.targets[rows], images.classes, images.transform)


def loader_of(subject: Subject, images: CutDataset) -> Any:
    """A loader of timm's with the evaluation transform, in the set's order."""
    source = rows_of(images, np.arange(len(images)))
    dataset = Skipping(source) if getattr(subject.args, 'skip_bad', False) else source
    loader = create_loader(
        cast(ImageDataset, dataset),  # all that the loader asks of one
        **subject.preprocessing.loader_options(), batch_size=subject.args.batch_size, is_training=False,
        num_workers=subject.workers(len(images)), device=subject.device,
        # Pixels are normalised on the CPU, so that every device sees the same.
        use_prefetcher=False, pin_memory=subject.device.type == 'cuda', persistent_workers=False)
    source.transform = subject.preprocessing.transform()
    return loader


def _pass(subject: Subject, images: CutDataset, title: str) -> Embeddings:
    return extract(subject.model, loader_of(subject, images), subject.device, subject.amp_dtype,
                   subject.args.channels_last, progress=title, projection=subject.projection)


def _parts(subject: Subject, images: CutDataset) -> dict[str, Any] | None:
    """Everything that embeddings depend on; None for images that cannot be told from others."""
    files = fingerprint(images)
    if files is None:
        return None
    loaded = subject.loaded
    return {
        'weights': weights_hash(subject.model, subject.projection), 'model': subject.name,
        'model_kwargs': {} if loaded is None else {key: str(value) for key, value in loaded.model_kwargs.items()},
        # Two modules with the same weights may differ in their forward pass: pooling, activation.
        'modules': hashlib.sha256(str(subject.model).encode()).hexdigest(),
        'transform': {key: str(value) for key, value in subject.preprocessing.as_config().items()},
        'images': files, 'amp': str(subject.amp_dtype), 'channels_last': subject.args.channels_last,
        'device': subject.device.type, 'versions': {name: version(name) for name in ('torch', 'timm', 'pillow')}}


def open_cache(folder: str | None) -> EmbeddingCache | None:
    """The cache of ``--cache DIR``, or None."""
    return EmbeddingCache(folder) if folder else None
