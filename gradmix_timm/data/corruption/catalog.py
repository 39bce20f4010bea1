"""The corruptions of CIFAR-C, Tiny-ImageNet-C and ImageNet-C by name: constants, scales, and one image corrupted."""
from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.choices import FAMILIES, SCALES, SEVERITIES
from gradmix_timm.registry import Registry, nearest

from .kernels import DISTORTIONS, Distortion

__all__ = [
    'alexnet_errors', 'corrupt', 'find_corruptions', 'list_corruptions',
    'nearest_scale', 'official_name', 'severity_constants']

Pixels = NDArray[np.uint8]
# Names with a suffix: frost is drawn rather than photographed; spatter keeps the name of an earlier approximation.
_APPROXIMATE = ('frost', 'spatter')
_SUFFIX = '_approx'
# albumentations' transforms of the same name (2.0.8) are not used, as each gives other pixels: GaussNoise
# rounds where the files were cut, ShotNoise counts in linear light, SaltAndPepper hits whole pixels, Defocus takes
# whole radii (CIFAR-C has 0.3 to 1.5), GlassBlur swaps and MotionBlur does not fade, ZoomBlur resizes without aligned
# corners, ImageCompression is another encoder's JPEG; RandomFog, RandomSnow and ElasticTransform are other corruptions
# altogether, and there is no frost.
_corruptions: Registry[Distortion] = Registry('corruption')


def list_corruptions(extra: bool = False) -> dict[str, str]:
    """Corruptions by name, in the official order; a name that ends in ``_approx`` differs from the official one.

    Args:
        extra: With the four that the benchmark keeps for validation.
    """
    known = _corruptions.describe()
    return known if extra else {name: text for name, text in known.items()
                                if official_name(name) in _facts()['main']}


def find_corruptions(names: Iterable[str] | None, there: Iterable[str] | None = None) -> tuple[str, ...]:
    """Names as they are registered, of names, official names or families ('noise', 'blur', 'weather', 'digital').

    Args:
        names: Requested names; None: the 15.
        there: Choose among these rather than among those that can be made.

    Raises:
        ValueError: An unknown name, with the nearest; a name given twice; one of the 15 that is missing.

    Example:
        >>> find_corruptions(['weather'])
        ('snow', 'frost_approx', 'fog', 'brightness')
    """
    known = tuple(there) if there is not None else tuple(list_corruptions(extra=True))
    by_official = {official_name(name): name for name in known}
    if names is None:
        names = _facts()['main']
        missing = [name for name in names if name not in by_official]
        if missing:
            raise ValueError(f'{len(missing)} of the 15 corruptions are not there ({missing[0]}, ...); those that are: '
                             f'--corruptions {",".join(known)}')
    found: list[str] = []
    for name in names:
        for member in FAMILIES.get(name, (name,)):
            if official_name(member) not in by_official:
                raise ValueError(f'no corruption {name!r}: {nearest(name, [*known, *FAMILIES])}')
            found.append(by_official[official_name(member)])
    twice = next((name for place, name in enumerate(found) if name in found[:place]), None)
    if twice is not None:
        raise ValueError(f'corruption {twice!r} is named twice; leave one out')
    return tuple(found)


def official_name(name: str) -> str:
    """The benchmark's name.

    Example:
        >>> official_name('frost_approx')
        'frost'
    """
    return name.removesuffix(_SUFFIX)


def nearest_scale(side: int) -> str:
    """The set of constants made for the side nearest to this one by ratio.

    Example:
        >>> nearest_scale(28), nearest_scale(96), nearest_scale(256)
        ('cifar', 'tiny-imagenet', 'imagenet')
    """
    if side < 1:
        raise ValueError(f'an image has a side of 1 pixel or more, got {side}')
    return min(SCALES, key=lambda scale: abs(math.log(side / SCALES[scale])))


def severity_constants(name: str, scale: str) -> tuple[Any, ...]:
    """Constants of the five severities of a corruption at one scale.

    Raises:
        ValueError: An unknown name or scale, with the nearest.
    """
    if scale not in SCALES:
        raise ValueError(f'no scale {scale!r}: {nearest(scale, SCALES)}')
    constants = _facts()['constants'][scale]
    if official_name(name) not in constants:
        raise ValueError(f'no corruption {name!r}: {nearest(name, list_corruptions(extra=True))}')
    return tuple(constants[official_name(name)])


def alexnet_errors() -> dict[str, float]:
    """Published errors of AlexNet on ImageNet-C, each a mean over five severities; and 'clean', on ImageNet itself."""
    facts = _facts()['alexnet']
    return {'clean': facts['clean'], **facts['error']}


def corrupt(image: Pixels, name: str, severity: int, seed: int = 0, index: int = 0, scale: str | None = None
            ) -> Pixels:
    """Corrupt one image, as a function of (seed, index, name, severity) alone: the same in every process.

    Constants and arithmetic are those of hendrycks/robustness except for names with ``_approx``; a set made with it is
    generated all the same, not CIFAR-C or ImageNet-C: those are files, with other random draws (and ImageNet-C's were
    saved as JPEG once more).

    Args:
        image: uint8 [H, W, 3], [H, W, 1] or [H, W].
        name: Of :func:`list_corruptions` (with ``extra``).
        severity: 1 to 5.
        seed: Not negative.
        index: Of the image in its data set, not negative.
        scale: Whose constants, of ``SCALES``; None: by the shorter side.

    Returns:
        uint8, shape of ``image``; values are clipped to 0..255 and truncated, as in the official files.

    Raises:
        ValueError: Another shape or type, an unknown name, scale or severity.

    Example:
        >>> grey = np.full((32, 32, 3), 100, np.uint8)
        >>> corrupt(grey, 'brightness', 3, scale='cifar')[0, 0]  # 0.15 of 255 brighter
        array([138, 138, 138], dtype=uint8)
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f'expected uint8 [H, W] or [H, W, 1 or 3], got {image.dtype} {list(image.shape)}')
    if severity not in SEVERITIES:
        raise ValueError(f'severities run from 1 to 5, got {severity}')
    distort = _corruptions[name]
    constant = severity_constants(name, scale or nearest_scale(min(image.shape[:2])))[severity - 1]
    # A separate stream for each, keyed by the name's bytes rather than its position in a list.
    stream = np.random.default_rng([seed, index, zlib.crc32(official_name(name).encode()), severity])
    changed = distort(image if image.ndim == 3 else image[..., None], constant, stream)
    return np.clip(changed, 0, 255).astype(np.uint8).reshape(image.shape)


@cache
def _facts() -> dict[str, Any]:
    text = (resources.files(__package__) / 'constants.json').read_text(encoding='utf-8')
    facts: dict[str, Any] = json.loads(text)
    return facts


def _register() -> None:
    for name in (*_facts()['main'], *_facts()['extra']):
        _corruptions.register(f'{name}{_SUFFIX}' if name in _APPROXIMATE else name,
                              (DISTORTIONS[name].__doc__ or '').partition('\n')[0])(DISTORTIONS[name])


_register()
