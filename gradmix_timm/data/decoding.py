"""Convert decoded images to 8 bits a channel in the mode that a model reads."""
from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ['decode', 'through_rgb']

_logger = logging.getLogger(__name__)

_warned_of_deep = False


def decode(image: Image.Image, mode: str | None, exif: str = 'ignore', name: Any = '') -> Image.Image:
    """``image.convert(mode)``, as timm has it, for everything that has 8 bits a channel; deeper pixels are scaled.

    PIL clips deeper pixels at 255: floats from 0 to 1 become black and 16-bit pixels white. Here floats from 0
    to 1 are multiplied by 255, and integers that exceed 255 are divided by 257, both rounded; floats from 0 to 255 and
    integers up to 255 are read as PIL, and so timm, reads them.

    Args:
        image: As opened.
        mode: One of :data:`~gradmix_timm.choices.MODES`; None: as stored.
        exif: One of :data:`~gradmix_timm.choices.EXIF_RULES`.
        name: Of the file, for messages.

    Raises:
        ValueError: Pixels deeper than 8 bits whose range does not determine black and white.
    """
    if exif == 'apply':
        image = ImageOps.exif_transpose(image)
    if mode is None:
        return image
    if image.mode == 'F' or image.mode.startswith('I'):
        image = _eight_bits(image, name)
    return image.convert(mode)


def _eight_bits(image: Image.Image, name: Any) -> Image.Image:
    """Grey 8-bit pixels of an image with floats or more bits; the image itself if PIL's conversion is right."""
    global _warned_of_deep  # one warning a process, not one an image
    pixels: NDArray[Any] = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    floats = image.mode == 'F'
    if not (low >= 0 and high <= (255 if floats else 65535)):  # NaN too
        expected = 'floats from 0 to 1 or from 0 to 255' if floats else 'integers from 0 to 65535'
        raise ValueError(f'its pixels (PIL mode {image.mode}) go from {low:g} to {high:g}, expected {expected}: '
                         'the value of white is unknown; save it with 8 bits a channel')
    if high <= 255 and not (floats and high <= 1):
        return image
    if not _warned_of_deep:
        _warned_of_deep = True
        _logger.warning(f'{name or "an image"} has pixels from {low:g} to {high:g} (PIL mode {image.mode}); they are '
                        'scaled to 8 bits (timm clips them at 255, so that they become '
                        f'{"black" if floats else "white"})')
    return Image.fromarray(np.rint(pixels * 255. if floats else pixels / 257.).astype(np.uint8))


def through_rgb(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply a change that is defined for RGB and grey pictures to an image of any mode; alpha is kept.

    Args:
        image: Of one of :data:`~gradmix_timm.choices.MODES`.
        change: RGB or grey picture to another of the same mode.
    """
    if image.mode in ('L', 'RGB'):
        return change(image)
    changed = change(image.convert('L' if image.mode == 'LA' else 'RGB')).convert(image.mode)
    if image.mode in ('LA', 'RGBA'):
        changed.putalpha(image.getchannel('A').resize(changed.size))
    return changed
