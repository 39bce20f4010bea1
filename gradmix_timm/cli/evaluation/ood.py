"""``openset ood``: known test images against whole data sets of unknown ones, one group each, near and far."""
from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageNetInfo

from gradmix_timm.checkpoint import Loaded
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.errors import user_errors
from gradmix_timm.data import (
    OVERLAPS,
    Codec,
    CutDataset,
    Outside,
    UnknownSpec,
    UnreadableImageError,
    check_specs,
    open_outside,
    parse_codec,
    parse_unknown,
    recode,
)
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.gate import check_accuracy
from gradmix_timm.openset.judge import Judged, Subjects, check_names, needs_train
from gradmix_timm.openset.near_far import near_and_far, set_means, suite_of
from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.reports.report import means_table
from gradmix_timm.records import Embeddings

from .duplicates import find_duplicates
from .embedding import Subject
from .judging import (
    add_evaluation_flags,
    classifier_of,
    judge_with_bar,
    pixel_statistics,
    print_results,
    recorded_top1,
    sensitivity_with_bar,
    trivial_probe,
)
from .known import KnownImages, folder_classes, open_known
from .outcome import REPORT, draw, identity, manifest, write
from .subject import (
    add_subject_flags,
    check_output,
    check_positive,
    load_subject,
    plan_split,
    read_checkpoint,
)

__all__ = ['add_ood']

_logger = logging.getLogger(__name__)
# Known images whose sizes made images take.
_SIZES = 64


def add_ood(commands: Any) -> None:
    """The sub-command's parser."""
    ood = commands.add_parser(
        'ood', help='known test images against other data sets, noise and textures',
        description='Judge a model on its known test images and whole data sets of unknown ones.')
    add_subject_flags(ood)
    add = ood.add_argument_group('Known and unknown images').add_argument
    add('--known', metavar='DIR', help="known test images by class, a folder or .tar (default: the checkpoint's data)")
    add('--unknown', nargs='+', action='extend', required=True, metavar='SET',
        help='folder:NAME=DIR (or a .tar), torchvision:svhn, timm:NAME=DIR, noise:uniform, noise:blobs, ...')
    add('--overlap', choices=OVERLAPS, default='refuse',
        help='what to do where an unknown set has classes of known names (default: refuse)')
    add('--near', type=words, default=[], metavar='A,B,...', help="sets that count as near (default: OpenOOD's table)")
    add('--far', type=words, default=[], metavar='A,B,...', help="sets that count as far (default: OpenOOD's table)")
    add('--codec', metavar='CODEC', help='turn every image through jpeg:QUALITY or png first')
    add('--unknown-codec', metavar='CODEC', help='the same for unknown images alone')
    add('--made-images', type=int, default=1000, metavar='N', help='images of noise:NAME (default: 1000)')
    add('--download', action='store_true', help="fetch torchvision's sets where they are missing")
    add('--reference-top1', type=float, metavar='PERCENT',
        help='closed-set accuracy that the model should have (default: what the checkpoint had on held-out images)')
    add('--no-accuracy-gate', action='store_true', help='go on where the accuracy is not what it should be')
    add_evaluation_flags(ood, 'ood')
    ood.set_defaults(run=run_ood)


@dataclass(frozen=True)
class _Joined:
    """The unknown sets as one, for the thumbnails of mistakes; rows are counted through."""

    sets: Sequence[CutDataset]

    def _place(self, row: int) -> tuple[CutDataset, int]:
        for images in self.sets:
            if row < len(images):
                return images, row
            row -= len(images)
        raise IndexError(row)

    def picture(self, row: int) -> Any:
        images, place = self._place(row)
        return images.picture(place)

    def filename(self, row: int) -> str:
        images, place = self._place(row)
        return images.filename(place)


@dataclass(frozen=True)
class _Opened:
    """Everything that is judged, opened but not read."""

    subject: Subject
    classes: tuple[str, ...]
    images: KnownImages
    outside: Sequence[Outside]
    kinds: dict[str, list[str]]
    # Of the closed set as it lies there, before any codec.
    gate_images: CutDataset | None

    @property
    def known(self) -> CutDataset:
        return self.images.test

    @property
    def unknown(self) -> _Joined:
        return _Joined([part.images for part in self.outside])


