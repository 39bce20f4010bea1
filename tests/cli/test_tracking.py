"""What a run logs to TensorBoard and W&B, and that it trains the same with and without."""
from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.training import tracking
from gradmix_timm.cli.training.tracking import MixStats
from gradmix_timm.mixers import CallableMixer, create_mixer

GRADMIX = ('--mixup-mode', 'gradmix')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


class Board:
    """Stands for TensorBoard's writer and for W&B: keeps what it is told."""

    def __init__(self):
        self.scalars, self.images, self.closed, self.options = {}, {}, False, {}
        self.steps, self.pending = [], {}

    def __call__(self, folder, **options):
        self.options = {'folder': folder, **options}
        return self

    def add_scalar(self, key, value, epoch):
        self.scalars[key, epoch] = value

    def add_image(self, key, pixels, epoch, dataformats):
        assert dataformats == 'HWC'
        self.images[key, epoch] = pixels

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def board(monkeypatch):
    made = Board()
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', SimpleNamespace(SummaryWriter=made))
    monkeypatch.setattr(tracking, 'find_spec', lambda name: object())
    return made


@pytest.fixture
def wandb(monkeypatch):
    logged, pending = [], {}

    def log(values, commit=True):
        pending.update(values)
        if commit:
            logged.append(dict(pending))
            pending.clear()

    made = SimpleNamespace(init=lambda **options: made.__dict__.update(options=options), log=log, logged=logged,
                           Image=lambda path: ('picture', path))
    monkeypatch.setitem(sys.modules, 'wandb', made)
    monkeypatch.setattr('timm.utils.summary.wandb', made, raising=False)
    monkeypatch.setattr(tracking, 'find_spec', lambda name: object())
    return made


@pytest.mark.slow
def test_metrics_parts_and_pictures_reach_tensorboard(images, tmp_path, board):
    folder = run_tiny(images, tmp_path, *GRADMIX, '--gradmix-confidence', 0, '--log-tensorboard', '--epochs', 3,
                      '--log-mixes-interval', 2, pictures=True)
    keys = {key for key, epoch in board.scalars if epoch == 1}
    assert keys >= {'train/loss', 'eval/loss', 'eval/top1', 'lr', 'mix/lam', 'mix/mixed_images', 'mix/random_boxes',
                    'time/mixing'}
    assert {epoch for _, epoch in board.images} == {0, 2}
    assert all(pixels.ndim == 3 and pixels.std() > 10 for pixels in board.images.values())
    assert board.closed
    assert board.options['folder'] == str(folder)
    for epoch, line in enumerate(rows(folder)):
        assert board.scalars['train/loss', epoch] == pytest.approx(float(line['train_loss']))
        assert board.scalars['eval/top1', epoch] == pytest.approx(float(line['eval_top1']))
        assert 0 < board.scalars['time/mixing', epoch] < 1
        assert 0 < board.scalars['mix/lam', epoch] < 1


def test_losses_in_parts_are_logged(images, tmp_path, board):
    run_tiny(images, tmp_path, '--objective', 'supcon+ssl', *GRADMIX, '--smoothing', 0, '--log-tensorboard',
             '--epochs', 1, '--probe-epochs', 0)
    parts = {key for key, _ in board.scalars if key.startswith('train/loss_')}
    assert len(parts) >= 2
    assert all(math.isfinite(value) for value in board.scalars.values())


@pytest.mark.slow
def test_wandb_gets_the_mixes_in_the_step_of_timms_summary(images, tmp_path, wandb):
    run_tiny(images, tmp_path, *GRADMIX, '--gradmix-confidence', 0, '--log-wandb', '--log-mixes-interval', 2,
             pictures=True)
    assert len(wandb.logged) == 2
    assert all({'train_loss', 'eval_top1', 'mix/lam', 'mix/random_boxes'} <= set(line) for line in wandb.logged)
    assert [line.get('mixes', (None,))[0] for line in wandb.logged] == ['picture', None]


@pytest.mark.parametrize('flags', [
    (), pytest.param(('--mixup-mode', 'none'), marks=pytest.mark.slow), ('--mixup', 0.5)],
    ids=['plain', 'none', 'timm'])
def test_a_run_that_mixes_nothing_in_the_step_logs_its_metrics_alone(flags, images, tmp_path, board):
    run_tiny(images, tmp_path, *flags, '--log-tensorboard', '--epochs', 1, pictures=True)
    keys = {key for key, _ in board.scalars}
    assert keys >= {'train/loss', 'eval/top1'}
    assert not keys & {'mix/lam', 'mix/random_boxes'}


@pytest.mark.slow
def test_training_is_the_same_with_and_without(images, tmp_path, board):
    flags = (*GRADMIX, '--drop', 0.3, '--mixup-prob', 0.5)
    without = run_tiny(images, tmp_path, *flags, name='without', pictures=True)
    logged = run_tiny(images, tmp_path, *flags, '--log-tensorboard', '--log-mixes-interval', 1, name='with',
                      pictures=True)
    assert rows(without) == rows(logged)
    left, right = (load_checkpoint(f / 'last.pth.tar').state_dict for f in (without, logged))
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.slow
def test_a_resumed_run_drops_what_it_logs_again(images, tmp_path, board):
    run_tiny(images, tmp_path, *GRADMIX, '--log-tensorboard', '--stop-epoch', 1, pictures=True)
    run_tiny(images, tmp_path, *GRADMIX, '--log-tensorboard', '--resume', 'auto', pictures=True)
    assert board.options['purge_step'] == 1


