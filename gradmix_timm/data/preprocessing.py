"""Preprocessing from image file to tensor, as one record that checkpoints keep and all readers of images use."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.model_config import resolve_input_data_config
from torch import nn
from torchvision.transforms import Compose

from gradmix_timm.choices import EXIF_RULES, MODES

from .decoding import decode
from .transforms import PipelineTransform, recorded_pipeline

__all__ = ['CROP_MODES', 'FILTERS', 'Preprocessing']

#: timm's: cut the middle of the shorter side's square; squeeze the whole picture; frame the whole picture.
CROP_MODES = ('center', 'squash', 'border')
#: timm's names of Pillow's filters.
FILTERS = ('nearest', 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming')
_MODE_OF = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Everything between an image file and what a model reads in evaluation.

    Attributes:
        input_size: (C, H, W).
        image_mode: PIL mode with C channels of 8 bits that files are converted to: 'RGB', 'L', 'RGBA', 'HSV', ...
        interpolation: One of :data:`FILTERS`.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
        crop_pct: Side of the crop as a share of the resized picture's.
        crop_mode: One of :data:`CROP_MODES`.
        exif: 'ignore' or 'apply' the orientation that a camera wrote beside the pixels.
        pipeline: albumentations' in place of timm's resize and crop: ``path`` of the file that it came from and
            ``transform``, albumentations' own dict; or None.

    Example:
        >>> Preprocessing.of({'input_size': (3, 32, 32), 'crop_pct': 0.8, 'crop_mode': 'squash'}).crop_mode
        'squash'
    """

    input_size: tuple[int, int, int]
    image_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str = 'center'
    exif: str = 'ignore'
    pipeline: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Take values as plain numbers and reject those that cannot be applied; messages name the training flag.

        Raises:
            ValueError: A value is invalid; the message gives the expected ones.
        """
        object.__setattr__(self, 'input_size', tuple(map(int, self.input_size)))  # NumPy's numbers fit no file
        object.__setattr__(self, 'crop_pct', float(self.crop_pct))
        channels, *sides = self.input_size
        if self.image_mode not in MODES:
            raise ValueError(f'--input-img-mode {self.image_mode}: expected a mode of PIL with 8 bits a channel: '
                             f'{", ".join(MODES)}')
        if MODES[self.image_mode] != channels:
            raise ValueError(
                f'the model takes {channels} channels and images are read as {self.image_mode}, which has '
                f'{MODES[self.image_mode]}; type --in-chans {MODES[self.image_mode]}, or another --input-img-mode (L '
                'has 1, LA 2, RGB 3, RGBA 4)')
        if min(sides) < 1 or not self.crop_pct > 0:
            raise ValueError(f'input_size {self.input_size} with crop_pct {self.crop_pct}: expected positive numbers')
        for name in ('mean', 'std'):
            values = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, values * channels if len(values) == 1 else values)
            if len(values) not in (1, channels):
                raise ValueError(f'{name} {values} with {channels} channels: expected one number, or one a channel')
        for name, allowed in (('interpolation', FILTERS), ('crop_mode', CROP_MODES), ('exif', EXIF_RULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name} {getattr(self, name)!r}: expected {", ".join(allowed)}')

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, model: nn.Module | None = None, img_size: int | None = None,
           ) -> Preprocessing:
        """The preprocessing of a configuration; missing entries are the model's own, then timm's defaults.

        Args:
            config: Of :meth:`as_config`, or timm's arguments of training, which lack ``exif`` (images are as stored).
            model: Whose ``pretrained_cfg`` fills in, and whose input is checked.
            img_size: Side in pixels in place of the configuration's.

        Raises:
            ValueError: Values that contradict each other or the model.
        """
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                 for key, value in (config or {}).items() if value is not None}
        if img_size is not None:
            own: Any = getattr(model, 'pretrained_cfg', None) or {}
            channels = next(iter(given.get('input_size') or own.get('input_size', (3,))))
            given['input_size'] = (given.get('in_chans', channels), img_size, img_size)
            given.pop('img_size', None)
        try:
            if getattr(model, 'pretrained_cfg', None):
                timms = resolve_input_data_config(model, given)
            else:
                timms = resolve_data_config(given or {'in_chans': 3})
        except AssertionError as error:
            raise ValueError(f'a preprocessing of input_size {given.get("input_size")}, mean {given.get("mean")}, std '
                             f'{given.get("std")}: expected (C, H, W), and one number or C numbers') from error
        channels = timms['input_size'][0]
        return cls(
            **timms, exif=given.get('exif', 'ignore'), pipeline=given.get('pipeline'),
            image_mode=given.get('image_mode') or given.get('input_img_mode') or _MODE_OF.get(channels, 'RGB'))

    @property
    def channels(self) -> int:
        """Of the model's input."""
        return self.input_size[0]

    def reading_options(self) -> dict[str, Any]:
        """Arguments of :func:`~gradmix_timm.data.open_dataset` that decide how its files are decoded."""
        return {'img_mode': self.image_mode, 'exif': self.exif}

    def loader_options(self) -> dict[str, Any]:
        """Arguments of timm's ``create_loader``; a pipeline is none: set the data set's transform afterwards."""
        return {'input_size': self.input_size, 'interpolation': self.interpolation, 'mean': self.mean, 'std': self.std,
                'crop_pct': self.crop_pct, 'crop_mode': self.crop_mode}

    def decode(self, image: Image.Image, name: Any = '') -> Image.Image:
        """An opened image in the model's mode, see :func:`~gradmix_timm.data.decoding.decode`."""
        return decode(image, self.image_mode, self.exif, name)

    def transform(self, normalize: bool = True) -> Any:
        """The transform of an image in the model's mode (see :meth:`decode`) to a tensor [C, H, W].

        Args:
            normalize: Yield normalised float32; else uint8, for loaders that normalise on the device.

        Raises:
            ValueError: A pipeline that does not fit the input size, or this version of albumentations.
        """
        if self.pipeline is not None:
            return recorded_pipeline(self.as_config(), normalize)
        return create_transform(**self.loader_options(), is_training=False, normalize=normalize)

    def crop(self) -> Callable[[Image.Image], Image.Image]:
        """The part of the transform before conversion to a tensor, from picture to picture; it can be pickled."""
        steps = self.transform(normalize=False)
        return steps.picture if isinstance(steps, PipelineTransform) else Compose(steps.transforms[:-1])

    def cropped(self) -> Preprocessing:
        """The preprocessing of pictures that :meth:`crop` has already cropped."""
        return replace(self, crop_pct=1.0, crop_mode='center', pipeline=None)

    def onnx_metadata(self) -> dict[str, Any]:
        """The record, and as ``preprocessing`` its steps in order, precise enough to implement without this package.

        A step is a dict: ``orient``, ``convert``, ``resize``, ``pad``, ``crop`` or ``albumentations``, and ``scale``,
        which yields what the graph reads. H and W in their formulas are the picture's sides before the step, ``/``
        divides in float64, ``round`` goes to the even number at halves, ``floor`` down.
        """
        return {**self.as_config(), 'preprocessing': [*self._decoding_steps(), *self._crop_steps(), {
            'step': 'scale', 'value': 'float32(pixel) / 255', 'layout': '[channel, row, column]'}]}

    def _decoding_steps(self) -> list[dict[str, Any]]:
        upright = {'step': 'orient', 'by': 'EXIF orientation (tag 0x0112), as PIL.ImageOps.exif_transpose'}
        convert = {
            'step': 'convert', 'mode': self.image_mode, 'as': 'PIL.Image.convert',
            'deeper pixels': 'floats from 0 to 1: round(255 * value); integers, where one of the image exceeds 255: '
                             'round(value / 257); then grey'}
        return [upright, convert] if self.exif == 'apply' else [convert]

    def _crop_steps(self) -> list[dict[str, Any]]:
        """The resize and center crop of timm's ``transforms_imagenet_eval``, with the rounding of torchvision's."""
        if self.pipeline is not None:
            return [{'step': 'albumentations', 'transform': self.transform(normalize=False).pipeline.to_dict()}]
        height, width = self.input_size[1:]
        tall, wide = (math.floor(side / self.crop_pct) for side in (height, width))
        resize = {'step': 'resize', 'filter': self.interpolation, 'as': 'PIL.Image.resize: antialiased, 8 bits out'}
        if self.crop_mode == 'squash':
            resize |= {'height': f'{tall}', 'width': f'{wide}'}
        elif self.crop_mode == 'center' and tall == wide:
            resize |= {'height': f'{tall} if H <= W else floor({tall} * H / W)',
                       'width': f'{tall} if W <= H else floor({tall} * W / H)'}
        else:
            ratio = f'{"max" if self.crop_mode == "border" else "min"}(H / {tall}, W / {wide})'
            resize |= {'height': f'round(H / {ratio})', 'width': f'round(W / {ratio})'}
        fill = [round(255 * value) if self.crop_mode == 'border' else 0 for value in self.mean]
        return [
            resize,
            {'step': 'pad', 'top': f'floor(max({height} - H, 0) / 2)', 'left': f'floor(max({width} - W, 0) / 2)',
             'height': f'max({height}, H)', 'width': f'max({width}, W)', 'fill': fill},
            {'step': 'crop', 'top': f'round((H - {height}) / 2)', 'left': f'round((W - {width}) / 2)',
             'height': f'{height}', 'width': f'{width}'}]

    def as_config(self) -> dict[str, Any]:
        """The record of a checkpoint, of builtin types; timm's ``resolve_data_config`` reads the entries it knows."""
        found = asdict(self)
        if self.pipeline is None:
            del found['pipeline']
        return found
