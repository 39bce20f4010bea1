"""Convert images of every common kind to PIL images, as input of the evaluation transform."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gradmix_timm.data.listing import list_images
from gradmix_timm.data.opening import expected_files, open_image
from gradmix_timm.data.preprocessing import Preprocessing

__all__ = ['as_image', 'batches', 'each']

_KINDS = ('a path of an image or of a folder, a PIL image, an array [H, W, C] or [H, W], a tensor [C, H, W] or [H, W]; '
          'pixels as uint8, or as floats from 0 to 1')


def each(images: Any) -> Iterator[Any]:
    """The images of a single one, a batch as one array or tensor, or any iterable; for a folder, those below it.

    Raises:
        TypeError: None of these.
        ValueError: A folder without images.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    elif isinstance(images, np.ndarray | Tensor):
        images = [images] if images.ndim in (2, 3) else images
    elif isinstance(images, bytes) or not isinstance(images, Iterable):
        raise TypeError(f'expected images ({_KINDS}; one or many), got {type(images).__name__}')
    for item in images:
        if isinstance(item, str | os.PathLike) and os.fspath(item) and Path(item).is_dir():
            files = list_images(item).files
            if not files:
                raise ValueError(f'no image in the folder {os.fspath(item)} ({expected_files()})')
            yield from map(Path, files)
        else:
            yield item


def as_image(item: Any, preprocessing: Preprocessing) -> Image.Image:
    """One image in the model's mode; uint8 pixels are kept as they are, floats are rounded to 8 bits.

    Args:
        item: A path, a PIL image, an array [H, W, C] or [H, W], a tensor [C, H, W] or [H, W].
        preprocessing: Of the model.

    Raises:
        ValueError: A file is not an image, one has no pixels, or they are neither uint8 nor floats from 0 to 1.
        TypeError: ``item`` is of another kind.
    """
    if isinstance(item, Image.Image):
        if 0 in item.size:
            raise ValueError(f'an image of {item.width} x {item.height} pixels; expected 1 or more on each side')
        return preprocessing.decode(item)
    if isinstance(item, str | os.PathLike):
        return _read(Path(item), preprocessing)
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.is_floating_point() else item).numpy()
        item = np.moveaxis(item, 0, -1) if item.ndim == 3 else item
    if isinstance(item, np.ndarray):
        return preprocessing.decode(Image.fromarray(_pixels(item)))
    raise TypeError(f'expected {_KINDS}; got {type(item).__name__}')


def batches(images: Any, preprocessing: Preprocessing, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches with labels of zero; images are read as they are asked for.

    Args:
        images: As of :meth:`~gradmix_timm.classifier.model.OpenSetClassifier.predict`.
        preprocessing: Of the model.
        size: Images of a batch, B; the last may have fewer.

    Yields:
        float32 [B, C, H, W] and int64 [B], on the CPU.

    Raises:
        ValueError: An image cannot be read; the message gives its position.
    """
    numbered, transform = enumerate(each(images)), preprocessing.transform()
    while part := list(islice(numbered, size)):
        pixels = torch.stack([_placed(place, item, preprocessing, transform) for place, item in part])
        yield pixels, torch.zeros(len(part), dtype=torch.int64)


def _placed(place: int, item: Any, preprocessing: Preprocessing, transform: Any) -> Tensor:
    try:
        pixels: Tensor = transform(as_image(item, preprocessing))
        return pixels
    except (TypeError, ValueError) as error:
        raise type(error)(f'image {place}: {error}') from error


def _read(path: Path, preprocessing: Preprocessing) -> Image.Image:
    if not path.exists() or path.is_dir():  # '' is the current folder
        raise ValueError(f'there is no file {path}')
    try:
        with open_image(path) as image:
            return preprocessing.decode(image, path)
    except Exception as error:  # decoders raise any type on broken bytes
        raise ValueError(f'{path} cannot be read as an image ({error}); replace or remove it') from error


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [H, W], [H, W, 3] or [H, W, 4]."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f'an image of shape {list(array.shape)}; expected an array [H, W] or [H, W, C] or a tensor '
                         '[C, H, W] with C = 1, 3 or 4')
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f'pixels are {array.dtype}; expected uint8, or floats from 0 to 1')
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(f'float pixels go from {low:.3g} to {high:.3g}; expected 0 to 1, not yet normalised (the '
                         "checkpoint's own mean and standard deviation are applied here)")
    return np.rint(array * 255).astype(np.uint8)
