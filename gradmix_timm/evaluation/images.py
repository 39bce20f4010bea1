"""The images of an evaluation, opened but not read: disjoint sets of known, unknown, training and held-out images."""
from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.data import ClassSplit, Codec, CutDataset, recode
from gradmix_timm.data.identity import STRAY, check_apart, overlap
from gradmix_timm.data.subsets import evenly
from gradmix_timm.openset.results import UnknownSet

__all__ = ['EvaluationImages', 'UnknownImages', 'check_held_out', 'list_hash', 'shared_count', 'thinned']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnknownImages:
    """Unknown images of one data set or of several; rows are counted through all of them.

    Attributes:
        sets: Name to images, targets -1; one set named '' holds the unknown classes of the known images' data set.
        label: Positions in the split's unknown classes (of named sets: in the names), int64 [M].
        facts: Of named sets: what results.json records of each besides its figures.
    """

    sets: Mapping[str, CutDataset]
    label: NDArray[np.int64]
    facts: Mapping[str, UnknownSet] = field(default_factory=dict)

    @classmethod
    def named(cls, sets: Mapping[str, CutDataset], facts: Mapping[str, UnknownSet]) -> UnknownImages:
        """Whole data sets of unknown images, each a class and a group of its own."""
        sizes = [len(images) for images in sets.values()]
        return cls(sets, np.repeat(np.arange(len(sizes)), sizes), facts)

    def parts(self) -> Iterator[tuple[str, CutDataset, int]]:
        """Name, images and first row of each set."""
        start = 0
        for name, images in self.sets.items():
            yield name, images, start
            start += len(images)

    def __len__(self) -> int:
        return sum(map(len, self.sets.values()))

    def _find(self, row: int) -> tuple[CutDataset, int]:
        for _, images, start in self.parts():
            if row < start + len(images):
                return images, row - start
        raise IndexError(row)

    def picture(self, row: int) -> Any:
        """An image as stored in its data set."""
        images, place = self._find(row)
        return images.picture(place)

    def filename(self, row: int) -> str:
        """Name of an image's file."""
        images, place = self._find(row)
        return images.filename(place)


@dataclass(frozen=True)
class EvaluationImages:
    """All images of an evaluation.

    Attributes:
        known: Test images of known classes; targets are positions in ``split.known``, some of which may have none.
        split: Known and unknown classes; of named unknown sets their names.
        unknown: Test images of unknown classes; None where every class is known.
        train: Training images of known classes, without those held out; None where there are none.
        held_out: Training images that training held out, or None.
        source: Where all of them are, for the manifest.
        apart: Whether test and training images were already compared.

    Raises:
        ValueError: Test images that are training images, by path or by content.
    """

    known: CutDataset
    split: ClassSplit
    unknown: UnknownImages | None = None
    train: CutDataset | None = None
    held_out: CutDataset | None = None
    source: dict[str, Any] = field(default_factory=dict)
    apart: bool = False

    def __post_init__(self) -> None:
        """Reject test images that are training images."""
        for images in (self.train, self.held_out):
            if images is None or self.apart:
                continue
            shared = self._shared(images)
            if shared:
                self.source['in_training'] = shared
                _logger.warning(f'{shared}; so few are left in, as published sets have them')
        object.__setattr__(self, 'apart', True)

    def _shared(self, images: CutDataset) -> str:
        """A warning about the few test images that ``images`` also holds, or ''; more than a few are refused."""
        remedy = ('a model knows what it was trained on; name two splits, train_split=NAME and test_split=NAME, or '
                  'another data_dir=DIR')
        if not (hasattr(images, 'digests') or hasattr(self.known, 'digests')):
            found = check_apart(images, self.known, remedy)
            return found.describe() if found else ''
        count = shared_count(images, self.known)
        message = f'{count} of the {len(self.known)} test images are training images, pixel by pixel'
        if count > STRAY * len(self.known):
            raise ValueError(f'{message}; a model knows what it was trained on: pass other images as known=')
        return message if count else ''

    def check_unknown(self, name: str, unknown: CutDataset) -> None:
        """Reject a set of unknown images that holds known ones.

        Args:
            name: Of the set.
            unknown: Its images.

        Raises:
            ValueError: More than one in a hundred of them are known images, for test, training or held out.
        """
        for title, part in (('test', self.known), ('training', self.train), ('held-out', self.held_out)):
            count = 0 if part is None else shared_count(part, unknown)
            if count > STRAY * len(unknown):
                raise ValueError(f'{count} of the {len(unknown)} images of {name} are known {title} images, by '
                                 'path or by content; take them out: what is known cannot be unknown')

    def cuts(self) -> dict[str, CutDataset]:
        """Sets of images by their role, as the manifest counts them."""
        cuts = {'train': self.train, 'validation': self.held_out, 'known': self.known}
        if self.unknown is not None:
            cuts |= {f'unknown {name}' if name in cuts else name or 'unknown': images
                     for name, images in self.unknown.sets.items()}
        return {name: images for name, images in cuts.items() if images is not None}

    @property
    def pictured(self) -> bool:
        """Whether every image can be shown as a picture, which a caller's batches in another order cannot."""
        return all(getattr(images, 'pictured', True) for images in self.cuts().values())

    def recoded(self, codec: Codec | None) -> EvaluationImages:
        """The known images, passed through a codec when read."""
        if codec is None:
            return self
        train, held = (None if images is None else recode(images, codec) for images in (self.train, self.held_out))
        return replace(self, known=recode(self.known, codec), train=train, held_out=held)


def check_held_out(train: CutDataset | None, held: CutDataset | None, argument: str = 'held_out') -> None:
    """Reject held-out images that are training images, which a fitted score knows better than new ones.

    Args:
        train: Training images, if any.
        held: Images that a threshold is set on, if any.
        argument: The caller's name of these, for the message.

    Raises:
        ValueError: More than one in a hundred of them are, by path or by content.
    """
    if train is None or held is None:
        return
    count = shared_count(train, held)
    if count > STRAY * len(held):
        raise ValueError(f'{count} of the {len(held)} held-out images are training images, by path or by content, so '
                         'that the threshold would be too high; pass known images that took no part in training as '
                         f'{argument}=, or take them out of train=')


def shared_count(one: CutDataset, other: CutDataset) -> int:
    """Number of rows of ``other`` that are images of ``one``; 0 between files and tensors."""
    theirs, ours = getattr(one, 'digests', None), getattr(other, 'digests', None)
    if theirs is None and ours is None:
        found = overlap(one, other)
        return found.paths + found.contents
    there = set(theirs or ())
    return sum(digest in there for digest in ours or ())


def thinned(images: CutDataset, most: int | None) -> CutDataset:
    """At most ``most`` rows, evenly spaced."""
    return images if most is None or len(images) <= most else images.rows(evenly(len(images), most))


def list_hash(images: CutDataset) -> str:
    """SHA-256 of the names and labels of images, in order."""
    digest = hashlib.sha256()
    for name, target in zip(images.filenames(), images.targets, strict=True):
        digest.update(f'{name}\t{target}\n'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()
