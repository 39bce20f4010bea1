"""Contrastive tasks: whose loss it is, what the maps are of, what a step costs, what several processes compute."""
from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.attribution import resolve_layers
from gradmix_timm.attribution.authors import authors_map
from gradmix_timm.checkpoint import ProjectionHead
from gradmix_timm.mixers import TIMM_MODES
from gradmix_timm.mixers.callables import CallableMixer
from gradmix_timm.mixers.switch import SwitchMixer
from gradmix_timm.objectives import JointConfig, JointTask, MocoTask, instance_logits, ssl_loss
from gradmix_timm.objectives.contrastive import ATTRIBUTION_TEMPERATURE
from gradmix_timm.records import Captured

OURS = [name for name in list_mixers() if name not in TIMM_MODES]
OF_CLASSES = [name for name in OURS if name != 'gradmix' and create_mixer(name, num_classes=10).requires_model]
WITHOUT_SHARE = [name for name in OURS if not create_mixer(name, num_classes=10).tells_lam]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def views(images: int = 6, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(2 * images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def vit(seed: int = 0) -> nn.Module:
    """No batch statistics, no dropout: a pass is a function of each image alone."""
    torch.manual_seed(seed)
    return timm.create_model('test_vit', num_classes=4, img_size=64)


def joint(model, mixer=None, config=None, seed=0, **options):
    torch.manual_seed(seed)
    return JointTask(model, mixer, config, dim=16, verbose=False, **options)


def paired(rows):
    return torch.stack(rows.chunk(2), 1)


def slow_joint(clean, mixed, labels, lam, config):
    """Equation 5 from 1.3's sums, one anchor at a time. clean, mixed: [B][view] rows; lam [B]."""
    t, slots = config.temperature, [(b, v) for b in range(len(clean)) for v in range(2)]
    sup = ssl = mix = 0.
    for b, v in slots:
        others = [(c, w) for c, w in slots if (c, w) != (b, v)]
        log_sum = torch.stack([clean[b, v] @ clean[c, w] / t for c, w in others]).exp().sum().log()
        same = [(c, w) for c, w in others if labels[c] == labels[b]]
        sup = sup - sum(clean[b, v] @ clean[c, w] / t - log_sum for c, w in same) / len(same)
        ssl = ssl - (clean[b, v] @ clean[b, 1 - v] / t - log_sum)
        mix = mix - lam[b] * (clean[b, v] @ mixed[b, 1 - v] / t - log_sum)
    scale = t / config.base_temperature / len(slots)
    return scale * (config.gamma * sup + config.ssl_weight * (ssl + mix))


# ---- the loss

def test_the_loss_is_the_formula_on_the_features_of_clean_and_mixed_views():
    model, images = vit(), views()
    config = JointConfig(gamma=0.7, ssl_weight=1.2, temperature=0.1)
    mixer = create_mixer('cutmix', num_classes=4, seed=3)
    task = joint(model, mixer, config)
    mixer.set_step(0, 0)
    result = task(images, LABELS.repeat(2))
    twin = copy.deepcopy(task.trainable_module)
    replay = create_mixer('cutmix', num_classes=4, seed=3)
    draw = replay.draw(images[:6], LABELS)
    pasted = replay.apply(images[:6], LABELS, draw)[0]
    clean, mixed = paired(twin(images)), paired(twin(torch.cat([pasted, images[6:]])))
    want = slow_joint(clean, mixed, LABELS, draw.lam, config)
    assert torch.allclose(result['loss'], want, rtol=1e-5)
    assert torch.equal(result['draw'].lam, draw.lam)
    parts = 0.7 * result['loss_sup'] + 1.2 * (result['loss_ssl'] + result['loss_mix'])
    assert torch.allclose(parts, want, rtol=1e-5)
    result['loss'].backward()
    want.backward()
    for (name, a), b in zip(task.trainable_module.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        # float32 sums in another order; the class token's gradient is a million times that of the rest.
        assert a.grad is None or (a.grad - b.grad).abs().max() <= 1e-4 * b.grad.abs().max(), name


@pytest.mark.parametrize('name', OF_CLASSES)
def test_mixers_that_read_the_evidence_of_classes_are_refused(name, tiny_cnn):
    with pytest.raises(ValueError, match=f"'{name}' reads the evidence of classes"):
        JointTask(tiny_cnn, create_mixer(name, num_classes=10), dim=8, verbose=False)


@pytest.mark.parametrize('name', WITHOUT_SHARE)
def test_mixers_whose_draws_have_no_share_are_refused(name, tiny_cnn):
    with pytest.raises(ValueError, match=f"'{name}' reports none"):
        JointTask(tiny_cnn, create_mixer(name, num_classes=10), dim=8, verbose=False)


@pytest.mark.parametrize('name', [name for name in OURS if name not in OF_CLASSES + WITHOUT_SHARE])
@pytest.mark.parametrize('kind', ['joint', 'moco'])
def test_every_mixer_makes_the_mixed_view(name, kind, tiny_cnn):
    mixer = create_mixer(name, num_classes=10, seed=1)
    task = (JointTask if kind == 'joint' else MocoTask)(tiny_cnn, mixer, dim=8, verbose=False)
    seen = []
    task.trainable_module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = views(size=32)
    before = images.clone()
    result = task(images, LABELS.repeat(2))
    assert result['loss'].isfinite()
    assert torch.equal(images, before)
    assert ('loss_mix' in result) == (name != 'none') == (len(seen) == 2)
    if name != 'none':
        changed = (seen[1] != images[:len(seen[1])]).flatten(1).any(1)
        assert changed[:6].any(), 'view 1 is mixed'
        assert not changed[6:].any(), 'view 2 stays as it is'
        draw = result['draw']
        assert torch.equal(changed[:6], draw.lam < 1), 'lam tells which'
    result['loss'].backward()


def test_without_a_mixer_or_switched_off_only_the_clean_terms_are_left():
    for mixer in (None, create_mixer('gradmix', num_classes=4)):
        if mixer is not None:
            mixer.mixup_enabled = False
        result = joint(vit(), mixer)(views(), LABELS.repeat(2))
        assert torch.equal(result['loss'].detach(), result['loss_sup'] + result['loss_ssl'])
        # A table of losses keeps its columns when mixing goes off.
        assert ('loss_mix' in result) == (mixer is not None)
        assert not result.get('loss_mix', 0)
        assert 'draw' not in result


def test_simclr_needs_no_labels():
    task = joint(vit(), None, JointConfig(gamma=0))
    first, second = (task(views(), labels)['loss'] for labels in (LABELS.repeat(2), torch.full((12,), -1)))
    assert torch.equal(first, second)


def test_switched_mixers_take_turns_within_the_objective():
    mixer = create_mixer('gradmix+cutmix', num_classes=4, seed=0)
    task = joint(vit(), mixer)
    names = {task(views(), LABELS.repeat(2))['draw'].name for _ in range(8)}
    assert names == {'gradmix', 'cutmix'}


# ---- the maps

def test_the_maps_are_of_the_self_supervised_loss_on_the_clean_pass():
    """The authors' recipe, from the ground: dL_ssl/dA at two layers, both views normalised together."""
    model, images = vit(), views()
    mixer = create_mixer('gradmix', num_classes=4, recipe='authors', layers=(1, 3))
    task = joint(model, mixer, JointConfig(temperature=0.3))
    found, draw_from = [], mixer.draw_from
    mixer.draw_from = lambda view, maps, rows: found.append((maps, rows)) or draw_from(view, maps, rows=rows)
    task(images, LABELS.repeat(2))
    captured, rows = found[0]
    assert rows == slice(6)
    twin, kept = copy.deepcopy(task.trainable_module), {}
    layers = resolve_layers(model, (3, 64, 64), (1, 3))
    for layer in layers:
        twin.student.get_submodule(layer.name).register_forward_hook(
            lambda m, a, out, name=layer.name: kept.__setitem__(name, out))
    loss = ssl_loss(paired(twin(images)), ATTRIBUTION_TEMPERATURE)
    grads = torch.autograd.grad(loss, list(kept.values()))
    slow = [Captured(a[:, layer.prefix:].mT.unflatten(2, layer.grid).detach(),
                     g[:, layer.prefix:].mT.unflatten(2, layer.grid), torch.zeros(0), layer.name)
            for layer, a, g in zip(layers, kept.values(), grads, strict=True)]
    want = authors_map(slow, (64, 64))
    assert torch.allclose(authors_map(captured, (64, 64)), want, atol=1e-3)
    assert want.std() > 0


def test_evidence_is_the_log_odds_of_the_other_view():
    clean = F.normalize(torch.randn(4, 2, 5), dim=2)
    logits, labels = instance_logits(clean, 0.1)
    flat = clean.flatten(0, 1)
    for i in range(8):
        assert labels[i] == i ^ 1
        for j in range(8):
            want = -torch.inf if i == j else float(flat[i] @ flat[j]) / 0.1
            assert float(logits[i, j]) == pytest.approx(want, rel=1e-5)
    # Up to T / T0 cross-entropy of the two is the loss itself.
    assert torch.allclose(F.cross_entropy(logits, labels) * 0.1 / 0.07, ssl_loss(clean, 0.1))


@pytest.mark.parametrize('kind', ['joint', 'moco'])
def test_the_attribution_leaves_nothing_behind(kind, tiny_cnn):
    task = (JointTask if kind == 'joint' else MocoTask)(
        tiny_cnn, create_mixer('gradmix', num_classes=10), dim=8, verbose=False)
    task(views(), LABELS.repeat(2))
    assert all(weight.grad is None for weight in task.parameters())
    assert not any(module._forward_hooks for module in task.modules())


# ---- cost

def flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_the_clean_forward_serves_loss_and_maps_and_its_cost_is_counted():
    torch.manual_seed(0)
    model = timm.create_model('resnet18', num_classes=10)
    images, labels = views(2, 96), torch.arange(2).repeat(2)
    plain_task = joint(model)
    task = joint(model, create_mixer('gradmix', num_classes=10, layers='layer3'))
    task(images, labels)  # resolves the layers
    passes = []
    model.register_forward_pre_hook(lambda *a: passes.append(1))
    model.conv1.register_forward_hook(lambda *a: passes.append(1))
    forward = flops(lambda: model(images))
    plain = flops(lambda: plain_task(images, labels)['loss'].backward())
    passes.clear()
    step = flops(lambda: task(images, labels)['loss'].backward())
    assert len(passes) == 2, 'the clean views and the mixed ones'
    p = 0.227  # share of the forward behind layer3
    assert step <= (2 * plain + 1.15 * p * forward) * 1.015
    assert step > 2 * plain


def step_of(name, kind, compiled=False, checkpointed=False):
    """Loss, boxes, gradients, and buffers after the forward, of a first step."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **({'img_size': 64} if name == 'test_vit' else {}))
    model.set_grad_checkpointing(checkpointed)
    task = {'joint': JointTask, 'moco': MocoTask}[kind](
        model, create_mixer('gradmix', num_classes=4, seed=0), dim=8, verbose=False)
    if compiled:
        task.compile(backend='aot_eager')
    result = task(views(), LABELS.repeat(2))
    buffers = [buffer.clone() for buffer in model.buffers()]
    result['loss'].backward()
    return result['loss'].detach(), result['draw'].dst, *(w.grad for w in task.get_clip_parameters()), *buffers


@pytest.mark.parametrize('kind', ['joint', 'moco'])
@pytest.mark.parametrize(('name', 'wrapped'), [
    ('test_resnet', ('checkpointed',)), ('test_vit', ('checkpointed',)),
    *(pytest.param('test_resnet', wrapped, marks=pytest.mark.slow)
      for wrapped in [('compiled',), ('compiled', 'checkpointed')])])
def test_a_compiled_or_recomputing_model_takes_the_step_of_a_plain_one(name, wrapped, kind):
    want, found = step_of(name, kind), step_of(name, kind, **dict.fromkeys(wrapped, True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(want, found, strict=True))
    assert torch.equal(want[1], found[1]), 'boxes'


def test_moco_costs_less_than_twice_its_unmixed_step():
    torch.manual_seed(0)
    model = timm.create_model('resnet18', num_classes=10)
    images, labels = views(2, 96), torch.arange(2).repeat(2)
    options = {'queue': 64, 'dim': 16, 'verbose': False}
    plain_task = MocoTask(model, **options)
    task = MocoTask(model, create_mixer('gradmix', num_classes=10, layers='layer3'), **options)
    task(images, labels)
    forward = flops(lambda: model(images[:2]))
    plain = flops(lambda: plain_task(images, labels)['loss'].backward())
    step = flops(lambda: task(images, labels)['loss'].backward())
    assert step <= (plain + 3 * forward + 1.15 * 0.227 * forward) * 1.015
    assert step < 2 * plain


# ---- precision

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', ['joint', 'moco'])
def test_losses_are_float32_under_autocast(kind, dtype):
    task = (JointTask if kind == 'joint' else MocoTask)(
        vit(), create_mixer('gradmix', num_classes=4), dim=8, verbose=False, temperature=0.01) if kind == 'moco' \
        else joint(vit(), create_mixer('gradmix', num_classes=4), JointConfig(temperature=0.01))
    with torch.autocast('cpu', dtype=dtype):
        result = task(views(), LABELS.repeat(2))
    for name, value in result.items():
        if name != 'draw':
            assert value.dtype == torch.float32, name
            assert value.isfinite().all(), name
    assert torch.allclose(result['output'].norm(dim=1), torch.ones(len(result['output'])), atol=1e-6)
    assert not result['draw'].fallback.any()
    result['loss'].backward()


# ---- timm's contract

def test_the_class_head_is_left_alone_and_all_else_trains(tiny_cnn):
    task = joint(tiny_cnn, create_mixer('gradmix', num_classes=10))
    head = copy.deepcopy(tiny_cnn.get_classifier().state_dict())
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt='adamw', lr=0.1, weight_decay=0.5)
    task(views(), LABELS.repeat(2))['loss'].backward()
    idle = [name for name, weight in task.trainable_module.named_parameters() if weight.grad is None]
    assert idle == ['student.fc.weight', 'student.fc.bias']
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(head.values(), tiny_cnn.get_classifier().state_dict().values(),
                                                 strict=True))
    assert {id(w) for w in task.get_clip_parameters()} == {
        id(w) for name, w in task.trainable_module.named_parameters() if name not in idle}


@pytest.mark.slow
@pytest.mark.parametrize('wrapped', ['plain', 'compiled'])
def test_checkpoints_hold_timms_weights_and_the_projection_apart(wrapped, tiny_cnn):
    task = joint(tiny_cnn)
    names = set(tiny_cnn.state_dict())
    task.setup_ema(decay=0.5)
    if wrapped == 'compiled':
        task.compile(backend='eager')
        task.compile_ema(backend='eager')
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    assert set(state) == {'state_dict', 'task_state', 'state_dict_ema', 'task_state_ema'}
    assert set(state['state_dict']) == set(state['state_dict_ema']) == names
    other = joint(timm.create_model('test_resnet', num_classes=10), seed=5)
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    images = views()
    task.eval(), other.eval()
    assert torch.equal(task.trainable_module(images), other.trainable_module(images))
    head = ProjectionHead.from_state(state['task_state']['projection_head'])
    features = tiny_cnn.forward_head(tiny_cnn.forward_features(images), pre_logits=True)
    assert torch.equal(head(features), task.trainable_module(images))
    with pytest.raises(ValueError, match='no projection head'):
        other.load_checkpoint_state(state['state_dict'], None)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext', 'test_efficientnet', 'test_mambaout'])
def test_features_are_what_the_classifier_reads(name):
    model = timm.create_model(name, num_classes=4, **({'img_size': 64} if name == 'test_vit' else {})).eval()
    task = joint(model)
    read = []
    model.get_classifier().register_forward_pre_hook(lambda module, args: read.append(args[0]))
    images = views(2)
    model(images)
    assert torch.allclose(task.trainable_module.features(images), read[0], atol=1e-6)


@pytest.mark.parametrize(('mixer', 'words'), [
    (('batch', {'mixup_alpha': 0.8}), 'mixup or cutmix'),
    (('gradmix', {'keep_clean': True}), '--gradmix-keep-clean'),
    (('gradmix', {'attr_scale': 0.5}), '--gradmix-attr-scale'),
    (('gradmix', {'confidence': 0.5}), '--gradmix-confidence'),
    (('gradmix', {'attribution': 'input-gradient'}), 'input-gradient'),
])
def test_mixers_that_cannot_mix_views_are_refused(mixer, words, tiny_cnn):
    with pytest.raises(ValueError, match=words):
        joint(tiny_cnn, create_mixer(mixer[0], num_classes=4, **mixer[1]))


@pytest.mark.parametrize('joined', [False, True])
def test_a_function_whose_share_nobody_knows_is_refused(joined, tiny_cnn):
    mixer = CallableMixer('own', lambda images, labels: (images, torch.eye(4)[labels]), num_classes=4)
    if joined:
        mixer = SwitchMixer(create_mixer('cutmix', num_classes=4), mixer, 0.5)
    with pytest.raises(ValueError, match="'own' reports none"):
        JointTask(tiny_cnn, mixer, verbose=False)


def test_a_mixer_whose_term_weighs_nothing_is_refused(tiny_cnn):
    config = JointConfig(ssl_weight=0)
    with pytest.raises(ValueError, match="ssl_weight=0 with mixer 'cutmix'"):
        joint(tiny_cnn, create_mixer('cutmix', num_classes=4), config=config)
    for mixer in (None, create_mixer('none', num_classes=4)):
        joint(tiny_cnn, mixer, config=config)


def test_wrong_input_is_refused(tiny_cnn):
    with pytest.raises(ValueError, match='temperature is above 0'):
        MocoTask(tiny_cnn, temperature=0, verbose=False)
    with pytest.raises(ValueError, match='dim of a projection head'):
        JointTask(tiny_cnn, dim=0, verbose=False)
    with pytest.raises(ValueError, match='got 5 rows'):
        joint(tiny_cnn)(views()[:5], LABELS[:5])
    with pytest.raises(ValueError, match=r'no forward_features\(\)'):
        joint(nn.Linear(3, 4)) if hasattr(nn.Linear, 'num_features') else JointTask(
            Featureless(), dim=4, verbose=False)
    with pytest.raises(ValueError, match='weights of a projection head'):
        ProjectionHead.from_state({'weight': torch.zeros(2, 2)})


class Featureless(nn.Linear):
    num_features = 3

    def __init__(self):
        super().__init__(3, 4)