def run_ood(args: argparse.Namespace) -> int:
    """Open, check the accuracy, embed, judge, print the tables, write the files; the report's path comes last."""
    began = time.monotonic()
    with user_errors():
        opened, folder = _open(args)
        known = opened.subject.embed(opened.known, 'known test images')
        gate = _gate(args, opened, known)
        subjects = _embed(opened, known)
        passed = time.monotonic() - began
        probes = _probes(opened, subjects)
        duplicates, closest = find_duplicates(
            subjects, opened.known, opened.images.train, opened.images.validation, opened.unknown, args.duplicates)
    with user_errors():
        judged = judge_with_bar(args, subjects)
    judged.arrays.update(project_features(
        subjects.known.features, subjects.unknown.features, args.feature_map, args.seed))
    results = {**_results(args, opened, judged, probes, gate, passed), 'duplicates': duplicates,
               'sensitivity': sensitivity_with_bar(args, subjects, list(judged.results['scores']))}
    print_results(results)
    if gate is None:
        print('note: nobody says what accuracy the model should have; --reference-top1 PERCENT checks it')
    print(f'\nAUROC by data set\n\n{means_table(results)}')
    write(folder, results, judged, opened, closest)
    draw(folder)
    print(folder / REPORT)
    return 0


# ---- opening

def _open(args: argparse.Namespace) -> tuple[_Opened, Path]:
    check_names(args.scores)
    check_positive(args, ('batch_size', 'workers', 'bootstrap', 'seed', 'img_size', 'trivial_images', 'feature_map',
                          'made_images', 'duplicates'))
    if args.reference_top1 is not None and not 0 <= args.reference_top1 <= 100:
        raise ValueError(f'--reference-top1 {args.reference_top1:g}: expected percent, from 0 to 100')
    specs = [parse_unknown(text) for text in args.unknown]
    check_specs(specs)
    codec, others = (parse_codec(text) if text else None for text in (args.codec, args.unknown_codec))
    folder = _output(args)
    check_output(folder)
    loaded = read_checkpoint(args)
    names = _named_classes(args, loaded)
    subject = load_subject(args, loaded, len(names) if names else None)
    names = names or _folder_names(args, subject)
    images = open_known(args, loaded, names, subject.preprocessing, args.known)
    outside = _open_outside(args, specs, names, images.test, subject.preprocessing, images.source)
    kinds = near_and_far(_suite(args, images, names), [spec.name for spec in specs], args.near, args.far)
    held = images.validation
    return _Opened(subject, names, _recoded(images, codec),
                   [_recoded_set(part, others or codec) for part in outside], kinds, held), folder


def _output(args: argparse.Namespace) -> Path:
    if args.output:
        return Path(args.output)
    return Path(args.checkpoint).parent / 'ood' if args.checkpoint else Path('output') / f'ood-{args.model}'


def _named_classes(args: argparse.Namespace, loaded: Loaded | None) -> tuple[str, ...]:
    """Known classes by flags or checkpoint; none where only the folder of --known can tell."""
    record = loaded.record if loaded is not None else None
    told = args.osr_protocol or args.known_classes or (record is not None and record.known_classes)
    return plan_split(args, record).known if told or not args.known else ()


def _folder_names(args: argparse.Namespace, subject: Subject) -> tuple[str, ...]:
    """Known classes of a head that nobody names: the class folders in their order, or ImageNet's synsets."""
    outputs, there = getattr(subject.model, 'num_classes', 0), folder_classes(args.known)
    if outputs == 1000:
        synsets = tuple(ImageNetInfo('imagenet-1k').label_names())
        if set(there) <= set(synsets):
            return synsets
    if len(there) != outputs:
        raise ValueError(f'--known {args.known} has {len(there)} class folders and the head {outputs} outputs; name '
                         'the classes in head order, --known-classes A,B,...')
    return there


def _suite(args: argparse.Namespace, images: KnownImages, names: Sequence[str]) -> str | None:
    source = images.source
    return suite_of(source['dataset'] or str(args.known or source['data_dir'] or ''), names)


def _open_outside(args: argparse.Namespace, specs: Sequence[UnknownSpec], names: Sequence[str], known: CutDataset,
                  preprocessing: Preprocessing, source: dict[str, Any]) -> list[Outside]:
    made = any(spec.kind in ('noise', 'made') for spec in specs)
    sizes = _sizes(known) if made else ((32, 32),)
    root = args.unknown_data_dir or source['data_dir']
    return [open_outside(spec, names, root=root, mode=preprocessing.image_mode, exif=preprocessing.exif,
                         download=args.download, overlap=args.overlap, sizes=sizes, count=args.made_images,
                         seed=args.seed) for spec in specs]


def _sizes(known: CutDataset) -> list[tuple[int, int]]:
    """Width and height of known images, so that made ones go through the same resize."""
    found = []
    for row in np.unique(np.linspace(0, len(known) - 1, _SIZES).round().astype(int)):
        try:
            found.append(known.picture(int(row)).size)
        except UnreadableImageError:
            _logger.debug('row %d cannot be read; its pass will tell', row)
    return found or [(224, 224)]


