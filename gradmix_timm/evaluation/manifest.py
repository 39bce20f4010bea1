"""The provenance of results: the model and everything else that the figures depend on."""
from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from gradmix_timm.checkpoint import pretraining, versions
from gradmix_timm.data import CutDataset
from gradmix_timm.openset.results import Facts, Manifest
from gradmix_timm.schema import Plain

from .images import EvaluationImages, list_hash
from .model import EvaluatedModel

__all__ = ['facts_of']


def facts_of(model: EvaluatedModel, images: EvaluationImages, cuts: Mapping[str, CutDataset], seconds: float,
             command: str) -> Facts:
    """The part of results.json that describes its provenance.

    Args:
        model: What was evaluated.
        images: All of them.
        cuts: Sets that were read, by their role.
        seconds: Spent on reading them.
        command: The command line.
    """
    record = model.loaded.record if model.loaded is not None else None
    split = images.split
    return {
        'format': 1, 'protocol': split.protocol, 'family': split.family, 'trial': split.trial,
        'checkpoint': model.title, 'seed': None if record is None else record.seed, 'device': _device_name(model),
        'versions': {**versions(), 'python': platform.python_version()},
        'created': datetime.now(UTC).isoformat(timespec='seconds'), 'skipped': model.skipped,
        'manifest': _manifest(model, cuts, images.source, seconds, command)}


def _manifest(model: EvaluatedModel, cuts: Mapping[str, CutDataset], source: Mapping[str, Plain], seconds: float,
              command: str) -> Manifest:
    settings, loaded = model.settings, model.loaded
    config = {} if model.preprocessing is None else model.preprocessing.as_config()
    preprocessing = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    amp = None if settings.amp_dtype is None else str(settings.amp_dtype).removeprefix('torch.')
    found: Manifest = {'model': model.name, 'parameters': sum(p.numel() for p in model.net.parameters())}
    if loaded is not None:
        found |= {'checkpoint_sha256': loaded.sha256, 'epoch': loaded.epoch, 'metric': loaded.metric,
                  'moving_average': loaded.ema}
    if loaded is not None and loaded.record is not None:
        record = loaded.record
        found |= {'mixer': record.mixer, 'mixer_options': record.mixer_options, 'objective': record.objective,
                  'trained_with': record.versions}
    found['pretraining'] = pretraining(loaded.args) if loaded is not None else {
        'pretrained': pretraining(None, model.name), 'random': 'none'}.get(model.weights)
    if loaded is not None:
        found['run_folder'] = str(Path(loaded.path).absolute().parent)
    found |= {
        'data': {**source, **{f'n_{name}': len(cut) for name, cut in cuts.items()}},
        'list_sha256': {name: list_hash(cut) for name, cut in cuts.items()},
        'preprocessing': preprocessing,
        'preprocessing_sha256': hashlib.sha256(
            json.dumps(preprocessing, sort_keys=True, default=str).encode()).hexdigest(),
        'settings': {'batch_size': settings.batch_size, 'amp_dtype': amp, 'channels_last': settings.channels_last,
                     'bootstrap': settings.bootstrap, 'bootstrap_seed': settings.seed, 'level': 0.95},
        'extraction': {'seconds': round(seconds, 2), 'images': sum(map(len, cuts.values())),
                       **({} if model.cache is None else {'from_cache': model.cache.hits})},
        'command': command}
    return found


def _device_name(model: EvaluatedModel) -> str:
    if model.device.type != 'cuda':
        return str(model.device)
    return f'{model.device} ({torch.cuda.get_device_name(model.device)})'