@pytest.mark.parametrize(('flag', 'package'), [('--log-tensorboard', 'tensorboard'), ('--log-wandb', 'wandb')])
def test_a_missing_package_is_told_before_anything_is_read(flag, package, monkeypatch, capsys):
    monkeypatch.setattr(tracking, 'find_spec', lambda name: None)
    assert train.console(['--data-dir', '/nowhere', *TINY, flag]) == 2
    assert f'pip install {package}' in capsys.readouterr().err


def test_files_of_tensorboard_hold_the_figures(images, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = run_tiny(images, tmp_path, *GRADMIX, '--log-tensorboard', '--epochs', 1, pictures=True)
    read = EventAccumulator(str(folder))
    read.Reload()
    assert read.Scalars('train/loss')[0].value == pytest.approx(float(rows(folder)[0]['train_loss']), rel=1e-5)
    assert read.Images('mixes')[0].step == 0


# ---- the figures themselves

def test_figures_are_those_of_the_draws():
    mixer = create_mixer('cutmix', num_classes=4, prob_elem=0.5)
    stats, images = MixStats(mixer, torch.device('cpu')), torch.zeros(64, 1, 8, 8)
    draws = [mixer.draw(images, torch.zeros(64, dtype=torch.int64)) for _ in range(5)]
    for draw in (*draws, None):
        stats.update(draw)
    lam = torch.cat([draw.lam for draw in draws])
    values = stats.values()
    assert values['mix/mixed_images'] == pytest.approx((lam < 1).float().mean().item())
    assert values['mix/lam'] == pytest.approx(lam[lam < 1].mean().item())
    assert 'mix/random_boxes' not in values
    assert MixStats(None, torch.device('cpu')).values() == {}


def test_flat_maps_are_counted_as_random_boxes(tiny_cnn, batch):
    mixer = create_mixer('gradmix', num_classes=10)
    for parameter in tiny_cnn.get_classifier().parameters():
        torch.nn.init.zeros_(parameter)
    stats = MixStats(mixer, torch.device('cpu'))
    with stats.timed():
        stats.update(mixer.mix(*batch, tiny_cnn).draw)
    assert stats.values()['mix/random_boxes'] == 1
    assert 0 < stats.values()['time/mixing'] <= 1


def test_random_boxes_are_counted_among_the_images_whose_maps_were_read(tiny_cnn, batch):
    """Not an empty box, of an image that stays as it is, nor the images of a mixer without maps."""
    for parameter in tiny_cnn.get_classifier().parameters():
        torch.nn.init.zeros_(parameter)
    mixer = create_mixer('gradmix+cutmix', num_classes=10, parts={'gradmix': {'lam_range': (0.0, 1.0), 'alpha': 0.1}})
    stats = MixStats(mixer, torch.device('cpu'))
    draws = [mixer.draw(*batch, tiny_cnn) for _ in range(20)]
    assert {draw.name for draw in draws} == {'gradmix', 'cutmix'}
    for draw in draws:
        stats.update(draw)
    lam = torch.cat([draw.lam for draw in draws if draw.name == 'gradmix'])
    mixed = int((lam < 1).sum())
    assert mixed < len(lam)
    every = torch.cat([draw.lam for draw in draws])
    assert stats.line() == f'  Mixed: {int((every < 1).sum())}/{len(every)}  Random boxes: {mixed}/{mixed}'
    assert stats.values()['mix/random_boxes'] == 1
    assert stats.values()['mix/mixed_images'] == pytest.approx((every < 1).float().mean().item())
    assert stats.values()['mix/mixed_by_maps'] == pytest.approx(mixed / len(lam))


def test_images_of_whose_label_the_model_is_not_sure_are_not_counted_as_mixed(tiny_cnn, batch):
    for confidence, mixed in ((0.0, len(batch[0])), (0.999, 0)):
        mixer = create_mixer('gradmix', num_classes=10, confidence=confidence)
        stats = MixStats(mixer, torch.device('cpu'))
        stats.update(mixer.mix(*batch, tiny_cnn).draw)
        assert stats.line() == f'  Mixed: {mixed}/{len(batch[0])}  Random boxes: 0/{mixed}'
        assert stats.values()['mix/mixed_images'] == mixed / len(batch[0])


def test_a_foreign_function_has_no_lam_to_tell():
    mixer = CallableMixer('same', lambda images, labels: (images, labels), 4)
    stats = MixStats(mixer, torch.device('cpu'))
    stats.update(mixer.draw(torch.zeros(4, 1, 8, 8), torch.arange(4)))
    assert stats.values() == {'mix/mixed_images': 1.0}
