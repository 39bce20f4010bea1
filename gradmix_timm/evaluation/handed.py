"""Images that a caller passes in memory, as a loader or a data set."""
from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader import Reader
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torchvision.datasets import VisionDataset
from torchvision.transforms.functional import to_pil_image

from gradmix_timm.data import CutDataset, ImageSource, class_names, find_classes, labels_of, shared_classes
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.subsets import as_source
from gradmix_timm.records import Embeddings

from .model import EvaluatedModel

__all__ = ['HandedImages', 'as_unknown', 'in_head_order', 'open_handed']

_KINDS = ('expected a DataLoader or another iterable of batches (images [B, C, H, W], labels [B]), a data set of '
          '(image, label), (images, labels) as tensors or arrays, or a folder')


class HandedImages(CutDataset):
    """Images of a caller's loader, already embedded: it is iterated once, unless a score goes back to the model.

    Args:
        source: Names and pictures of the rows.
        embeddings: Of all rows, in the loader's order.
        digests: Of the pixels of each row.
        classes: Names, if the caller's data set has them, else ().
        pictured: Whether ``source`` can show a row's picture.
        batches: The loader.
        sizes: (height, width) in pixels of the tensors, each once.
    """

    def __init__(self, source: ImageSource, embeddings: Embeddings, digests: Sequence[bytes],
                 classes: Sequence[str], pictured: bool, batches: Iterable[Any],
                 sizes: Collection[tuple[int, int]] = ()) -> None:
        super().__init__(source, np.arange(len(embeddings.label)), embeddings.label.numpy(), classes)
        self.embeddings, self.digests, self.pictured, self.batches = embeddings, digests, pictured, batches
        self.sizes = tuple(sizes)

    def again(self, title: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches once more.

        Raises:
            ValueError: The batches can be read only once, or differ from those of the first time.
        """
        digests: list[bytes] = []
        for images, labels in _digested(self.batches, digests, title):
            start = len(digests) - len(images)
            if digests[start:] != self.digests[start:len(digests)]:
                raise ValueError(f'{title} differ when read a second time, which a '
                                 'score that goes back to the model requires; pass a data set, or a loader without '
                                 'shuffling and without random transforms')
            yield images, labels
        if len(digests) != len(self.digests):
            raise ValueError(f'{title} can be read only once, and a score that goes back to the model reads them '
                             'again; pass a data set or a DataLoader')


def open_handed(data: Any, title: str, model: EvaluatedModel) -> CutDataset:
    """A caller's images: pictures go through the model's preprocessing later, tensors through the model at once.

    A DataLoader that only shuffles is read in the order of its data set, without dropping the last batch.

    Args:
        data: A loader, an iterable of batches, a data set of (image, label), or (images [N, C, H, W], labels [N]);
            images are tensors [C, H, W] as the model reads them, or in a data set PIL images. Batches are pairs, or
            dicts with ``pixel_values`` or ``image`` and ``labels`` or ``label``.
        title: What they are: 'known test images'.
        model: That they are for.

    Raises:
        TypeError: ``data`` is of another type.
        ValueError: There is no image, labels are not whole numbers, or a DistributedSampler leaves a part.
    """
    if isinstance(data, CutDataset | ImageSource):
        return _pictures(data, model.preprocessing)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data):
        images, labels = (torch.as_tensor(part) for part in data)
        if len(images) != len(labels):
            raise ValueError(f'{title}: {len(images)} images and {len(labels)} labels; expected as many')
        data = TensorDataset(images, labels)
    loader, dataset = _in_order(data, title)
    if loader is None:
        first = _first(dataset, title)
        if isinstance(first, Image.Image):
            return _pictures(dataset, model.preprocessing)
        loader = DataLoader(dataset, model.settings.batch_size, num_workers=model.workers(len(dataset)))
    digests, sizes = list[bytes](), dict[tuple[int, int], None]()
    embeddings = model.embed_batches(_measured(_digested(loader, digests, title), sizes), title)
    reader = _Rows(dataset, title, len(embeddings.label))
    return HandedImages(ImageSource(reader, None), embeddings, digests, _names_of(getattr(loader, 'dataset', dataset)),
                        dataset is not None, loader, sizes)


def in_head_order(images: CutDataset, names: Sequence[str], title: str) -> CutDataset:
    """The same images, labelled by their places in the head's classes.

    Classes are matched by name, as those of folders are. Labels of a data set that names none are such places already;
    numbers name nothing where the other side does not have them too.

    Args:
        images: A caller's.
        names: Known classes in head order.
        title: What they are, for messages.

    Raises:
        ValueError: None of the data set's classes is the head's, or an image is of another one.
    """
    found, own = copy.copy(images), images.classes
    found.classes = tuple(names)
    shared = shared_classes(own, names)
    if not shared and any(tuple(side) == tuple(map(str, range(len(side)))) for side in (own, names)):
        return found  # no names count as numbers too
    if not shared:
        raise ValueError(f'{title}: none of its classes ({", ".join(own[:5])}, ...) is known to the model '
                         f'({", ".join(names[:5])}, ...); name the head\'s as the data set does, '
                         'known_classes=[...] in head order')
    labels, counts = np.unique(images.targets, return_counts=True)
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        if label not in shared:
            what = f'of {own[label]!r}' if 0 <= label < len(own) else f'labelled {label}, which is no class of theirs'
            raise ValueError(f'{title}: {count} images are {what}, and the model knows {", ".join(names[:5])}, ...; '
                             'pass those of known classes alone, as a torch.utils.data.Subset')
    table = np.full(len(own), -1)
    table[list(shared)] = find_classes([own[label] for label in shared], names)
    found.targets = table[images.targets]
    if isinstance(found, HandedImages):
        found.embeddings = replace(found.embeddings, label=torch.from_numpy(found.targets))
    return found


def as_unknown(images: CutDataset) -> CutDataset:
    """The same images, labelled as unknown; of the names of classes those that have an image here.

    Numbers in place of names are dropped, since other data sets count their classes by them too.
    """
    numbered = images.classes == tuple(map(str, range(len(images.classes))))
    there = () if numbered or not images.classes else tuple(
        images.classes[label] for label in np.unique(images.targets).tolist() if 0 <= label < len(images.classes))
    if isinstance(images, HandedImages):
        label = torch.full_like(images.embeddings.label, -1)
        return HandedImages(images.source, replace(images.embeddings, label=label), images.digests, there,
                            images.pictured, images.batches, images.sizes)
    return CutDataset(images.source, images.indices, np.full(len(images), -1), there)


def _in_order(data: Any, title: str) -> tuple[Iterable[Any] | None, Any]:
    """The loader, if batches were passed, and the data set whose rows it yields in order, if any."""
    if isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, 'sampler', data.sampler)
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise ValueError(f'{title}: the DataLoader has a DistributedSampler, which leaves this process one of '
                             f'{sampler.num_replicas} parts of the images; pass a loader without it, or the data set: '
                             'the process that evaluates reads all of them')
        plain = type(data) is DataLoader and type(data.batch_sampler) is BatchSampler and data.batch_size and (
            type(data.sampler) is SequentialSampler or (
                type(data.sampler) is RandomSampler and not data.sampler.replacement
                and data.sampler.num_samples == len(data.dataset)))  # type: ignore[arg-type]
        if not plain:
            return data, None
        return DataLoader(data.dataset, data.batch_size, num_workers=data.num_workers, collate_fn=data.collate_fn,
                          worker_init_fn=data.worker_init_fn), data.dataset
    if hasattr(data, '__getitem__') and hasattr(data, '__len__') and not isinstance(data, str | bytes | dict | Tensor):
        item = data[0] if len(data) else None
        first = item[0] if isinstance(item, tuple | list) and len(item) > 1 else None
        return (data, None) if isinstance(first, Tensor) and first.dim() == 4 else (None, data)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | dict | Tensor):
        return data, None
    raise TypeError(f'{title}: got {type(data).__name__}; {_KINDS}')


def _first(dataset: Any, title: str) -> Any:
    if not len(dataset):
        raise ValueError(f'the data set of {title} holds no image')
    item = _pair(dataset[0])
    if not isinstance(item, tuple | list) or len(item) < 2 or not isinstance(item[0], Tensor | Image.Image):
        raise _without_images(item, f'an item of the data set of {title}')
    return item[0]


def _without_images(found: Any, what: str) -> TypeError:
    """The error for an item or a batch: its images are of another type, or it is no pair at all."""
    if not isinstance(found, tuple | list) or len(found) < 2:
        return TypeError(f'{what} is {type(found).__name__}; {_KINDS}')
    kind = type(found[0])
    return TypeError(
        f'{what} has images of type {kind.__module__}.{kind.__qualname__}; expected tensors as the model reads them, '
        'float [C, H, W] (torch.from_numpy(array)), or, in a data set, PIL images (PIL.Image.fromarray(array))')


def _digested(loader: Iterable[Any], digests: list[bytes], title: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, checked; a digest of each image's pixels is kept on the way."""
    for batch in loader:
        batch = _pair(batch)
        if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[0], Tensor):
            raise _without_images(batch, f'a batch of {title}')
        images, labels = batch[0], torch.as_tensor(batch[1])
        if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(images):
            raise ValueError(f'labels of {title} are {labels.dtype} {list(labels.shape)} for {len(images)} images; '
                             'expected whole numbers [B], positions in the known classes')
        digests += [hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()
                    for image in images.detach().cpu().float()]
        yield images, labels


