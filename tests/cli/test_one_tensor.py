"""A run validates by the preprocessing that its checkpoint records, and whatever reads images later uses that one."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_steps import pixels_by_metadata
from PIL import Image
from tiny_checkpoints import CONFIG, save_checkpoint
from tiny_training import rows, run_tiny
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradmix_timm import OpenSetClassifier
from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import predict, show
from gradmix_timm.cli.openset import main as openset
from gradmix_timm.data.preprocessing import Preprocessing

KNOWN = ('ant', 'bee', 'cat')
QUICK = ('--scores', 'mls', '--bootstrap', '1', '--trivial-images', '0', '--duplicates', '0', '--feature-map', '0')


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """Pictures of 96 x 32 pixels whose left third tells the class, which a crop of the center cuts off.

    Their files say that a camera was turned, and those of the third class are half transparent.
    """
    root, rng = tmp_path_factory.mktemp('wide'), np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, count in (('train', 12), ('test', 4)):
        for place, name in enumerate((*KNOWN, 'dog')):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 96, 4), dtype=np.uint8)
                pixels[..., 3] = 128 if place == 2 else 255
                pixels[:, :32, :3] = np.eye(4, 3)[place] * 255
                Image.fromarray(pixels).save(root / split / name / f'{number:02}.png', exif=exif)
    (root / 'validation').symlink_to(root / 'test')
    return root


class Seen:
    """What a net gets to see in evaluation mode, as 8-bit pixels, whoever calls it."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def __enter__(self) -> Seen:
        def look(module, inputs):
            if isinstance(module, nn.Conv2d) and module.in_channels in (3, 4) and not module.training:
                self.batches.append(inputs[0].detach().clone())
        self.hook = register_module_forward_pre_hook(look)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def images(self, made: Preprocessing) -> set[bytes]:
        """All of them, but for the blank ones that only try whether the net takes its input."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (made.mean, made.std))
        return {((image * std + mean) * 255).round().to(torch.uint8).numpy().tobytes()
                for batch in self.batches for image in batch if image.any()}


def by_hand(paths, made: Preprocessing) -> set[bytes]:
    told = {f'gradmix_timm.{key}': json.dumps(value) for key, value in made.onnx_metadata().items()}
    return {np.rint(pixels_by_metadata(path, told) * 255).astype(np.uint8).tobytes() for path in paths}


def overlay(mode):
    return '--pretrained-cfg-overlay', f'crop_mode={mode}', 'crop_pct=0.9'


SLOW = pytest.mark.slow


@pytest.mark.parametrize(('mode', 'flags', 'changes'), [
    ('squash', (), {}),
    pytest.param('border', ('--no-prefetcher', '--exif', 'apply'), {'exif': 'apply'}, marks=SLOW),
    pytest.param('border', ('--cache-images', '--input-img-mode', 'HSV'), {'image_mode': 'HSV'}, marks=SLOW),
    pytest.param('squash', ('--in-chans', 4, '--input-img-mode', 'RGBA'), {'image_mode': 'RGBA'}, marks=SLOW),
    pytest.param('border', ('--objective', 'simclr', '--objective-dim', 8, '--probe-epochs', 20), {}, marks=SLOW)],
    ids=['plain', 'exif', 'cached hsv', 'rgba', 'probe'])
def test_every_reader_of_images_sees_what_validation_saw(mode, flags, changes, wide, tmp_path, undrawn):
    with Seen() as training:
        folder = run_tiny(wide, tmp_path, '--known-classes', ','.join(KNOWN), '--osr-val-fraction', 0.5,
                          *overlay(mode), '--epochs', 4, '--scale', 1, 1, '--ratio', 3, 3, '--hflip', 0,
                          '--color-jitter', 0, *flags, classes=None)
    checkpoint = folder / 'last.pth.tar'
    loaded = load_checkpoint(checkpoint)
    made = Preprocessing.of(loaded.record.data_config)
    assert made.crop_mode == mode
    assert {name: getattr(made, name) for name in changes} == changes
    train = sorted((wide / 'train').glob('[abc]*/*.png'))
    test = sorted((wide / 'test').glob('*/*.png'))
    held = [wide / 'train' / name for name in sorted(loaded.record.held_out)]
    contrastive = '--objective' in flags  # reads all training images for its neighbours and its head
    assert training.images(made) == by_hand(train if contrastive else held, made)

    with Seen() as evaluation:
        assert openset.main(['osr', '--checkpoint', str(checkpoint), '--device', 'cpu', '--workers', '0', *QUICK,
                             '--output', str(folder / 'osr')]) == 0
    assert evaluation.images(made) == by_hand([*held, *test], made)
    gate = json.loads((folder / 'osr' / 'results.json').read_text())['accuracy_gate']
    if not contrastive:
        assert gate['measured'] == pytest.approx(float(rows(folder)[-1]['eval_top1']) / 100)
        assert 'warning' not in gate

    classifier = OpenSetClassifier.from_checkpoint(checkpoint, threshold=0., device='cpu')
    classifier.save(folder / 'saved')
    for one in (classifier, OpenSetClassifier.load(folder / 'saved', device='cpu')):
        with Seen() as prediction:
            one.predict(test)
        assert prediction.images(made) == by_hand(test, made)

    with Seen() as shown:
        assert show.main(['--checkpoint', str(checkpoint), '--images', str(wide / 'test'), '--num', '12',
                          '--mixer', 'none', '--out', str(folder / 'x.png')]) == 0
    assert shown.images(made) == by_hand([path for path in test if path.parent.name in KNOWN], made)


def test_image_mode_and_orientation_may_be_typed_over_what_the_checkpoint_records(wide, tmp_path, undrawn):
    checkpoint = save_checkpoint(tmp_path / 'x.pth.tar', wide, (), known_classes=KNOWN, unknown_classes=('dog',))
    made = Preprocessing.of({**CONFIG, 'image_mode': 'HSV', 'exif': 'apply'})
    test = sorted((wide / 'test').glob('*/*.png'))
    flags = ('--checkpoint', str(checkpoint), '--device', 'cpu', '--input-img-mode', 'HSV', '--exif', 'apply')
    with Seen() as evaluation:
        assert openset.main(['osr', *flags, '--workers', '0', *QUICK, '--output', str(tmp_path / 'osr')]) == 0
    assert evaluation.images(made) == by_hand(test, made)
    recorded = json.loads((tmp_path / 'osr' / 'results.json').read_text())['manifest']['preprocessing']
    assert (recorded['image_mode'], recorded['exif']) == ('HSV', 'apply')
    with Seen() as prediction:
        assert predict.main([*flags, '--threshold', '0', '--save', str(tmp_path / 'saved'), *map(str, test)]) == 0
    assert prediction.images(made) == by_hand(test, made)
    assert OpenSetClassifier.load(tmp_path / 'saved', 'cpu').preprocessing == made
    with pytest.raises(ValueError, match='preprocessing are fixed; leave out --exif'):
        predict.main(['--checkpoint', str(tmp_path / 'saved'), '--exif', 'ignore', str(test[0])])


def test_corrupted_images_go_through_the_same_resize_and_crop(wide, tmp_path):
    folder = run_tiny(wide, tmp_path, '--known-classes', ','.join(KNOWN), *overlay('border'), '--epochs', 1,
                      classes=None)
    made = Preprocessing.of(load_checkpoint(folder / 'last.pth.tar').record.data_config)
    with Seen() as evaluation:
        assert openset.main(['corrupt', '--checkpoint', str(folder / 'last.pth.tar'), '--device', 'cpu', '--workers',
                             '0', '--corruptions', 'brightness', '--severities', '1', '--corrupt-at', 'input',
                             '--scores', 'mls', '--bootstrap', '1', '--output', str(folder / 'corrupt')]) == 0
    test = sorted((wide / 'test').glob('*/*.png'))
    seen, clean = evaluation.images(made), by_hand(test, made)
    assert clean < seen
    frame = np.array([round(255 * value) for value in made.mean])
    for image in seen - clean:  # the frame of the whole picture was there before the corruption
        pixels = np.frombuffer(image, np.uint8).reshape(3, 32, 32)
        assert len(np.unique(pixels[:, 0], axis=1).T) == 1
        assert (pixels[:, 0, 0] >= frame).all()


@pytest.mark.slow
def test_a_run_without_an_open_set_split_validates_as_timms_script_and_records_it(wide, tmp_path, caplog):
    """timm's script hands no crop mode to its validation loader; its figures stay, and every evaluation agrees."""
    figures = {}
    for mode in ('center', 'squash'):
        with Seen() as training, caplog.at_level('INFO', 'train'):
            folder = run_tiny(wide, tmp_path, *overlay(mode), '--epochs', 2, name=mode)
        made = Preprocessing.of(load_checkpoint(folder / 'last.pth.tar').record.data_config)
        assert made.crop_mode == 'center'
        assert training.images(made) == by_hand((wide / 'test').glob('*/*.png'), made)
        figures[mode] = rows(folder)
    assert figures['center'] == figures['squash']
    said = [record.getMessage() for record in caplog.records if 'crop mode is squash' in record.getMessage()]
    assert len(said) == 1
    with Seen() as prediction:
        OpenSetClassifier.from_checkpoint(tmp_path / 'squash' / 'last.pth.tar', threshold=0., device='cpu').predict(
            wide / 'test' / 'ant' / '00.png')
    assert prediction.images(made) == by_hand([wide / 'test' / 'ant' / '00.png'], made)


