"""Restrictions on the content of untrusted files: names, sizes and settings, but nothing that opens, fetches or runs.

A checkpoint names its model and its training images. Since an untrusted one may contain any values,
it can never select a reader that runs commands or fetches (webdataset, Hugging Face, TensorFlow), a hub, a folder of
model code, or an argument of ``timm.create_model`` that loads weights. Flags that the user types are not restricted.
"""
from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import timm
from timm.models._builder import build_model_with_cfg

from gradmix_timm.schema import Length, Plain, Range, shown

__all__ = ['Count', 'DataConfig', 'Name', 'TimmArgs', 'check_data_dir', 'check_dataset', 'check_model_kwargs',
           'check_model_name', 'check_split']

#: Longest name of a class, a file, a setting.
Name = Annotated[str, Length(0, 4096)]
#: Largest number of classes, channels, images.
Count = Annotated[int, Range(0, 10_000_000)]
_Side = Annotated[int, Range(1, 4096)]
_Channels = Annotated[int, Range(1, 256)]
_Size = tuple[_Channels, _Side, _Side]
_Interpolation = Literal['', 'nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos']
_PerChannel = Annotated[tuple[float, ...], Length(1, 256)]
_Spread = Annotated[tuple[Annotated[float, Range(1e-6)], ...], Length(1, 256)]
# timm's own go from 0.875 to 1.15; images are resized to size / crop_pct.
_CropShare = Annotated[float, Range(0.2, 2)]
_CropMode = Literal['center', 'squash', 'border']

# Readers of folders, tars, torchvision's sets and scikit-learn's: they neither fetch nor run anything.
# A shortcut is drawn on their images: shortcut:NAME:option=value,...
_IMAGES = r'(torch/\w+|sklearn/\w+|folder)?'
_DATASETS = re.compile(rf'{_IMAGES}|shortcut:{_IMAGES}(:[\w=.,+-]*)?', re.ASCII | re.IGNORECASE)
_SCHEME = re.compile(r'[a-zA-Z][\w+.-]+:|//|\\\\')
_MODEL_NAME = re.compile(r'\w[\w.-]{0,199}', re.ASCII)
_WORD = re.compile(r'[\w.+-]{0,100}', re.ASCII)
_NUMBER, _ENTRIES = 16_384, 64
# Arguments of timm's factory, unlike those of the model's class, decide what is loaded and where to.
_FACTORY = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters,
            'cfg', 'device', 'dtype', 'feature_cls', 'features_only', 'out_indices', 'pruned'}


class Pipeline(TypedDict):
    """An albumentations pipeline as a checkpoint holds it."""

    path: Name
    transform: dict[str, Plain]


class DataConfig(TypedDict, total=False):
    """timm's data configuration, and this package's entries."""

    input_size: _Size
    interpolation: _Interpolation
    mean: _PerChannel
    std: _Spread
    crop_pct: _CropShare
    crop_mode: _CropMode
    image_mode: Annotated[str, Length(1, 10)]
    exif: Literal['ignore', 'apply']
    pipeline: NotRequired[Pipeline | None]


class TimmArgs(TypedDict, total=False):
    """The training arguments of timm that are read here."""

    model: Name | None
    model_kwargs: dict[str, Any] | None
    num_classes: Annotated[int, Range(-1, 10_000_000)] | None
    in_chans: _Channels | None
    input_size: _Size | None
    img_size: _Side | None
    gp: Name | None
    interpolation: _Interpolation | None
    mean: _PerChannel | None
    std: _Spread | None
    crop_pct: _CropShare | None
    crop_mode: _CropMode | None
    input_img_mode: Annotated[str, Length(0, 10)] | None
    dataset: Name | None
    data_dir: Name | None
    train_split: Name | None
    eval_metric: Name | None
    pretrained: bool | None
    pretrained_path: Name | None
    initial_checkpoint: Name | None


def check_model_name(name: str, path: str) -> str:
    """Check a model's name from a file.

    Raises:
        ValueError: It names a hub or a folder, from which timm would load arguments and weights.
    """
    if _MODEL_NAME.fullmatch(name) is None:
        raise ValueError(f'{path} names the model {shown(name)}, and a file may only name models of timm (no hub, no '
                         'folder); if you trust it, name the model yourself, --model NAME')
    return name


def check_model_kwargs(kwargs: Mapping[str, Any], path: str) -> None:
    """Check arguments of ``timm.create_model`` from a file: numbers, booleans, words, short lists of these.

    Raises:
        ValueError: An argument loads, fetches or places, or a value is of another kind.
    """
    for key, value in kwargs.items():
        if key in _FACTORY or key.startswith('pretrained'):
            raise ValueError(f'{path}: model_kwargs: {shown(key)} decides what timm loads or how it builds, which no '
                             'file may; keep the weights alone (state_dict) and name the model, --model NAME')
        values = value if isinstance(value, list | tuple) else [value]
        if not key.isidentifier() or len(values) > _ENTRIES or not all(map(_harmless, values)):
            raise ValueError(f'{path}: model_kwargs: {shown(key)}: got {shown(value)} ({type(value).__name__}), '
                             f'expected numbers up to {_NUMBER:,}, true or false, plain words, or short lists of these')
    for key, high in (('num_classes', 10_000_000), ('in_chans', 256), ('img_size', 4096)):
        sizes = kwargs.get(key) if isinstance(kwargs.get(key), list | tuple) else [kwargs.get(key)]
        if any(size is not None and (type(size) is not int or not 0 <= size <= high) for size in sizes or ()):
            raise ValueError(f'{path}: model_kwargs: {key}: got {shown(kwargs[key])}, expected whole numbers from 0 to '
                             f'{high:,}')


def _harmless(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, list | tuple):
        return len(value) <= _ENTRIES and all(isinstance(entry, bool | int | float) for entry in value)
    return value is None or (isinstance(value, bool | int | float) and -_NUMBER <= value <= _NUMBER)


def check_dataset(name: str, path: str) -> str:
    """Check a data set's name from a file.

    Raises:
        ValueError: Its reader fetches, or runs commands.
    """
    if _DATASETS.fullmatch(name) is None:
        raise ValueError(f'{path} names the data set {shown(name)}, whose reader may fetch or run things, which no '
                         'file may choose; if you trust it, name it yourself: --dataset NAME --data-dir DIR')
    return name


def check_data_dir(folder: str, path: str) -> str:
    """Check a folder of images from a file.

    Raises:
        ValueError: It is not a local path, but a URL, a pipe or a network share.
    """
    # Names that are not UTF-8 hold surrogates.
    if _SCHEME.match(folder) or not re.sub('[\udc80-\udcff]', '', folder).isprintable():
        raise ValueError(f'{path} says that its images are in {shown(folder)}, which is no folder here; name it '
                         'yourself, --data-dir DIR')
    return folder


def check_split(name: str, path: str) -> str:
    """Check a split's name from a file: a folder below that of the data.

    Raises:
        ValueError: It leads out of that folder.
    """
    if _SCHEME.match(name) or not name.isprintable() or '\\' in name or name.startswith('/') or '..' in name.split('/'):
        raise ValueError(f'{path} names the split {shown(name)}, which is no folder below that of its images; name it '
                         'yourself, --train-split NAME, --test-split NAME')
    return name
