"""Save a classifier in two files, JSON and safetensors: reading them runs no code, and a mismatch is detected."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack
from torch import Tensor, nn

from gradmix_timm.checkpoint import (
    Count,
    DataConfig,
    Loaded,
    Name,
    ProjectionHead,
    RunRecord,
    build_model,
    check_model_kwargs,
    check_model_name,
    versions,
    write_atomic,
)
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.extract import extract
from gradmix_timm.openset.scores import Score
from gradmix_timm.openset.scores.serialization import restore_score, score_state
from gradmix_timm.schema import Length, Plain, Range, check, naming, read_json, shown

__all__ = ['FORMAT', 'JSON', 'TENSORS', 'load', 'save']

FORMAT = 1
#: Names of the two files.
JSON, TENSORS = 'classifier.json', 'classifier.safetensors'
_AGAIN = 'save the classifier again'


class _Facts(TypedDict):
    """Entries of classifier.json."""

    known_classes: Annotated[list[Name], Length(1)]
    threshold: float
    known_acceptance: Annotated[float, Range(0, 1)] | None
    threshold_source: Name
    n_validation: Count
    model: Annotated[str, Length(1, 200)]
    model_kwargs: dict[str, Plain]
    data_config: DataConfig
    amp_dtype: Literal['bfloat16', 'float16'] | None
    checkpoint: dict[str, Plain]
    score: dict[str, Plain]
    tensors_sha256: Annotated[str, Length(64, 64)]
    versions: NotRequired[dict[str, Name]]


def save(folder: str | os.PathLike[str], model: nn.Module, score: Score, manifest: Any,
         projection: nn.Module | None = None) -> None:
    """Write both files, each atomically, the JSON last.

    Args:
        folder: Created if missing.
        model: Its state is stored under ``model.``.
        score: Fitted; its arrays are stored under ``score.``.
        manifest: A dataclass of plain values.
        projection: Its state is stored under ``projection.``; None: there is none.

    Raises:
        ValueError: A live module that timm does not build again by its name.
    """
    if not manifest.checkpoint:
        _check_rebuilt(model, manifest)
    plain, arrays = score_state(score)
    parts = {'model': model, **({} if projection is None else {'projection': projection})}
    tensors = {f'{part}.{name}': value.detach().cpu().clone().contiguous()
               for part, module in parts.items() for name, value in module.state_dict().items()}
    tensors |= {f'score.{name}': value for name, value in arrays.items()}
    facts = dataclasses.asdict(manifest)
    content = pack(tensors, metadata={'format': str(FORMAT), 'known_classes': json.dumps(facts['known_classes'])})
    entries = {'format': FORMAT, **facts, 'score': plain, 'tensors_sha256': hashlib.sha256(content).hexdigest(),
               'versions': versions()}
    write_atomic(Path(folder) / TENSORS, content)
    write_atomic(Path(folder) / JSON, json.dumps(entries, indent=1) + '\n')


def load(folder: str | os.PathLike[str]) -> tuple[nn.Module, nn.Module | None, Score, dict[str, Any]]:
    """The model, projection head or None, score and manifest's entries of :func:`save`; tried on an image of noise.

    Raises:
        ValueError: Files are missing, damaged, of a newer version, not of one save, or otherwise invalid.
    """
    folder = Path(folder)
    facts = _read_json(folder / JSON)
    tensors, names = _read_tensors(folder / TENSORS, facts.pop('tensors_sha256'))
    if names != facts['known_classes']:
        raise ValueError(f'{folder / JSON} names the classes {shown(facts["known_classes"])} and the weights were '
                         f'saved for {shown(names)}; {_AGAIN}')
    facts['known_classes'] = tuple(names)
    with naming(folder / JSON):
        score = restore_score(facts.pop('score'), _part(tensors, 'score.'))
        record = RunRecord(model=facts['model'], model_kwargs=facts['model_kwargs'], known_classes=tuple(names))
        preprocessing = Preprocessing.of(facts['data_config'])
        head = _part(tensors, 'projection.')
        projection = ProjectionHead.from_state(head) if head else None
    model = build_model(Loaded(record=record, args=None, state_dict=_part(tensors, 'model.'), epoch=None, metric=None,
                               sha256='', path=str(folder / TENSORS)))
    _try(model, projection, score, preprocessing, len(names), folder / JSON)
    facts['data_config'] = preprocessing.as_config()
    return model, projection, score, facts


def _check_rebuilt(model: nn.Module, manifest: Any) -> None:
    try:
        build_model(Loaded(record=RunRecord(model=manifest.model, model_kwargs=manifest.model_kwargs), args=None,
                           state_dict=model.state_dict(), epoch=None, metric=None, sha256='', path=manifest.model))
    except Exception as error:  # timm raises any type on arguments that it does not know
        raise ValueError(
            f'a saved classifier is loaded by timm.create_model({manifest.model!r}, **{manifest.model_kwargs}), which '
            f'does not give this module ({" ".join(str(error).split())[:200]}); name what it needs, '
            'from_model(..., model_kwargs={...}), register a model of your own with timm, or use export_onnx'
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f'no {JSON} in {path.parent}; name the folder that OpenSetClassifier.save wrote')
    try:
        facts = read_json(path)
    except ValueError as error:
        raise ValueError(f'{error}; {_AGAIN}') from error
    if not isinstance(facts, dict) or type(facts.get('format')) is not int:
        raise ValueError(f'{path} is not of a saved classifier; name the folder that OpenSetClassifier.save wrote')
    if facts['format'] > FORMAT:
        raise ValueError(f'{path} has format {shown(facts["format"])}, this version reads up to {FORMAT}; '
                         'pip install -U gradmix-timm')
    check(facts, _Facts, str(path))
    check_model_name(facts['model'], str(path))
    check_model_kwargs(facts['model_kwargs'], str(path))
    return {name: facts[name] for name in _Facts.__annotations__ if name != 'versions'}


def _read_tensors(path: Path, digest: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors, and the class names they were saved for."""
    if not path.is_file():
        raise ValueError(f'no {TENSORS} in {path.parent}; copy both files, {JSON} and {TENSORS}')
    with path.open('rb') as content:
        if hashlib.file_digest(content, 'sha256').hexdigest() != digest:
            raise ValueError(f'{path} is damaged or not of one save with {JSON}: its SHA-256 is another; copy both '
                             f'files again, or {_AGAIN}')
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            names = json.loads((file.metadata() or {}).get('known_classes', '[]'))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no safetensors file ({error}); {_AGAIN}') from error
    return tensors, check(names, list[Name], f'{path}: known_classes')


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _try(model: nn.Module, projection: nn.Module | None, score: Score, preprocessing: Preprocessing, classes: int,
         path: Path) -> None:
    """Check on noise that the files' parts work together, before any image is classified."""
    noise = torch.randn(2, *preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    try:
        if vars(score).get('classes', classes) != classes:
            raise ValueError(f'the score has {shown(vars(score)["classes"])} classes and the model {classes}')
        seen = extract(model, [(noise, torch.zeros(2, dtype=torch.int64))], torch.device('cpu'), projection=projection)
        knownness, predicted = score(seen), score.predict(seen)
        if knownness.shape != (2,) or knownness.dtype is not torch.float64 or bool(knownness.isnan().any()):
            raise ValueError(f'the score of two images of noise is {shown(knownness.tolist())}')
        if predicted.shape != (2,) or not ((predicted >= 0) & (predicted < classes)).all():
            raise ValueError(f'the classes of two images of noise are {shown(predicted.tolist())}')
    except Exception as error:  # a tampered score may fail in any way
        raise ValueError(f'{path}: model, preprocessing and score do not work together '
                         f'({" ".join(str(error).split())[:300] or type(error).__name__}); {_AGAIN}') from error
