"""Corruptions of images: against slow definitions, seeded, growing with severity."""
from __future__ import annotations

import colorsys
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from torch.utils.data import DataLoader, Dataset

from gradmix_timm.choices import SCALES
from gradmix_timm.data.corruption import (
    alexnet_errors,
    corrupt,
    find_corruptions,
    list_corruptions,
    nearest_scale,
    official_name,
    severity_constants,
)
from gradmix_timm.data.corruption.kernels import DISTORTIONS, plasma, zoomed

ALL = list(list_corruptions(extra=True))


def picture(side: int = 32, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth shapes and some noise, no channel constant."""
    rows, columns = np.mgrid[:side, :side] / side
    generator = np.random.default_rng(seed)
    planes = [120 + 90 * np.sin(7 * rows + k + seed) * np.cos(5 * columns - k) for k in range(channels)]
    return np.clip(np.stack(planes, 2) + generator.normal(0, 8, (side, side, channels)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize('name', ALL)
def test_each_is_a_function_of_seed_image_name_and_severity(name: str):
    image = picture()
    once = corrupt(image, name, 3, seed=1, index=5)
    assert once.dtype == np.uint8
    assert once.shape == image.shape
    assert np.array_equal(once, corrupt(image, name, 3, seed=1, index=5))
    assert not np.array_equal(once, corrupt(image, name, 5, seed=1, index=5))
    still = {'defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression', 'gaussian_blur',
             'saturate'}
    for other in ({'seed': 2, 'index': 5}, {'seed': 1, 'index': 6}):
        assert np.array_equal(once, corrupt(image, name, 3, **other)) == (name in still)


@pytest.mark.parametrize('name', ALL)
def test_nothing_outside_is_drawn_from_or_written_to(name: str):
    image = picture()
    image.flags.writeable = False
    before = np.hstack(np.random.get_state()[1:3])  # noqa: NPY002
    corrupt(image, name, 2)
    assert np.array_equal(before, np.hstack(np.random.get_state()[1:3]))  # noqa: NPY002


@pytest.mark.parametrize('name', ALL)
def test_grey_oblong_and_tiny_images_keep_their_shape(name: str):
    for shape in ((28, 28), (28, 28, 1), (24, 40, 3), (1, 1, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        assert corrupt(image, name, 5).shape == shape


@pytest.mark.parametrize('scale', SCALES)
def test_later_severities_are_further_from_the_image_on_average(scale: str):
    side = SCALES[scale]
    images = [picture(side, seed) for seed in range(2 if side > 64 else 4)]
    distance = {name: [np.mean([(corrupt(image, name, severity, index=k).astype(float) - image) ** 2
                                for k, image in enumerate(images)]) for severity in (1, 3, 5)]
                for name in list_corruptions()}
    # Elastic distortion changes in kind from one severity to the next, not in distance.
    assert all(row[0] < row[2] for name, row in distance.items() if name != 'elastic_transform'), distance
    mean = np.mean(list(distance.values()), axis=0)
    assert mean[0] < mean[1] < mean[2]


# ---- slow definitions

def share(image: np.ndarray, name: str, severity: int, scale: str = 'cifar') -> tuple[np.ndarray, object]:
    return corrupt(image, name, severity, scale=scale), severity_constants(name, scale)[severity - 1]


@pytest.mark.parametrize('severity', [1, 5])
@pytest.mark.parametrize('scale', SCALES)
def test_normal_noise_has_the_deviation_of_its_severity(severity: int, scale: str):
    grey = np.full((160, 160, 3), 127, np.uint8)
    got, sd = share(grey, 'gaussian_noise', severity, scale)
    inside = (got > 0) & (got < 255)  # the rest was cut off
    left = np.array([-127, 128]) / 255 / sd
    cut = np.random.default_rng(0).normal(size=200_000)
    expected = sd * cut[(cut > left[0]) & (cut < left[1])].std()
    assert got[inside].std() / 255 == pytest.approx(expected, rel=0.02)
    assert got.mean() == pytest.approx(126.5, abs=1.5)  # truncated, hence half a level darker


def test_shot_noise_has_the_variance_of_its_photons():
    grey = np.full((200, 200, 3), 100, np.uint8)
    for scale in ('cifar', 'tiny-imagenet'):
        got, photons = share(grey, 'shot_noise', 2, scale)
        assert (got / 255).var() == pytest.approx(100 / 255 / photons, rel=0.05)


@pytest.mark.parametrize('severity', [1, 3, 5])
def test_impulses_hit_single_values_with_their_share(severity: int):
    got, amount = share(np.full((200, 200, 3), 100, np.uint8), 'impulse_noise', severity, 'imagenet')
    assert set(np.unique(got)) == {0, 100, 255}
    for value in (0, 255):
        assert (got == value).mean() == pytest.approx(amount / 2, rel=0.08)
    assert (got != 100).all(2).mean() < 1.6 * amount ** 3 + 0.001  # channel by channel


@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])
def test_brightness_is_added_to_the_value_of_hsv(severity: int):
    image = picture(12)
    image[0, 0] = 0
    got, amount = share(image, 'brightness', severity)
    for row, column in np.ndindex(12, 12):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[row, column] / 255))
        slow = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))) * 255
        assert np.abs(got[row, column] - slow).max() <= 1 + 1e-6  # cut, not rounded
        assert (got[row, column] <= slow + 1e-6).all()


@pytest.mark.parametrize('severity', [1, 3, 5])
def test_saturation_is_that_of_hsv(severity: int):
    image = picture(12)
    image[0, 0] = 77  # grey
    got, (factor, offset) = share(image, 'saturate', severity)
    for row, column in np.ndindex(12, 12):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[row, column] / 255))
        slow = np.array(colorsys.hsv_to_rgb(hue, min(saturation * factor + offset, 1), value)) * 255
        assert np.abs(got[row, column] - slow).max() <= 1 + 1e-6


@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])
def test_contrast_draws_each_channel_to_its_mean(severity: int):
    image = picture(10)
    got, factor = share(image, 'contrast', severity)
    for channel in range(3):
        mean = sum(int(v) for v in image[..., channel].ravel()) / image[..., channel].size
        for row, column in np.ndindex(10, 10):
            slow = min(max((image[row, column, channel] - mean) * factor + mean, 0), 255)
            assert -1e-9 <= slow - got[row, column, channel] < 1 + 1e-9


@pytest.mark.parametrize(('scale', 'severity'), [('cifar', 5), ('tiny-imagenet', 5), ('imagenet', 4)])
def test_pixelate_averages_areas_and_repeats_them(scale: str, severity: int):
    side = SCALES[scale]
    image = picture(side)
    got, factor = share(image, 'pixelate', severity, scale)
    small = Image.fromarray(image).resize((int(side * factor),) * 2, Image.Resampling.BOX)
    assert np.array_equal(got, np.asarray(small.resize((side, side), Image.Resampling.BOX)))
    if scale == 'tiny-imagenet':  # halves exactly: blocks of 2 x 2
        blocks = image.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(got[::2, ::2] - blocks).max() <= 1  # rounded twice


@pytest.mark.parametrize('severity', [1, 5])
def test_jpeg_is_what_pillow_saves(severity: int):
    image = picture()
    got, quality = share(image, 'jpeg_compression', severity)
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    assert np.array_equal(got, np.asarray(Image.open(file)))


@pytest.mark.parametrize('constant', [(0.4, 1., 2.), (1.1, 3., 2.)])
def test_glass_moves_pixels_as_the_original_loop_does(constant: tuple[float, ...]):
    """The loop as published: NumPy's views make its swap a copy."""
    image, shift, passes = picture(16), int(constant[1]), int(constant[2])
    got = DISTORTIONS['glass_blur'](image, (1e-3, shift, passes), np.random.default_rng(3))
    generator, slow = np.random.default_rng(3), (image / 255. * 255).astype(np.uint8)
    for _ in range(passes):
        moves = iter(generator.integers(-shift, shift, size=((16 - 2 * shift) ** 2, 2)))
        for row in range(16 - shift, shift, -1):
            for column in range(16 - shift, shift, -1):
                across, down = next(moves)
                slow[row, column], slow[row + down, column + across] = \
                    slow[row + down, column + across], slow[row, column]
    assert np.abs(got - slow).max() < 1e-6
    assert not np.array_equal(slow, image)


@pytest.mark.parametrize(('side', 'factor'), [(32, 1.25), (32, 2.25), (64, 1.07), (224, 1.3), (33, 1.)])
def test_zoom_equals_scipy(side: int, factor: float):
    image = picture(side).astype(np.float32)
    part = int(np.ceil(side / factor))
    top = (side - part) // 2
    slow = zoom(image[top:top + part, top:top + part], (factor, factor, 1), order=1)
    trim = (len(slow) - side) // 2
    assert np.abs(zoomed(image, factor) - slow[trim:trim + side, trim:trim + side]).max() < 1e-3


def test_motion_smears_one_way_along_its_angle():
    """A bright dot becomes a tail of falling weights, on the side the line points away from."""

    class Straight:
        def uniform(self, low: float, high: float) -> float:
            assert (low, high) == (-45, 45)
            return 0.

    dot = np.zeros((21, 41, 3), np.uint8)
    dot[10, 20] = 255
    got = DISTORTIONS['motion_blur'](dot, (6., 2.), Straight())[..., 0]  # type: ignore[arg-type]
    weights = np.exp(-np.arange(13) ** 2 / 8)
    tail = np.floor(np.rint(255 * weights / weights.sum() * 257) / 257)
    assert np.array_equal(got[10, 20:7:-1], tail)
    assert got.sum() == tail.sum() * 1.


def test_fog_is_rescaled_to_the_brightest_pixel():
    image = picture() // 2
    got, (amount, decay) = share(image, 'fog', 5)
    import zlib
    clouds = plasma(32, decay, np.random.default_rng([0, 0, zlib.crc32(b'fog'), 5]))
    top = image.max() / 255
    slow = (image / 255 + amount * clouds[..., None]) * top / (top + amount) * 255
    assert np.abs(np.floor(slow) - got).max() == 0
    assert clouds.min() == 0
    assert clouds.max() == 1


def test_plasma_is_coarser_with_a_larger_decay_and_wraps_round():
    steps = {}
    for decay in (1.4, 3.):
        field = plasma(64, decay, np.random.default_rng(0))
        steps[decay] = np.abs(np.diff(field, axis=0)).mean()
        assert np.abs(field[0] - field[-1]).mean() < 4 * steps[decay]
    assert steps[3.] < steps[1.4] / 2


def test_images_larger_than_the_scale_still_use_its_constants():
    image = picture(64)
    assert not np.array_equal(corrupt(image, 'contrast', 5, scale='cifar'), corrupt(image, 'contrast', 5))
    assert np.array_equal(corrupt(image, 'contrast', 5, scale='tiny-imagenet'), corrupt(image, 'contrast', 5))


class Legacy:
    """The stream that the published code draws from."""

    def __init__(self, seed: int) -> None:
        self.stream = np.random.RandomState(seed)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def integers(self, low: int, high: int, size: tuple[int, int]) -> np.ndarray:
        return np.array([self.stream.randint(low, high, size=(2,)) for _ in range(size[0])])


@pytest.mark.slow
@pytest.mark.parametrize('scale', SCALES)
def test_pixels_are_those_of_the_published_code(scale: str):
    """Means and deviations of what hendrycks/robustness (with ImageMagick 6.9.11) makes of one picture."""
    facts = json.loads((Path(__file__).parent / 'official_corruptions.json').read_text())['statistics'][scale]
    image = picture(SCALES[scale])
    # Impulses are drawn in another order there.
    assert set(facts) == {official_name(name) for name in list_corruptions()} - {'impulse_noise', 'frost'}
    for name, rows in facts.items():
        for severity, (mean, deviation) in zip((1, 5), rows, strict=True):
            constant = severity_constants(name, scale)[severity - 1]
            got = np.clip(DISTORTIONS[name](image, constant, Legacy(severity)), 0, 255).astype(np.uint8)
            # Rounding on the way to HSV and back moves single values of brightness by one.
            near = 0.05 if name == 'brightness' else 2e-3
            assert (got.mean(), got.std()) == (pytest.approx(mean, abs=near), pytest.approx(deviation, abs=near)), name


def official_spatter(image, constant, stream):
    """The published function's steps, one after the other; water is drawn channel by channel here."""
    mean, sd, sigma, threshold, strength, mud = constant
    layer = gaussian_filter(stream.normal(size=image.shape[:2], loc=mean, scale=sd), sigma, mode='nearest', truncate=4)
    layer[layer < threshold] = 0
    pixels = image.astype(np.float32) / 255
    if mud:
        m = gaussian_filter(np.where(layer > threshold, 1, 0).astype(np.float32), strength, mode='nearest', truncate=4)
        m[m < 0.8] = 0
        for channel, colour in enumerate((63, 42, 20)):
            pixels[..., channel] = pixels[..., channel] * (1 - m) + m * colour / 255
        return np.clip(pixels, 0, 1) * 255
    layer = (layer * 255).astype(np.uint8)
    dist = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    dist = cv2.equalizeHist(cv2.blur(cv2.threshold(dist, 20, 20, cv2.THRESH_TRUNC)[1], (3, 3)).astype(np.uint8))
    dist = cv2.filter2D(dist, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    m = layer * cv2.blur(dist, (3, 3)).astype(np.float32)
    m *= strength / m.max()
    for channel, colour in enumerate((175, 238, 238)):
        pixels[..., channel] += m * colour / 255
    return np.clip(pixels, 0, 1) * 255


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])
def test_spatter_is_the_published_one(scale: str, severity: int):
    """Another library's had up to three times the strength at 32 pixels."""
    image, constant = picture(SCALES[scale]), severity_constants('spatter_approx', scale)[severity - 1]
    got = DISTORTIONS['spatter'](image, constant, np.random.default_rng(severity))
    expected = official_spatter(image, constant, np.random.default_rng(severity))
    assert np.abs(got - expected).max() < 0.01
    changed = corrupt(image, 'spatter_approx', severity, scale=scale)
    assert changed.dtype == np.uint8
    grey = corrupt(image[..., 0], 'spatter_approx', severity, scale=scale)
    assert grey.shape == image.shape[:2]
    assert not np.array_equal(grey, image[..., 0])


