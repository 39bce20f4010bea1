"""The graph that reads an image of any size: its pixels against Pillow's, its answers, its metadata and its card."""
from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoints import CONFIG, class_folders, save_checkpoint

from gradmix_timm import OpenSetClassifier
from gradmix_timm.classifier.onnx_image import check_exportable, image_graph, prepend
from gradmix_timm.data.preprocessing import Preprocessing

EXAMPLE = Path(__file__).parent.parent / 'examples' / 'onnx_runtime.py'


@pytest.fixture(scope='module')
def pictures():
    """50 of odd sides from 33 to 401 pixels: smooth colours, every second under texture; and two tiny ones."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8)) for sides in ((1, 1), (2, 50))]
    for place in range(50):
        height, width = (2 * rng.integers(16, 201, 2) + 1).tolist()
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        texture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images.append(Image.blend(coarse, Image.fromarray(texture), 0.4 * (place % 2)))
    return images


def differences(preprocessing, images):
    """Of each picture's pixels [C, h, w] from 0 to 255: graph minus Pillow."""
    onnxruntime = pytest.importorskip('onnxruntime')
    onnx = pytest.importorskip('onnx')
    graph = image_graph(preprocessing)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    transform = preprocessing.transform(normalize=False)
    for image in images:
        expected = transform(preprocessing.decode(image)).numpy()
        found, = session.run(None, {'image': np.asarray(image)})
        assert found.dtype == np.float32
        assert found.shape == (1, *expected.shape)
        yield np.rint(found[0] * 255) - expected


@pytest.mark.parametrize('config', [
    {'interpolation': 'bicubic', 'crop_pct': 0.875},
    {'interpolation': 'bilinear', 'crop_pct': 0.95, 'crop_mode': 'border', 'mean': (0.5, 0.2, 0.1)},
    {'interpolation': 'bicubic', 'crop_pct': 1.0, 'crop_mode': 'squash'},
    {'interpolation': 'bilinear', 'crop_pct': 1.1, 'input_size': (3, 72, 97)},
    {'interpolation': 'bicubic', 'crop_pct': 1.1, 'crop_mode': 'border', 'input_size': (3, 97, 72)},
    {'interpolation': 'bilinear', 'crop_pct': 0.9, 'input_size': (1, 64, 64), 'mean': (0.5,), 'std': (0.2,)}],
    ids=lambda config: '-'.join(str(value) for value in config.values()))
def test_pixels_are_those_of_pillow_within_one_level(config, pictures):
    """Resize computes its scales in float32 and Pillow in float64; both round to 8 bits after each of two passes."""
    preprocessing = Preprocessing.of({'input_size': (3, 96, 96), **config})
    images = pictures if preprocessing.crop_mode == 'center' else pictures[::4]
    found = [np.abs(part) for part in differences(preprocessing, images)]
    assert max(part.max() for part in found) <= 1
    assert np.mean([part.mean() for part in found]) < 0.005


