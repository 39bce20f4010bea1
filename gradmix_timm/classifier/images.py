"""Images of every common kind as one: PIL images, which the evaluation's own transform then reads."""
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
from timm.data import create_transform
from torch import Tensor

from gradmix_timm.data.images import in_mode
from gradmix_timm.data.transforms import recorded_pipeline

__all__ = ['as_image', 'batches', 'each', 'evaluation_transform']

_KINDS = ('a path, a PIL image, an array [H, W, C] or [H, W], a tensor [C, H, W] or [H, W]; pixels as uint8, or as '
          'floats from 0 to 1')


def evaluation_transform(config: dict[str, Any]) -> Any:
    """The transform for evaluation, timm's or the run's own, PIL image to normalised float32 [C, H, W].

    Args:
        config: timm's data configuration, with the run's pipeline where it had one.
    """
    return recorded_pipeline(config) or create_transform(
        tuple(config['input_size']), is_training=False, interpolation=config['interpolation'], mean=config['mean'],
        std=config['std'], crop_pct=config['crop_pct'], crop_mode=config.get('crop_mode'))


def each(images: Any) -> Iterable[Any]:
    """The images of one image, of a batch as one array or tensor, or of any iterable."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return [images] if images.ndim in (2, 3) else images
    if not isinstance(images, Iterable):
        raise TypeError(f'expected images ({_KINDS}; one or many), got {type(images).__name__}')
    return images


def as_image(item: Any, mode: str) -> Image.Image:
    """One image in a PIL mode; uint8 pixels are kept as they are, floats are rounded to 8 bits.

    Args:
        item: A path, a PIL image, an array [H, W, C] or [H, W], a tensor [C, H, W] or [H, W].
        mode: 'RGB' or 'L'.

    Raises:
        ValueError: A file that is no image, or pixels that are neither uint8 nor floats from 0 to 1.
        TypeError: Something else.
    """
    if isinstance(item, Image.Image):
        return in_mode(item, mode)
    if isinstance(item, str | os.PathLike):
        return _read(Path(item), mode)
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.is_floating_point() else item).numpy()
        item = np.moveaxis(item, 0, -1) if item.ndim == 3 else item
    if isinstance(item, np.ndarray):
        return Image.fromarray(_pixels(item)).convert(mode)
    raise TypeError(f'expected {_KINDS}; got {type(item).__name__}')


def batches(images: Any, transform: Any, mode: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches [B, C, H, W] with labels of zero; images are read as they are asked for.

    Raises:
        ValueError: An image that cannot be read, with its place in the row.
    """
    numbered = enumerate(each(images))
    while part := list(islice(numbered, size)):
        pixels = torch.stack([transform(_placed(place, item, mode)) for place, item in part])
        yield pixels, torch.zeros(len(part), dtype=torch.int64)


def _placed(place: int, item: Any, mode: str) -> Image.Image:
    try:
        return as_image(item, mode)
    except (TypeError, ValueError) as error:
        raise type(error)(f'image {place}: {error}') from error


def _read(path: Path, mode: str) -> Image.Image:
    if path.is_dir():
        raise ValueError(f'{path} is a folder; name the images in it')
    if not path.is_file():
        raise ValueError(f'there is no file {path}')
    try:
        with Image.open(path) as image:
            return in_mode(image, mode, path)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ValueError(f'{path} cannot be read as an image ({error}); mend or remove it') from error


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
