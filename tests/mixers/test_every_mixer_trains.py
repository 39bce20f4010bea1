"""Every registered mixer in training steps of a CNN and of a ViT, and the statistics of its draws."""
from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.mixers import TIMM_MODES

K = 10
OURS = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith(('doctest', 'test-'))]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, K)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


NETS = {'cnn': Small, 'vit': lambda: VisionTransformer(
    img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=K, drop_path_rate=0.2)}


def condition(model):
    """What a mixer must leave on every module: mode, hooks, attributes, gradients, and who is trained."""
    modules = [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks),
                len(m._backward_pre_hooks), sorted(vars(m)), getattr(m, 'fused_attn', None))
               for name, m in model.named_modules()]
    return modules, [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()]


@pytest.mark.parametrize('name', [*OURS, 'gradmix+cutmix', 'gradmix+regmixup', 'mixup+transmix'])
@pytest.mark.parametrize('kind', NETS)
def test_two_steps_leave_nothing_behind(name, kind):
    torch.manual_seed(0)
    model, images, labels = NETS[kind]().train(), torch.randn(4, 3, 32, 32), torch.arange(4)
    next(model.parameters()).requires_grad_(False)  # a frozen part stays frozen
    mixer = create_mixer(name, num_classes=K, label_smoothing=0.1)
    if 'transmix' in name and kind == 'cnn':
        with pytest.raises(ValueError, match='no class token'):
            mixer.prepare(model, (3, 32, 32))
        return
    mixer.prepare(model, (3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for precision in (torch.float32, torch.bfloat16):
        before, state = condition(model), {key: value.clone() for key, value in model.state_dict().items()}
        with torch.autocast('cpu', torch.bfloat16, enabled=precision is torch.bfloat16):
            mixed = mixer.mix(images, labels, model)
            assert condition(model) == before
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
            with mixer.watch(model, mixed) as finish:
                output = model(mixed.input)
            rows = finish(output)
        assert condition(model) == before
        assert mixed.input.dtype == rows.dtype == torch.float32
        loss = -(rows * output.float().log_softmax(1)).sum(1).mean()
        loss.backward()  # gradients of the first step are there in the second
        assert loss.isfinite()
        optimizer.step()
        assert any(not torch.equal(value, state[key]) for key, value in model.state_dict().items())


# Mean share of own pixels by each paper's draws: 1 / 2 of Beta(a, a); 1 - 0.3208 of a clipped box with a uniform
# centre; 0.6 + 0.35 / 2 of GradMix's range; 1 - E[tau^2]; 6 of 49 cells.
SHARES = {
    'none': 1, 'mixup': 0.5, 'cutmix': 0.679, 'gradmix': 0.775, 'random-box': 0.775, 'center-box': 0.775,
    'resizemix': 0.757, 'fmix': 0.5, 'gridmix': 0.5, 'regmixup': 0.5, 'guidedmix': 0.5, 'attentivemix': 0.125,
    'puzzlemix': 0.5, 'tokenmix': 0.5, 'transmix': 0.679, 'torchvision-mixup': 0.5, 'torchvision-cutmix': 0.679}
# One draw for all images of a batch, as in the code they come from; or no draw of a share at all.
TOGETHER = {'none', 'tokenmix', 'guidedmix', 'attentivemix', 'torchvision-mixup', 'torchvision-cutmix'}


# The share of pixmix is 0: there is no own image apart from the mixture. Puzzlemix searches, which takes seconds.
@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] if name == 'puzzlemix' else [])
                                  for name in OURS if name != 'pixmix'])
def test_shares_are_as_the_rule_draws_them_and_independent_between_images(name):
    torch.manual_seed(0)
    model, images, labels = Small().eval(), torch.randn(6, 3, 32, 32), torch.arange(6)
    mixer = create_mixer(name, num_classes=K)
    draws = [mixer.draw(images, labels, model) for _ in range(60)]
    lam, partner = torch.stack([draw.lam for draw in draws]), torch.stack([draw.partner for draw in draws])
    if name in SHARES:
        assert lam.mean().item() == pytest.approx(SHARES[name], abs=0.05)
    if mixer.changes_labels and mixer.tells_lam:
        assert (partner[lam < 1] != torch.arange(6).expand_as(partner)[lam < 1]).all(), 'nobody meets itself'
    if name in TOGETHER:
        assert (lam.std(1) < 1e-6).all() or name == 'guidedmix'
        return
    correlation = torch.corrcoef(lam.T) - torch.eye(6)
    assert correlation.abs().max() < 4 / 60 ** 0.5
    assert abs(correlation.sum() / 30) < 0.09
