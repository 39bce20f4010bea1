"""timm's data set over any source, where an unreadable image is an error with its name unless it is to be replaced."""
from __future__ import annotations

import io
import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from timm.data.dataset import _ERROR_RETRY as RETRIES
from timm.data.readers.reader import Reader
from torchvision.datasets.folder import default_loader

from .decoding import decode
from .opening import open_image, open_regular

__all__ = ['DIGITS_SPLITS', 'DigitsReader', 'ImageSource', 'TorchvisionReader', 'UnreadableImageError', 'digits']

DIGITS_SPLITS = ('train', 'test')

_logger = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image file is missing, truncated or not an image; the message names it. An error the user can fix."""

    exit_status = 2


class ImageSource(ImageDataset):
    """timm's ``ImageDataset`` over a reader, bit for bit, except for what an unreadable image does.

    timm replaces it by the next one, label included, with a warning. In an evaluation that counts another image twice,
    and in a subset of the classes that next image may be of an unknown class, so here it is an error unless
    ``replaces_unreadable`` is set.

    Attributes:
        replaces_unreadable: Do as timm does, up to its number of retries in a row; False at first.

    Args:
        reader: timm's reader, or one that yields PIL images.
        input_img_mode: PIL mode that every image is converted to ('RGB', 'L'); None: as stored.
        exif: 'ignore' or 'apply' the orientation that a camera wrote beside the pixels.
        **options: timm's: load_bytes, transform, target_transform, additional_features.
    """

    replaces_unreadable: bool = False

    def __init__(self, reader: Reader, input_img_mode: str | None = 'RGB', exif: str = 'ignore', **options: Any
                 ) -> None:
        super().__init__(root=None, reader=reader, input_img_mode=input_img_mode, **options)
        self.exif = exif

    def read(self, index: int) -> tuple[Any, ...]:
        """Image, target and further features, before any transform.

        Raises:
            UnreadableImageError: The image cannot be read; the message has the path.
        """
        try:
            image, *rest = self.reader[index]
            return self._decode(image), *rest
        except IndexError:  # marks the end of the data set for loops over it
            raise
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise UnreadableImageError(f'{self._place(index)} cannot be read as an image ({error}); replace or remove '
                                       'it') from error

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        index, (image, target, *features) = self._readable(index)
        image = self.transformed(index, image, self.transform)
        if target is None:
            target = -1
        elif self.target_transform is not None:
            target = self.target_transform(target)
        return (image, target) if self.additional_features is None else (image, target, *features)

    def _readable(self, index: int) -> tuple[int, tuple[Any, ...]]:
        """The image at the index, or the next one that can be read if unreadable ones are replaced; and its index."""
        for _ in range(RETRIES - 1 if self.replaces_unreadable else 0):
            try:
                return index, self.read(index)
            except UnreadableImageError as error:
                _logger.warning(f'Skipped sample (index {index}). {error}')
                index = (index + 1) % len(self.reader)
        return index, self.read(index)

    def transformed(self, index: int, image: Any, transform: Any) -> Any:
        """Apply a transform, if any, to an image of :meth:`read`.

        Raises:
            UnreadableImageError: The transform fails on it (a picture so narrow that its short side shrinks to
                nothing); with the path.
        """
        try:
            return image if transform is None else transform(image)
        except ValueError as error:
            raise UnreadableImageError(f'{self._place(index)}, {getattr(image, "size", "")} pixels, cannot be resized '
                                       f"to the model's input ({error}); remove it") from error

    def _decode(self, image: Any) -> Any:
        if isinstance(image, Image.Image):
            return decode(image, self.input_img_mode, self.exif)
        with image:
            if self.load_bytes:
                return image.read()
            decoded = open_image(image)
            decoded.load()
            return decode(decoded, self.input_img_mode, self.exif, getattr(image, 'name', ''))

    def _place(self, index: int) -> str:
        try:
            return str(self.reader.filename(index, absolute=True) or f'image {index}')
        except Exception:  # a reader without names, or one whose row cannot be read at all
            return f'image {index} of the data set'


class TorchvisionReader(Reader):
    """A torchvision data set as a timm reader; yields PIL images.

    Args:
        dataset: Map-style, (PIL image, int) per index, without transforms.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset
        self.classes = getattr(dataset, 'classes', None)
        if getattr(dataset, 'loader', None) is default_loader:  # a folder: its files are opened as in any folder
            self.samples, self.root = dataset.samples, dataset.root
        # CIFAR, MNIST and ImageFolder have .targets, SVHN and STL10 .labels, DTD and others only private attributes.
        found = (getattr(dataset, name, None) for name in ('targets', 'labels', '_labels'))
        self.targets = next((labels for labels in found if labels is not None), None)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if (samples := getattr(self, 'samples', None)) is not None:
            return open_regular(samples[index][0]), samples[index][1]
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if samples := getattr(self.dataset, 'samples', None):
            return str(samples[index][0])
        files = getattr(self.dataset, '_image_files', None)  # DTD, Flowers102, Food101
        return str(files[index]) if files else f'{type(self.dataset).__name__}[{index}]'


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, float [1797, 8, 8] from 0 to 16, and their labels, int64 [1797].

    The file is read where scikit-learn has it: its import takes longer than all else before a first training step.
    """
    spec = find_spec('sklearn')
    file = Path(spec.submodule_search_locations[0], 'datasets/data/digits.csv.gz') if (
        spec is not None and spec.submodule_search_locations) else Path()
    if file.is_file():
        table = np.loadtxt(file, delimiter=',')
    else:
        from sklearn.datasets import load_digits
        table = np.column_stack(load_digits(return_X_y=True))
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


class DigitsReader(Reader):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, as PNG files in memory.

    Args:
        split: 'train' or 'test'.
        rows: Positions in scikit-learn's data set.
    """

    def __init__(self, split: str, rows: np.ndarray) -> None:
        super().__init__()
        images, labels = digits()
        self.split, self.rows = split, rows
        self.targets = labels[rows]
        self.class_to_idx = {str(digit): digit for digit in range(10)}
        # Stored as 0..16.
        self.files = [_png(np.rint(images[row] * (255 / 16)).astype(np.uint8)) for row in rows]

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self.files[index]), int(self.targets[index])

    def __len__(self) -> int:
        return len(self.files)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = f'{self.rows[index]:04d}.png'
        return name if basename else f'digits/{self.split}/{self.targets[index]}/{name}'


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()
