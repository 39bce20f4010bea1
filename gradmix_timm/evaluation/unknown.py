"""Data sets of unknown images, each opened by one specification and disjoint from the known images."""
from __future__ import annotations

import logging
from dataclasses import dataclass

from gradmix_timm.choices import OVERLAPS
from gradmix_timm.data import (
    Codec,
    CutDataset,
    UnreadableImageError,
    check_specs,
    inner_name,
    open_outside,
    parse_codec,
    parse_unknown,
    recode,
)
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.subsets import evenly
from gradmix_timm.openset.near_far import near_and_far, suite_of
from gradmix_timm.openset.results import UnknownSet

from .images import EvaluationImages, UnknownImages
from .settings import check_counts

__all__ = ['UnknownOptions', 'open_unknown']

_logger = logging.getLogger(__name__)
# Known images whose sizes are used for synthetic images.
_SIZES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownOptions:
    """Which sets of unknown images, and how they are read.

    Attributes:
        sets: One specification each: folder:NAME=DIR, torchvision:NAME, timm:NAME=DIR, noise:NAME.
        overlap: What to do about unknown classes named like a known one: 'refuse', 'drop', 'keep'.
        near: Names of sets that count as near; () by OpenOOD's table.
        far: The same for far.
        codec: Every image goes through it first: 'jpeg:85', 'png'; None: none.
        unknown_codec: Unknown images go through this one in its place.
        made_images: Images of each made set.
        made_seed: Of made images.
        download: Fetch torchvision's sets if they are missing.
        data_dir: Folder of sets specified without one; None: that of the known images.
    """

    sets: tuple[str, ...]
    overlap: str = 'refuse'
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    codec: str | None = None
    unknown_codec: str | None = None
    made_images: int = 1000
    made_seed: int = 0
    download: bool = False
    data_dir: str | None = None

    def __post_init__(self) -> None:
        """Reject an unknown set, codec or policy, before anything is opened."""
        check_counts(self)
        check_specs([parse_unknown(text) for text in self.sets])
        for text in (self.codec, self.unknown_codec):
            if text:
                parse_codec(text)
        if self.overlap not in OVERLAPS:
            raise ValueError(f'overlap={self.overlap}: expected {", ".join(OVERLAPS)}')

    @property
    def known_codec(self) -> Codec | None:
        """The codec of known images."""
        return parse_codec(self.codec) if self.codec else None


def open_unknown(options: UnknownOptions, images: EvaluationImages, preprocessing: Preprocessing,
                 imagenet: bool = False) -> UnknownImages:
    """Open every set; only a few known images are read, for their sizes.

    Args:
        options: Which.
        images: The known ones, as stored; ``source`` takes up what was chosen.
        preprocessing: How files are decoded.
        imagenet: Whether the known classes are ImageNet's, for near and far.

    Raises:
        ValueError: A set does not exist, is empty, or holds known classes or images.
    """
    specs = [parse_unknown(text) for text in options.sets]
    source, known = images.source, images.split.known
    sizes = _sizes(images.known) if any(spec.kind in ('noise', 'made') for spec in specs) else ((32, 32),)
    opened = [open_outside(
        spec, known, root=options.data_dir or source['data_dir'], download=options.download, overlap=options.overlap,
        sizes=sizes, count=options.made_images, seed=options.made_seed, mode=preprocessing.image_mode,
        exif=preprocessing.exif)
        for spec in specs]
    for part in opened if options.overlap != 'keep' else ():
        images.check_unknown(part.spec.name, part.images)
    place = str(inner_name(source['dataset'] or '') or source.get('known') or source['data_dir'] or '')
    suite = 'imagenet' if imagenet else suite_of(place, known)
    kinds = near_and_far(suite, [spec.name for spec in specs], options.near, options.far)
    source |= {'codec': options.codec, 'unknown_codec': options.unknown_codec or options.codec,
               'made_images': options.made_images, 'made_seed': options.made_seed, 'overlap': options.overlap}
    text = options.unknown_codec or options.codec
    codec = parse_codec(text) if text else None
    facts: dict[str, UnknownSet] = {part.spec.name: {
        'source': word, 'kind': next((kind for kind, sets in kinds.items() if part.spec.name in sets), None),
        'dropped_classes': list(part.dropped), 'dropped_images': part.left_out,
        'known_classes_kept': list(part.shared)} for part, word in zip(opened, options.sets, strict=True)}
    sets = {part.spec.name: part.images if codec is None else recode(part.images, codec) for part in opened}
    return UnknownImages.named(sets, facts)


def _sizes(known: CutDataset) -> list[tuple[int, int]]:
    """Width and height of known images, so that synthetic ones are resized in the same way."""
    found = []
    for row in evenly(len(known), _SIZES).tolist():
        try:
            found.append(known.picture(row).size)
        except UnreadableImageError:
            _logger.debug('row %d cannot be read; its pass reports the error', row)
    return found or [(224, 224)]