def test_the_nodes_go_before_those_of_a_model(pictures):
    """The model here is the mean of its input; the slow test below has a whole one."""
    onnxruntime = pytest.importorskip('onnxruntime')
    helper = pytest.importorskip('onnx').helper
    images, mean = (helper.make_tensor_value_info(name, 1, shape) for name, shape in (
        ('images', ['n', 3, 32, 32]), ('mean', ['n'])))
    axes = helper.make_tensor('axes', 7, [3], [1, 2, 3])
    proto = helper.make_model(helper.make_graph(
        [helper.make_node('ReduceMean', ['images', 'axes'], ['mean'], keepdims=0)], 'model', [images], [mean], [axes]),
        opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    made = Preprocessing.of(CONFIG)
    prepend(proto, made)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=['CPUExecutionProvider'])
    found, = session.run(None, {'image': np.asarray(pictures[5])})
    assert [tensor.name for tensor in session.get_inputs()] == ['image']
    assert session.get_outputs()[0].shape == [1]
    expected = float(made.transform(normalize=False)(pictures[5]).float().mean()) / 255
    assert found[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(('config', 'words'), [
    ({'interpolation': 'lanczos'}, "'lanczos': ONNX resizes by bilinear and bicubic .* input='tensor'"),
    ({'image_mode': 'HSV'}, 'read as HSV'), ({'input_size': (4, 32, 32), 'mean': (0.5,), 'std': (0.5,)}, 'as RGBA'),
    ({'pipeline': {'path': 'a.yaml', 'transform': {}}}, 'albumentations')])
def test_a_preprocessing_without_operators_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        check_exportable(Preprocessing.of({**CONFIG, **config}))


def test_nothing_is_written_where_the_graph_cannot_be(tmp_path):
    path = save_checkpoint(tmp_path / 'm.pth.tar', class_folders(tmp_path / 'data', count=1),
                           data_config={**CONFIG, 'interpolation': 'lanczos'})
    found = OpenSetClassifier.from_checkpoint(path, threshold=0., device='cpu')
    with pytest.raises(ValueError, match="'lanczos': ONNX resizes by"):
        found.export_onnx(tmp_path / 'm.onnx', input='image')
    with pytest.raises(ValueError, match="input='file': a graph reads 'tensor' or 'image'"):
        found.export_onnx(tmp_path / 'm.onnx', input='file')
    assert not list(tmp_path.glob('*.onnx*'))


@pytest.mark.slow
def test_the_graph_classifies_files_of_any_size_as_the_classifier(pictures, tmp_path, capsys, monkeypatch):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    made = {**CONFIG, 'input_size': (3, 96, 96), 'interpolation': 'bicubic', 'exif': 'apply'}
    path = save_checkpoint(tmp_path / 'm.pth.tar', class_folders(tmp_path / 'data', count=1), data_config=made)
    turned, files = Image.Exif(), []
    for place, picture in enumerate(pictures[2:]):
        turned[0x0112] = 1 + place % 8
        files.append(tmp_path / f'{place:02}.png')
        picture.save(files[-1], exif=turned)
    files.append(tmp_path / 'deep.png')
    Image.fromarray(np.asarray(pictures[2].convert('L'), np.uint16) * 257).save(files[-1])  # 16 bits a pixel
    values = np.sort(OpenSetClassifier.from_checkpoint(path, threshold=0., device='cpu').scores(files)[1])
    found = OpenSetClassifier.from_checkpoint(path, threshold=float(values[24:26].mean()), device='cpu')
    expected = found.predict(files)
    found.export_onnx(tmp_path / 'm.onnx', input='image')
    monkeypatch.setattr(sys, 'argv', ['onnx_runtime.py', str(tmp_path / 'm.onnx'), *map(str, files)])
    told = runpy.run_path(str(EXAMPLE))['facts']
    answers = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [answer[0] for answer in answers] == [str(file) for file in files]
    np.testing.assert_allclose([float(answer[2]) for answer in answers], [one.knownness for one in expected], atol=2e-3)
    assert sum(answer[1] != one.label for answer, one in zip(answers, expected, strict=True)) <= 1
    # Complete for a reader without this package.
    metadata = {key.removeprefix('gradmix_timm.'): value for key, value in told.items()}
    assert json.loads(metadata['known_classes']) == ['cat', 'ant']
    assert (float(metadata['threshold']), metadata['score'], metadata['exif']) == (found.threshold, 'mls', 'apply')
    assert metadata['input'].startswith('uint8 [H, W, 3], RGB')
    assert set(json.loads(metadata['versions'])) >= {'gradmix-timm', 'torch', 'timm', 'pillow'}
    assert json.loads(metadata['checkpoint'])['sha256'] == found.manifest.checkpoint['sha256']
    assert [step['step'] for step in json.loads(metadata['preprocessing'])][:2] == ['orient', 'convert']
    # The card beside it, whose program runs.
    card = (tmp_path / 'm.onnx.md').read_text()
    digest = found.manifest.checkpoint['sha256']
    for words in ('# m.onnx', 'cat, ant', '`mls`', f'{found.threshold:.6g}', 'bicubic', digest):
        assert words in card
    program = card.split('```python')[1].split('```')[0]
    monkeypatch.chdir(tmp_path)
    exec(program, {'path': files[0]})
    assert capsys.readouterr().out.split()[0] == expected[0].label
