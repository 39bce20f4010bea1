"""``python -m gradmix_timm.predict``: the class of each image or ``unknown``, with its knownness."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from gradmix_timm.classifier import OpenSetClassifier
from gradmix_timm.classifier.images import as_image
from gradmix_timm.classifier.serialization import JSON
from gradmix_timm.cli.errors import UsageError, user_errors
from gradmix_timm.cli.plugins import import_modules
from gradmix_timm.data.listing import list_images
from gradmix_timm.data.opening import expected_files
from gradmix_timm.openset.reports.tables import text_table

__all__ = ['run']

# timm's prefix of models on the Hugging Face Hub.
_HUB = 'hf-hub:'
# Flags that a saved classifier fixes, and its attributes.
_MAKING = ('score', 'known_acceptance', 'threshold', 'validation', 'known_classes', 'model', 'amp', 'data_dir',
           'dataset', 'train_split', 'class_map', 'workers', 'img_size', 'input_img_mode', 'exif')


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UsageError: An error that the user can fix; what to type is in the message.
    """
    if not args.images and not args.save and not args.onnx:
        taken = (f'; --validation took {" ".join(args.validation)}: name the images before it'
                 if len(args.validation or ()) > 1 else '')
        raise UsageError(f'no image given: name image files or folders of them (or --save DIR, --onnx FILE){taken}')
    if args.onnx_input and not args.onnx:
        raise UsageError(f'--onnx-input {args.onnx_input} is of an exported graph; name its file, --onnx FILE')
    files = _expand(args.images)
    with user_errors():
        import_modules(args.device_modules)
        classifier = _classifier(args)
        if args.save:
            classifier.save(args.save)
        if args.onnx:
            classifier.export_onnx(args.onnx, args.onnx_input or 'tensor')
        rows, broken = _predict(classifier, files)
    if args.json:
        print(json.dumps(_as_json(classifier, rows, broken), indent=1))
    elif rows:
        print(_table(rows))
        rejected = sum(not row['accepted'] for row in rows)
        print(f'{rejected} of {len(rows)} image{"s" * (len(rows) > 1)} unknown ({classifier.score.name} below '
              f'{classifier.threshold:.4f}; threshold {classifier.manifest.threshold_source})')
    for path in (args.save, args.onnx):
        if path and not args.json:
            print(path)
    if broken:
        first = broken[0]
        more = f' (and {len(broken) - 1} more of {len(files)})' if len(broken) > 1 else ''
        raise UsageError(f'{first["error"]}{more}')
    return 0


def _expand(named: Sequence[str], flag: str = '') -> list[Path]:
    """Image files, folders expanded; names that do not exist are refused before a model is loaded."""
    found: list[Path] = []
    for name in named:
        path = Path(name)
        if not path.exists():
            raise UsageError(f'{flag}there is no file or folder {name}; name images, or folders of them')
        inside = [Path(file) for file in list_images(path).files] if path.is_dir() else [path]
        if not inside:
            raise UsageError(f'{flag}no image in the folder {name} ({expected_files()})')
        found += inside
    return found


def _classifier(args: argparse.Namespace) -> OpenSetClassifier:
    if args.batch_size < 1:
        raise UsageError(f'--batch-size {args.batch_size}: expected 1 or more')
    given = {name: getattr(args, name) for name in _MAKING if getattr(args, name) is not None}
    if args.checkpoint.startswith(_HUB) or (Path(args.checkpoint) / JSON).is_file():
        if given:
            flag = next(iter(given)).replace('_', '-')
            raise UsageError(f'{args.checkpoint} is a saved classifier, its score, threshold and preprocessing are '
                             f'fixed; leave out --{flag}, or give the checkpoint it was made from')
        return OpenSetClassifier.from_pretrained(args.checkpoint.removeprefix(_HUB), args.device, args.batch_size)
    if given.pop('amp', False):
        given['amp_dtype'] = torch.bfloat16
    if args.validation:
        given['validation'] = _expand(args.validation, '--validation: ')
    return OpenSetClassifier.from_checkpoint(
        args.checkpoint, device=args.device, batch_size=args.batch_size, **given)


def _predict(classifier: OpenSetClassifier, files: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """A row for each image that can be read, and the others with their errors."""
    good: list[Path] = []
    broken: list[dict[str, str]] = []

    def readable() -> Iterator[Image.Image]:
        for path in tqdm(files, unit='image', leave=False, delay=2., disable=None, file=sys.stderr):
            try:
                image = as_image(path, classifier.preprocessing)
            except ValueError as error:
                broken.append({'file': str(path), 'error': ' '.join(str(error).split())})
                continue
            good.append(path)
            yield image

    predictions = classifier.predict(readable())
    return [{'file': str(path), 'label': one.label, 'knownness': one.knownness,
             'accepted': one.knownness >= classifier.threshold, 'nearest': one.nearest, 'probability': one.probability,
             'top_k': [{'label': name, 'probability': share} for name, share in one.top_k]}
            for path, one in zip(good, predictions, strict=True)], broken


def _as_json(classifier: OpenSetClassifier, rows: list[dict[str, Any]], broken: list[dict[str, str]],
             ) -> dict[str, Any]:
    manifest = classifier.manifest
    return {
        'format': 1, 'model': manifest.model, 'score': classifier.score.name, 'threshold': classifier.threshold,
        'known_acceptance': manifest.known_acceptance, 'threshold_source': manifest.threshold_source,
        'known_classes': list(classifier.known_classes), 'images': rows, 'unreadable': broken}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, readable in a terminal; rejected images are shown with the nearest known class."""
    return text_table(('image', 'label', 'knownness', 'nearest known', 'probability'), [
        (row['file'], row['label'], f'{row["knownness"]:.4f}', '' if row['accepted'] else row['nearest'],
         f'{row["probability"]:.1%}') for row in rows], texts=(0, 1, 3))