def test_the_image_mode_of_timms_own_checkpoint_is_that_of_its_arguments(wide, tmp_path):
    folder = run_tiny(wide, tmp_path, '--input-img-mode', 'HSV', '--epochs', 1)
    content = torch.load(folder / 'last.pth.tar', weights_only=False)
    del content['gradmix_timm']
    torch.save(content, folder / 'timms.pth.tar')
    assert Preprocessing.of(load_checkpoint(folder / 'timms.pth.tar').data_config).image_mode == 'HSV'


@pytest.mark.slow
def test_a_graph_says_how_its_input_is_made(wide, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    folder = run_tiny(wide, tmp_path, '--known-classes', ','.join(KNOWN), *overlay('border'), '--epochs', 1,
                      classes=None)
    classifier = OpenSetClassifier.from_checkpoint(folder / 'last.pth.tar', threshold=0., device='cpu')
    classifier.export_onnx(folder / 'm.onnx')
    session = runtime.InferenceSession(folder / 'm.onnx', providers=['CPUExecutionProvider'])
    paths: list[Path] = sorted((wide / 'test').glob('*/*.png'))
    told = session.get_modelmeta().custom_metadata_map
    images = np.stack([pixels_by_metadata(path, told) for path in paths])
    label, value, _ = session.run(None, {'images': images})
    classes, knownness = classifier.scores(paths)
    np.testing.assert_array_equal(label, classes)
    np.testing.assert_allclose(value, knownness, rtol=1e-4, atol=1e-5)
