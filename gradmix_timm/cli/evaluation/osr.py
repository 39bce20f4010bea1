"""``python -m gradmix_timm.openset``: judge a model on known and unknown classes; write results, figures, a report."""
from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradmix_timm.cli.config_file import filled
from gradmix_timm.cli.errors import ConsoleParser, user_errors
from gradmix_timm.openset.gate import check_accuracy
from gradmix_timm.openset.judge import Subjects, check_names, needs_train
from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.reports.report import check_files, read_results
from gradmix_timm.openset.runs import find_evaluations

from .compare import add_compare
from .corrupt import add_corrupt, draw_corrupt
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
from .ood import add_ood
from .outcome import REPORT, copy_files, draw, identity, manifest, write
from .probe import add_probe, draw_probe
from .several import own_folders, run_each
from .subject import (
    Images,
    add_subject_flags,
    check_output,
    check_positive,
    load_subject,
    open_images,
    plan_split,
    read_checkpoint,
)

__all__ = ['build_parser', 'main']

# What draws again the files of a command; osr and ood leave the same kind.
_DRAW = {'corrupt': draw_corrupt, 'probe': draw_probe}


def build_parser() -> argparse.ArgumentParser:
    """The command's parser with a parser for each sub-command."""
    parser = ConsoleParser(prog='gradmix-openset', description='How well a model tells known classes from unknown.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=ConsoleParser)
    osr = commands.add_parser('osr', help='known and unknown classes of one data set, by protocol',
                              description='Judge a checkpoint on the known and unknown classes of its protocol.')
    add_subject_flags(osr)
    add_evaluation_flags(osr, 'osr')
    osr.set_defaults(run=run_osr)
    report = commands.add_parser('report', help='draw figures and page again from the files of an evaluation',
                                 description='Draw figures and page again from results.json and arrays.npz.')
    report.add_argument('folders', nargs='+', metavar='DIR',
                        help='folders that `osr`, `ood`, `corrupt` or `probe` wrote, run folders, or folders above')
    report.add_argument('--output', type=filled, metavar='DIR',
                        help='write there, files and all (default: where the files are)')
    report.set_defaults(run=run_report)
    add_ood(commands)
    add_compare(commands)
    add_corrupt(commands)
    add_probe(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command."""
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(['gradmix-openset', *(sys.argv[1:] if argv is None else argv)])
    return run_each(args)


# ---- osr, in running order

def run_osr(args: argparse.Namespace) -> int:
    """Embed, judge, print the table, write the files; the report's path comes last."""
    began = time.monotonic()
    with user_errors():
        check_names(args.scores)
        check_positive(args, (
            'batch_size', 'workers', 'bootstrap', 'seed', 'img_size', 'trivial_images', 'feature_map', 'duplicates'))
        loaded = read_checkpoint(args)
        split = plan_split(args, loaded.record if loaded is not None else None)
        folder = _output(args)
        check_output(folder)
        subject = load_subject(args, loaded, len(split.known))
        images = open_images(args, loaded, split, subject.preprocessing)
        # A broken image or weights that give NaN are the user's to mend as well.
        subjects = _embed(subject, images)
        passed = time.monotonic() - began
        trivial = trivial_probe(pixel_statistics(subject, images.known, subjects.known.index),
                                pixel_statistics(subject, images.unknown, subjects.unknown.index), args.seed)
        duplicates, closest = find_duplicates(
            subjects, images.known, images.train, images.validation, images.unknown, args.duplicates)
    with user_errors():
        judged = judge_with_bar(args, subjects)
    judged.arrays.update(project_features(
        subjects.known.features, subjects.unknown.features, args.feature_map, args.seed))
    split = images.split
    cuts = {'train': images.train, 'validation': images.validation, 'known': images.known, 'unknown': images.unknown}
    results = {'format': 1, 'protocol': split.protocol, 'family': split.family, 'trial': split.trial,
               **identity(args, subject), **judged.results, 'accuracy_gate': _gate(subject, subjects),
               'trivial': trivial, 'duplicates': duplicates,
               'sensitivity': sensitivity_with_bar(args, subjects, list(judged.results['scores'])),
               'skipped': subject.skipped,
               'manifest': manifest(args, subject, cuts, images.source, passed)}
    print_results(results)
    write(folder, results, judged, images, closest)
    draw(folder)
    print(folder / REPORT)
    return 0


def run_report(args: argparse.Namespace) -> int:
    """Figures and pages again, from files."""
    with user_errors():
        folders = find_evaluations(args.folders)
        for folder in folders:
            check_files(folder)
        places = _places(folders, args.output)
        for place in places:
            check_output(place)
    for folder, place in zip(folders, places, strict=True):
        copy_files(folder, place)
        _DRAW.get(read_results(place).get('command', ''), draw)(place)
        print(place / REPORT)
    return 0


def _places(folders: Sequence[Path], output: str | None) -> list[Path]:
    """Where each page goes: to its files, or below --output."""
    if output is None:
        return list(folders)
    return [Path(output)] if len(folders) == 1 else own_folders(folders, output)


def _output(args: argparse.Namespace) -> Path:
    if args.output:
        return Path(args.output)
    return Path(args.checkpoint).parent / 'osr' if args.checkpoint else Path('output') / f'osr-{args.model}'


def _gate(subject: Subject, subjects: Subjects) -> dict[str, Any] | None:
    """Whether the model is as good on the images that its training held out as it was then; a warning where not."""
    reference, held = recorded_top1(subject.loaded), subjects.validation
    if reference is None or held is None:
        return None
    right = (held.logits.argmax(1) == held.label).numpy()
    try:
        return check_accuracy(right, reference, 'training images that were held out', 'the checkpoint')
    except ValueError:
        return {'reference': reference, 'measured': float(right.mean()), 'n': len(right), 'source': 'the checkpoint',
                'warning': f'closed-set accuracy is {right.mean():.2%} on {len(right)} training images that were held '
                           f'out, and the checkpoint says {reference:.2%}: preprocessing or data are not those of its '
                           'training, and the figures are not its (see --img-size, --data-dir, --amp)'}


def _embed(subject: Subject, images: Images) -> Subjects:
    """One pass over each set; the model is not needed after it."""
    head, missing = classifier_of(subject.model)
    trained = subject.embed(images.train, 'known training images') if needs_train(subject.args.scores) else None
    validation = None if images.validation is None else subject.embed(images.validation, 'held-out images')
    known = subject.embed(images.known, 'known test images')
    unknown = subject.embed(images.unknown, 'unknown test images')
    return Subjects(
        # Rows that could not be read have no embedding.
        train=trained, known=known, unknown=unknown, unknown_label=images.unknown_label[unknown.index.numpy()],
        known_classes=images.split.known, unknown_classes=images.split.unknown, validation=validation, head=head,
        head_missing=missing, groups=images.split.groups)