def test_a_lens_without_drops_shows_the_image():
    image = picture(32)
    shown = DISTORTIONS['spatter'](image, (0., 1e-9, 1., 0.5, 0.5, 0.), np.random.default_rng(0))
    assert np.abs(shown - image).max() < 1e-3


# ---- names and facts

def test_scales_differ_as_published():
    assert [severity_constants('gaussian_noise', scale)[4] for scale in SCALES] == [0.1, 0.18, 0.38]
    assert [severity_constants('jpeg_compression', scale)[4] for scale in SCALES] == [40, 25, 7]
    assert [severity_constants('contrast', scale)[4] for scale in SCALES] == [0.15, 0.05, 0.05]
    assert [severity_constants('fog', scale)[4][0] for scale in SCALES] == [1.5, 2, 3]
    assert [nearest_scale(side) for side in (1, 32, 45, 46, 119, 120, 512)] == [
        'cifar', 'cifar', 'cifar', 'tiny-imagenet', 'tiny-imagenet', 'imagenet', 'imagenet']


def test_fifteen_with_five_severities_each_and_only_frost_is_approximate():
    assert len(list_corruptions()) == 15
    assert [name for name in list_corruptions() if name != official_name(name)] == ['frost_approx']
    assert all(len(severity_constants(name, scale)) == 5 for name in ALL for scale in SCALES)
    errors = alexnet_errors()
    assert len(errors) == 16
    assert np.mean([v for k, v in errors.items() if k != 'clean']) == pytest.approx(0.7890, abs=1e-4)


