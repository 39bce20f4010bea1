"""Albumentations pipelines from files, in place of timm's image transforms; only this module imports albumentations."""
from __future__ import annotations

import importlib
import inspect
import os
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from gradmix_timm.registry import nearest
from gradmix_timm.schema import read_json, read_yaml, shown

__all__ = ['PipelineTransform', 'Pipelines', 'build_pipeline', 'read_pipelines', 'recorded_pipeline']

_NAME = '__class_fullname__'
# Not allowed in a file, as the run appends them: a flag decides whether the CPU or the device normalises.
_ENDINGS = ('Normalize', 'ToFloat', 'FromFloat', 'ToTensorV2', 'ToTensor3D')
_SPLITS = ('train', 'eval')
# Allowed in an evaluation: deterministic when given single values instead of ranges, and without file access.
_FIXED = (
    'AutoContrast', 'Blur', 'CenterCrop', 'Compose', 'Crop', 'Equalize', 'GaussianBlur', 'HorizontalFlip',
    'InvertImg', 'LongestMaxSize', 'MedianBlur', 'NoOp', 'Pad', 'PadIfNeeded', 'Posterize', 'Resize', 'Sequential',
    'Sharpen', 'SmallestMaxSize', 'Solarize', 'ToGray', 'ToRGB', 'ToSepia', 'Transpose', 'UnsharpMask', 'VerticalFlip')
_LARGEST, _SEEDS = 8192, 16
_FILE_BYTES = 2 ** 20


@dataclass(frozen=True)
class Pipelines:
    """The pipelines of a file as albumentations' own dicts.

    Attributes:
        path: The file.
        train: Of the training images.
        eval: Of the validation images; None: timm's transform.
    """

    path: str
    train: dict[str, Any]
    eval: dict[str, Any] | None


class PipelineTransform:
    """One pipeline as a data set's transform: PIL image in, tensor [C, H, W] out.

    Every image gets its own seed from torch's random stream, as torchvision's transforms draw from it: two workers and
    two epochs differ, and a run is reproducible, also when resumed. (Albumentations alone would have every worker
    draw the same.)

    Args:
        pipeline: An albumentations ``Compose`` that yields uint8 [H, W, C].
        mean: Per channel, of pixels in [0, 1]; None: leave the pixels uint8, the loader normalises them.
        std: Per channel.
    """

    def __init__(self, pipeline: Any, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
                 ) -> None:
        self.pipeline = pipeline
        self.mean = None if mean is None else torch.tensor(mean).view(-1, 1, 1)
        self.std = None if std is None else torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Any) -> Tensor:
        """The augmented image, uint8 or normalised float32.

        Raises:
            ValueError: The pipeline cannot take the image; the message has its size.
        """
        pixels = np.array(image)  # a writable copy
        seed = int(torch.randint(2 ** 62, ()))
        # One pair of generators for all transforms, since equal seeds would give all of them equal draws.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', UserWarning)  # 'already gray', once an image
                changed = self.pipeline(image=pixels[..., None] if pixels.ndim == 2 else pixels)['image']
        except Exception as error:  # transforms raise any type, mostly for crops larger than the image
            raise ValueError(f'--aug-config: the pipeline fails on an image of {pixels.shape[0]} x {pixels.shape[1]} '
                             f'pixels: {" ".join(str(error).split())}') from error
        tensor = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(changed).transpose(2, 0, 1)))
        if self.mean is None or self.std is None:
            return tensor
        return tensor.float().div_(255).sub_(self.mean).div_(self.std)

    def picture(self, image: Image.Image) -> Image.Image:
        """The output of a pipeline without normalisation, as a PIL image."""
        picture: Image.Image = to_pil_image(self(image), image.mode)
        return picture

    def __repr__(self) -> str:
        return f'PipelineTransform({self.pipeline!r})'


def read_pipelines(path: str) -> Pipelines:
    """The pipelines of a YAML or JSON file, their transforms checked by name and by argument.

    Args:
        path: Keys ``train`` and, if wanted, ``eval``, each as ``albumentations.save`` writes a pipeline; or one such
            pipeline alone, for training.

    Raises:
        ValueError: An invalid file, an unknown transform or argument (the message names the nearest), or a transform
            that turns pixels into floats or tensors, which the run does itself.
        OSError: The file cannot be read.
    """
    given = _load(path)
    if 'transform' in given or _NAME in given:
        given = {'train': given}
    stray = [key for key in given if key not in _SPLITS]
    if stray or 'train' not in given:
        got = f'key {shown(stray[0])}' if stray else 'no key train'
        raise ValueError(f'{path}: expected train: and eval: with a pipeline each, as albumentations.save writes it, '
                         f'got {got}')
    found: dict[str, Any] = {'eval': None}
    for split, pipeline in given.items():
        found[split] = _checked(pipeline, f'{path}: {split}')
    return Pipelines(path, **found)


