"""One file gives one tensor, whoever reads it: timm's transform and loaders, the crop alone, the ONNX steps by hand."""
from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import timm
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx_steps import pixels_by_metadata
from PIL import Image
from timm.data import create_loader, create_transform

from gradmix_timm.choices import MODES
from gradmix_timm.classifier.images import batches
from gradmix_timm.cli.commands.show import _load
from gradmix_timm.data import UnreadableImageError, open_dataset, select_classes
from gradmix_timm.data.preprocessing import CROP_MODES, FILTERS, Preprocessing
from gradmix_timm.evaluation.pixels import _Statistics
from gradmix_timm.openset.pixel_statistics import measure

SIDES = st.integers(3, 61)


def shrinks_to_nothing(made, height, width):
    tall, wide = (math.floor(side / made.crop_pct) for side in made.input_size[1:])
    return made.crop_mode == 'border' and round(min(height, width) / max(height / tall, width / wide)) == 0


@st.composite
def preprocessings(draw):
    mode = draw(st.sampled_from([name for name in MODES if name not in ('LAB', 'RGBX')]))
    height = draw(st.integers(4, 24))
    width = draw(st.one_of(st.just(height), st.integers(4, 24)))
    channel = st.lists(st.floats(0.1, 0.9), min_size=MODES[mode], max_size=MODES[mode]).map(tuple)
    return Preprocessing(
        input_size=(MODES[mode], height, width), image_mode=mode, interpolation=draw(st.sampled_from(FILTERS)),
        mean=draw(channel), std=draw(channel), crop_pct=draw(st.sampled_from([0.5, 0.8, 0.875, 0.9, 0.95, 1.0, 1.1])),
        crop_mode=draw(st.sampled_from(CROP_MODES)))


def odd(**changes):
    return Preprocessing.of({'input_size': (3, 15, 15), 'crop_pct': 0.875, 'interpolation': 'bicubic', **changes})


@settings(max_examples=80, deadline=None)
@given(made=preprocessings(), height=SIDES, width=SIDES, seed=st.integers(0, 9))
@example(made=odd(crop_mode='center'), height=21, width=34, seed=0)
@example(made=odd(crop_mode='squash'), height=21, width=34, seed=0)
@example(made=odd(crop_mode='border'), height=21, width=34, seed=0)
@example(made=odd(crop_mode='border', mean=(.9, .1, .4)), height=50, width=7, seed=0)
def test_every_path_gives_the_same_tensor(made, height, width, seed, tmp_path_factory):
    assume(not shrinks_to_nothing(made, height, width))
    root = tmp_path_factory.mktemp('one')
    path = root / 'test' / 'a' / 'odd.png'
    for name in 'ab':
        (root / 'test' / name).mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(root / 'test' / 'b' / 'odd.png')
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (made.mean, made.std))
    # By hand, from the metadata of a graph.
    told = {f'gradmix_timm.{key}': json.dumps(value) for key, value in made.onnx_metadata().items()}
    by_hand = torch.from_numpy(pixels_by_metadata(path, told))
    want = (by_hand - mean) / std
    # By timm's own transform of timm's own arguments.
    picture = Image.open(path).convert(made.image_mode)
    timms = create_transform(
        made.input_size, interpolation=made.interpolation, mean=made.mean, std=made.std, crop_pct=made.crop_pct,
        crop_mode=made.crop_mode)
    assert torch.equal(timms(picture), want)
    assert torch.equal(made.transform()(made.decode(Image.open(path))), want)
    # Unnormalised, and in two parts.
    plain = made.transform(normalize=False)(picture)
    assert plain.dtype == torch.uint8
    assert torch.equal(plain.float() / 255, by_hand)
    crop = pickle.loads(pickle.dumps(made.crop()))
    assert torch.equal(made.cropped().transform()(crop(picture)), want)
    # Through a data set and timm's loader, normalised by the loader or before it.
    cut = select_classes(open_dataset('', root, 'test', **made.reading_options()), ['a'])
    for prefetch in (False, True):
        loader = create_loader(cut, **made.loader_options(), batch_size=1, num_workers=0, use_prefetcher=prefetch,
                               device=torch.device('cpu'), persistent_workers=False)
        (batch, _), = loader
        assert torch.allclose(batch[0], want, atol=1e-5) if prefetch else torch.equal(batch[0], want)
    # Pixel statistics, of the same picture in colours that can be compared.
    if made.image_mode in ('L', 'RGB'):
        np.testing.assert_array_equal(
            _Statistics(made)(picture), measure(by_hand.permute(1, 2, 0).numpy(), picture.size))
    # The classifier, from a path, and show.
    (batch, _), = batches([path], made, 1)
    assert torch.equal(batch[0], want)
    assert torch.equal(_load([(path, '')], made)[0], want)


@pytest.mark.parametrize('made', [
    odd(), odd(crop_mode='border', image_mode='HSV', exif='apply'), odd(input_size=(4, 9, 12), mean=(.5,), std=(.25,))])
