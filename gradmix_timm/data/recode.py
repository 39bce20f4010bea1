"""Images re-encoded before evaluation, so that the codec does not separate known from unknown."""
from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image
from typing_extensions import override

from .decoding import through_rgb
from .images import ImageSource
from .opening import open_image
from .subsets import CutDataset

__all__ = ['Codec', 'Recoded', 'parse_codec', 'recode']

_SYNTAX = 'expected jpeg:QUALITY with a quality from 1 to 100 (jpeg:85), or png'


@dataclass(frozen=True, slots=True)
class Codec:
    """An image file format with its quality.

    Attributes:
        name: 'jpeg' or 'png'.
        quality: Of JPEG, 1 to 100; None for PNG.
    """

    name: str
    quality: int | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB or grey image after encoding and decoding, in its own mode."""
        file = io.BytesIO()
        options: dict[str, Any] = {} if self.quality is None else {'quality': self.quality}
        image.save(file, format=self.name.upper(), **options)
        decoded = open_image(io.BytesIO(file.getvalue()))
        decoded.load()
        return decoded.convert(image.mode)

    def __str__(self) -> str:
        return self.name if self.quality is None else f'{self.name}:{self.quality}'


def parse_codec(text: str) -> Codec:
    """Parse a codec.

    Raises:
        ValueError: Another format, or a quality out of range.

    Example:
        >>> parse_codec('jpeg:85')
        Codec(name='jpeg', quality=85)
    """
    name, _, quality = text.lower().partition(':')
    if name == 'png' and not quality:
        return Codec('png')
    if name in ('jpeg', 'jpg') and quality.isdecimal() and 1 <= int(quality) <= 100:
        return Codec('jpeg', int(quality))
    raise ValueError(f'codec {text!r}: {_SYNTAX}')


class Recoded(ImageSource):
    """The images of a source, each encoded and decoded by a codec.

    Args:
        source: Of any kind.
        codec: The codec.
    """

    def __init__(self, source: ImageSource, codec: Codec) -> None:
        super().__init__(source.reader, source.input_img_mode)
        self.inner, self.codec = source, codec

    @override
    def read(self, index: int) -> tuple[Any, ...]:
        image, *rest = self.inner.read(index)
        return through_rgb(image, self.codec), *rest


def recode(cut: CutDataset, codec: Codec) -> CutDataset:
    """The same rows, read through a codec."""
    return CutDataset(Recoded(cut.source, codec), cut.indices, cut.targets, cut.classes, cut.transform)