def build_pipeline(pipeline: dict[str, Any], where: str, input_size: tuple[int, int, int], mean: tuple[float, ...],
                   std: tuple[float, ...], crop_pct: float = 1.0, normalize: bool = False) -> PipelineTransform:
    """A pipeline for one model: placeholders filled, tried on blank images, its ending appended.

    Args:
        pipeline: Checked dict of :func:`read_pipelines`.
        where: File and split, for messages.
        input_size: (C, H, W) that it has to yield.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        crop_pct: Of the validation crop.
        normalize: Yield normalised float32 rather than uint8.

    Raises:
        ValueError: An argument that a transform does not take, or another size than the model's.
    """
    channels, height, width = input_size
    mean, std = (tuple(values) * channels if len(values) == 1 else tuple(values) for values in (mean, std))
    # $resize: what the validation crop is cut from; $fill: the mean colour, 0 to 255.
    filled = _filled(pipeline, {
        '$height': height, '$width': width, '$resize': [int(side / crop_pct) for side in (height, width)],
        '$fill': [round(255 * value) for value in mean]}, where)
    built, compose = _built(filled, where), _albumentations().Compose
    if not isinstance(built, compose):
        built = compose([built])
    for sides in ((height, width), (height + height // 2 + 3, width + width // 3 + 1)):
        _try(built, where, sides, channels, (height, width))
    return PipelineTransform(built, mean if normalize else None, std if normalize else None)


def recorded_pipeline(config: dict[str, Any], normalize: bool = True) -> PipelineTransform | None:
    """The evaluation transform of a run that was validated by a pipeline; None: by timm's transform.

    Args:
        config: timm's data configuration; the entry ``pipeline``, which training adds, has the pipeline of the file
            and its ``path``.
        normalize: Yield normalised float32 rather than uint8.

    Raises:
        ValueError: A pipeline that does not fit the size of ``config``, or this version of albumentations; one that
            draws at random or reads other files.
    """
    recorded = config.get('pipeline')
    if recorded is None:
        return None
    where = f'the evaluation pipeline of the checkpoint ({recorded["path"]})'
    node = _checked(recorded['transform'], where)
    _check_fixed(node, where)
    size = tuple(config['input_size'])
    found = build_pipeline(node, where, size, tuple(config['mean']), tuple(config['std']), config['crop_pct'],
                           normalize)
    _check_repeats(found.pipeline, where, size)
    return found


# ---- reading

def _load(path: str) -> dict[str, Any]:
    values = read_json(path, _FILE_BYTES) if path.endswith('.json') else read_yaml(path, _FILE_BYTES)
    if not isinstance(values, Mapping):
        raise ValueError(f'{path}: expected train: and eval: with a pipeline each, got {type(values).__name__}')
    return dict(values)


def _checked(given: Any, where: str) -> dict[str, Any]:
    """Check all nodes of a pipeline; arguments that only parent classes take are dropped, as from a saved one."""
    saved = isinstance(given, Mapping) and '__version__' in given
    return _checked_node(given.get('transform', given) if isinstance(given, Mapping) else given, where, saved)


def _checked_node(node: Any, where: str, saved: bool) -> dict[str, Any]:
    if not isinstance(node, Mapping) or _NAME not in node:
        raise ValueError(f'{where}: expected a transform with the key {_NAME}, got {shown(node)}')
    classes, name = _classes(), str(node[_NAME]).rpartition('.')[2]
    if name in _ENDINGS:
        raise ValueError(f'{where}: leave out {name}: the run itself makes tensors and normalises them with the '
                         "model's mean and std")
    if name not in classes:
        raise ValueError(f'{where}: albumentations has no transform {shown(name)}: {_near(name, classes)}')
    known = _arguments(classes[name])
    # albumentations.save also writes arguments of parent classes, which the class itself then refuses.
    inherited = {key for parent in classes[name].__mro__[1:] for key in _arguments(parent)} if saved else set()
    unknown = [key for key in node if key not in (_NAME, *known, *inherited)]
    if unknown:
        raise ValueError(f'{where}: {name} has no argument {shown(unknown[0])}: {nearest(unknown[0], known)}')
    checked = {key: value for key, value in node.items() if key in (_NAME, *known)}
    if isinstance(checked.get('transforms'), list):
        checked['transforms'] = [_checked_node(inner, where, saved) for inner in checked['transforms']]
    return checked


def _arguments(made: type) -> list[str]:
    return [name for name in inspect.signature(made.__init__).parameters  # type: ignore[misc]
            if name not in ('self', 'args', 'kwargs')]


def _near(name: str, classes: Mapping[str, Any]) -> str:
    """The nearest names, without the long list of all."""
    hint = nearest(name, classes).partition(' Available: ')
    return hint[0] if hint[1] else 'see https://explore.albumentations.ai'


def _filled(value: Any, known: Mapping[str, Any], where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(inner, known, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, known, where) for inner in value]
    if isinstance(value, str) and value.startswith('$'):
        if value not in known:
            raise ValueError(f'{where}: no placeholder {shown(value)}: {nearest(value, known)}')
        return known[value]
    return value


def _check_fixed(node: Mapping[str, Any], where: str) -> None:
    """Reject random transforms, file access and excessive sizes in an evaluation pipeline."""
    name = str(node[_NAME]).rpartition('.')[2]
    if name not in _FIXED:
        raise ValueError(f'{where}: {name} draws at random or reads other files, and an evaluation has to be '
                         f'deterministic; expected {", ".join(_FIXED)}')
    for key, value in node.items():
        if any(isinstance(entry, int) and abs(entry) > _LARGEST for entry in (
                value if isinstance(value, list | tuple) else [value])):
            raise ValueError(f'{where}: {name}: {shown(key)}: got {shown(value)}, expected at most {_LARGEST}')
    for inner in node['transforms'] if isinstance(node.get('transforms'), list) else []:
        _check_fixed(inner, where)


def _check_repeats(pipeline: Any, where: str, size: tuple[int, int, int]) -> None:
    """Reject an evaluation pipeline that sometimes skips a transform, or whose result depends on the seed."""
    parts = [pipeline]
    while parts:
        part = parts.pop()
        if part.p != 1:
            raise ValueError(f'{where}: {type(part).__name__} happens with p={part.p}, and an evaluation has to be '
                             'deterministic; write p: 1.0')
        parts += getattr(part, 'transforms', [])
    channels, height, width = size
    noise = np.random.default_rng(0).integers(0, 256, (height + height // 2 + 3, width + width // 3 + 1, channels))
    images = [noise.astype(np.uint8), (100 + noise // 16).astype(np.uint8)]  # a picture of little contrast too
    outputs = set()
    for seed in range(_SEEDS):
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        outputs.add(b''.join(np.ascontiguousarray(pipeline(image=image)['image']).tobytes() for image in images))
    if len(outputs) > 1:
        raise ValueError(f'{where}: {_SEEDS} seeds give {len(outputs)} results for the same image, and an '
                         'evaluation has to be deterministic; write single values in place of ranges')


# ---- building

def _albumentations() -> Any:
    os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')  # it asks the network for a newer version otherwise
    return importlib.import_module('albumentations')


def _classes() -> dict[str, type]:
    """Transforms and compositions by name."""
    library = _albumentations()
    bases = (library.BasicTransform, library.BaseCompose)
    return {name: found for name, found in vars(library).items()
            if inspect.isclass(found) and issubclass(found, bases) and found not in bases}


def _built(node: Mapping[str, Any], where: str) -> Any:
    """As ``albumentations.from_dict``, but an absent ``p`` is the transform's own default."""
    name = str(node[_NAME]).rpartition('.')[2]
    options = {key: value for key, value in node.items() if key != _NAME}
    if isinstance(options.get('transforms'), list):
        options['transforms'] = [_built(inner, where) for inner in options['transforms']]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            return _classes()[name](**options)
    except Exception as error:  # pydantic's, ValueError, TypeError, a warning made an error
        raise ValueError(f'{where}: {name}: {_reason(error)}') from error


def _reason(error: Exception) -> str:
    listed = getattr(error, 'errors', None)
    if callable(listed):  # pydantic: place and message, without its links
        first = listed()[0]
        return f'{".".join(map(str, first["loc"]))}: {first["msg"]}, got {shown(first["input"])}'
    return ' '.join(str(error).split())


def _try(pipeline: Any, where: str, sides: tuple[int, int], channels: int, wanted: tuple[int, int]) -> None:
    try:
        got = pipeline(image=np.full((*sides, channels), 128, np.uint8))['image']
    except Exception as error:
        raise ValueError(f'{where}: fails on an image of {sides[0]} x {sides[1]} pixels and {channels} channels: '
                         f'{_reason(error)}') from error
    if np.atleast_3d(got).shape != (*wanted, channels):
        raise ValueError(
            f'{where}: an image of {sides[0]} x {sides[1]} pixels comes out as {" x ".join(map(str, got.shape))}, '
            f'expected {wanted[0]} x {wanted[1]} x {channels}; end in a crop or a resize to $height and $width')
    if got.dtype != np.uint8:
        raise ValueError(f'{where}: pixels come out as {got.dtype}, expected uint8; leave out what makes floats')