def test_a_record_comes_back_from_a_checkpoint_and_from_json(made):
    config = made.as_config()
    assert Preprocessing.of(config) == made
    assert Preprocessing.of(json.loads(json.dumps(config))) == made
    assert Preprocessing.of(config, img_size=20).input_size == (made.channels, 20, 20)
    model = timm.create_model('test_resnet', in_chans=made.channels)
    assert Preprocessing.of(config, model) == made, 'what is recorded is above what the model says'


@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (3, 'RGB'), (4, 'RGBA')])
def test_a_record_without_the_newer_entries_reads_as_before(channels, mode):
    config = {'input_size': [channels, 32, 32], 'interpolation': 'bilinear', 'mean': [0.3], 'std': [0.2],
              'crop_pct': 0.9, 'crop_mode': 'squash'}
    made = Preprocessing.of(config)
    assert (made.image_mode, made.exif, made.pipeline, made.crop_mode) == (mode, 'ignore', None, 'squash')
    assert made.mean == (0.3,) * channels


def test_what_is_left_open_is_the_models():
    model = timm.create_model('test_vit', in_chans=1, pretrained_cfg_overlay={'crop_mode': 'border', 'crop_pct': 0.8})
    made = Preprocessing.of(None, model)
    assert (made.crop_mode, made.crop_pct, made.image_mode) == ('border', 0.8, 'L')
    assert made.input_size == (1, 160, 160)
    assert len(made.mean) == len(made.std) == 1, 'of three channels the average'
    assert Preprocessing.of({'in_chans': 1, 'crop_mode': 'center'}, model).crop_mode == 'center'
    assert Preprocessing.of({'input_img_mode': 'L'}, model).image_mode == 'L', "timm's name of it"


@pytest.mark.parametrize(('changes', 'message'), [
    ({'image_mode': 'F'}, '--input-img-mode F: expected a mode of PIL with 8 bits'),
    ({'image_mode': 'RGBA'}, 'takes 3 channels and images are read as RGBA, which has 4; type --in-chans 4'),
    ({'input_size': (5, 8, 8)}, 'takes 5 channels'), ({'crop_mode': 'middle'}, 'crop_mode .* center, squash, border'),
    ({'exif': 'perhaps'}, 'exif .* ignore, apply'), ({'mean': (.1, .2)}, 'mean'), ({'crop_pct': -1}, 'crop_pct'),
    ({'input_size': (3, 8)}, 'input_size'), ({'input_size': (3, 0, 8)}, 'positive'),
    ({'interpolation': 'cubic'}, "interpolation 'cubic': expected nearest, bilinear, bicubic")], ids=str)
def test_what_cannot_be_applied_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        odd(**changes)


@pytest.mark.parametrize('mode', ['HSV', 'RGBA', 'CMYK'])
def test_pixel_statistics_are_of_colours_whatever_the_model_reads(mode):
    colours = np.random.default_rng(0).integers(60, 200, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    picture = Image.fromarray(colours)
    sizes = {'crop_pct': 1.0, 'interpolation': 'nearest'}
    plain = _Statistics(odd(input_size=(3, 32, 32), **sizes))(picture)
    other = odd(input_size=(MODES[mode], 32, 32), image_mode=mode, mean=(.5,), std=(.5,), **sizes)
    assert torch.allclose(_Statistics(other)(picture.convert(mode)), plain, rtol=0.05, equal_nan=True)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'HSV', 'RGBA', 'CMYK'])
def test_a_pipeline_is_recorded_and_its_crop_keeps_the_mode(mode):
    pipeline = {'path': 'a.yaml', 'transform': {
        '__class_fullname__': 'CenterCrop', 'height': '$height', 'width': '$width', 'p': 1.0}}
    made = odd(input_size=(MODES[mode], 15, 15), image_mode=mode, mean=(.5,), std=(.5,), pipeline=pipeline)
    assert Preprocessing.of(json.loads(json.dumps(made.as_config()))) == made
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)).convert(mode)
    crop = made.crop()(picture)
    assert crop.tobytes() == picture.crop((4, 2, 19, 17)).tobytes()
    assert crop.mode == mode
    assert torch.equal(made.cropped().transform()(crop), made.transform()(picture))
    steps = made.onnx_metadata()['preprocessing']
    assert [step['step'] for step in steps] == ['convert', 'albumentations', 'scale']
    assert json.loads(json.dumps(steps))[1]['transform']['transform']['transforms'][0]['height'] == 15


def test_a_picture_that_shrinks_to_nothing_is_named(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
        Image.new('RGB', (300, 2)).save(tmp_path / name / 'line.png')
    made = odd(crop_mode='border')
    source = open_dataset('', tmp_path)
    for images in (source, select_classes(source, ['a'])):
        images.transform = made.transform()
        with pytest.raises(UnreadableImageError, match=r"line\.png, \(300, 2\) pixels, .* model's input .*; remove it"):
            images[0]
    with pytest.raises(ValueError, match='image 0: '):
        next(batches([tmp_path / 'a' / 'line.png'], made, 1))
