"""What a training step costs with each mixer, against the step without mixing in the same run.

``make bench`` runs it; figures go to ``benchmarks/results/step_cost.json`` and from there into docs/results/cost.md.
"""
from __future__ import annotations

import pytest
import timm
import torch
from peak_memory import PeakMemory
from timing import interleaved
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import create_mixer
from gradmix_timm.attribution import resolve_layers

# (model, pixels, images a batch)
CASES = [
    ('resnet18', 224, 16), ('resnet50', 224, 8), ('convnext_atto', 224, 16), ('vit_tiny_patch16_224', 224, 16),
    ('swin_tiny_patch4_window7_224', 224, 8), ('resnet18', 64, 64), ('resnet18', 32, 128),
]
if torch.cuda.is_available():  # batches that fill a GPU
    CASES = [('resnet50', 224, 128), ('vit_small_patch16_224', 224, 128), ('resnet18', 32, 1024)]
GROUPED = ('convnext',)  # the FLOP counter over-counts their weight gradients


class HookPass:
    """What one would write without the library: hooks, a full backward into the parameters, gradients thrown away."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.layer = model, model.get_submodule(layer)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kept = {}

        def keep(module, args, output):
            kept['a'] = output
            output.register_hook(lambda grad: kept.update(g=grad))

        handle = self.layer.register_forward_hook(keep)
        nn.functional.cross_entropy(self.model(images), labels).backward()
        handle.remove()
        self.model.zero_grad()
        return (kept['a'] * kept['g'].relu()).detach()


def variants(model, images, labels, size):
    """Name -> mixing function of one batch."""
    common = {'num_classes': 10}
    deep = len(resolve_layers(model, (3, size, size), '-2,-1'))
    mixers = {
        'none': create_mixer('none', **common),
        'cutmix (timm, elem)': create_mixer('elem', mixup_alpha=0.0, cutmix_alpha=1.0, **common),
        'random-box': create_mixer('random-box', **common),
        'gradmix': create_mixer('gradmix', **common),
    }
    if deep == 2:
        mixers['gradmix, two layers'] = create_mixer('gradmix', layers='-2,-1', **common)
    half = create_mixer('gradmix', attr_scale=0.5, **common)
    try:
        half.prepare(model, (3, size, size))
        mixers['gradmix, half scale'] = half
    except ValueError:
        pass  # a model of fixed size
    for mixer in mixers.values():
        mixer.prepare(model, (3, size, size))
    calls = {name: (lambda m=m: m(images.clone(), labels, model)) for name, m in mixers.items()}
    layer = resolve_layers(model, (3, size, size))[0]
    hooked = HookPass(model, layer.name)

    def naive():
        hooked(images, labels)
        return mixers['random-box'](images, labels)

    calls['gradmix by hooks and a full backward'] = naive
    return calls, layer


def fuse_attention(model, on):
    """Fused attention of timm's models on or off."""
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = on


@pytest.mark.parametrize(('name', 'size', 'batch'), CASES, ids=lambda v: str(v))
def test_step_cost(name, size, batch, benchmark, record, device):
    torch.manual_seed(0)
    # Dynamic sizes where the model has them, so that half scale can be measured.
    options = {'dynamic_img_size': True} if 'vit' in name else {}
    model = timm.create_model(name, num_classes=10, **options).to(device).train()
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device) % 10
    mixing, layer = variants(model, images, labels, size)
    amp = device.type == 'cuda'

    def step(mix):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            mixed, rows = mix()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            loss = -(rows * model(mixed).float().log_softmax(1)).sum(1).mean()
        loss.backward()
        model.zero_grad()

    steps = {key: (lambda mix=mix: step(mix)) for key, mix in mixing.items()}
    benchmark.pedantic(steps['gradmix'], rounds=3, warmup_rounds=1)
    figures = interleaved(steps, 'none', device, rounds=25 if amp else 7)
    fuse_attention(model, False)  # timed as people train; the counter does not see fused attention
    counts = {}
    for key, run in steps.items():
        with FlopCounterMode(display=False) as counter:
            run()
        counts[key] = counter.get_total_flops()
    fuse_attention(model, True)
    for key, run in steps.items():
        if device.type == 'cpu':
            with PeakMemory() as memory:
                run()
            figures[key]['peak_mib'] = round(memory.peak / 2 ** 20, 1)
        else:
            torch.cuda.reset_peak_memory_stats()
            run()
            figures[key]['peak_mib'] = round(torch.cuda.max_memory_allocated() / 2 ** 20, 1)
    for key, count in counts.items():
        figures[key]['flop_ratio'] = None if name.startswith(GROUPED) else round(count / counts['none'], 4)
    benchmark.extra_info.update(ratios={key: value['ratio'] for key, value in figures.items()})
    record('step_cost', f'{name} {size}px', {'batch': batch, 'layer': str(layer), 'grid': layer.grid, 'steps': figures})
