"""FLOPs of a mixed step against the unmixed one, and the bound: ``python benchmarks/step_flops.py``.

Counted on models without grouped convolutions, whose weight gradients the counter over-counts, with attention product
by product; two images, into benchmarks/results/step_flops.json.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import create_mixer
from gradmix_timm.attribution import default_layer, usable_layers
from gradmix_timm.attribution.cost import cost_share
from gradmix_timm.checkpoint import versions

RESULT = Path(__file__).parent / 'results' / 'step_flops.json'
CLASSES = 10
# Name, side, arguments of the model, options of the mixer.
CASES: tuple[tuple[str, int, dict[str, Any], dict[str, Any]], ...] = (
    ('resnet18', 224, {}, {}), ('resnet18', 64, {}, {}), ('resnet18', 224, {}, {'fill': 'donor-resized'}),
    ('resnet50', 224, {}, {}), ('resnet26d', 96, {}, {}), ('densenet121', 96, {}, {}), ('vgg11', 64, {}, {}),
    ('vit_tiny_patch16_224', 224, {}, {}), ('vit_tiny_patch16_224', 224, {}, {'fill': 'donor-resized'}),
    ('vit_small_patch14_reg4_dinov2', 112, {'img_size': 112}, {}), ('deit3_small_patch16_224', 224, {}, {}),
    ('swin_tiny_patch4_window7_224', 224, {}, {}), ('mixer_s16_224', 224, {}, {}), ('test_vit', 160, {}, {}),
    ('test_vit', 64, {'img_size': 64}, {}))


def count(model: torch.nn.Module, images: torch.Tensor, mixer: Any) -> int:
    """FLOPs of one training step."""
    labels = torch.arange(len(images))
    with FlopCounterMode(display=False) as counter:
        batch, targets = mixer(images, labels, model) if mixer else (images, F.one_hot(labels, CLASSES).float())
        loss = -(targets * model(batch).log_softmax(1)).sum(1).mean()
        loss.backward()
    return counter.get_total_flops()


def main() -> None:
    timm.layers.set_fused_attn(False)
    rows = []
    for name, side, arguments, options in CASES:
        torch.manual_seed(0)
        model, size = timm.create_model(name, num_classes=CLASSES, **arguments).train(), (3, side, side)
        layer = default_layer(usable_layers(model, size))
        share = cost_share(model, layer, size)
        mixer = create_mixer('gradmix', num_classes=CLASSES, prob=1., **options)
        mixer.prepare(model, size)
        images = torch.randn(2, *size)
        ratio, bound = count(model, images, mixer) / count(model, images, None), (4 + 1.15 * share) / 3 + 0.015
        rows.append({'model': name, 'side': side, 'fill': options.get('fill', 'donor'), 'layer': str(layer),
                     'p': round(share, 4), 'ratio': round(ratio, 4), 'bound': round(bound, 4)})
        print(rows[-1])
    RESULT.write_text(json.dumps({'versions': versions(), 'figures': rows}, indent=1) + '\n')


if __name__ == '__main__':
    main()
