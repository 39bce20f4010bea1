"""What a training step costs with every registered mixer; to ``benchmarks/results/mixer_cost.json``."""
from __future__ import annotations

import time

import pytest
import timm
import torch
from test_step_cost import fuse_attention
from timing import interleaved
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.mixers import TIMM_MODES

NAMES = ('none', *(n for n in list_mixers() if n not in (*TIMM_MODES, 'none') and not n.startswith('torchvision')))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(('name', 'size', 'batch'), [('resnet18', 64, 8), ('vit_tiny_patch16_224', 64, 8)])
def test_mixer_cost(name, size, batch, benchmark, record, device):
    torch.manual_seed(0)
    options = {'img_size': size} if 'vit' in name else {}
    model = timm.create_model(name, num_classes=10, **options).to(device).train()
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device) % 10
    steps = {}

    def step(mixer):
        mixed = mixer.mix(images, labels, model)
        with mixer.watch(model, mixed) as finish:
            output = model(mixed.input)
        (-(finish(output) * output.log_softmax(1)).sum(1).mean()).backward()
        model.zero_grad()

    for key in NAMES:
        mixer = create_mixer(key, num_classes=10)
        try:
            mixer.prepare(model, (3, size, size))
        except ValueError:
            continue  # refused by name
        steps[key] = lambda mixer=mixer: step(mixer)
    benchmark.pedantic(steps['none'], rounds=1, warmup_rounds=1)
    figures = interleaved(steps, 'none', device, rounds=3, clock=time.process_time)
    fuse_attention(model, False)
    for key, run in steps.items():
        with FlopCounterMode(display=False) as counter:
            run()
        figures[key]['flops'] = counter.get_total_flops()
    for found in figures.values():
        found['flop_ratio'] = round(found['flops'] / figures['none']['flops'], 4)
    record('mixer_cost', f'{name} {size}px', {'batch': batch, 'steps': figures})
