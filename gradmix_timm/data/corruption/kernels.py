"""Pixel arithmetic of image corruptions after Hendrycks and Dietterich: one image, one constant, one generator."""
from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from gradmix_timm.data.opening import open_image

# OpenCV's threads do not survive a fork: a loader's worker would hang.
cv2.setNumThreads(0)

__all__ = ['DISTORTIONS', 'Distortion', 'plasma', 'zoomed']

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
#: uint8 [H, W, C], the constant of one severity, a generator -> grey levels 0..255 [H, W, C], not yet cut or truncated.
Distortion = Callable[[Pixels, Any, Generator], 'Floats | Pixels']
# As OpenCV weighs red, green and blue.
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Red, green and blue of drops.
_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
# Mean red, green, blue and deviation of grey of the benchmark's frost textures 1 to 5 (2 and 3 are one picture).
_FROST = (((78, 149, 166), 18.), ((201, 205, 214), 22.), ((201, 205, 214), 22.), ((138, 153, 165), 29.),
          ((112, 123, 135), 43.))


# ---- noise

def gaussian_noise(image: Pixels, sd: float, generator: Generator) -> Floats:
    """Normal noise of one deviation, in shares of the range."""
    return np.clip(image / 255. + generator.normal(scale=sd, size=image.shape), 0, 1) * 255


def shot_noise(image: Pixels, photons: float, generator: Generator) -> Floats:
    """Poisson counts of so many photons at full brightness."""
    return np.clip(generator.poisson(image / 255. * photons) / photons, 0, 1) * 255


def impulse_noise(image: Pixels, share: float, generator: Generator) -> Floats:
    """A share of all values, each channel by itself, becomes 0 or 255 with equal chances."""
    hit, salt = generator.random(image.shape) < share, generator.random(image.shape) < 0.5
    return np.where(hit, np.where(salt, 255., 0.), image.astype(np.float64))


def speckle_noise(image: Pixels, sd: float, generator: Generator) -> Floats:
    """Normal noise in proportion to the pixel."""
    share = image / 255.
    return np.clip(share + share * generator.normal(scale=sd, size=image.shape), 0, 1) * 255


# ---- blur

