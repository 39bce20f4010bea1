"""Corrupted data sets: made on the fly from a clean one, or read from the files of CIFAR-C and ImageNet-C."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers.reader import Reader

from gradmix_timm.choices import SEVERITIES
from gradmix_timm.data.decoding import through_rgb
from gradmix_timm.data.images import ImageSource
from gradmix_timm.data.sources import open_dataset
from gradmix_timm.data.subsets import CutDataset, class_names, labels_of
from gradmix_timm.registry import nearest

from .catalog import corrupt, list_corruptions, official_name

__all__ = ['CorruptedSource', 'OfficialSet', 'corrupted', 'open_official']


class CorruptedSource(ImageSource):
    """A data set whose images are read, cropped to the model's view if requested, and corrupted.

    Args:
        source: The clean images.
        name: Of :func:`~gradmix_timm.data.corruption.list_corruptions`.
        severity: 1 to 5.
        seed: With an image's position in ``source`` it determines all random draws.
        scale: Whose constants; None: by each image's side.
        crop: PIL image to PIL image, before the corruption; None: corrupt the image as stored.
    """

    def __init__(self, source: ImageSource, name: str, severity: int, seed: int = 0, scale: str | None = None,
                 crop: Callable[[Image.Image], Image.Image] | None = None) -> None:
        super().__init__(_Names(source), source.input_img_mode)
        self.source, self.name, self.severity, self.seed, self.scale = source, name, severity, seed, scale
        self.crop = crop

    def read(self, index: int) -> tuple[Any, ...]:
        """The corrupted image, its target and further features."""
        image, *rest = self.source.read(index)
        image = image if self.crop is None else self.crop(image)

        def change(picture: Image.Image) -> Image.Image:
            pixels = corrupt(np.asarray(picture), self.name, self.severity, self.seed, index, self.scale)
            return Image.fromarray(pixels)

        return through_rgb(image, change), *rest


class _Names(Reader):
    """File names of a source, without access to its images, so that clean ones cannot be read by mistake."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__()
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(self.source.filename(index, basename, absolute))


def corrupted(images: CutDataset, name: str, severity: int, seed: int = 0, scale: str | None = None,
              crop: Callable[[Image.Image], Image.Image] | None = None) -> CutDataset:
    """The same rows of a set, corrupted; the result for an image is the same in every subset of its data set.

    Args:
        images: Clean; those of other modes than RGB and grey are corrupted as RGB.
        name: Of the corruption.
        severity: 1 to 5.
        seed: Not negative.
        scale: Whose constants; None: by each image's side.
        crop: Applied before the corruption; see :meth:`~gradmix_timm.data.preprocessing.Preprocessing.crop`.
    """
    source = CorruptedSource(images.source, name, severity, seed, scale, crop)
    return CutDataset(source, images.indices, images.targets, images.classes, images.transform)


# ---- official files

