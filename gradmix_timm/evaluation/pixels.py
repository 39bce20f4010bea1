"""Pixel statistics of the sets of an evaluation: whether brightness or file size alone separates unknown from known."""
from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from gradmix_timm.data import CutDataset
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.recode import Recoded
from gradmix_timm.data.subsets import evenly
from gradmix_timm.openset.pixel_statistics import STATISTICS, compare_statistics, measure, warnings_of
from gradmix_timm.openset.results import PixelStatistics
from gradmix_timm.records import Embeddings

from .images import EvaluationImages
from .model import EvaluatedModel

__all__ = ['trivial_blocks']


class _Statistics:
    """A transform: an image to its statistics, measured as the model sees it but for the normalisation."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.crop = preprocessing.crop()

    def __call__(self, image: Image.Image) -> Tensor:
        picture = self.crop(image)
        picture = picture.convert('L' if picture.mode in ('L', 'LA') else 'RGB')  # brightness, not hue
        return torch.from_numpy(measure(np.atleast_3d(np.asarray(picture, np.float32) / 255), image.size))


def trivial_blocks(model: EvaluatedModel, images: EvaluationImages, known: Embeddings, unknown: Embeddings,
                   ) -> dict[str, PixelStatistics | None]:
    """The blocks ``trivial`` of results.json, one for each set of unknown images, with their warnings.

    Args:
        model: Whose preprocessing the pixels go through.
        images: Known and unknown.
        known: Their embeddings, whose rows can be read.
        unknown: The same.

    Returns:
        Name of the set to its block; None if nothing was measured.
    """
    assert images.unknown is not None
    base, index = _statistics(model, images.known, known.index), unknown.index.numpy()
    found: dict[str, PixelStatistics | None] = {}
    for name, part, start in images.unknown.parts():
        rows = index[(index >= start) & (index < start + len(part))] - start
        other = _statistics(model, part, rows)
        found[name] = None
        if len(base) and len(other):
            compared = compare_statistics(base, other, model.settings.seed)
            found[name] = {**compared, 'warnings': warnings_of(compared, name or 'the unknown images')}
    return found


def _statistics(model: EvaluatedModel, images: CutDataset, rows: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Statistics of at most ``trivial_images`` rows, spread evenly: float64 [n, 8]; n = 0 if there are no pictures."""
    most = model.settings.trivial_images
    if model.preprocessing is None or hasattr(images, 'embeddings') or not most * len(rows):
        return np.empty((0, len(STATISTICS)))
    rows = np.asarray(rows)
    chosen = images.rows(rows[evenly(len(rows), most)])
    chosen.transform = _Statistics(model.preprocessing)
    loader = DataLoader(chosen, batch_size=32, num_workers=model.workers(len(chosen)))
    found: NDArray[np.float64] = torch.cat([part[0] for part in loader]).numpy()
    if not isinstance(images.source, Recoded):
        found[:, list(STATISTICS).index('bytes')] = [_file_length(chosen, row) for row in range(len(chosen))]
    return found


def _file_length(images: CutDataset, row: int) -> float:
    """Log of the bytes of an image's file; NaN for images in archives or arrays."""
    try:
        return math.log(os.path.getsize(images.filename(row, absolute=True)))
    except (OSError, ValueError, TypeError):
        return math.nan
