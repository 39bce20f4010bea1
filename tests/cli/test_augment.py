"""Training through albumentations pipelines and on cached images: what the batches are, what is refused."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import train

READY = str(Path(__file__).parents[2] / 'configs' / 'aug' / 'light.yaml')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture
def batches(monkeypatch):
    """Every training batch of the next runs, as the step gets it."""
    seen = []
    step = train.train_one_epoch

    def watched(run, epoch):
        loader = run.loaders.train
        seen.append([images.clone() for images, _ in loader])
        return step(run, epoch)

    monkeypatch.setattr(train, 'train_one_epoch', watched)
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
