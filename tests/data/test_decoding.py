"""Deep pixels are scaled or refused, never cut off; EXIF is applied where asked; all else is as timm reads it."""
from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradmix_timm.choices import MODES
from gradmix_timm.data import UnreadableImageError, decoding, open_dataset, parse_codec, recode, select_classes
from gradmix_timm.data.corruption import corrupt, corrupted
from gradmix_timm.data.decoding import decode, through_rgb

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
RAMP = np.linspace(0, 1, 54).reshape(6, 9)


@pytest.mark.parametrize('stored', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV'])
def test_8_bits_are_read_as_timm_reads_them(stored):
    image = PICTURE.convert('P').convert('PA') if stored == 'PA' else PICTURE.convert(stored)
    for mode, channels in MODES.items():
        found = decode(image, mode)
        assert (found.mode, len(found.getbands())) == (mode, channels)
        assert found.tobytes() == image.convert(mode).tobytes(), mode


def test_a_palette_with_transparency_keeps_it_in_rgba_alone():
    image = PICTURE.quantize(16)
    image.info['transparency'] = 3
    assert np.array_equal(decode(image, 'RGB'), image.convert('RGB'))
    assert np.array_equal(np.asarray(decode(image, 'RGBA'))[..., 3] == 0, np.asarray(image) == 3)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'HSV'])
@pytest.mark.parametrize(('pixels', 'kept'), [
    (RAMP.astype(np.float32), 1), ((255 * RAMP).astype(np.float32), 0), ((65535 * RAMP).astype(np.uint16), 1),
    ((255 * RAMP).astype(np.uint16), 0), ((65535 * RAMP).astype(np.int32), 1)],
    ids=['floats to 1', 'floats to 255', '16 bits', '8 bits in 16', '16 bits in 32'])
def test_deep_pixels_keep_their_picture(pixels, kept, mode, monkeypatch, caplog):
    monkeypatch.setattr(decoding, '_warned_of_deep', False)
    found = decode(Image.fromarray(pixels), mode, name='deep.tif')
    grey = np.asarray(found.convert('RGB'))[..., 0]
    assert np.abs(grey - 255 * RAMP).max() <= 1
    assert len(caplog.records) == kept
    assert all('deep.tif has pixels from 0 to' in record.getMessage() for record in caplog.records)
    decode(Image.fromarray(pixels), mode)
    assert len(caplog.records) == kept, 'one warning a process'


@pytest.mark.parametrize('pixels', [
    np.float32([[-.5, .5]]), np.float32([[np.nan, .5]]), np.float32([[0, 1000]]), np.float32([[np.inf, 0]]),
    np.int32([[-1, 9]]), np.int32([[0, 70000]])], ids=str)
def test_a_range_without_a_white_is_refused_with_the_files_name(pixels, tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / 'deep.png', 'TIFF')
    source = open_dataset('', tmp_path)
    with pytest.raises(UnreadableImageError, match=r'deep\.png.* go from .* expected .*; save it with 8 bits'):
        source[0]


@settings(max_examples=30, deadline=None)
@given(orientation=st.integers(1, 8), mode=st.sampled_from(['RGB', 'L', 'HSV']))
def test_exif_is_ignored_as_timm_does_or_applied_once(orientation, mode):
    upright = Image.new('RGB', (32, 16))
    upright.paste((200, 10, 10), (0, 0, 8, 8))  # one corner
    turned = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
              4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
              7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]
    stored = upright if turned is None else upright.transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, 'PNG', exif=exif)
    image = Image.open(file)
    assert decode(image, mode).tobytes() == stored.convert(mode).tobytes()
    found = decode(image, mode, 'apply')
    assert found.tobytes() == upright.convert(mode).tobytes()
    assert decode(found, mode, 'apply').tobytes() == found.tobytes()


@pytest.mark.parametrize('mode', MODES)
def test_a_change_of_colours_reaches_every_mode_and_spares_alpha(mode):
    image = PICTURE.convert(mode)
    if mode in ('LA', 'RGBA'):
        image.putalpha(Image.fromarray((200 * RAMP).astype(np.uint8)))
    found = through_rgb(image, lambda picture: Image.new(picture.mode, picture.size))
    assert (found.mode, found.size) == (mode, image.size)
    assert np.asarray(found.convert('RGB')).max() <= (2 if mode == 'LAB' else 0)
    if mode in ('LA', 'RGBA'):
        assert np.array_equal(found.getchannel('A'), image.getchannel('A'))


@pytest.mark.parametrize('mode', ['HSV', 'RGBA', 'LA', 'CMYK'])
def test_codecs_and_corruptions_work_on_every_mode(mode, tmp_path):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)).resize((32, 32))
    for name in 'ab':
        (tmp_path / 'test' / name).mkdir(parents=True)
        smooth.save(tmp_path / 'test' / name / '0.png')
    cut = select_classes(open_dataset('', tmp_path, 'test', img_mode=mode), ['a'])
    found = recode(cut, parse_codec('jpeg:95')).picture(0)
    assert found.mode == mode
    difference = np.asarray(found.convert('RGB')).astype(int) - np.asarray(cut.picture(0).convert('RGB'))
    assert np.abs(difference).mean() < 8
    darker = corrupted(cut, 'brightness', 5, scale='cifar').picture(0)
    assert darker.mode == mode
    if mode == 'RGBA':
        want = corrupt(np.asarray(smooth.convert('RGB')), 'brightness', 5, 0, 0, 'cifar')
        assert np.array_equal(np.asarray(darker)[..., :3], want)
        assert np.array_equal(np.asarray(darker)[..., 3], np.asarray(smooth)[..., 3])
