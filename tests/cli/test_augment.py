"""Training through albumentations pipelines and on cached images: what the batches are, what is refused."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.checkpoint import build_model, load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.errors import UsageError
from gradmix_timm.cli.training import caching, loop
from gradmix_timm.cli.training import run as stages
from gradmix_timm.data import open_dataset, select_classes
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.settings import EvaluationSettings

READY = str(Path(__file__).parents[2] / 'configs' / 'aug' / 'light.yaml')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture
def batches(monkeypatch):
    """Every training batch of the next runs, as the step gets it."""
    seen = []
    step = stages.train_one_epoch

    def watched(run, epoch):
        loader = run.loaders.train
        seen.append([images.clone() for images, _ in loader])
        return step(run, epoch)

    monkeypatch.setattr(stages, 'train_one_epoch', watched)
    return seen


@pytest.fixture
def pipeline(tmp_path):
    def write(*nodes, **splits):
        whole = {name: {'transform': {'__class_fullname__': 'Compose', 'transforms': list(nodes)}}
                 for name, nodes in {'train': nodes, **splits}.items()}
        (tmp_path / 'aug.yaml').write_text(yaml.safe_dump(whole))
        return '--aug-backend', 'albumentations', '--aug-config', tmp_path / 'aug.yaml'
    return write


CENTER = {'__class_fullname__': 'CenterCrop', 'height': '$height', 'width': '$width'}
CROP = {'__class_fullname__': 'RandomCrop', 'height': '$height', 'width': '$width'}


def refused(capsys, *flags):
    assert train.console(['--data-dir', '/nowhere', *TINY, *map(str, flags)]) == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith('error: '))


# ---- albumentations

def test_with_and_without_prefetcher_the_batches_are_normalised_once(images, tmp_path, batches, pipeline):
    flags = pipeline(CENTER)
    for name, more in (('with', ()), ('without', ('--no-prefetcher',))):
        run_tiny(images, tmp_path, *flags, *more, '--epochs', 1, name=name)
    left, right = (torch.cat(epoch) for epoch in batches)
    assert torch.allclose(left, right, atol=1e-5)
    assert left.shape == (30, 3, 32, 32)


@pytest.mark.slow
def test_workers_and_epochs_differ_and_a_run_reproduces_itself(images, tmp_path, batches, pipeline):
    flags = (*pipeline(CROP), '--workers', 2, '--known-classes', 'ant,bee,cat', '--osr-val-fraction', 0.25)
    for name in ('one', 'two'):
        run_tiny(images, tmp_path, *flags, name=name, classes=None)
    first, second, again = batches[0], batches[1], batches[2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first).sort(0).values, torch.cat(second).sort(0).values)
    assert rows(tmp_path / 'one') == rows(tmp_path / 'two')


@pytest.mark.parametrize('persistent', [True, False])
def test_two_workers_crop_the_same_image_apart(persistent, pipeline):
    from PIL import Image
    from timm.data import create_loader

    from gradmix_timm.data.transforms import build_pipeline, read_pipelines

    class Same(torch.utils.data.Dataset):
        transform = None

        def __len__(self):
            return 8

        def __getitem__(self, index):
            ramp = Image.linear_gradient('L').resize((64, 64)).convert('RGB')
            return self.transform(ramp), index

    read = read_pipelines(str(pipeline(CROP)[-1]))
    data = Same()
    loader = create_loader(data, (3, 16, 16), 4, is_training=True, num_workers=2, device=torch.device('cpu'),
                           persistent_workers=persistent)
    data.transform = build_pipeline(read.train, 'aug', (3, 16, 16), (0.5,), (0.25,))
    epochs = [[batch for batch, _ in loader] for _ in range(2)]
    for one, other in ((epochs[0][0], epochs[0][1]), (epochs[0][0], epochs[1][0]), (epochs[0][1], epochs[1][1])):
        assert not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(workers, images, tmp_path, pipeline):
    flags = (*pipeline(CROP), '--workers', workers, '--mixup-mode', 'cutmix')
    straight = run_tiny(images, tmp_path, *flags, name='straight')
    run_tiny(images, tmp_path, *flags, '--stop-epoch', 1, name='parts')
    parts = run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts')
    assert rows(parts) == rows(straight)
    left, right = (load_checkpoint(f / 'last.pth.tar').state_dict for f in (straight, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_validation_images_go_through_timms_transform_unless_the_file_says_otherwise(images, tmp_path, pipeline):
    timms = run_tiny(images, tmp_path, *pipeline(CENTER), '--epochs', 1, '--lr', 0, name='timms')
    inverted = pipeline(CENTER, eval=[{'__class_fullname__': 'InvertImg', 'p': 1.0}, CENTER])
    theirs = run_tiny(images, tmp_path, *inverted, '--epochs', 1, '--lr', 0, name='theirs')
    assert rows(timms)[0]['eval_loss'] != rows(theirs)[0]['eval_loss']


EVAL = [{'__class_fullname__': 'InvertImg', 'p': 1.0}, {'__class_fullname__': 'VerticalFlip', 'p': 1.0},
        {**CENTER, 'height': 32, 'width': 32}]


def osr(folder, *flags):
    from gradmix_timm.cli.openset import main as command
    assert command.main(['osr', '--checkpoint', str(folder / 'last.pth.tar'), '--device', 'cpu', '--workers', '0',
                         '--output', str(folder / 'osr'), *map(str, flags)]) == 0
    return json.loads((folder / 'osr' / 'results.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), ('--no-prefetcher',),
                                   ('--objective', 'simclr', '--objective-dim', 8, '--probe-epochs', 20)], ids=str)
def test_a_checkpoint_is_evaluated_by_the_pipeline_that_validated_it(flags, images, tmp_path, pipeline):
    """Validation images are those of the test split here, so that both accuracies are of the same images."""
    (tmp_path / 'data').mkdir()
    for split, source in (('train', 'train'), ('validation', 'validation'), ('test', 'validation')):
        (tmp_path / 'data' / split).symlink_to(images / source)
    folder = run_tiny(tmp_path / 'data', tmp_path, *pipeline(CENTER, eval=EVAL), *flags, '--epochs', 3, '--lr', 0.1)
    record = load_checkpoint(folder / 'last.pth.tar').record
    assert record.data_config['pipeline']['transform']['transforms'][0]['__class_fullname__'] == 'InvertImg'
    model = build_model(load_checkpoint(folder / 'last.pth.tar'))
    images_of = open_dataset('', tmp_path / 'data', 'test')
    subject = EvaluatedModel.build(EvaluationSettings(workers=0), load_checkpoint(folder / 'last.pth.tar'),
                                   num_classes=4, device='cpu')
    found = subject.embed(select_classes(images_of, ('ant', 'bee', 'cat', 'dog')), 'images')
    top1 = 100 * float((found.logits.argmax(1) == found.label).double().mean())
    if '--objective' in flags:
        assert top1 == pytest.approx(record.probe['val_top1'])
    else:
        assert top1 == pytest.approx(float(rows(folder)[-1]['eval_top1']))
        loss = torch.nn.functional.cross_entropy(found.logits, found.label)
        assert float(rows(folder)[-1]['eval_loss']) == pytest.approx(float(loss), rel=1e-4)
    # By hand, from the files.
    place = tmp_path / 'data' / 'test' / 'bee' / '0.png'
    pixels = 255 - np.asarray(Image.open(place).convert('RGB'))[::-1][4:36, 4:36]
    config = record.data_config
    want = (pixels / 255 - np.array(config['mean'])) / np.array(config['std'])
    transform = Preprocessing.of(config).transform()
    assert np.abs(transform(Image.open(place)).permute(1, 2, 0).numpy() - want).max() < 1e-5
    with torch.no_grad():
        logits = model.eval()(transform(Image.open(place))[None])[0]
    row = subject.embed(select_classes(images_of, ('bee',)), 'bees').logits[0]
    assert torch.allclose(row, logits, atol=1e-5)


@pytest.mark.slow
def test_the_other_commands_see_it_too(images, tmp_path, pipeline):
    from gradmix_timm import OpenSetClassifier
    from gradmix_timm.cli import show
    from gradmix_timm.cli.openset import main as command
    flags = ('--known-classes', 'ant,bee,cat', '--osr-val-fraction', 0.3)
    folder = run_tiny(images, tmp_path, *pipeline(CENTER, eval=EVAL), *flags, classes=None)
    (tmp_path / 'aug.yaml').unlink()  # the checkpoint needs no file
    results = osr(folder)
    model = build_model(load_checkpoint(folder / 'last.pth.tar'))
    transform = Preprocessing.of(load_checkpoint(folder / 'last.pth.tar').record.data_config).transform()
    test = [path for name in ('ant', 'bee', 'cat') for path in sorted((images / 'test' / name).iterdir())]
    with torch.no_grad():
        logits = model.eval()(torch.stack([transform(Image.open(path).convert('RGB')) for path in test]))
    right = logits.argmax(1) == torch.arange(3).repeat_interleave(2)
    assert results['closed_set']['top1'] == pytest.approx(float(right.double().mean()))
    classifier = OpenSetClassifier.from_checkpoint(
        folder / 'last.pth.tar', score='mls', known_acceptance=0.8, device='cpu')
    classifier.save(tmp_path / 'saved')
    for one in (classifier, OpenSetClassifier.load(tmp_path / 'saved', device='cpu')):
        found = [one_image.knownness for one_image in one.predict(test)]
        assert found == pytest.approx(logits.max(1).values.tolist(), abs=1e-4)
    checkpoint = ['--checkpoint', str(folder / 'last.pth.tar')]
    assert command.main(['corrupt', *checkpoint, '--corruptions', 'brightness', '--severities', '1', '--corrupt-at',
                         'input', '--device', 'cpu', '--output', str(tmp_path / 'corrupt')]) == 0
    assert show.main([*checkpoint, '--images', str(images / 'test'), '--mixer', 'cutmix', '--out',
                      str(tmp_path / 'shown.png')]) == 0
    with pytest.raises(UsageError, match='evaluation pipeline of the checkpoint'):
        osr(folder, '--img-size', 48)


def test_the_saved_command_line_reruns(images, tmp_path, pipeline):
    first = run_tiny(images, tmp_path, *pipeline(CROP), '--epochs', 1, name='first')
    again = run_tiny(images, tmp_path, '--config', first / 'args.yaml', name='again')
    assert rows(again)[:1] == rows(first)


@pytest.mark.parametrize(('flags', 'words'), [
    (('--hflip', 0.2), ('--hflip',)),
    (('--aa', 'rand-m9'), ('--aa',)),
    (('--scale', 0.5, 1.0), ('--scale',)),
    (('--no-aug',), ('--no-aug',)),
    (('--reprob', 0.2, '--no-prefetcher'), ('--reprob',)),
    (('--aug-splits', 2), ('--aug-splits',)),
    (('--train-img-sizes', 32, 48), ('--train-img-sizes',)),
])
def test_flags_of_timms_transform_contradict_a_pipeline(flags, words, capsys):
    error = refused(capsys, '--aug-backend', 'albumentations', '--aug-config', READY, *flags)
    assert all(word in error for word in (*words, '--aug-backend albumentations'))


def test_a_ready_pipeline_is_taken_by_its_name(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--aug-backend', 'albumentations', '--aug-config', 'aug/light', '--epochs', 1)
    assert (folder / 'last.pth.tar').is_file()


def test_a_backend_without_a_file_and_a_file_without_a_backend(capsys):
    assert '--aug-config FILE.yaml' in refused(capsys, '--aug-backend', 'albumentations')
    assert '--aug-backend albumentations' in refused(capsys, '--aug-config', READY)
    assert '/no/such.yaml' in refused(capsys, '--aug-backend', 'albumentations', '--aug-config', '/no/such.yaml')


def test_a_crop_larger_than_the_images_is_found_before_training(images, tmp_path, pipeline, capsys):
    flags = pipeline({'__class_fullname__': 'CenterCrop', 'height': 44, 'width': 44}, CENTER)
    status = train.console(['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path),
                            *map(str, flags)])
    assert status == 2
    assert 'pixels' in capsys.readouterr().err


# ---- cached images

CACHED = ('--cache-images',)


def test_cached_images_without_augmentation_are_those_of_timms_loader(images, tmp_path, monkeypatch):
    """The same training images in another order, the same validation batches."""
    seen = []
    monkeypatch.setattr(stages, '_train', lambda run, *rest: seen.append(
        [torch.cat([batch for batch, _ in loader]).flatten(1) for loader in (run.loaders.train, run.loaders.eval)]))
    for name, more in (('timm', ()), ('cached', CACHED)):
        run_tiny(images, tmp_path, '--no-aug', '-b', 8, '--epochs', 1, *more, name=name)
    (left, left_eval), (right, right_eval) = seen
    assert torch.allclose(left[left.sum(1).argsort()], right[right.sum(1).argsort()], atol=1e-5)
    assert torch.equal(left_eval, right_eval)


@pytest.mark.parametrize('flags', [
    (), *(pytest.param(flags, marks=pytest.mark.slow) for flags in (
        ('--crop-padding', 4, '--img-size', 40), ('--reprob', 0.5, '--mixup-mode', 'gradmix'), ('--mixup', 0.5),
        ('--amp', '--amp-dtype', 'bfloat16'), ('--model-dtype', 'bfloat16', '--mixup-mode', 'cutmix'),
        ('--known-classes', 'ant,cat', '--osr-val-fraction', 0.25)))], ids=str)
def test_cached_runs_reproduce_themselves_and_resume_exactly(flags, images, tmp_path):
    classes = None if '--known-classes' in flags else 4
    straight = run_tiny(images, tmp_path, *CACHED, *flags, name='straight', classes=classes)
    run_tiny(images, tmp_path, *CACHED, *flags, '--stop-epoch', 1, name='parts', classes=classes)
    parts = run_tiny(images, tmp_path, *CACHED, *flags, '--resume', 'auto', name='parts', classes=classes)
    assert rows(parts) == rows(straight)
    left, right = (load_checkpoint(f / 'last.pth.tar').state_dict for f in (straight, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_timms_mixup_acts_in_the_step_on_cached_images(images, tmp_path, monkeypatch):
    targets = []
    learn = loop._Epoch._learn
    monkeypatch.setattr(
        loop._Epoch, '_learn', lambda self, x, y, *rest: (targets.append(y), learn(self, x, y, *rest))[1])
    run_tiny(images, tmp_path, *CACHED, '--mixup', 0.8, '--mixup-off-epoch', 1, '--smoothing', 0)
    assert all(target.shape == (6, 4) for target in targets)
    mixed, plain = torch.cat(targets[:5]), torch.cat(targets[5:])
    assert (mixed.max(1).values < 0.99).any()
    assert (plain.max(1).values == 1).all()


def test_only_known_classes_are_held(images, tmp_path, monkeypatch):
    held = []
    keep = caching.hold_images
    monkeypatch.setattr(caching, 'hold_images', lambda *a, **k: (held.append(keep(*a, **k)), held[-1])[1])
    run_tiny(images, tmp_path, *CACHED, '--known-classes', 'dog,ant', '--osr-val-fraction', 0.25, '--epochs', 1,
             classes=None)
    assert [sorted(part.targets.tolist()) for part in held] == [[0] * 6 + [1] * 6, [0] * 2 + [1] * 2]


@pytest.mark.parametrize(('flags', 'words'), [
    (('--aa', 'rand-m9'), '--aa'),
    (('--gaussian-blur-prob', 0.5), '--gaussian-blur-prob'),
    (('--train-crop-mode', 'rkrc'), '--train-crop-mode'),
    (('--no-prefetcher',), '--no-prefetcher'),
    (('--train-interpolation', 'lanczos'), 'bicubic'),
    (('--aug-backend', 'albumentations', '--aug-config', READY), '--aug-backend'),
    (('--crop-padding', 4, '--scale', 0.5, 1.0), '--scale'),
    (('--crop-padding', -1), '--crop-padding -1'),
])
def test_what_held_images_cannot_honour_is_refused_before_anything_is_read(flags, words, capsys):
    assert words in refused(capsys, *CACHED, *flags)


def test_crop_padding_goes_with_cached_images(capsys):
    assert '--cache-images' in refused(capsys, '--crop-padding', 4)


def test_images_too_small_for_a_padded_crop_or_a_batch_are_told_with_the_remedy(images, tmp_path, capsys):
    line = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path), *CACHED]
    assert train.console([*line, '--crop-padding', '2', '--img-size', '64']) == 2
    assert '--img-size 40' in capsys.readouterr().err
    assert train.console([*line, '-b', '64']) == 2
    assert 'smaller --batch-size' in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_cached_images(images, tmp_path):
    from test_train_modes import torchrun
    flags = (*CACHED, '--mixup-mode', 'cutmix', '--batch-size', 4)
    straight = torchrun(images, tmp_path, *flags, name='straight')
    torchrun(images, tmp_path, *flags, '--stop-epoch', 1, name='parts')
    assert rows(torchrun(images, tmp_path, *flags, '--resume', 'auto', name='parts')) == rows(straight)
