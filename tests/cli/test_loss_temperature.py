"""--loss-temperature: the schedule, the loss of tempered logits, and the epochs of a run."""
from __future__ import annotations

import math

import pytest
import torch
from timm.loss import create_classification_loss
from tiny_training import rows, run_tiny, write_images
from torch.nn import functional as F

from gradmix_timm.cli import train
from gradmix_timm.cli.training.flag_checks import create_loss
from gradmix_timm.cli.training.mixing import plan_mixing
from gradmix_timm.mixers import GradMix
from gradmix_timm.objectives import LossTemperature, TemperedLoss

LOGITS = torch.tensor([[3.0, -1.0, 0.5], [0.0, 2.0, -4.0]])
LABELS = torch.tensor([0, 2])


def criterion(*flags):
    args = train._parse_args(list(map(str, ('--data-dir', 'x', '--num-classes', 3, *flags))))[0]
    return create_loss(args, plan_mixing(args), 3)


def test_the_schedule_is_the_published_formula():
    """tau of amit31416/NegCosSch, 'gcosm' with shift 1: 600 epochs, a period of 200, 0.5 and 2."""
    schedule = LossTemperature()
    for epoch in range(0, 600, 7):
        tau = 2.0 if epoch >= 500 else 0.5 + 1.5 * (1 + math.cos(2 * math.pi * (epoch - 100) / 200)) / 2
        assert schedule.at(epoch, 600) == pytest.approx(tau, abs=1e-12)
    assert [round(schedule.at(epoch, 600), 9) for epoch in (0, 100, 200, 500, 599)] == [0.5, 2.0, 0.5, 2.0, 2.0]


@pytest.mark.parametrize(('schedule', 'epochs'), [
    (LossTemperature(), 30), (LossTemperature(), 199), (LossTemperature(1, 3, period=120), 60)])
def test_a_run_shorter_than_a_cycle_rises_once_from_low_to_high(schedule, epochs):
    taus = [schedule.at(epoch, epochs) for epoch in range(epochs)]
    assert taus == sorted(taus)
    assert (taus[0], taus[-1]) == (schedule.low, pytest.approx(schedule.high, rel=5e-3))
    assert taus[epochs // 2] == pytest.approx((schedule.low + schedule.high) / 2, rel=0.02)


def test_a_number_is_a_constant():
    assert {LossTemperature.parse('1.5').at(epoch, 9) for epoch in range(9)} == {1.5}


@pytest.mark.parametrize(('flags', 'target'), [
    (('--smoothing', 0), LABELS),
    (('--smoothing', 0.1), LABELS),
    (('--mixup-mode', 'gradmix'), torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]])),
    (('--bce-loss', '--smoothing', 0), LABELS),
])
def test_the_loss_is_that_of_the_logits_over_the_temperature(flags, target):
    plain, tempered = criterion(*flags), criterion(*flags, '--loss-temperature', 2.5)
    assert not isinstance(plain, TemperedLoss)
    torch.testing.assert_close(tempered(LOGITS, target), plain(LOGITS / 2.5, target), rtol=0, atol=0)


def test_cross_entropy_follows_the_epoch_and_divides_in_float32():
    loss = TemperedLoss(create_classification_loss('ce'), LossTemperature(), epochs=10)
    for epoch in (0, 5, 9):
        loss.set_epoch(epoch)
        tau = LossTemperature().at(epoch, 10)
        torch.testing.assert_close(loss(LOGITS, LABELS), F.cross_entropy(LOGITS / tau, LABELS))
        half = LOGITS.bfloat16()
        torch.testing.assert_close(loss(half, LABELS), F.cross_entropy(half.float() / tau, LABELS), rtol=0, atol=0)


@pytest.mark.parametrize('value', [
    '0', '-1', 'nan', 'inf', 'warm', 'negcos:', 'negcos:low', 'negcos:low=0', 'negcos:low=3,high=1', 'negcos:period=1',
    'negcos:period=2.5', 'negcos:high=2,high=3', 'negcos:tau=1', 'negcosine'])
def test_a_bad_value_names_the_flag(value, capsys):
    with pytest.raises(SystemExit) as stop:
        train._parse_args(['--data-dir', 'x', f'--loss-temperature={value}'])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert (stop.value.code, len(errors)) == (2, 1)
    assert errors[0].startswith(f'error: --loss-temperature {value}: ')
    assert 'expected' in errors[0] or 'got' in errors[0]


def test_a_contrastive_objective_has_its_own_temperature(capsys):
    with pytest.raises(SystemExit):
        train._parse_args(['--data-dir', 'x', '--objective', 'simclr', '--loss-temperature', 'negcos'])
    assert '--objective-temperature' in capsys.readouterr().err


def test_only_the_training_loss_is_tempered(tmp_path, monkeypatch):
    images = write_images(tmp_path / 'images', train=3, validation=2)
    seen = []
    at = TemperedLoss.forward
    monkeypatch.setattr(TemperedLoss, 'forward', lambda self, *batch: seen.append(self.temperature) or at(self, *batch))
    flags = ('--lr', 1e-30, '--hflip', 0)
    plain = rows(run_tiny(images, tmp_path, *flags, name='plain'))
    assert not seen
    warm = rows(run_tiny(images, tmp_path, *flags, '--loss-temperature', 'negcos', name='warm'))
    assert seen == [tau for tau in (0.5, LossTemperature().at(1, 2)) for _ in range(2)]
    assert [row['eval_loss'] for row in warm] == [row['eval_loss'] for row in plain]
    assert [row['train_loss'] for row in warm] != [row['train_loss'] for row in plain]


@pytest.mark.parametrize('flags', [
    ('--mixup-mode', 'gradmix'), ('--mixup-mode', 'gradmix', '--gradmix-keep-clean'),
    ('--mixup-mode', 'gradmix+cutmix', '--mixup-switch-prob', 0)], ids=str)
def test_confidence_is_that_of_the_tempered_logits(flags, tmp_path, monkeypatch):
    images = write_images(tmp_path / 'images', train=3, validation=2)
    seen = []
    judge = GradMix._sure
    monkeypatch.setattr(GradMix, '_sure', lambda self, *batch: seen.append(self.temperature) or judge(self, *batch))
    run_tiny(images, tmp_path, *flags, '--gradmix-confidence', 0.3, '--loss-temperature', 'negcos')
    assert seen == [tau for tau in (0.5, LossTemperature().at(1, 2)) for _ in range(2)]


def test_the_picture_of_mixes_judges_confidence_as_the_training_did(tmp_path, monkeypatch):
    images = write_images(tmp_path / 'images', train=3, validation=2)
    seen = []
    judge = GradMix._sure
    monkeypatch.setattr(GradMix, '_sure', lambda self, *batch: seen.append(self.temperature) or judge(self, *batch))
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--mixup-prob', 0.5, '--loss-temperature', 0.5,
             pictures=True)
    assert seen
    assert set(seen) == {0.5}