def _recoded(images: KnownImages, codec: Codec | None) -> KnownImages:
    if codec is None:
        return images
    train, held = (None if part is None else recode(part, codec) for part in (images.train, images.validation))
    return replace(images, train=train, validation=held, test=recode(images.test, codec))


def _recoded_set(part: Outside, codec: Codec | None) -> Outside:
    return part if codec is None else replace(part, images=recode(part.images, codec))


# ---- the gate

def _gate(args: argparse.Namespace, opened: _Opened, known: Embeddings) -> dict[str, Any] | None:
    """Refuses a model that is not as good as it should be, before any unknown image is read."""
    if args.no_accuracy_gate:
        return {'source': 'switched off by --no-accuracy-gate'}
    if args.reference_top1 is not None:
        return check_accuracy(_right(known), args.reference_top1 / 100, 'known test images', '--reference-top1')
    reference = recorded_top1(opened.subject.loaded)
    if reference is None or opened.gate_images is None:
        return None
    held = opened.subject.embed(opened.gate_images, 'held-out images')
    return check_accuracy(_right(held), reference, 'training images that were held out', 'the checkpoint')


def _right(embeddings: Embeddings) -> np.ndarray:
    return (embeddings.logits.argmax(1) == embeddings.label).numpy()


# ---- embedding

def _embed(opened: _Opened, known: Embeddings) -> Subjects:
    """One pass over each set."""
    subject, images = opened.subject, opened.images
    head, missing = classifier_of(subject.model)
    fit = needs_train(subject.args.scores) and images.train is not None
    train = subject.embed(images.train, 'known training images') if fit and images.train is not None else None
    held = None if images.validation is None else subject.embed(images.validation, 'held-out images')
    parts = [subject.embed(part.images, f'images of {part.spec.name}') for part in opened.outside]
    names = tuple(part.spec.name for part in opened.outside)
    return Subjects(
        train=train, known=known, unknown=_join(parts, [len(part.images) for part in opened.outside]),
        unknown_label=np.repeat(np.arange(len(parts)), [len(part.label) for part in parts]),
        known_classes=opened.classes, unknown_classes=names, validation=held, head=head, head_missing=missing,
        groups={name: (name,) for name in names})


def _join(parts: Sequence[Embeddings], sizes: Sequence[int]) -> Embeddings:
    """Sets one after the other; ``index`` counts the images of all."""
    starts = np.cumsum([0, *sizes[:-1]])
    return Embeddings.cat([replace(part, index=part.index + int(start))
                           for part, start in zip(parts, starts, strict=True)])


def _probes(opened: _Opened, subjects: Subjects) -> dict[str, Any]:
    """Pixel statistics of each set against the knowns."""
    subject, index, start, found = opened.subject, subjects.unknown.index.numpy(), 0, {}
    known = pixel_statistics(subject, opened.known, subjects.known.index)
    for part in opened.outside:
        stop = start + len(part.images)
        rows = index[(index >= start) & (index < stop)] - start
        found[part.spec.name] = trivial_probe(known, pixel_statistics(subject, part.images, rows),
                                              subject.args.seed, part.spec.name)
        start = stop
    return found


# ---- results

def _results(args: argparse.Namespace, opened: _Opened, judged: Judged, probes: dict[str, Any],
             gate: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    groups = judged.results['groups']
    for part, text in zip(opened.outside, args.unknown, strict=True):
        name = part.spec.name
        groups[name] |= {
            'source': text, 'kind': next((kind for kind, sets in opened.kinds.items() if name in sets), None),
            'trivial': probes[name], 'dropped_classes': list(part.dropped), 'dropped_images': part.left_out,
            'known_classes_kept': list(part.shared)}
    cuts = {'train': opened.images.train, 'validation': opened.images.validation, 'known': opened.known,
            **{part.spec.name: part.images for part in opened.outside}}
    facts = {**opened.images.source, 'codec': args.codec, 'unknown_codec': args.unknown_codec or args.codec,
             'made_images': args.made_images, 'made_seed': args.seed, 'overlap': args.overlap}
    return {'format': 1, 'protocol': 'ood', 'family': None, 'trial': None, **identity(args, opened.subject),
            **judged.results, 'means': set_means(groups, opened.kinds), 'accuracy_gate': gate,
            'trivial': None, 'skipped': opened.subject.skipped,
            'manifest': manifest(args, opened.subject, cuts, facts, seconds)}
