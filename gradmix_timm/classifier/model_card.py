"""The model card of a classifier in Markdown: written beside an ONNX graph, and as README.md of a repository."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gradmix_timm.checkpoint import versions
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.reports.report import closed_set_line, score_table
from gradmix_timm.openset.results import OpenSetResults, read_results
from gradmix_timm.openset.scores import Score

__all__ = ['evaluated', 'front_matter', 'model_card']

# Class names in the table; the files hold all.
_SHOWN = 100
_TAGS = ('image-classification', 'timm', 'gradmix_timm', 'open-set-recognition', 'out-of-distribution-detection')
# Of the classifier's score: key in results.json to type and name of the metric.
_METRICS = {'auroc': ('roc_auc', 'AUROC, known against unknown'), 'oscr': ('oscr', 'OSCR'),
            'fpr_at_95_known': ('fpr_at_95_known', 'FPR95, unknown images accepted')}
_TRAINED = ('mixer', 'objective', 'protocol', 'family', 'trial', 'seed', 'epoch')


def model_card(title: str, manifest: Any, score: Score, use: str, results: OpenSetResults | None = None) -> str:
    """What the classifier knows, how it decides, what was measured, and what it does not promise.

    Args:
        title: Heading.
        manifest: Of the classifier.
        score: Of the classifier.
        use: The section on its use, Markdown.
        results: Of :func:`evaluated`.
    """
    made = Preprocessing.of(manifest.data_config)
    names = list(map(_cell, manifest.known_classes[:_SHOWN]))
    more = len(manifest.known_classes) - len(names)
    origin: Mapping[str, Any] = manifest.checkpoint
    rows = {
        'network': f'`{_cell(manifest.model)}`' + (' of timm' if origin else ', a live module'),
        f'known classes ({len(manifest.known_classes)})': ', '.join(names) + (f', and {more} more' if more else ''),
        'score': f'`{_cell(score.name)}`{_options(score.options)}; higher = more known',
        'threshold': f'{manifest.threshold:.6g}, {_cell(manifest.threshold_source)}',
        'preprocessing': f'{made.image_mode}, {_resizing(made)} to {made.input_size[1]} x {made.input_size[2]} pixels, '
                         f'mean {_numbers(made.mean)}, std {_numbers(made.std)}, EXIF orientation: {made.exif}',
        'training': ', '.join(f'{key} {_cell(origin[key])}' for key in _TRAINED if origin.get(key) is not None),
        'checkpoint': origin and f'{_cell(origin.get("file", ""))}, SHA-256 `{_cell(origin.get("sha256", ""))}`',
        'made with': ', '.join(f'{name} {version}' for name, version in versions().items())}
    share = manifest.known_acceptance
    promise = ('The threshold was given by hand: no share of accepted images is promised.' if share is None else
               f'The threshold accepts at least {share:.0%} of new images of the known classes, on average over '
               'held-out sets and for images of the same kind as those; a drift of the input voids this.')
    lines = [
        f'# {_cell(title)}', '',
        f'An image classifier for {len(manifest.known_classes)} classes that answers "unknown" where an image is of '
        'none of them, made with [gradmix_timm](https://github.com/gradmix-timm/gradmix-timm).', '',
        '| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in rows.items() if value), '',
        '## Use', '', use.strip(), '']
    if results is not None:
        lines += ['## Evaluation', '', f'{closed_set_line(results)}.', '', score_table(results, intervals=True), '',
                  f'Percent; in brackets 95% intervals; measured by `gradmix-openset osr`. The classifier uses '
                  f'`{_cell(score.name)}`. Known against unknown images of: '
                  f'{", ".join(map(_cell, results["unknown_classes"][:_SHOWN])) or "the data sets named there"}.', '']
    lines += [
        '## Limits', '', f'- {promise}',
        '- Nothing is promised about unknown images: how many are rejected depends on how near they are to the known '
        'classes. Measure it on unknown images of your own (`gradmix-openset osr`, `ood`).',
        '- Probabilities are shares among the known classes and say nothing about unknown ones.', '']
    return '\n'.join(lines)


def evaluated(results: str | os.PathLike[str], manifest: Any) -> OpenSetResults:
    """The results of `gradmix-openset osr` of the classifier's own checkpoint.

    Args:
        results: Its folder, or results.json in it.
        manifest: Of the classifier.

    Raises:
        ValueError: Not such a file, or of another checkpoint or other classes.
    """
    path = Path(results)
    found = read_results(path.parent if path.name == 'results.json' else path, OpenSetResults)
    digest, own = found['manifest'].get('checkpoint_sha256'), manifest.checkpoint.get('sha256')
    if list(found['known_classes']) != list(manifest.known_classes) or digest != own:
        raise ValueError(f'{path} was measured on the checkpoint of SHA-256 {str(digest)[:12]} with '
                         f'{len(found["known_classes"])} known classes; the classifier was made from {str(own)[:12]} '
                         f'with {len(manifest.known_classes)}: evaluate that one, gradmix-openset osr --checkpoint C')
    return found


def front_matter(title: str, score: Score, license_: str | None, results: OpenSetResults | None) -> str:
    """The YAML head of README.md that the Hub reads: library, tags, license, metrics.

    Args:
        title: Of the model.
        score: Whose AUROC is among the metrics.
        license_: The Hub's name of it; None: no entry.
        results: Of results.json; None: no metrics.

    Returns:
        The lines between two ``---``, both included.
    """
    head: dict[str, Any] = {} if license_ is None else {'license': license_}
    head |= {'library_name': 'timm', 'pipeline_tag': 'image-classification', 'tags': list(_TAGS)}
    if results is not None:
        metrics: list[dict[str, Any]] = [{
            'type': 'accuracy', 'name': 'closed-set accuracy', 'value': results['closed_set']['top1']}]
        figures: Mapping[str, Any] = results['scores'].get(score.name, {})
        metrics += [{'type': kind, 'name': f'{name} of {score.name}', 'value': figures[key]}
                    for key, (kind, name) in _METRICS.items() if key in figures]
        name = str(results['protocol'] or 'own classes')
        head |= {'metrics': [metric['type'] for metric in metrics], 'model-index': [{'name': title, 'results': [{
            'task': {'type': 'image-classification', 'name': 'open-set recognition'},
            'dataset': {'type': name, 'name': name}, 'metrics': metrics}]}]}
    return f'---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n'


def _cell(value: Any) -> str:
    """One line without Markdown or HTML of its own."""
    text = ' '.join(str(value).split())
    return ''.join(f'&#{ord(letter)};' if letter in '|<>`*[]\\' else letter for letter in text)


def _resizing(made: Preprocessing) -> str:
    if made.pipeline is not None:
        return 'an albumentations pipeline'
    return f'{made.interpolation} (crop_pct {made.crop_pct:g}, crop_mode {made.crop_mode})'


def _numbers(values: tuple[float, ...]) -> str:
    return '(' + ', '.join(f'{value:.4g}' for value in values) + ')'


def _options(options: Mapping[str, Any]) -> str:
    shown = ', '.join(f'{key}={value}' for key, value in options.items())
    return f' ({_cell(shown)})' if shown else ''
