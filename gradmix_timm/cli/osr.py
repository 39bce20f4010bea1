"""``python -m gradmix_timm.openset``: judge a model on known and unknown classes; write results, figures, a report."""
from __future__ import annotations

import argparse
import base64
import io
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from gradmix_timm.checkpoint import Loaded, atomic_path, versions, write_atomic
from gradmix_timm.data import CutDataset
from gradmix_timm.openset.extract import head_of
from gradmix_timm.openset.judge import Judged, Subjects, check_names, judge, needs_train
from gradmix_timm.openset.report import (
    ARRAYS,
    FIGURES,
    MISTAKES,
    RESULTS,
    closed_set_line,
    draw_figures,
    read_arrays,
    read_results,
    render_report,
    results_csv,
    results_markdown,
    score_table,
)
from gradmix_timm.openset.scores import list_scores

from .config_file import words
from .exits import ConsoleParser, mendable
from .subject import (
    Images,
    Subject,
    add_subject_flags,
    check_output,
    check_positive,
    list_hash,
    load_subject,
    open_images,
    plan_split,
    read_checkpoint,
)

__all__ = ['build_parser', 'main']

REPORT = 'report.html'
# Thumbnails of mistakes, each kind, and their side in pixels (a page shows 96; screens have two pixels for one).
_MISTAKES, _SIDE = 12, 160


