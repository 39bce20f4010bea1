"""What an evaluation leaves behind: identity and manifest, files written whole, figures and page drawn from them."""
from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gradmix_timm.checkpoint import Loaded, atomic_path, pretraining, versions, write_atomic
from gradmix_timm.data import CutDataset
from gradmix_timm.openset.judge import Judged
from gradmix_timm.openset.reports.latex import results_latex
from gradmix_timm.openset.reports.report import (
    ARRAYS,
    FIGURES,
    MISTAKES,
    RESULTS,
    draw_figures,
    read_arrays,
    read_results,
    render_report,
    results_csv,
    results_markdown,
)

from .embedding import Subject
from .subject import list_hash

__all__ = [
    'REPORT', 'copy_files', 'draw', 'draw_plain', 'find_mistakes', 'identity', 'manifest', 'thumbnail', 'write']

REPORT = 'report.html'
# Thumbnails of mistakes, each kind, and their side in pixels (a page shows 96; screens have two pixels for one).
_MISTAKES, _SIDE = 12, 160


# ---- what the results say of themselves

def identity(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """Whose results they are: checkpoint, seed, device, versions, time."""
    record = subject.loaded.record if subject.loaded is not None else None
    return {
        'checkpoint': args.checkpoint or f'{args.model}{" (pretrained)" if args.pretrained else ""}',
        'seed': None if record is None else record.seed, 'device': _device_name(subject),
        'versions': {**versions(), 'python': platform.python_version()},
        'created': datetime.now(UTC).isoformat(timespec='seconds')}


def manifest(args: argparse.Namespace, subject: Subject, cuts: Mapping[str, CutDataset | None],
             source: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What the figures depend on: model, images by list, preprocessing, settings, command.

    Args:
        args: Of the command, with ``command_line``, ``bootstrap`` and ``seed``.
        subject: What was judged.
        cuts: Sets of images by what they served for; None is left out.
        source: Where they are.
        seconds: Spent on reading them.
    """
    there = {name: cut for name, cut in cuts.items() if cut is not None}
    preprocessing = {key: list(value) if isinstance(value, tuple) else value
                     for key, value in subject.preprocessing.as_config().items()}
    return {
        'model': subject.name, 'parameters': sum(p.numel() for p in subject.model.parameters()),
        **_checkpoint_facts(subject.loaded), 'pretraining': _pretraining(args, subject), **_run_folder(args),
        'data': {**source, **{f'n_{name}': len(cut) for name, cut in there.items()}},
        'list_sha256': {name: list_hash(cut) for name, cut in there.items()},
        'preprocessing': preprocessing,
        'preprocessing_sha256': hashlib.sha256(
            json.dumps(preprocessing, sort_keys=True, default=str).encode()).hexdigest(),
        'settings': {'batch_size': args.batch_size, 'amp_dtype': args.amp_dtype if args.amp else None,
                     'channels_last': args.channels_last, 'bootstrap': args.bootstrap, 'bootstrap_seed': args.seed,
                     'level': 0.95},
        'extraction': {'seconds': round(seconds, 2), 'images': sum(map(len, there.values())),
                       **({} if subject.cache is None else {'from_cache': subject.cache.hits})},
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


def _pretraining(args: argparse.Namespace, subject: Subject) -> str | None:
    if subject.loaded is None:
        return pretraining(None, subject.name) if args.pretrained else 'none'
    return pretraining(subject.loaded.args)


def _run_folder(args: argparse.Namespace) -> dict[str, str]:
    return {'run_folder': str(Path(args.checkpoint).absolute().parent)} if args.checkpoint else {}


def _device_name(subject: Subject) -> str:
    if subject.device.type != 'cuda':
        return str(subject.device)
    return f'{subject.device} ({torch.cuda.get_device_name(subject.device)})'


# ---- files

def write(folder: Path, results: dict[str, Any], judged: Judged, images: Any,
          closest: Sequence[Mapping[str, Any]] = ()) -> None:
    """Everything that a report is drawn from, each file whole or not at all; results.json last.

    Args:
        folder: Made where it is missing.
        results: Of results.json.
        judged: Of the same evaluation.
        images: With ``known`` and ``unknown``, as :func:`find_mistakes` takes them.
        closest: Thumbnails of pairs that are nearly the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / ARRAYS) as temporary:
        np.savez_compressed(temporary, **judged.arrays)  # type: ignore[arg-type]  # names hold no keyword of it
    shown = {**find_mistakes(results, judged.arrays, images), 'closest': list(closest)}
    write_atomic(folder / MISTAKES, json.dumps(shown) + '\n')
    write_atomic(folder / 'results.csv', results_csv(results))
    write_atomic(folder / 'results.md', results_markdown(results))
    write_atomic(folder / 'results.tex', results_latex(results))
    write_atomic(folder / RESULTS, json.dumps(_finite(results), indent=1, allow_nan=False) + '\n')


def draw_plain(folder: Path, figures: Mapping[str, bytes],
               render: Callable[[Mapping[str, Any], Mapping[str, bytes]], str]) -> None:
    """Write figures and the page of an evaluation that has no knowns against unknowns.

    Args:
        folder: Of its files.
        figures: PNG by name; others that lie in the folder are shown as well.
        render: The page from the results and all figures.
    """
    for name, png in figures.items():
        write_atomic(folder / FIGURES / name, png)
    images = {path.name: path.read_bytes() for path in sorted((folder / FIGURES).glob('*.png'))}
    write_atomic(folder / REPORT, render(read_results(folder), images))


def copy_files(folder: Path, place: Path) -> None:
    """Files and figures of an evaluation to another folder, where it is another; results.json last."""
    if folder.resolve() == place.resolve():
        return
    files = [path for path in (*folder.iterdir(), *folder.glob(f'{FIGURES}/*.png')) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == RESULTS):
        write_atomic(place / path.relative_to(folder), path.read_bytes())


def draw(folder: Path) -> None:
    """Figures and page, from the files of :func:`write` and the mixes beside the checkpoint."""
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


def find_mistakes(results: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], images: Any) -> dict[str, Any]:
    """Unknowns accepted with the highest knownness and knowns rejected with the lowest, with thumbnails.

    Args:
        results: Of results.json.
        arrays: Of arrays.npz; ``known_index`` and ``unknown_index`` are rows of the sets.
        images: With sets ``known`` and ``unknown``, each with ``picture(row)`` and ``filename(row)``.
    """
    name, threshold = results['threshold']['score'], results['threshold']['value']
    known, unknown = arrays[f'known/{name}'], arrays[f'unknown/{name}']
    top = np.argsort(-unknown, kind='stable')[:_MISTAKES]
    low = np.argsort(known, kind='stable')[:_MISTAKES]

    def told(cut: CutDataset, row: int, side: str, classes: Sequence[str]) -> dict[str, Any]:
        place = int(arrays[f'{side}_index'][row])
        png, size = thumbnail(cut.picture(place))
        return {'class': classes[arrays[f'{side}_label'][row]], 'knownness': float(arrays[f'{side}/{name}'][row]),
                'answer': results['known_classes'][arrays[f'{side}_pred'][row]], 'file': cut.filename(place),
                'size': size, 'png': png}

    return {
        'accepted': [told(images.unknown, int(row), 'unknown', results['unknown_classes'])
                     for row in top if unknown[row] >= threshold],
        'rejected': [told(images.known, int(row), 'known', results['known_classes'])
                     for row in low if known[row] < threshold]}


def thumbnail(image: Any) -> tuple[str, list[int]]:
    """An image as it lies in the data set, shrunk where it is large; PNG in base64, and its own size."""
    image = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    size = list(image.size)
    small = image.convert('RGB' if image.mode not in ('L', 'RGB') else image.mode)
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format='PNG', optimize=True)
    return base64.b64encode(file.getvalue()).decode(), size
