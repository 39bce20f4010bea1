"""On a CUDA device: every mixer gives what it gives on the CPU, and training and evaluation run end to end."""
from __future__ import annotations

import json

import pytest
import timm
import torch

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.cli import train
from gradmix_timm.mixers import TIMM_MODES
from gradmix_timm.openset.__main__ import main as openset

pytestmark = pytest.mark.gpu

NAMES = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith(('doctest', 'test-'))]
ATTENTION = ('transmix', 'tokenmix')
# Their noise is drawn on the device, by a generator that gives other numbers on a GPU.
NOISE = ('random-erasing', 'fmix')
DIGITS = ('--dataset', 'sklearn/digits', '--osr-protocol', 'digits', '--model', 'test_resnet', '--img-size', '32',
          '--in-chans', '1', '--model-kwargs', 'output_stride=8', '--epochs', '15', '--batch-size', '64',
          '--opt', 'adamw', '--lr', '0.003', '--warmup-epochs', '0', '--workers', '0', '--checkpoint-hist', '1',
          '--mixup-mode', 'gradmix')


@pytest.mark.parametrize('name', NAMES)
def test_a_mixer_stays_on_the_gpu_and_draws_what_the_cpu_draws(name):
    model = timm.create_model('vit_tiny_patch16_224' if name in ATTENTION else 'resnet18', num_classes=5,
                              **({'img_size': 64} if name in ATTENTION else {})).eval()
    images, labels = torch.rand(8, 3, 64, 64), torch.arange(8) % 5
    found = {}
    for device in ('cpu', 'cuda'):
        model.to(device)
        mixer = create_mixer(name, num_classes=5, seed=3)
        mixer.set_step(0, 0)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            mixed = mixer.mix(images.to(device), labels.to(device), model)
        assert mixed.input.device.type == mixed.target.device.type == device
        found[device] = (mixed.input.cpu(), mixed.target.cpu().float())
        assert found[device][0].isfinite().all()
    if name in NOISE:
        return
    alike = [(a - b).abs().flatten(1).amax(1) < 1e-2
             for a, b in zip(found['cpu'], found['cuda'], strict=True)]
    assert alike[0].float().mean() >= 0.75, 'the same images, but where rounding moves a maximum'
    assert alike[1].float().mean() >= 0.75


@pytest.mark.parametrize('flags', [
    (), ('--amp', '--amp-dtype', 'bfloat16', '--channels-last'), ('--amp',),
    ('--cache-images', '--model-ema', '--model-ema-decay', '0.9'),
], ids=['float32', 'bfloat16', 'float16', 'cached-ema'])
def test_training_and_evaluation_run_and_the_cpu_agrees(flags, tmp_path):
    train.main([*DIGITS, *flags, '--device', 'cuda', '--output', str(tmp_path), '--experiment', 'run'])
    figures = {}
    for device in ('cuda', 'cpu'):
        openset(['osr', '--checkpoint', str(tmp_path / 'run' / 'last.pth.tar'), '--device', device, '--scores',
                 'msp,mls,knn,mahalanobis', '--bootstrap', '0', '--output', str(tmp_path / device)])
        figures[device] = json.loads((tmp_path / device / 'results.json').read_text())
    assert figures['cuda']['closed_set']['top1'] > 0.5
    assert figures['cuda']['closed_set']['top1'] == pytest.approx(figures['cpu']['closed_set']['top1'], abs=0.01)
    for name, score in figures['cpu']['scores'].items():
        assert figures['cuda']['scores'][name]['auroc'] == pytest.approx(score['auroc'], abs=0.01), name
