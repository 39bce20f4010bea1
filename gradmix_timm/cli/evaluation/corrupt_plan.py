"""What `openset corrupt` corrupts and how: model, images, names, whose constants, where in the pipeline."""
from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from PIL import Image
from tqdm import tqdm

from gradmix_timm.data import CutDataset, fingerprint, select_classes
from gradmix_timm.data.corrupted import OfficialSet, corrupted, open_official
from gradmix_timm.data.corruptions import (
    SCALES,
    SEVERITIES,
    find_corruptions,
    list_corruptions,
    nearest_scale,
    official_name,
)
from gradmix_timm.openset.cache import weights_hash

from .closed_set import TestImages, open_test, thinned, told_split
from .embedding import Subject
from .subject import list_hash, load_subject, read_checkpoint

__all__ = ['SMALL', 'Plan', 'draw_examples', 'make_plan', 'watched']

#: Images up to this side are corrupted as they are stored, as CIFAR-C and Tiny-ImageNet-C were; larger ones cut to the
#: model's input, as ImageNet-C was.
SMALL = 96
_TELL_EVERY = 10.
# Of what groups are made of: another number never reads an older group.
_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What is corrupted, and how.

    Attributes:
        clean_subject: The model with the preprocessing of clean images.
        subject: With that of corrupted images, which are cut already where ``at`` is 'input'.
        images: Clean test images.
        names: Corruptions, as they are generated or as the files call them.
        official: Their files, or None: generated.
        scale: Whose constants; '' with files.
        at: 'stored' or 'input'.
        crop: Done before the corruption, or None.
    """

    clean_subject: Subject
    subject: Subject
    images: TestImages
    names: tuple[str, ...]
    official: OfficialSet | None
    scale: str
    at: str
    crop: Callable[[Any], Any] | None

    @property
    def group_names(self) -> list[str]:
        """``CORRUPTION/SEVERITY`` of all groups, in order."""
        return [f'{name}/{severity}' for name in self.names for severity in self.subject.args.severities]

    @property
    def complete(self) -> bool:
        """Whether these are the benchmark's 15 corruptions and 5 severities on all images."""
        args = self.subject.args
        whole = {official_name(name) for name in self.names} == set(map(official_name, list_corruptions()))
        return whole and args.severities == SEVERITIES and args.images is None

    @property
    def told(self) -> str:
        """Where the corrupted images come from, in words."""
        if self.official is not None:
            return f'official files of {self.official.root}'
        where = "cut to the model's input" if self.at == 'input' else 'as stored'
        return f'generated images, constants for {SCALES[self.scale]} px, corrupted {where}'

    def pair(self, name: str, severity: int) -> tuple[CutDataset, CutDataset | None]:
        """Corrupted knowns and unknowns; no unknowns where the files have none of their data set."""
        images, args = self.images, self.subject.args
        if self.official is None:
            def made(cut: CutDataset) -> CutDataset:
                return corrupted(cut, name, severity, args.seed, self.scale, self.crop)

            return made(images.known), None if images.unknown is None else made(images.unknown)
        source = self.official.open(name, severity, images.whole, images.mode)
        known = thinned(select_classes(source, images.split.known), args.images)
        if images.unknown is None or images.split.unknown_dataset is not None:
            return known, None
        return known, thinned(select_classes(source, images.split.unknown, unknown=True), args.images)

    def compared(self) -> dict[str, Any]:
        """What another model's figures must share to be divided by; ``images`` is the hash of their list."""
        made = {} if self.official is not None else {'scale': self.scale, 'at': self.at, 'seed': self.subject.args.seed}
        return {'official': self.official is not None, **made, 'images': list_hash(self.images.known)}

    def depends_on(self) -> dict[str, Any]:
        """Everything that a group depends on besides its name."""
        args, images = self.subject.args, self.images
        cuts = [cut for cut in (images.known, images.unknown) if cut is not None]
        files = {} if self.official is None else {
            name: [str(place.absolute()), place.stat().st_size, place.stat().st_mtime_ns]
            for name, place in self.official.places.items()}
        return {
            'format': _FORMAT, 'weights': weights_hash(self.subject.model), 'modules': str(self.subject.model),
            'transform': {key: str(value) for key, value in self.subject.preprocessing.as_config().items()},
            'images': [fingerprint(cut) or list_hash(cut) for cut in cuts],
            'split': [images.split.known, images.split.unknown],
            'files': files, 'scale': self.scale, 'at': self.at, 'seed': args.seed, 'scores': args.scores,
            'bootstrap': args.bootstrap, 'amp': str(self.subject.amp_dtype), 'channels_last': args.channels_last,
            'most': args.images, 'device': self.subject.device.type, 'versions': {name: version(name) for name in (
                'torch', 'timm', 'numpy', 'scipy', 'pillow', 'albumentations', 'gradmix-timm')}}


