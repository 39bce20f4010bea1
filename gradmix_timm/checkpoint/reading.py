"""Read any checkpoint that timm can load, without executing code from it."""
from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from gradmix_timm.schema import check, naming

from .allowed import TimmArgs, check_data_dir, check_dataset, check_model_kwargs, check_split
from .projection import ProjectionHead
from .record import KEY, RunRecord, brief

_logger = logging.getLogger(__name__)
_EXPECTED = ("expected a checkpoint of this package's or timm's training, a state dict saved with torch.save, or a "
             '.safetensors file')
_WRAPPERS = ('_fsdp_wrapped_module.', '_checkpoint_wrapped_module.', '_orig_mod.')
# Leading bytes of files that are passed by mistake.
_KINDS = {
    b'\x89PNG': 'a PNG image', b'\xff\xd8\xff': 'a JPEG image', b'GIF8': 'a GIF image', b'%PDF': 'a PDF',
    b'\x1f\x8b': 'a gzip archive', b'\xfd7zXZ': 'an xz archive', b'\x93NUMPY': 'a NumPy array',
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself (git lfs pull fetches it)',
    b'PK': 'a zip archive that is cut short or not from torch.save',
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory, on the CPU.

    Attributes:
        record: This package's record of the run, or None.
        args: timm's training arguments, or None.
        state_dict: Weights, without prefixes of wrappers.
        epoch: Of the checkpoint, or None.
        metric: By which it was kept, or None.
        sha256: Of the file, hexadecimal.
        path: Where it was read.
        ema: Whether the weights are the moving average.
        arch: timm's name for the model in a checkpoint without args, or None.
        projection: Weights of the projection head of a contrastive objective, or None.
    """

    record: RunRecord | None
    args: dict[str, Any] | None
    state_dict: dict[str, Tensor]
    epoch: int | None
    metric: float | None
    sha256: str
    path: str
    ema: bool = False
    arch: str | None = None
    projection: dict[str, Tensor] | None = None

    @property
    def model(self) -> str | None:
        """The recorded name of the model, or None."""
        if self.record is not None:
            return self.record.model
        return self._arg('model') or self.arch

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """What ``timm.create_model`` needs besides the name."""
        if self.record is not None:
            return dict(self.record.model_kwargs)
        channels = self._arg('in_chans') or next(iter(self._arg('input_size') or ()), None)
        found = {'num_classes': self._arg('num_classes'), 'in_chans': channels, 'global_pool': self._arg('gp'),
                 **(self._arg('model_kwargs') or {})}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def dataset(self) -> str:
        """Name of the data set that trained it, '' for class folders or where none is recorded.

        Raises:
            ValueError: Its reader must not be selected by a file.
        """
        return check_dataset((self.record.dataset if self.record is not None else self._arg('dataset')) or '',
                             self.path)

    @property
    def data_dir(self) -> str | None:
        """Folder of its images.

        Raises:
            ValueError: It is not a local folder.
        """
        folder = self.record.data_dir if self.record is not None else self._arg('data_dir')
        return check_data_dir(folder, self.path) if folder else None

    @property
    def splits(self) -> dict[str, str]:
        """Its split names, ``{'train': ..., 'test': ...}`` as far as they are recorded.

        Raises:
            ValueError: A split leads out of the folder.
        """
        found = self.record.splits if self.record is not None else {'train': self._arg('train_split')}
        return {part: check_split(name, self.path) for part, name in found.items() if name}

    def _arg(self, name: str) -> Any:
        return (self.args or {}).get(name)

    @property
    def data_config(self) -> dict[str, Any]:
        """The recorded preprocessing, as arguments of timm's ``resolve_data_config``."""
        if self.record is not None:
            return {key: tuple(value) if isinstance(value, list) else value
                    for key, value in self.record.data_config.items()}
        names = ('in_chans', 'input_size', 'img_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode',
                 'input_img_mode')
        return {name: value for name in names if (value := self._arg(name)) is not None}


def load_checkpoint(path: str | os.PathLike[str], ema: bool | None = None) -> Loaded:
    """Read a checkpoint: ours, timm's, a bare state dict or safetensors; nothing in it is ever executed.

    Args:
        path: The file.
        ema: True: the moving average, which must exist; False: the plain weights; None: those that training validated
            and picked its best checkpoint by, the average if there is one, unless --model-ema-force-cpu kept it aside.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is another kind of file; the message names it and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        inside = next((n for n in ('model_best.pth.tar', 'last.pth.tar') if (path / n).is_file()), '*.pth.tar')
        raise ValueError(f'{path} is a folder, a checkpoint is a file; name the file: {path / inside}')
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at {path}; give the path of model_best.pth.tar in a run folder')
    content = _read(path)
    entry, averaged = _weights_entry(content, path, ema)
    weights = content[entry] if entry else content
    if not _is_state_dict(weights):
        raise ValueError(f'{path} holds {brief(weights)}, no weights; {_EXPECTED}')
    content = content if entry else {}
    args = content.get('args')
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    args = check(args, TimmArgs, f'{path}: args') if isinstance(args, dict) else None
    check_model_kwargs((args or {}).get('model_kwargs') or {}, f'{path}: args')
    arch, epoch, metric = (content.get(key) for key in ('arch', 'epoch', 'metric'))
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return Loaded(
        record=RunRecord.from_state(content[KEY], path) if KEY in content else None,
        args=args, state_dict=_unwrapped(weights), epoch=epoch if type(epoch) is int else None,
        metric=_figure(metric),
        sha256=digest, path=str(path), ema=averaged,
        arch=arch if isinstance(arch, str) and timm.is_model(arch) else None,
        projection=_projection(content.get('task_state_ema' if averaged else 'task_state'), path))


def _figure(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) <= sys.float_info.max else None


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefixes that DDP, torch.compile, FSDP and activation checkpointing put into names.

    The step counter of an averaged model (``torch.optim.swa_utils``) is dropped.
    """
    found = {}
    for key, value in weights.items():
        for word in _WRAPPERS:
            key = key.replace(word, '')
        if key != 'n_averaged':
            found[key] = value
    return clean_state_dict(found)


def _projection(state: Any, path: Path) -> dict[str, Tensor] | None:
    """Weights of the projection head among a task's state."""
    head = state.get('projection_head') if isinstance(state, Mapping) else None
    if head is None:
        return None
    if not _is_state_dict(head):
        raise ValueError(f'{path}: projection_head is {brief(head)}, expected weights')
    with naming(f'{path}: projection_head'):
        ProjectionHead.from_state(head)
    return dict(head)


def _read(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise ValueError(f'{path} is empty (0 bytes); {_EXPECTED}')
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        _check_stored(path)
        # timm stores its parsed arguments; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # For a plain pickle PyTorch's message asks to file an issue; the error below identifies the file.
            warnings.filterwarnings('ignore', 'Detected pickle protocol', UserWarning)
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # readers raise any type on foreign bytes
        raise ValueError(f'{path} is {_kind(path)}; {_EXPECTED}') from error


def _check_stored(path: Path) -> None:
    """Reject compressed archives: torch.save never compresses, and a small file could expand to any size.

    Raises:
        ValueError: The entries are larger than the file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError(path)


def _kind(path: Path) -> str:
    with path.open('rb') as file:
        head = file.read(64)
    objects = []
    with suppress(Exception), torch.serialization.safe_globals([argparse.Namespace]):  # raises on other files
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if objects:
        named = ', '.join(sorted(objects)[:3])
        return f'a pickle of objects that are not loaded: that can run code ({named}); save model.state_dict() instead'
    text = head.isascii() and head.translate(None, b'\r\n\t').decode().isprintable()
    other = f'text, beginning {head[:24].decode()!r}' if text else 'no checkpoint, or a damaged one'
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), other)


def _weights_entry(content: Any, path: Path, ema: bool | None) -> tuple[str, bool]:
    """Key of the weights ('' for a bare state dict) and whether they are the moving average."""
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    averaged = next((key for key in ('state_dict_ema', 'model_ema') if found.get(key) is not None), '')
    if ema and not averaged:
        raise ValueError(f'{path} holds no moving average (EMA) of the weights; pass ema=None')
    args = found.get('args')
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    aside = isinstance(args, Mapping) and bool(args.get('model_ema_force_cpu'))
    if averaged and ema is None and aside:
        _logger.info(f'{path}: the plain weights are read: its moving average was kept on the CPU, where training does '
                     'not validate it')
    elif averaged and ema is not False:
        return averaged, True
    return next((key for key in ('state_dict', 'model') if isinstance(found.get(key), dict)), ''), False


def _is_state_dict(content: Any) -> bool:
    return (isinstance(content, dict) and len(content) > 0
            and all(isinstance(key, str) and _is_weights(value) for key, value in content.items()))


def _is_weights(value: Any) -> bool:
    """Whether a value is a dense tensor of plain numbers: not sparse, quantised or without storage."""
    return (isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == 'cpu'
            and not value.is_quantized and not value.is_complex()
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes())
