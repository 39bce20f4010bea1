"""What results say of themselves: whose they are, and everything that the figures depend on."""
from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gradmix_timm.checkpoint import Loaded, pretraining, versions
from gradmix_timm.data import CutDataset

from .images import list_hash
from .model import EvaluatedModel

__all__ = ['identity', 'manifest']


def identity(model: EvaluatedModel) -> dict[str, Any]:
    """Whose results they are: checkpoint, seed, device, versions, time."""
    record = model.loaded.record if model.loaded is not None else None
    return {
        'checkpoint': model.title, 'seed': None if record is None else record.seed, 'device': _device_name(model),
        'versions': {**versions(), 'python': platform.python_version()},
        'created': datetime.now(UTC).isoformat(timespec='seconds')}


def manifest(model: EvaluatedModel, cuts: Mapping[str, CutDataset], source: Mapping[str, Any], seconds: float,
             command: str) -> dict[str, Any]:
    """What the figures depend on: model, images by list, preprocessing, settings, command.

    Args:
        model: What was evaluated.
        cuts: Sets of images by what they served for.
        source: Where they are.
        seconds: Spent on reading them.
        command: That did it.
    """
    settings = model.settings
    config = {} if model.preprocessing is None else model.preprocessing.as_config()
    preprocessing = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    amp = None if settings.amp_dtype is None else str(settings.amp_dtype).removeprefix('torch.')
    return {
        'model': model.name, 'parameters': sum(p.numel() for p in model.net.parameters()),
        **_checkpoint_facts(model.loaded), 'pretraining': _pretraining(model), **_run_folder(model.loaded),
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


def _pretraining(model: EvaluatedModel) -> str | None:
    if model.loaded is not None:
        return pretraining(model.loaded.args)
    return {'pretrained': pretraining(None, model.name), 'random': 'none'}.get(model.weights)


def _run_folder(loaded: Loaded | None) -> dict[str, str]:
    return {} if loaded is None else {'run_folder': str(Path(loaded.path).absolute().parent)}


def _device_name(model: EvaluatedModel) -> str:
    if model.device.type != 'cuda':
        return str(model.device)
    return f'{model.device} ({torch.cuda.get_device_name(model.device)})'