def defocus_blur(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """A disc of this radius, its edge softened."""
    radius, alias = constant
    reach, soft = (8, 3) if radius <= 8 else (int(radius), 5)
    squares = np.arange(-reach, reach + 1) ** 2
    disc = (squares[:, None] + squares <= radius ** 2).astype(np.float32)
    kernel = cv2.GaussianBlur(disc / disc.sum(), (soft, soft), sigmaX=alias)
    return _planes(cv2.filter2D(image / 255., -1, kernel), image) * 255


def glass_blur(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """Pixels shuffled within a few places, between two Gaussian blurs.

    The original is meant to swap, but its NumPy rows are views of one array, so that each pixel becomes a copy of its
    neighbour; the published files were made that way, and this does the same, on positions rather than on pixels.
    """
    sd, shift, passes = constant[0], int(constant[1]), int(constant[2])
    height, width = image.shape[:2]
    soft = (_blurred(image / 255., sd) * 255).astype(np.uint8)
    rows, columns = np.meshgrid(
        np.arange(height - shift, shift, -1), np.arange(width - shift, shift, -1), indexing='ij')
    target = (rows * width + columns).ravel()
    places = list(range(height * width))
    for _ in range(passes):
        moves = generator.integers(-shift, shift, size=(len(target), 2))
        for place, source in zip(target.tolist(), (target + moves[:, 1] * width + moves[:, 0]).tolist(), strict=True):
            places[place] = places[source]
    shuffled = soft.reshape(-1, soft.shape[2])[places].reshape(soft.shape)
    return np.clip(_blurred(shuffled / 255., sd), 0, 1) * 255


def motion_blur(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """Smeared one way with a Gaussian fall, within 45 degrees of the horizontal."""
    radius, sigma = constant
    return _smeared(image, radius, sigma, generator.uniform(-45, 45))


def zoom_blur(image: Pixels, factors: Sequence[float], generator: Generator) -> Floats:
    """Mean of the image and its magnified middles."""
    share = (image / 255.).astype(np.float32)
    total = share.copy()
    for factor in factors:
        # The original's factors come from numpy.arange, slightly above; that matters where a side ends in exactly .5.
        total += zoomed(share, factor * (1 + 1e-14))
    return np.clip(total / (len(factors) + 1), 0, 1) * 255


def gaussian_blur(image: Pixels, sd: float, generator: Generator) -> Floats:
    """A Gaussian of this deviation in pixels."""
    return np.clip(_blurred(image / 255., sd), 0, 1) * 255


# ---- weather

def snow(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """Flakes smeared downwards over an image made paler."""
    mean, sd, factor, threshold, radius, sigma, kept = constant
    share = (image / 255.).astype(np.float32)
    flakes = zoomed(generator.normal(mean, sd, size=(*image.shape[:2], 1)).astype(np.float32), factor)
    flakes[flakes < threshold] = 0
    fallen = _smeared((np.clip(flakes, 0, 1) * 255).astype(np.uint8), radius, sigma, generator.uniform(-135, -45))
    layer = fallen / 255
    grey = share @ _GREY if image.shape[2] == 3 else share[..., 0]
    pale = kept * share + (1 - kept) * np.maximum(share, grey[..., None] * 1.5 + 0.5)
    # Its half turn, which has the image's shape also where that is no square.
    return np.clip(pale + layer + layer[::-1, ::-1], 0, 1) * 255


def frost(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """Ice crystals over the image; drawn, where the original cuts them out of five photographs.

    The drawing has the mean colour and the contrast of one of the five, and about their coarseness.
    """
    kept, ice = constant
    height, width = image.shape[:2]
    side = _power_of_two(max(height, width))
    coarse, fine = (plasma(side, decay, generator)[:height, :width] for decay in (1.6, 1.15))
    needles = np.abs(2 * fine - 1) - 0.5 * coarse
    spread = needles.std()
    colour, contrast = _FROST[generator.integers(len(_FROST))]
    crystals = (needles - needles.mean()) / (spread if spread else 1) * contrast
    tint = np.array(colour if image.shape[2] == 3 else [float(_GREY @ np.array(colour))])
    return kept * image + ice * np.clip(tint + crystals[..., None], 0, 255)


def fog(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """Plasma added, then all rescaled to what was the brightest pixel."""
    amount, decay = constant
    share = image / 255.
    top = share.max()
    height, width = image.shape[:2]
    clouds = plasma(_power_of_two(max(height, width)), decay, generator)[:height, :width, None]
    return np.clip((share + amount * clouds) * top / (top + amount), 0, 1) * 255


# ---- digital

def brightness(image: Pixels, amount: float, generator: Generator) -> Floats:
    """Added to HSV's value: hue and saturation stay, so all channels are scaled alike; black becomes grey."""
    share = image / 255.
    value = share.max(axis=2, keepdims=True)
    brighter = np.clip(value + amount, 0, 1)
    return np.where(value > 0, share * (brighter / np.where(value > 0, value, 1)), brighter) * 255


def contrast(image: Pixels, factor: float, generator: Generator) -> Floats:
    """Drawn towards each channel's mean."""
    share = image / 255.
    means = share.mean(axis=(0, 1), keepdims=True)
    return np.clip((share - means) * factor + means, 0, 1) * 255


def saturate(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """HSV's saturation scaled and shifted; grey pixels take on red, which hue 0 is."""
    if image.shape[2] == 1:
        return image.astype(np.float64)  # there is none
    factor, offset = constant
    share = image / 255.
    value, low = share.max(axis=2, keepdims=True), share.min(axis=2, keepdims=True)
    spread = value - low
    saturation = np.where(value > 0, spread / np.where(value > 0, value, 1), 0)
    # How far each channel lies below the value, 0 (the largest) to 1 (the smallest): what hue keeps.
    depth = np.where(spread > 0, (value - share) / np.where(spread > 0, spread, 1), np.array([0., 1., 1.]))
    return value * (1 - np.clip(saturation * factor + offset, 0, 1) * depth) * 255


def elastic_transform(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """A random affine map, then every pixel displaced by a smooth field."""
    alpha, sigma, jitter = constant
    height, width = image.shape[:2]
    middle, third = np.array([height, width]) // 2, min(height, width) // 3
    corners = np.array([middle + third, [middle[0] + third, middle[1] - third], middle - third], dtype=np.float32)
    moved = corners + generator.uniform(-jitter, jitter, size=corners.shape).astype(np.float32)
    warped = cv2.warpAffine((image / 255.).astype(np.float32), cv2.getAffineTransform(corners, moved),
                            (width, height), borderMode=cv2.BORDER_REFLECT_101)
    across, down = (alpha * gaussian_filter(generator.uniform(-1, 1, size=(height, width)), sigma, mode='reflect',
                                            truncate=3) for _ in range(2))
    rows, columns = np.mgrid[:height, :width]
    places = (rows + down.astype(np.float32), columns + across.astype(np.float32))
    planes = [map_coordinates(plane, places, order=1, mode='reflect')
              for plane in np.moveaxis(_planes(warped, image), 2, 0)]
    return np.clip(np.stack(planes, axis=2), 0, 1) * 255


def pixelate(image: Pixels, factor: float, generator: Generator) -> Pixels:
    """Shrunk and magnified again by areas."""
    height, width = image.shape[:2]
    picture = _picture(image)
    small = picture.resize((max(int(width * factor), 1), max(int(height * factor), 1)), Image.Resampling.BOX)
    return _planes(np.asarray(small.resize((width, height), Image.Resampling.BOX)), image)


def jpeg_compression(image: Pixels, quality: int, generator: Generator) -> Pixels:
    """Saved as JPEG of this quality and read again."""
    file = io.BytesIO()
    _picture(image).save(file, 'JPEG', quality=quality)
    return _planes(np.asarray(open_image(file)), image)


def spatter(image: Pixels, constant: Sequence[float], generator: Generator) -> Floats:
    """Drops of water or mud on the lens."""
    mean, sd, sigma, threshold, strength, mud = constant
    layer = _blurred(generator.normal(mean, sd, image.shape[:2])[..., None], sigma)[..., 0]
    layer[layer < threshold] = 0
    share = image / 255.
    if mud:
        cover = _blurred((layer > threshold).astype(np.float32)[..., None], strength)
        cover[cover < 0.8] = 0
        colour = _as_channels(_MUD, image) * cover
        return np.clip(share * (1 - cover) + colour, 0, 1) * 255
    drops = (layer * 255).astype(np.uint8)
    # Drops are lit by how far they reach from an edge, up to twenty pixels, in relief.
    far = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    far = cv2.equalizeHist(cv2.blur(np.minimum(far, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(far, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    lit = drops * cv2.blur(relief, (3, 3)).astype(np.float32)
    light = lit * (strength / max(float(lit.max()), 1.))  # no drop, no light
    return np.clip(share + light[..., None] * _as_channels(_WATER, image), 0, 1) * 255


#: By the name that the constants have.
DISTORTIONS: dict[str, Distortion] = {made.__name__: made for made in (
    gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
    brightness, contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter,
    saturate)}


# ---- shared

def zoomed(image: Floats, factor: float) -> Floats:
    """The middle of an image magnified to its size, linear, corners on corners (as ``scipy.ndimage.zoom``).

    Args:
        image: float32 [H, W, C].
        factor: 1 or more.

    Returns:
        float32 [H, W, C].
    """
    height, width = image.shape[:2]
    part = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    middle = torch.from_numpy(np.ascontiguousarray(image[top:top + part[0], left:left + part[1]].transpose(2, 0, 1)))
    size = [round(side * factor) for side in part]
    large = F.interpolate(middle[None], size=size, mode='bilinear', align_corners=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return np.ascontiguousarray(large[:, top:top + height, left:left + width].permute(1, 2, 0).numpy())


def plasma(side: int, decay: float, generator: Generator) -> NDArray[np.float64]:
    """Clouds by the diamond-square rule on a torus, float64 [side, side], from 0 to 1.

    Every point halfway between four others is their mean and a random part that shrinks by ``decay`` squared from one
    grid to the next finer one.

    Args:
        side: A power of two.
        decay: Above 1; the larger, the smoother.
        generator: Source of the random parts.
    """
    field = np.zeros((side, side))
    step, wobble = side, 100.

    def mean(four: NDArray[np.float64]) -> NDArray[np.float64]:
        return four / 4 + wobble * generator.uniform(-wobble, wobble, four.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        across = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = mean(across + np.roll(across, -1, axis=1))
        middles = field[half::step, half::step]
        field[::step, half::step] = mean(
            middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1))
        field[half::step, ::step] = mean(
            middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0))
        step, wobble = half, wobble / decay
    field -= field.min()
    top = field.max()
    return field / top if top else field  # a single point


def _smeared(image: Pixels, radius: float, sigma: float, angle: float) -> Floats:
    """ImageMagick 6's motion blur: a one-sided Gaussian along a line of whole pixels, edge pixels repeated.

    Equal to the library's 16-bit build (6.9.11), which rounds to 16 bits and then cuts to 8.
    """
    count = 2 * math.ceil(radius) + 1
    weights = np.exp(-np.arange(count) ** 2 / (2 * sigma ** 2))
    kernel = np.zeros((2 * count - 1, 2 * count - 1))
    turn = math.radians(angle)
    for distance, weight in enumerate(weights / weights.sum()):
        row, column = (math.ceil(distance * part - 0.5) for part in (math.sin(turn), math.cos(turn)))
        kernel[count - 1 + row, count - 1 + column] += weight
    blurred = cv2.filter2D(image.astype(np.float64), -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return _planes(np.floor(np.rint(blurred * 257) / 257), image)


def _blurred(image: Floats, sd: float) -> Floats:
    """Gaussian over rows and columns, cut at four deviations, edge pixels repeated."""
    return np.asarray(gaussian_filter(image, (sd, sd, 0), mode='nearest', truncate=4.))


def _as_channels(colour: Floats, image: Pixels) -> Floats:
    """A colour for an image of three channels, its grey for one of another number."""
    return colour if image.shape[2] == 3 else np.full(image.shape[2], colour @ _GREY)


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def _planes(changed: NDArray[Any], image: Pixels) -> NDArray[Any]:
    """With the axis of channels that OpenCV and PIL drop if there is one."""
    return changed.reshape(image.shape)