def _pair(found: Any) -> Any:
    """Images and labels of a batch or an item that is a dict with Hugging Face's keys; others as they are."""
    if not isinstance(found, Mapping):
        return found
    images, labels = (next((found[key] for key in keys if key in found), None) for keys in (
        ('pixel_values', 'image'), ('labels', 'label')))
    return found if images is None or labels is None else (images, labels)


def _measured(batches: Iterable[tuple[Tensor, Tensor]], sizes: dict[tuple[int, int], None],
              ) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; heights and widths of their images are kept on the way."""
    for images, labels in batches:
        if images.dim() == 4:
            sizes[images.shape[2], images.shape[3]] = None
        yield images, labels


# ---- names and pictures of rows

def _pictures(dataset: Any, reading: Preprocessing | None) -> CutDataset:
    """A data set of PIL images, to go through the model's preprocessing; one that names a mode is read in that."""
    if isinstance(dataset, CutDataset):
        return dataset
    mode, exif = (None, 'ignore') if reading is None else (reading.image_mode, reading.exif)
    inner, rows = _inner(dataset)
    if isinstance(inner, ImageSource | ImageDataset | VisionDataset):
        source = as_source(inner)
        if isinstance(inner, VisionDataset):
            source.input_img_mode, source.exif = mode, exif
        whole = CutDataset(source, np.arange(len(source)), labels_of(source), _names_in(source))
        return whole if rows is None else whole.rows(rows)
    labels = np.array([int(_pair(dataset[row])[1]) for row in range(len(dataset))])
    source = ImageSource(_Rows(dataset, type(dataset).__name__, len(dataset)), mode, exif)
    return CutDataset(source, np.arange(len(labels)), labels, _names_of(dataset))