def test_names_are_found_by_official_name_and_family():
    assert find_corruptions(['frost', 'noise']) == ('frost_approx', 'gaussian_noise', 'shot_noise', 'impulse_noise')
    assert find_corruptions(None) == tuple(list_corruptions())
    assert find_corruptions(['frost_approx'], there=['fog', 'frost']) == ('frost',)
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        find_corruptions(['fogg'])
    with pytest.raises(ValueError, match='named twice'):
        find_corruptions(['fog', 'weather'])
    with pytest.raises(ValueError, match="no corruption 'spatter'"):
        find_corruptions(['spatter'], there=['fog'])
    with pytest.raises(ValueError, match=r'13 of the 15 corruptions are not there .*--corruptions fog,snow$'):
        find_corruptions(None, there=['fog', 'snow'])


@pytest.mark.parametrize(('change', 'words'), [
    ({'severity': 0}, 'from 1 to 5, got 0'), ({'severity': 6}, 'got 6'), ({'name': 'snowy'}, 'did you mean'),
    ({'scale': 'imagnet'}, "did you mean 'imagenet'"), ({'image': np.zeros((8, 8, 3))}, 'float64'),
    ({'image': np.zeros((8, 8, 4), np.uint8)}, r'\[8, 8, 4\]')])
def test_what_cannot_be_made_is_refused(change: dict, words: str):
    with pytest.raises(ValueError, match=words):
        corrupt(**{'image': picture(), 'name': 'fog', 'severity': 1, **change})


class Made(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> np.ndarray:
        return corrupt(picture(), 'snow', 2, seed=3, index=index)


def test_worker_processes_make_the_same_images():
    here = np.stack([Made()[k] for k in range(6)])
    there = np.concatenate([batch.numpy() for batch in DataLoader(Made(), batch_size=2, num_workers=2)])
    assert np.array_equal(here, there)