def build_parser() -> argparse.ArgumentParser:
    """The command's parser with a parser for each sub-command."""
    parser = ConsoleParser(prog='gradmix-openset', description='How well a model tells known classes from unknown.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=ConsoleParser)
    osr = commands.add_parser('osr', help='known and unknown classes of one data set, by protocol',
                              description='Judge a checkpoint on the known and unknown classes of its protocol.')
    add_subject_flags(osr)
    add = osr.add_argument_group('Evaluation').add_argument
    add('--scores', type=words, metavar='A,B,...', help=f'(default: all of {", ".join(list_scores())})')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples for the intervals (default: 1000)')
    add('--seed', type=int, default=0, metavar='N', help='of the resamples (default: 0)')
    add('--output', metavar='DIR', help='(default: the folder osr beside the checkpoint)')
    osr.set_defaults(run=run_osr)
    report = commands.add_parser('report', help='draw figures and page again from the files of an evaluation',
                                 description='Draw figures and page again from results.json and arrays.npz.')
    report.add_argument('folder', metavar='DIR', help='folder that `osr` wrote')
    report.set_defaults(run=run_report)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command."""
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(['gradmix-openset', *(sys.argv[1:] if argv is None else argv)])
    status: int = args.run(args)
    return status


# ---- osr, in running order

def run_osr(args: argparse.Namespace) -> int:
    """Embed, judge, print the table, write the files; the report's path comes last."""
    began = time.monotonic()
    with mendable():
        check_names(args.scores)
        check_positive(args, ('batch_size', 'workers', 'bootstrap', 'seed', 'img_size'))
        loaded = read_checkpoint(args)
        split = plan_split(args, loaded.record if loaded is not None else None)
        folder = _output(args)
        check_output(folder)
        subject = load_subject(args, loaded, len(split.known))
        images = open_images(args, loaded, split, subject.config['input_size'][0])
        # A broken image or weights that give NaN are the user's to mend as well.
        subjects = _embed(subject, images)
    passed = time.monotonic() - began
    with mendable():
        judged = _judge(args, subjects)
    results = {**_identity(args, subject, images), **judged.results,
               'manifest': _manifest(args, subject, images, passed)}
    print(f'\n{closed_set_line(results)}\n')
    print(score_table(results))
    for name, reason in results['not_served'].items():
        print(f'not served: {name}: {reason}')
    _write(folder, results, judged, images)
    _draw(folder)
    print(folder / REPORT)
    return 0


def run_report(args: argparse.Namespace) -> int:
    """Figures and page again, from files."""
    folder = Path(args.folder)
    with mendable():
        if folder.name == RESULTS:
            folder = folder.parent
        read_results(folder)
        read_arrays(folder)
        check_output(folder)
    _draw(folder)
    print(folder / REPORT)
    return 0


def _output(args: argparse.Namespace) -> Path:
    if args.output:
        return Path(args.output)
    return Path(args.checkpoint).parent / 'osr' if args.checkpoint else Path('output') / f'osr-{args.model}'


def _embed(subject: Subject, images: Images) -> Subjects:
    """One pass over each set; the model is not needed after it."""
    head, missing = None, ''
    try:
        head = head_of(subject.model)
    except ValueError as error:
        missing = str(error)
    trained = subject.embed(images.train, 'known training images') if needs_train(subject.args.scores) else None
    validation = None if images.validation is None else subject.embed(images.validation, 'held-out images')
    return Subjects(
        train=trained, known=subject.embed(images.known, 'known test images'),
        unknown=subject.embed(images.unknown, 'unknown test images'), unknown_label=images.unknown_label,
        known_classes=images.split.known, unknown_classes=images.split.unknown, validation=validation, head=head,
        head_missing=missing, groups=images.split.groups)


def _judge(args: argparse.Namespace, subjects: Subjects) -> Judged:
    with tqdm(total=len(args.scores or list_scores()), desc='scores', leave=False, delay=2.,
              disable=None, file=sys.stderr) as bar:
        def told(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return judge(subjects, args.scores, args.bootstrap, args.seed, told)


# ---- what the results say of themselves

def _identity(args: argparse.Namespace, subject: Subject, images: Images) -> dict[str, Any]:
    record = subject.loaded.record if subject.loaded is not None else None
    split = images.split
    return {
        'format': 1, 'protocol': split.protocol, 'family': split.family, 'trial': split.trial,
        'checkpoint': args.checkpoint or f'{args.model}{" (pretrained)" if args.pretrained else ""}',
        'seed': None if record is None else record.seed, 'device': _device_name(subject),
        'versions': {**versions(), 'python': platform.python_version()},
        'created': datetime.now(UTC).isoformat(timespec='seconds')}


def _manifest(args: argparse.Namespace, subject: Subject, images: Images, seconds: float) -> dict[str, Any]:
    cuts = {'train': images.train, 'validation': images.validation, 'known': images.known, 'unknown': images.unknown}
    there = {name: cut for name, cut in cuts.items() if cut is not None}
    count = sum(map(len, there.values()))
    return {
        'model': subject.name, 'parameters': sum(p.numel() for p in subject.model.parameters()),
        **_checkpoint_facts(subject.loaded), **_run_folder(args),
        'data': {**images.source, **{f'n_{name}': len(cut) for name, cut in there.items()}},
        'list_sha256': {name: list_hash(cut) for name, cut in there.items()},
        'preprocessing': {key: list(value) if isinstance(value, tuple) else value
                          for key, value in subject.config.items()},
        'settings': {'batch_size': args.batch_size, 'amp_dtype': args.amp_dtype if args.amp else None,
                     'channels_last': args.channels_last, 'bootstrap': args.bootstrap, 'bootstrap_seed': args.seed,
                     'level': 0.95},
        'extraction': {'seconds': round(seconds, 2), 'images': count},
        'command': args.command_line}


def _checkpoint_facts(loaded: Loaded | None) -> dict[str, Any]:
    if loaded is None:
        return {}
    facts: dict[str, Any] = {'checkpoint_sha256': loaded.sha256, 'epoch': loaded.epoch, 'metric': loaded.metric,
                             'moving_average': loaded.ema}
    if loaded.record is not None:
        record = loaded.record
        facts |= {'mixer': record.mixer, 'mixer_options': record.mixer_options, 'objective': record.objective,
                  'trained_with': record.versions}
    return facts


def _run_folder(args: argparse.Namespace) -> dict[str, str]:
    return {'run_folder': str(Path(args.checkpoint).absolute().parent)} if args.checkpoint else {}


def _device_name(subject: Subject) -> str:
    if subject.device.type != 'cuda':
        return str(subject.device)
    import torch
    return f'{subject.device} ({torch.cuda.get_device_name(subject.device)})'


# ---- files

def _write(folder: Path, results: dict[str, Any], judged: Judged, images: Images) -> None:
    """Everything that a report is drawn from, each file whole or not at all; results.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / ARRAYS) as temporary:
        np.savez_compressed(temporary, **judged.arrays)  # type: ignore[arg-type]  # names hold no keyword of it
    write_atomic(folder / MISTAKES, json.dumps(_mistakes(results, judged.arrays, images)) + '\n')
    write_atomic(folder / 'results.csv', results_csv(results))
    write_atomic(folder / 'results.md', results_markdown(results))
    write_atomic(folder / RESULTS, json.dumps(_finite(results), indent=1, allow_nan=False) + '\n')


def _draw(folder: Path) -> None:
    """Figures and page, from the files of :func:`_write` and the mixes beside the checkpoint."""
    results = read_results(folder)
    for name, png in draw_figures(results, read_arrays(folder)).items():
        write_atomic(folder / FIGURES / name, png)
    # Where the run was, else (it was moved, evaluation and all) the folder above.
    places = [Path(results['manifest'].get('run_folder', '')), folder.absolute().parent]
    run_folder = next((place for place in places if place.is_absolute() and (place / 'mixes.png').is_file()), None)
    write_atomic(folder / REPORT, render_report(folder, run_folder))


def _finite(value: Any) -> Any:
    """JSON has no infinities; they become null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mistakes(results: dict[str, Any], arrays: dict[str, NDArray[Any]], images: Images) -> dict[str, Any]:
    """Unknowns accepted with the highest knownness and knowns rejected with the lowest, with thumbnails."""
    name, threshold = results['threshold']['score'], results['threshold']['value']
    known, unknown = arrays[f'known/{name}'], arrays[f'unknown/{name}']
    top = np.argsort(-unknown, kind='stable')[:_MISTAKES]
    low = np.argsort(known, kind='stable')[:_MISTAKES]

    def told(cut: CutDataset, row: int, side: str, classes: Sequence[str]) -> dict[str, Any]:
        png, size = _thumbnail(cut, row)
        return {'class': classes[arrays[f'{side}_label'][row]], 'knownness': float(arrays[f'{side}/{name}'][row]),
                'answer': results['known_classes'][arrays[f'{side}_pred'][row]], 'file': cut.filename(row),
                'size': size, 'png': png}

    return {
        'accepted': [told(images.unknown, int(row), 'unknown', results['unknown_classes'])
                     for row in top if unknown[row] >= threshold],
        'rejected': [told(images.known, int(row), 'known', results['known_classes'])
                     for row in low if known[row] < threshold]}


def _thumbnail(cut: CutDataset, row: int) -> tuple[str, list[int]]:
    """An image as it lies in the data set, shrunk where it is large; PNG in base64, and its own size."""
    image = cut.source.read(int(cut.indices[row]))[0]
    image = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    size = list(image.size)
    small = image.convert('RGB' if image.mode not in ('L', 'RGB') else image.mode)
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format='PNG', optimize=True)
    return base64.b64encode(file.getvalue()).decode(), size