def _names_of(dataset: Any) -> tuple[str, ...]:
    """Names of a data set's classes in the order of its labels; () if it names none, or numbers them otherwise."""
    inner = _inner(dataset)[0]
    if getattr(inner, 'target_transform', None) is not None:
        return ()
    if isinstance(inner, ImageSource | ImageDataset):
        return _names_in(as_source(inner))
    names, places = getattr(inner, 'classes', None), getattr(inner, 'class_to_idx', None)
    if names is None and isinstance(places, Mapping) and sorted(places.values()) == list(range(len(places))):
        names = sorted(places, key=places.__getitem__)
    return tuple(map(str, names)) if isinstance(names, Iterable) and not isinstance(names, str) else ()


def _names_in(source: ImageSource) -> tuple[str, ...]:
    """Names of the classes in the order of the labels as they are stored; () if there are none."""
    try:
        return class_names(source, numbers=False)
    except ValueError:
        return ()


def _inner(dataset: Any) -> tuple[Any, np.ndarray | None]:
    """The data set behind subsets, and which of its rows they are; None: all."""
    rows = None
    while isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices)
        rows, dataset = indices if rows is None else indices[rows], dataset.dataset
    return dataset, rows


class _Rows(Reader):
    """Names and pictures of a caller's data set, row by row.

    Args:
        dataset: Of (image, label); None: neither is available.
        title: For rows without a name of their own.
        count: Rows.
    """

    def __init__(self, dataset: Any, title: str, count: int) -> None:
        super().__init__()
        self.dataset, self.title, self.count = dataset, title, count
        self._inner, self._rows = _inner(dataset)
        if isinstance(self._inner, ImageDataset | VisionDataset):  # as stored, not as transformed
            self._inner = copy.copy(self._inner)
            for name in ('transform', 'target_transform', 'transforms'):
                if hasattr(self._inner, name):
                    setattr(self._inner, name, None)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = _pair(self._inner[index if self._rows is None else int(self._rows[index])])[:2]
        return image if isinstance(image, Image.Image) else _picture(torch.as_tensor(image)), int(label)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        row = index if self._rows is None else int(self._rows[index])
        if hasattr(self._inner, 'filename'):
            return str(self._inner.filename(row, basename, absolute))
        samples = getattr(self._inner, 'samples', None)
        return str(samples[row][0]) if samples else f'{self.title}[{index}]'


def _picture(pixels: Tensor) -> Image.Image:
    """A tensor as a picture: as it is if its values lie in [0, 1] or are bytes, else stretched to that range."""
    if pixels.is_floating_point():
        low, high = (float(value) for value in pixels.aminmax())
        if low < 0 or high > 1:
            pixels = (pixels - low) / max(high - low, 1e-12)
    pixels = pixels if pixels.shape[0] in (1, 3) else pixels[:1]
    picture: Image.Image = to_pil_image(pixels.float() if pixels.is_floating_point() else pixels.to(torch.uint8))
    return picture