def make_plan(args: argparse.Namespace) -> Plan:
    """Read the checkpoint, open the images, decide what is left open.

    Raises:
        ValueError: Anything that the user can mend.
    """
    official = open_official(args.official) if args.official else None
    names = find_corruptions(args.corruptions, official.names if official is not None else None)
    if official is not None:
        official.check(names, args.severities)
    loaded = read_checkpoint(args)
    split = told_split(args, loaded)
    subject = load_subject(args, loaded, len(split.known) if split is not None else None)
    images = open_test(args, loaded, split, subject.preprocessing, args.images)
    outputs = getattr(subject.model, 'num_classes', None)
    if split is None and outputs != len(images.split.known):
        raise ValueError(f'the head of {subject.name} has {outputs} outputs and the test set has '
                         f'{len(images.split.known)} classes; name the known ones in head order, --known-classes '
                         'A,B,...')
    side = min(images.known.picture(0).size)
    if official is not None:
        side = min(select_classes(official.open(names[0], args.severities[0], images.whole, images.mode),
                                  images.split.known).picture(0).size)
    # The official arrays and small folders are as stored; ImageNet-C's images were cut before they were corrupted.
    at = args.corrupt_at or ('stored' if side <= SMALL else 'input')
    preprocessing = subject.preprocessing if at == 'stored' else subject.preprocessing.cropped()
    scale = '' if official is not None else args.scale or nearest_scale(
        side if at == 'stored' else min(subject.preprocessing.input_size[1:]))
    return Plan(
        clean_subject=subject, subject=replace(subject, preprocessing=preprocessing, cache=None, skipped={}),
        images=images, names=names, official=official, scale=scale, at=at,
        crop=subject.preprocessing.crop() if official is None and at == 'input' else None)


def watched(names: Sequence[str], total: int) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Names in turn, each with a function that is told what came out; says how long the rest will take."""
    started = told = time.monotonic()
    with tqdm(total=total, initial=total - len(names), desc='corruptions', unit='group', disable=None, leave=False,
              file=sys.stderr) as bar:
        for number, name in enumerate(names, 1):
            said: list[str] = []
            yield name, said.append
            bar.set_postfix_str(f'{name}: {"".join(said)}')
            bar.update()
            now = time.monotonic()
            if bar.disable and now - told > _TELL_EVERY and number < len(names):
                told = now
                left = (now - started) / number * (len(names) - number)
                print(f'{total - len(names) + number} of {total} groups, {name}: {"".join(said)}; about {left:.0f} s '
                      'left', file=sys.stderr, flush=True)


def draw_examples(plan: Plan, side: int = 72) -> bytes:
    """One test image under every corruption: a row a corruption, clean first, then the severities; a PNG file."""
    severities = plan.subject.args.severities
    clean = plan.images.known.picture(0)
    clean = clean if plan.crop is None else plan.crop(clean)
    sheet = Image.new('RGB', ((len(severities) + 1) * side, len(plan.names) * side), 'white')
    for row, name in enumerate(plan.names):
        shown = [clean, *(plan.pair(name, severity)[0].picture(0) for severity in severities)]
        for column, image in enumerate(shown):
            grown = image.convert('RGB').resize((side, side), Image.Resampling.NEAREST if min(image.size) < side
                                                else Image.Resampling.LANCZOS)
            sheet.paste(grown, (column * side, row * side))
    file = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(file, format='PNG', optimize=True)
    return file.getvalue()
