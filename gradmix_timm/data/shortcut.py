"""A data set with a shortcut: a mark that identifies the class is drawn on its images at a known position.

A net trained on such images may learn the mark instead of the objects. Test images
without the mark, or with that of another class, show how far it did; the mass of an attribution map on the mark shows
whether the map reveals it.
"""
from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from typing_extensions import override

from gradmix_timm.registry import Registry, nearest

from .class_names import find_classes
from .decoding import through_rgb
from .images import ImageSource
from .subsets import CutDataset, class_names

__all__ = ['MARKS', 'VIEWS', 'Shortcut', 'ShortcutSource', 'View', 'bearing', 'canonical_name', 'inner_name',
           'parse_shortcut', 'viewed']

View: TypeAlias = Literal['trained', 'own', 'absent', 'conflict']
#: As in training (a share of the images has its class's mark), all with it, none, all with another known class's.
VIEWS: tuple[View, ...] = ('trained', 'own', 'absent', 'conflict')
PREFIX = 'shortcut:'
_DIGITS, _DIGITS_SIDE = 'sklearn/digits', 32
_PLACES = ('random', 'fixed')
# From this height on, the letters of 1000 classes differ in their pixels.
_READABLE = 6

Pixels: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Brush:
    """What a mark is drawn with.

    Attributes:
        number: Of the class that the mark identifies, from 0.
        classes: How many there are.
        side: Of the mark, in pixels.
        spot: Its position, as shares of the space that is left below and to the right, each in [0, 1).
    """

    number: int
    classes: int
    side: int
    spot: tuple[float, float]

    @property
    def colour(self) -> Pixels:
        """The class's: hues evenly apart, saturated; uint8 [3]."""
        return np.rint(255 * np.array(colorsys.hsv_to_rgb(self.number / self.classes, 1, 1))).astype(np.uint8)

    def box(self, shape: Sequence[int], height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a mark of this size, clipped to the image."""
        corner = [int(share * (max(whole - side, 0) + 1))
                  for share, whole, side in zip(self.spot, shape, (height, width), strict=False)]
        return slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width)


# (pixels [H, W, 3], brush) -> what is drawn, as pixels [H, W, 3] or one colour [3], and where, bool [H, W].
Mark: TypeAlias = Callable[[Pixels, Brush], tuple[Pixels, Mask]]

MARKS: Registry[Mark] = Registry('shortcut')
#: Kinds that work on grey images.
_GREY = ('text', 'texture')


@MARKS.register('patch', "a square of the class's colour")
def _patch(pixels: Pixels, brush: Brush) -> tuple[Pixels, Mask]:
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[brush.box(mask.shape, brush.side, brush.side)] = True
    return brush.colour, mask


@MARKS.register('border', "a frame of the class's colour, as wide as the side")
def _border(pixels: Pixels, brush: Brush) -> tuple[Pixels, Mask]:
    mask = np.ones(pixels.shape[:2], dtype=bool)
    mask[brush.side:-brush.side, brush.side:-brush.side] = False
    return brush.colour, mask


@MARKS.register('text', "a white watermark, the class's letters, as high as the side")
def _text(pixels: Pixels, brush: Brush) -> tuple[Pixels, Mask]:
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    letters = _letters(brush.number, min(brush.side, len(mask)))
    rows, columns = brush.box(mask.shape, *letters.shape)
    there = mask[rows, columns]
    there |= letters[:there.shape[0], :there.shape[1]]
    return np.full(3, 255, np.uint8), mask


@MARKS.register('texture', "a square of grey stripes, whose direction is the class's")
def _texture(pixels: Pixels, brush: Brush) -> tuple[Pixels, Mask]:
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[brush.box(mask.shape, brush.side, brush.side)] = True
    angle = np.pi / 2 * brush.number / brush.classes  # of a quarter turn: a flipped mark is no other class's
    y, x = np.indices(mask.shape)
    waves = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 4)  # 4 pixels a wave
    return np.repeat(np.rint(127.5 * (1 + waves)).astype(np.uint8)[..., None], 3, 2), mask


@MARKS.register('background', "the class's colour where the image is as its border is (median, within 32 of 255)")
def _background(pixels: Pixels, brush: Brush) -> tuple[Pixels, Mask]:
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return brush.colour, (np.abs(pixels - np.median(edge, axis=0)) <= 32).all(2)


@MARKS.register('tint', "the class's colour over the whole image; strength=0.2 keeps it visible")
def _tint(pixels: Pixels, brush: Brush) -> tuple[Pixels, Mask]:
    return brush.colour, np.ones(pixels.shape[:2], dtype=bool)


def _letters(number: int, height: int) -> Mask:
    """A, B, ..., Z, AA, ... as a bitmap of this height, bool [height, W]."""
    word = ''
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        word = chr(ord('A') + letter) + word
    font = ImageFont.load_default(48)
    left, top, right, bottom = (round(side) for side in font.getbbox(word))
    image = Image.new('L', (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), word, fill=255, font=font)
    width = max(1, round(image.width * height / image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)) > 96


@functools.cache  # every view of a data set asks anew
def _check_letters(known: tuple[int, ...], side: int) -> None:
    """Reject text marks too low to tell the classes.

    Raises:
        ValueError: A mark without a pixel, or the same one for two classes.
    """
    seen: dict[tuple[tuple[int, ...], bytes], int] = {}
    for number in known:
        letters = _letters(number, side)
        other = seen.setdefault((letters.shape, letters.tobytes()), number)
        if other != number or not letters.any():
            what = (f'the marks of classes {other} and {number} are alike' if letters.any() else
                    f'the mark of class {number} has no pixel')
            raise ValueError(f'shortcut kind=text,side={side}: {what}; expected side={_READABLE} or more, which tells '
                             '1000 classes apart')


# ---- by name

@dataclass(frozen=True, slots=True)
class Shortcut:
    """Which mark, on which images, where.

    Attributes:
        kind: One of :data:`MARKS`, or several joined by +, each at its own position.
        side: In pixels; of text its height, of a border its width.
        share: Of the training images that carry it, 0 to 1.
        place: 'random': of each image its own; 'fixed': the same on all.
        seed: With an image's position in the data set it determines all random draws.
        size: The shorter side to which images are resized before; 0: as stored.
        strength: Opacity of the mark; 1 covers the image below.

    Raises:
        ValueError: No such kind or place, or a number out of range.
    """

    kind: str = 'patch'
    side: int = 5
    share: float = 1.0
    place: str = 'random'
    seed: int = 0
    size: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Reject marks that cannot be drawn."""
        for kind in self.kinds:
            MARKS[kind]
        if self.place not in _PLACES:
            raise ValueError(f'place={self.place}: {nearest(self.place, _PLACES)}')
        for name, low, high in (('side', 1, 4096), ('share', 0, 1), ('seed', 0, 2 ** 32), ('size', 0, 4096),
                                ('strength', 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f'{name}={getattr(self, name)}: expected {low} to {high}')

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its marks."""
        return tuple(self.kind.split('+'))

    def __str__(self) -> str:
        return ','.join(f'{name}={str(value).removesuffix(".0")}' for name, value in asdict(self).items())

    def draw(self, image: Image.Image, number: int, classes: int, spots: NDArray[np.float64],
             ) -> tuple[Image.Image, Mask]:
        """An RGB or grey image with the mark of a class, and where the mark is, bool [H, W].

        Raises:
            ValueError: A coloured mark on a grey image.
        """
        if image.mode == 'L' and (coloured := [kind for kind in self.kinds if kind not in _GREY]):
            raise ValueError(f'shortcut kind={coloured[0]} is a colour, and the images are grey (PIL mode L): use '
                             f'three channels (--in-chans 3), or {" or ".join(_GREY)}')
        pixels = np.asarray(image.convert('RGB'))
        covered = np.zeros(pixels.shape[:2], dtype=bool)
        for kind, spot in zip(self.kinds, spots, strict=True):
            layer, mask = MARKS[kind](pixels, Brush(number, classes, self.side, (float(spot[0]), float(spot[1]))))
            blend = np.rint(pixels + self.strength * (layer - pixels.astype(np.float64))).astype(np.uint8)
            pixels = np.where(mask[..., None], blend, pixels)
            covered |= mask
        return Image.fromarray(pixels).convert(image.mode), covered


def parse_shortcut(name: str) -> tuple[str, Shortcut]:
    """The wrapped data set's name and the shortcut of ``shortcut:NAME`` or ``shortcut:NAME:side=5,share=0.9``.

    Args:
        name: NAME as :func:`~gradmix_timm.data.open_dataset` takes it ('' for a folder), or 'digits', whose 8 x 8
            pixels are resized to 32 x 32 unless ``size`` says otherwise.

    Raises:
        ValueError: An option is unknown, repeated, or has an invalid value.

    Example:
        >>> parse_shortcut('shortcut:digits:share=0.9')[1]
        Shortcut(kind='patch', side=5, share=0.9, place='random', seed=0, size=32, strength=1.0)
    """
    inner, _, tail = name.removeprefix(PREFIX).partition(':')
    inner = _DIGITS if inner == 'digits' else inner
    options: dict[str, Any] = {'size': _DIGITS_SIDE} if inner == _DIGITS else {}
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Shortcut)}
    given = set()
    for part in filter(None, tail.split(',')):
        key, equals, value = part.partition('=')
        if key not in kinds:
            raise ValueError(f'{name}: no option {key!r}: {nearest(key, kinds)}')
        if not equals or key in given:
            raise ValueError(f'{name}: expected shortcut:NAME:option=value,option=value, each option once, '
                             f'got {part!r}')
        given.add(key)
        try:
            options[key] = kinds[key](value)
        except ValueError as error:
            raise ValueError(f'{name}: {part}: expected a number') from error
    try:
        return inner, Shortcut(**options)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def inner_name(name: str) -> str:
    """The name of the data set below a shortcut; any other name unchanged."""
    return parse_shortcut(name)[0] if name.startswith(PREFIX) else name


def canonical_name(name: str) -> str:
    """A data set's name with every option of its shortcut written out, for records; any other name unchanged.

    Example:
        >>> canonical_name('shortcut:digits')
        'shortcut:sklearn/digits:kind=patch,side=5,share=1,place=random,seed=0,size=32,strength=1'
    """
    if not name.startswith(PREFIX):
        return name
    inner, shortcut = parse_shortcut(name)
    return f'{PREFIX}{inner}:{shortcut}'


# ---- as a data set

class ShortcutSource(ImageSource):
    """A data set on whose images a shortcut is drawn: the same on an image in every epoch, worker and process.

    Args:
        inner: The images.
        shortcut: Drawn on them.
        classes: Number of classes that the marks identify; None: of ``inner``.
        known: Numbers of the classes whose marks are used; None: all. Images of other classes carry one of these.
        view: One of :data:`VIEWS`.
        foreign: Whether the classes of ``inner`` differ from those that the marks identify.

    Raises:
        ValueError: The view 'conflict' needs a second class; text marks that are empty or alike at their height.
    """

    def __init__(self, inner: ImageSource, shortcut: Shortcut, classes: int | None = None,
                 known: Sequence[int] | None = None, view: View = 'trained', foreign: bool = False) -> None:
        super().__init__(inner.reader, inner.input_img_mode, inner.exif)
        self.inner, self.shortcut, self.view, self.foreign = inner, shortcut, view, foreign
        self.classes = len(class_names(inner)) if classes is None else classes
        self.known = tuple(range(self.classes) if known is None else known)
        if view == 'conflict' and len(self.known) < 2:
            raise ValueError(f'a shortcut of another class needs two known classes, got {len(self.known)}')
        if 'text' in shortcut.kinds:
            _check_letters(self.known, shortcut.side)

    def describe(self) -> str:
        """Everything that determines the drawing, besides the images, their classes and positions."""
        return f'{PREFIX} {self.shortcut} {self.view} {self.known} of {self.classes} foreign={self.foreign}'

    @override
    def read(self, index: int) -> tuple[Any, ...]:
        image, target, *rest = self.inner.read(index)
        return self._marked(image, int(target), index)[0], target, *rest

    def mark(self, index: int) -> tuple[Image.Image, int | None]:
        """Where an image's mark is, as a picture, white on black (PIL mode L), and the number of its class.

        Black, and None, if there is no mark.
        """
        image, target, *_ = self.inner.read(index)
        _, mask, number = self._marked(image, int(target), index)
        return Image.fromarray(mask.astype(np.uint8) * 255), number

    def _marked(self, image: Image.Image, target: int, index: int) -> tuple[Image.Image, Mask, int | None]:
        # The same draws in every view, so that a mark keeps its position.
        rng = np.random.default_rng([self.shortcut.seed, index])
        chance, other = rng.random(2)
        fixed = self.shortcut.place == 'fixed'
        spots = (np.random.default_rng(self.shortcut.seed) if fixed else rng).random((len(self.shortcut.kinds), 2))
        image = _resized(image, self.shortcut.size)
        number = self._number(target, other)
        if self.view == 'absent' or (self.view == 'trained' and chance >= self.shortcut.share):
            return image, np.zeros((image.height, image.width), dtype=bool), None
        mask = None

        def change(picture: Image.Image) -> Image.Image:
            nonlocal mask
            marked, mask = self.shortcut.draw(picture, number, self.classes, spots)
            return marked

        marked = through_rgb(image, change)
        assert mask is not None
        return marked, mask, number

    def _number(self, target: int, other: float) -> int:
        """The class whose mark an image of a class carries."""
        mine = target in self.known and not self.foreign
        if mine and self.view != 'conflict':
            return target
        rest = [number for number in self.known if number != target or self.foreign]
        return rest[int(other * len(rest))]


def _resized(image: Image.Image, size: int) -> Image.Image:
    if not size or min(image.size) == size:
        return image
    width, height = (max(1, round(side * size / min(image.size))) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def bearing(source: ImageSource, known: Sequence[str], others: ImageSource | None = None) -> ImageSource:
    """A source, or another that holds unknown classes, whose unknown images carry marks of known classes.

    Args:
        source: Of the known images; returned unchanged without a shortcut.
        known: Names of its known classes.
        others: Images of unknown classes that get the same shortcut; None: those of ``source``.
    """
    if not isinstance(source, ShortcutSource):
        return source if others is None else others
    numbers = find_classes(known, class_names(source))
    inner = source.inner if others is None else others
    return ShortcutSource(inner, source.shortcut, source.classes, numbers, source.view, others is not None)


def viewed(images: CutDataset, view: View) -> CutDataset:
    """The same rows in another view.

    Raises:
        ValueError: The data set has no shortcut.
    """
    source = images.source
    if not isinstance(source, ShortcutSource):
        raise ValueError('the data set has no shortcut; train with --dataset shortcut:NAME')
    shown = ShortcutSource(source.inner, source.shortcut, source.classes, source.known, view, source.foreign)
    return CutDataset(shown, images.indices, images.targets, images.classes, images.transform)

