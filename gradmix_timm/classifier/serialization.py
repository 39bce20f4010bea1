"""A classifier in two files, JSON and safetensors: reading them runs nothing, and a mismatch is found."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack
from torch import Tensor, nn

from gradmix_timm.checkpoint import Loaded, RunRecord, build_model, versions, write_atomic
from gradmix_timm.openset.scores import Score
from gradmix_timm.openset.scores.serialization import restore_score, score_state

__all__ = ['FORMAT', 'JSON', 'TENSORS', 'load', 'save']

FORMAT = 1
#: Names of the two files.
JSON, TENSORS = 'classifier.json', 'classifier.safetensors'
_AGAIN = 'save the classifier again'


def save(folder: str | os.PathLike[str], model: nn.Module, score: Score, manifest: Any) -> None:
    """Write both files, each whole or not at all, the JSON last.

    Args:
        folder: Made where it is missing.
        model: Its state is stored under ``model.``.
        score: Fitted; its arrays are stored under ``score.``.
        manifest: A dataclass of plain values.
    """
    plain, arrays = score_state(score)
    tensors = {f'model.{name}': value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    tensors |= {f'score.{name}': value for name, value in arrays.items()}
    facts = dataclasses.asdict(manifest)
    content = pack(tensors, metadata={'format': str(FORMAT), 'known_classes': json.dumps(facts['known_classes'])})
    told = {'format': FORMAT, **facts, 'score': plain, 'tensors_sha256': hashlib.sha256(content).hexdigest(),
            'versions': versions()}
    write_atomic(Path(folder) / TENSORS, content)
    write_atomic(Path(folder) / JSON, json.dumps(told, indent=1) + '\n')


def load(folder: str | os.PathLike[str]) -> tuple[nn.Module, Score, dict[str, Any]]:
    """The model, the score and the manifest's entries of :func:`save`.

    Raises:
        ValueError: Files that are missing, damaged, of a newer version, or not of one save.
    """
    folder = Path(folder)
    facts = _read_json(folder / JSON)
    digest = facts.pop('tensors_sha256')
    tensors, names = _read_tensors(folder / TENSORS, digest)
    facts['known_classes'] = tuple(facts['known_classes'])
    if tuple(names) != facts['known_classes']:
        raise ValueError(f'{folder / JSON} names the classes {", ".join(facts["known_classes"])} and the weights were '
                         f'saved for {", ".join(names)}; {_AGAIN}')
    model = _model(folder / TENSORS, facts, {
        name.removeprefix('model.'): value for name, value in tensors.items() if name.startswith('model.')})
    score = restore_score(facts.pop('score'), {
        name.removeprefix('score.'): value for name, value in tensors.items() if name.startswith('score.')})
    facts['data_config'] = {key: tuple(value) if isinstance(value, list) else value
                            for key, value in facts['data_config'].items()}
    return model, score, facts


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f'no {JSON} in {path.parent}; name the folder that OpenSetClassifier.save wrote')
    try:
        facts = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}); {_AGAIN}') from error
    if not isinstance(facts, dict) or not isinstance(facts.get('format'), int):
        raise ValueError(f'{path} is not of a saved classifier; name the folder that OpenSetClassifier.save wrote')
    if facts['format'] > FORMAT:
        raise ValueError(f'{path} has format {facts["format"]}, this version reads up to {FORMAT}; '
                         'pip install -U gradmix-timm')
    del facts['format']
    facts.pop('versions', None)
    missing = _ENTRIES - set(facts)
    if missing:
        raise ValueError(f'{path} lacks {", ".join(sorted(missing))}; {_AGAIN}')
    return {name: facts[name] for name in _ENTRIES}


_ENTRIES = {
    'known_classes', 'threshold', 'known_acceptance', 'threshold_source', 'n_validation', 'model', 'model_kwargs',
    'data_config', 'amp_dtype', 'checkpoint', 'score', 'tensors_sha256'}


def _read_tensors(path: Path, digest: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors, and the class names they were saved for."""
    if not path.is_file():
        raise ValueError(f'no {TENSORS} in {path.parent}; copy both files, {JSON} and {TENSORS}')
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(f'{path} is damaged or not of one save with {JSON}: its SHA-256 is another; copy both files '
                         f'again, or {_AGAIN}')
    try:
        with safe_open(path, framework='pt') as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(  # noqa: SIM118 - not a dict
                (file.metadata() or {}).get('known_classes', '[]'))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f'{path} is no safetensors file ({error}); {_AGAIN}') from error


def _model(path: Path, facts: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    record = RunRecord(model=facts['model'], model_kwargs=facts['model_kwargs'], known_classes=facts['known_classes'])
    return build_model(Loaded(
        record=record, args=None, state_dict=weights, epoch=None, metric=None, sha256='', path=str(path)))