class OfficialSet:
    """The files of one benchmark: which corruptions there are, and each of them as a data set.

    Args:
        root: Its folder.
        places: Official name of a corruption to its .npy file, or its folder of severities.
    """

    def __init__(self, root: Path, places: dict[str, Path]) -> None:
        self.root, self.places = root, places
        self.arrays = all(place.suffix == '.npy' for place in places.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Corruptions that are there."""
        return tuple(self.places)

    def check(self, names: Sequence[str], severities: Sequence[int]) -> None:
        """Reject missing files before anything is read.

        Raises:
            ValueError: A corruption or a severity without files.
        """
        for name in names:
            if name not in self.places:
                raise ValueError(f'{self.root} has no {name}: {nearest(name, self.places)}')
            missing = [] if self.arrays else [s for s in severities if not (self.places[name] / str(s)).is_dir()]
            if missing:
                raise ValueError(f'{self.places[name]} has no folder {missing[0]}; expected SEVERITY/CLASS/IMAGE')
        if self.arrays and not (self.root / 'labels.npy').is_file():
            raise ValueError(f'{self.root} has no labels.npy, which says what the images of its .npy files show')

    def state(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of the files of arrays, or of all folders of images, by path."""
        paths = [self.root / 'labels.npy', *self.places.values()] if self.arrays else [
            path for place in self.places.values() for path in (place, *place.glob('*'), *place.glob('*/*'))]
        return {str(path.absolute()): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}

    def open(self, name: str, severity: int, clean: Any, mode: str = 'RGB') -> ImageSource:
        """One corruption at one severity.

        Args:
            name: Official.
            severity: 1 to 5.
            clean: The clean test set: its class names, in label order, are those of .npy files, and its counts by
                class are compared.
            mode: PIL mode of the images.

        Raises:
            ValueError: The files are not of such a set, by shape, type, labels, classes or counts.
        """
        if self.arrays:
            return _open_array(self.root, self.places[name], severity, clean, mode)
        return _open_folder(self.places[name] / str(severity), clean, mode)


def open_official(root: str) -> OfficialSet:
    """Find the corruptions of CIFAR-10-C, CIFAR-100-C (NAME.npy), Tiny-ImageNet-C or ImageNet-C (NAME/SEVERITY/CLASS).

    ImageNet-C's archives unpack to folders one level deeper (blur/, noise/, ...), which are looked into as well.

    Raises:
        ValueError: No such folder, or no corruption in it.
    """
    path = Path(root)
    if not path.is_dir():
        raise ValueError(f'no folder at {path}; --official names the folder of CIFAR-10-C, CIFAR-100-C, '
                         'Tiny-ImageNet-C or ImageNet-C')
    places = {}
    for name in map(official_name, list_corruptions(extra=True)):
        choices = [path / f'{name}.npy', path / name, *(inner / name for inner in sorted(path.iterdir()))]
        found = next((place for place in choices if (place.is_file() if place.suffix else place.is_dir())), None)
        if found is not None:
            places[name] = found
    if not places:
        raise ValueError(f'{path} holds no corruption; expected gaussian_noise.npy, ... and labels.npy, or '
                         'gaussian_noise/1/CLASS/IMAGE, ...')
    if len({place.suffix for place in places.values()}) > 1:
        raise ValueError(f'{path} holds .npy files and folders; name the folder of one benchmark')
    return OfficialSet(path, places)


class _ArrayReader(Reader):
    """A slice of an array of images as a timm reader of PIL images."""

    def __init__(self, title: str, images: NDArray[np.uint8], labels: NDArray[np.int64], names: Sequence[str]) -> None:
        super().__init__()
        self.title, self.images, self.targets, self.classes = title, images, labels, tuple(names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.ascontiguousarray(self.images[index])), int(self.targets[index])

    def __len__(self) -> int:
        return len(self.targets)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f'{self.title}[{index}]'


def _open_array(root: Path, path: Path, severity: int, clean: Any, mode: str) -> ImageSource:
    images, labels = _load(path), _load(root / 'labels.npy')
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f'{path}: expected uint8 [images, height, width, 3], got {images.dtype} {list(images.shape)}')
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'{root / "labels.npy"}: expected integers [images], got {labels.dtype} {list(labels.shape)}')
    count = len(images) // len(SEVERITIES)
    if not count or len(images) != len(SEVERITIES) * count:
        raise ValueError(f'{path}: {len(images)} images are not five severities of equally many')
    if len(labels) not in (count, len(images)):
        raise ValueError(f'{root / "labels.npy"} has {len(labels)} labels for the {len(images)} images of {path.name}')
    slices = np.asarray(labels, dtype=np.int64).reshape(-1, count)
    if not (slices == slices[0]).all():
        raise ValueError(f'{root / "labels.npy"}: the labels of the five severities differ; the images of each should '
                         'come in the same order')
    _check_labels(root, slices[0], clean)
    start = (severity - 1) * count
    reader = _ArrayReader(f'{path}[{severity}]', images[start:start + count], slices[0], class_names(clean))
    return ImageSource(reader, mode)


def _load(path: Path) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'{path} is not an array of NumPy ({error}); unpack the archive again') from error
    return loaded


def _check_labels(root: Path, labels: NDArray[np.int64], clean: Any) -> None:
    """Check that the labels number the clean set's classes, with as many images of each in a set of equal size."""
    names = class_names(clean)
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f'{root / "labels.npy"} has labels from {labels.min()} to {labels.max()}, the clean test set '
                         f'{len(names)} classes; --data-dir and --official are of two data sets')
    there = labels_of(clean)
    counts = [np.bincount(part, minlength=len(names)) for part in (labels, there)]
    if len(there) == len(labels) and (counts[0] != counts[1]).any():
        place = int(np.flatnonzero(counts[0] != counts[1])[0])
        raise ValueError(f'{root / "labels.npy"} has {counts[0][place]} images of label {place}, the clean test set '
                         f'{counts[1][place]} of {names[place]!r}: the labels are in another order')


def _open_folder(folder: Path, clean: Any, mode: str) -> ImageSource:
    source: ImageSource = open_dataset('', str(folder), 'test', img_mode=mode)
    got, expected = class_names(source), class_names(clean)
    if set(got) != set(expected):
        stray = sorted(set(got) ^ set(expected))[0]
        raise ValueError(f'{folder} has {len(got)} classes and the clean test set {len(expected)}, and {stray!r} is '
                         'only in one; --data-dir and --official are of two data sets')
    there = labels_of(clean)
    if len(source) == len(there):
        counts = [dict(zip(names, np.bincount(labels, minlength=len(names)), strict=True))
                  for names, labels in ((got, labels_of(source)), (expected, there))]
        short = next((name for name in got if counts[0][name] != counts[1][name]), None)
        if short is not None:
            raise ValueError(f'{folder / short} has {counts[0][short]} images, the clean test set {counts[1][short]}')
    return source
