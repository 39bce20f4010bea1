"""Open image files: only raster formats and regular files, up to a limit of pixels."""
from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

__all__ = ['MAX_PIXELS', 'expected_files', 'image_extensions', 'image_formats', 'open_image', 'open_regular']

# Pillow has more: EPS and PDF start Ghostscript, others are icons, stubs, films or formats without photographs.
# HEIF and JXL need plugins that the user registered. TGA comes last, since it has no magic number.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'DIB', 'TIFF', 'GIF', 'PPM', 'AVIF', 'JPEG2000', 'QOI', 'PCX', 'HEIF', 'JXL',
            'TGA')
_USUAL = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff', '.gif')
#: Images of more pixels are refused before decoding: Pillow's own limit, which a program may have lifted.
MAX_PIXELS = 178_956_970


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the accepted formats that the installed version supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def image_extensions() -> tuple[str, ...]:
    """Extensions of those formats, in lower case, with their dot; the usual ones first.

    Example:
        >>> {'.jpg', '.png', '.webp', '.tif', '.bmp'} <= set(image_extensions()), '.eps' in image_extensions()
        (True, False)
    """
    formats = image_formats()
    ends = {end for end, name in Image.registered_extensions().items() if name in formats}
    return tuple(sorted(ends, key=lambda end: (_USUAL.index(end) if end in _USUAL else len(_USUAL), end)))


def expected_files() -> str:
    """The expected extensions, for messages.

    Example:
        >>> expected_files()
        '.png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff, .gif, ...'
    """
    return f'{", ".join(image_extensions()[:len(_USUAL)])}, ...'


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; a pipe or a device is refused, since opening it could block.

    Raises:
        ValueError: It is not a regular file.
        OSError: It cannot be read.
    """
    file = open(path, 'rb', opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError('it is not a regular file')
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))


def open_image(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """An image, opened but not decoded; a context manager.

    Args:
        file: Path, or a file that is open for reading.

    Raises:
        ValueError: It is not a regular file, or has more than :data:`MAX_PIXELS` pixels.
        OSError: None of :func:`image_formats`, or a file that cannot be read.
    """
    opened = open_regular(Path(file)) if isinstance(file, str | os.PathLike) else file
    try:
        image = Image.open(opened, formats=image_formats())
    except BaseException:
        if opened is not file:
            opened.close()
        raise
    if opened is not file:
        image._exclusive_fp = True  # closed by Pillow as a file that it opened itself
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ValueError(f'it has {width} x {height} pixels, more than {MAX_PIXELS:,}')
    return image
