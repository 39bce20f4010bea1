"""Albumentations pipelines from files: read, checked, fitted to a model, seeded through torch."""
from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gradmix_timm.data.transforms import build_pipeline, read_pipelines, recorded_pipeline

READY = sorted((Path(__file__).parents[2] / 'configs' / 'aug').glob('*.yaml'))
SIZE = (3, 32, 32)
CROP = {'__class_fullname__': 'RandomCrop', 'height': '$height', 'width': '$width'}
FLIP = {'__class_fullname__': 'HorizontalFlip', 'p': 0.5}


def compose(*nodes):
    return {'transform': {'__class_fullname__': 'Compose', 'transforms': list(nodes)}}


def written(tmp_path, content, name='aug.yaml'):
    path = tmp_path / name
    path.write_text(json.dumps(content) if name.endswith('.json') else yaml.safe_dump(content))
    return str(path)


def fitted(tmp_path, *nodes, size=SIZE, **options):
    pipelines = read_pipelines(written(tmp_path, {'train': compose(*nodes)}))
    return build_pipeline(pipelines.train, 'aug.yaml: train', size, (0.5,), (0.25,), **options)


def image(side=48, mode='RGB', seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize('path', READY, ids=lambda path: path.stem)
@pytest.mark.parametrize('size', [(3, 32, 32), (1, 24, 40), (3, 224, 224)])
def test_ready_pipelines_fit_any_model(path, size):
    pipelines = read_pipelines(str(path))
    for pipeline in filter(None, (pipelines.train, pipelines.eval)):
        transform = build_pipeline(pipeline, path.name, size, (0.5,), (0.25,), crop_pct=0.875)
        got = transform(image(256, 'RGB' if size[0] == 3 else 'L'))
        assert got.shape == size
        assert got.dtype == torch.uint8


def test_every_image_is_seeded_from_torchs_stream_and_no_other(tmp_path):
    transform = fitted(tmp_path, CROP, FLIP, {'__class_fullname__': 'OneOf', 'p': 0.9, 'transforms': [
        {'__class_fullname__': 'GaussNoise', 'p': 1.0}, {'__class_fullname__': 'ColorJitter', 'p': 1.0}]})

    def draw(seed, count=6):
        torch.manual_seed(seed)
        random.seed(count)
        np.random.seed(count)  # noqa: NPY002
        return torch.stack([transform(image()) for _ in range(count)])

    first = draw(0)
    assert torch.equal(first, draw(0))
    assert torch.equal(first[:3], draw(0, 3)), 'other streams play no part'
    assert not torch.equal(first, draw(1))
    assert len({tuple(one.flatten().tolist()) for one in first}) > 3


def test_transforms_of_a_pipeline_draw_apart(tmp_path):
    """Two coins of one half agree half of the time; seeded alike they would agree always."""
    transform = fitted(tmp_path, {'__class_fullname__': 'Resize', 'height': '$height', 'width': '$width'}, FLIP,
                       {'__class_fullname__': 'VerticalFlip', 'p': 0.5}, size=(1, 2, 2))
    corners = Image.fromarray(np.array([[0, 80], [160, 240]], np.uint8))
    torch.manual_seed(0)
    places = [int(transform(corners)[0, 0, 0]) // 80 for _ in range(400)]
    assert min(np.bincount(places, minlength=4)) > 60


def test_pixels_are_those_of_albumentations_and_normalised_by_the_models_figures(tmp_path):
    node = {'__class_fullname__': 'CenterCrop', 'height': '$height', 'width': '$width'}
    plain, normal = (fitted(tmp_path, node, normalize=on) for on in (False, True))
    want = torch.from_numpy(np.array(image())[8:40, 8:40].copy()).permute(2, 0, 1)
    assert torch.equal(plain(image()), want)
    assert torch.allclose(normal(image()), (want / 255 - 0.5) / 0.25)


def test_what_albumentations_saves_is_read_and_gives_the_same(tmp_path):
    library = pytest.importorskip('albumentations')
    pipeline = library.Compose([library.PadIfNeeded(60, 60), library.RandomCrop(32, 32), library.ColorJitter(p=0.7)])
    for name in ('aug.yaml', 'aug.json'):
        library.save(pipeline, tmp_path / name, data_format=name.rpartition('.')[2])
        read = read_pipelines(str(tmp_path / name))
        assert read.eval is None
        torch.manual_seed(3)
        got = build_pipeline(read.train, name, SIZE, (0.5,), (0.25,))(image())
        torch.manual_seed(3)
        seed = int(torch.randint(2 ** 62, ()))
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert torch.equal(got, torch.from_numpy(pipeline(image=np.array(image()))['image']).permute(2, 0, 1))


def test_placeholders_are_the_models(tmp_path):
    transform = fitted(tmp_path, {'__class_fullname__': 'SmallestMaxSize', 'max_size_hw': '$resize'},
                       {'__class_fullname__': 'Pad', 'padding': 2, 'fill': '$fill'},
                       {'__class_fullname__': 'CenterCrop', 'height': '$height', 'width': '$width'}, size=(3, 20, 30),
                       crop_pct=0.5)
    assert transform.pipeline.transforms[0].max_size_hw == (40, 60)
    assert list(transform.pipeline.transforms[1].fill) == [128, 128, 128]
    assert transform(image()).shape == (3, 20, 30)


@pytest.mark.parametrize(('nodes', 'words'), [
    ([{'__class_fullname__': 'HorizontalFlop'}], ["'HorizontalFlop'", "'HorizontalFlip'"]),
    ([{'__class_fullname__': 'Qwxyz'}], ["'Qwxyz'"]),
    ([{**FLIP, 'probability': 0.5}], ["HorizontalFlip has no argument 'probability'"]),
    ([{**CROP, 'height': 'tall'}], ['RandomCrop', 'height', "'tall'"]),
    ([{**CROP, 'height': '$heigth'}], ["'$heigth'", "'$height'"]),
    ([FLIP], ['expected 32 x 32 x 3', '$height and $width']),
    ([CROP, {'__class_fullname__': 'Normalize'}], ['leave out Normalize']),
    ([CROP, {'__class_fullname__': 'albumentations.pytorch.ToTensorV2'}], ['leave out ToTensorV2']),
    ([{'height': 3}], ['__class_fullname__']),
    ([{'__class_fullname__': 'OneOf', 'transforms': [{'__class_fullname__': 'Blurr'}]}], ["'Blurr'", "'Blur'"]),
])
def test_a_faulty_pipeline_is_one_clear_error(nodes, words, tmp_path):
    with pytest.raises(ValueError, match=r'aug\.yaml: train') as caught:
        fitted(tmp_path, *nodes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('content', ['[1, 2]', 'trian: {}', 'eval: {}', 'a: [', ''])
def test_a_file_that_is_no_pipeline_is_named(content, tmp_path):
    (tmp_path / 'aug.yaml').write_text(content)
    with pytest.raises(ValueError, match=r'aug\.yaml'):
        read_pipelines(str(tmp_path / 'aug.yaml'))


def test_an_image_that_is_too_small_is_told_with_its_size(tmp_path):
    transform = fitted(tmp_path, CROP)
    with pytest.raises(ValueError, match='20 x 20'):
        transform(image(20))


# ---- the evaluation pipeline of a checkpoint

RESIZE = {'__class_fullname__': 'Resize', 'height': '$height', 'width': '$width'}


def recorded(*nodes):
    return recorded_pipeline({
        'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'crop_pct': 0.9, 'pipeline': {
            'path': 'a.yaml', 'transform': {'__class_fullname__': 'Compose', 'transforms': list(nodes)}}})


def node(name, **options):
    return {'__class_fullname__': name, **options}


@pytest.mark.parametrize(('nodes', 'words'), [
    ([node('RandomCrop', height=32, width=32)], 'RandomCrop draws at random'),
    ([RESIZE, node('OneOf', p=1.0, transforms=[node('InvertImg', p=1.0)])], 'OneOf draws at random'),
    ([RESIZE, node('ColorJitter', p=1.0)], 'ColorJitter draws'), ([RESIZE, node('HorizontalFlip')], 'p=0.5'),
    ([RESIZE, node('Sequential', transforms=[node('InvertImg', p=1.0)])], 'Sequential happens with p=0.5'),
    ([RESIZE, node('Sequential', p=1.0, transforms=[node('InvertImg', p=0.999)])], 'InvertImg happens with p=0.999'),
    ([RESIZE, node('Sharpen', p=1.0, alpha=[0.1, 0.9])], 'seeds give'),
    ([RESIZE, node('GaussianBlur', p=1.0, sigma_limit=[0.1, 2.0])], 'seeds give'),
    ([node('LongestMaxSize', max_size=30), node('PadIfNeeded', min_height=32, min_width=32, position='random')],
     'seeds give'),
    ([node('TextImage', font_path='/etc/passwd', p=1.0), RESIZE], 'reads other files'),
    ([node('FDA', reference_images=['/etc/passwd'], p=1.0), RESIZE], 'reads other files'),
    ([node('Resize', height=10 ** 6, width=10 ** 6), RESIZE], 'expected at most 8192')])
def test_a_random_or_reading_evaluation_is_refused(nodes, words):
    with pytest.raises(ValueError, match=words) as caught:
        recorded(*nodes)
    assert 'the evaluation pipeline of the checkpoint (a.yaml)' in str(caught.value)


@pytest.mark.parametrize('nodes', [
    [RESIZE], [node('SmallestMaxSize', max_size_hw='$resize'), node('CenterCrop', height='$height', width='$width')],
    [RESIZE, node('InvertImg', p=1.0), node('ToGray', p=1.0), node('Sequential', p=1.0, transforms=[
        node('HorizontalFlip', p=1.0)])], [RESIZE, node('Solarize', p=1.0, threshold_range=[0.5, 0.5])]])
def test_a_fixed_evaluation_stays_and_draws_nothing(nodes):
    before = torch.get_rng_state()
    transform = recorded(*nodes)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(transform(image(40)), transform(image(40)))
