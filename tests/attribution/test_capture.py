"""The attribution pass: right, and gone without a trace."""
from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import attribute, create_mixer
from gradmix_timm.attribution import METHODS, capture, resolve_layers, watch
from gradmix_timm.attribution.cost import cost_share
from gradmix_timm.attribution.maps import TARGET_SCORES, evidence

MODELS = ['tiny_cnn', 'tiny_vit']


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param)


def fingerprint(model: nn.Module) -> dict:
    """Everything about a model that a mix must not change."""
    return {
        'state': {k: v.clone() for k, v in model.state_dict().items()},
        'identity': [id(p) for p in model.parameters()],
        'grad': [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        'requires_grad': [p.requires_grad for p in model.parameters()],
        'training': [m.training for m in model.modules()],
        'hooks': [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        'attributes': [set(vars(m)) for m in model.modules()],
        'grad_mode': (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        'autocast': (torch.is_autocast_enabled('cpu'), torch.get_autocast_dtype('cpu')),
        'autocast_cache': torch.is_autocast_cache_enabled(),
        'rng': torch.get_rng_state(),
        'numpy': np.hstack(np.random.get_state()[1:3]),  # noqa: NPY002
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize('method', list(METHODS))
def test_a_mix_leaves_no_change_behind(method, model, batch):
    """Of a model in the middle of things: gradients are accumulated, some layers are frozen."""
    images, labels = batch
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)).eval()
    next(model.parameters()).requires_grad_(False)
    before = fingerprint(model)
    mixer = create_mixer('gradmix', num_classes=10, attribution=method)
    mixer.prepare(model, (3, 64, 64))
    mixer(images, labels, model)
    after = fingerprint(model)
    assert not [what for what, value in before.items() if not same(value, after[what])]


@pytest.mark.gpu
@pytest.mark.parametrize('method', list(METHODS))
def test_a_mix_leaves_the_random_stream_of_the_gpu_alone(method, model, batch):
    model.cuda()
    images, labels = (tensor.cuda() for tensor in batch)
    before = torch.cuda.get_rng_state()
    create_mixer('gradmix', num_classes=10, attribution=method)(images, labels, model)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def broken_score(model: nn.Module) -> dict:
    return {'score': lambda logits, labels: 1 / 0}


def broken_classifier(model: nn.Module) -> dict:
    model.get_classifier().forward = lambda x: 1 / 0  # behind the target: the forward breaks off half-way
    return {}


@pytest.mark.parametrize('breaks', [broken_score, broken_classifier])
@pytest.mark.parametrize('method', ['layercam', 'input-gradient'])
def test_nothing_is_left_behind_by_an_exception(model, method, breaks, batch):
    images, labels = batch
    resolve_layers(model, (3, 64, 64))
    mixer = create_mixer('gradmix', num_classes=10, attribution=method, **breaks(model))
    before = fingerprint(model)
    with pytest.raises(ZeroDivisionError):
        mixer(images, labels, model)
    after = fingerprint(model)
    for key, value in before.items():
        assert same(value, after[key]), key


def test_autocast_is_restored_and_its_cache_left_alone(model, batch):
    images, labels = batch
    mixer = create_mixer('gradmix', num_classes=10)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixer(images, labels, model)
        assert torch.is_autocast_enabled('cpu')
        assert torch.is_autocast_cache_enabled()
        torch.manual_seed(0)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    mixed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.manual_seed(0)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(mixed, model.parameters(), strict=True) if a is not None)


def step(model, optimizer, images, targets, amp, scale=1.0):
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
        loss = -(targets * model(images).float().log_softmax(1)).sum(1).mean()
    (loss * scale).backward()


@pytest.mark.parametrize(('amp', 'accumulate'), [(False, 1), (True, 1), (False, 3)])
def test_steps_with_live_mixing_equal_steps_on_the_stored_batches(model, amp, accumulate):
    twin = copy.deepcopy(model)
    batches = [(torch.randn(4, 3, 64, 64), torch.arange(4)) for _ in range(2 * accumulate)]
    mixer = create_mixer('gradmix', num_classes=10, label_smoothing=0.1)
    stored = []
    for which in (model, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(which.parameters(), lr=0.1, momentum=0.9)
        for index, (images, labels) in enumerate(batches):
            if which is model:
                mixer.set_step(0, index)
                with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
                    stored.append(mixer(images, labels, which))
            step(which, optimizer, *stored[index], amp, 1 / accumulate)
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert same(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize('layers', [None, (-1,), (-2, -1)])
def test_activations_and_gradients_are_those_of_the_full_graph(model, batch, layers):
    images, labels = batch
    targets = resolve_layers(model, (3, 64, 64), layers)
    cut = capture(model, images, labels, targets, evidence)
    model.eval()
    with watch(model, targets) as seen:
        logits = model(images)
    full = seen.captured(logits, evidence(logits.float(), labels), (64, 64))
    for a, b in zip(cut, full, strict=True):
        assert torch.equal(a.activation, b.activation)
        assert torch.allclose(a.gradient, b.gradient, rtol=1e-5, atol=1e-8)
        assert a.activation.shape[2:] == a.gradient.shape[2:]


@pytest.mark.parametrize(('score', 'slow'), [
    ('evidence', lambda z, y: z[y] - torch.cat([z[:y], z[y + 1:]]).logsumexp(0)),
    ('logit', lambda z, y: z[y]),
    ('loss', lambda z, y: -z.log_softmax(0)[y]),
])
def test_scores_equal_their_definition_hard_and_soft(score, slow):
    logits = torch.randn(6, 5, dtype=torch.float64) * 4
    labels = torch.arange(6) % 5
    want = torch.stack([slow(z, y) for z, y in zip(logits, labels, strict=True)])
    assert torch.allclose(TARGET_SCORES[score](logits, labels), want)
    assert torch.allclose(TARGET_SCORES[score](logits, torch.eye(5, dtype=torch.float64)[labels]), want)
    soft = torch.rand(6, 5, dtype=torch.float64).softmax(1)
    mixed = torch.stack([sum(t[k] * slow(z, k) for k in range(5)) for z, t in zip(logits, soft, strict=True)])
    assert torch.allclose(TARGET_SCORES[score](logits, soft), mixed)


@pytest.mark.parametrize('score', ['evidence', 'logit', 'loss'])
def test_a_single_logit_is_that_of_the_second_of_two_classes(score):
    one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 1))
    two = copy.deepcopy(one)
    two[-1] = nn.Linear(8, 2)
    two[-1].weight.data = torch.cat([-one[-1].weight, one[-1].weight]).detach() / 2
    two[-1].bias.data = torch.cat([-one[-1].bias, one[-1].bias]).detach() / 2
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    want = attribute(two, images, labels, '1', score=score)
    assert not want.degenerate.any()
    assert not torch.equal(want.map, attribute(two, images, 1 - labels, '1', score=score).map)
    assert torch.allclose(attribute(one, images, labels, '1', score=score).map, want.map, atol=1e-6)
    soft = torch.eye(2)[labels]
    mixer = create_mixer('gradmix', num_classes=2, layers='1', score=score)
    for given in (labels, soft):
        assert torch.allclose(mixer.maps(one, images, given).map, want.map, atol=1e-6)
    if score != 'logit':
        assert torch.allclose(attribute(one, images, soft[:, 1:], '1', score=score).map, want.map, atol=1e-6)


def test_a_single_logit_has_no_third_class():
    one = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r'labels run from 0 to 2, expected 0..1'):
        attribute(one, torch.randn(3, 3, 8, 8), torch.arange(3))
    with pytest.raises(ValueError, match='num_classes=3, but the model gives 1 logits'):
        create_mixer('gradmix', num_classes=3)(torch.randn(3, 3, 8, 8), torch.arange(3), one)


def test_no_images_have_no_maps(tiny_cnn):
    with pytest.raises(ValueError, match=r'B above 0, got torch.float32 \[0, 3, 64, 64\]'):
        attribute(tiny_cnn, torch.zeros(0, 3, 64, 64), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_evidence_does_not_vanish_on_confident_images(kind):
    logits = torch.tensor([[60.0, 0.0, -5.0]], requires_grad=True)
    labels = torch.tensor([0]) if kind == 'hard' else torch.tensor([[1.0, 0.0, 0.0]])
    grad = torch.autograd.grad(TARGET_SCORES['evidence'](logits, labels).sum(), logits)[0]
    assert grad[0, 0] == 1
    assert grad.isfinite().all()
    loss = torch.autograd.grad(TARGET_SCORES['loss'](logits, labels).sum(), logits)[0]
    assert loss.abs().max() < 1e-6


def test_evidence_and_minus_loss_name_the_same_place(tiny_cnn, batch):
    maps = [attribute(tiny_cnn, *batch, score=score).map
            for score in ('evidence', lambda z, y: -TARGET_SCORES['loss'](z, y))]
    assert torch.allclose(*maps, atol=1e-6)


class Linear3(nn.Module):
    """Two channels on a 2 x 2 grid, then a linear head on the flattened grid: gradients are the weights."""

    def __init__(self):
        super().__init__()
        self.grid = nn.Conv2d(1, 2, 2, 2, bias=False)
        self.head = nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.grid.weight.copy_(torch.tensor([1.0, -0.5])[:, None, None, None].expand(-1, 1, 2, 2) / 4)
            self.head.weight.copy_(torch.tensor([[1., 2, 3, -4, -1, 2, -3, 4], [0., 0, 0, 0, 0, 0, 0, 0]]))

    def forward(self, x):
        return self.head(self.grid(x).flatten(1))


@pytest.mark.parametrize('method', ['layercam', 'hirescam', 'gradcam'])
def test_maps_of_a_linear_model_by_hand(method):
    image = torch.tensor([[1., 2], [3, 4]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    a = [[1., 2, 3, 4], [-.5, -1, -1.5, -2]]
    g = [[1., 2, 3, -4], [-1, 2, -3, 4]]
    cells = []
    for i in range(4):
        if method == 'layercam':
            cells.append(sum(max(g[c][i], 0) * a[c][i] for c in range(2)))
        elif method == 'hirescam':
            cells.append(sum(g[c][i] * a[c][i] for c in range(2)))
        else:
            cells.append(sum(sum(g[c]) / 4 * a[c][i] for c in range(2)))
    want = torch.tensor(cells).relu().view(1, 2, 2)
    got = attribute(Linear3(), image, torch.tensor([0]), 'grid', method, 'logit').map
    assert torch.allclose(got, want / want.sum(), atol=1e-6)


@pytest.mark.parametrize('option', ['method', 'score'])
@pytest.mark.parametrize('name', [None, 3, ['layercam'], 'layercan'])
def test_what_is_no_name_of_a_map_or_a_score_is_told_the_names(option, name, tiny_cnn, batch):
    with pytest.raises(ValueError, match=rf'^no \w+ named {re.escape(repr(name))}: .*Available: '):
        attribute(tiny_cnn, *batch, **{option: name})


def test_input_gradient_of_a_linear_model_is_its_weights():
    model = Linear3()
    image = torch.randn(1, 1, 4, 4)
    weight = torch.autograd.functional.jacobian(lambda x: model(x)[0, 0], image)[0]
    want = weight.norm(dim=0).view(1, 4, 4)
    got = attribute(model, image, torch.tensor([0]), method='input-gradient', score='logit')
    assert torch.allclose(got.map, want / want.sum(), atol=1e-6)
    assert got.stride == (1, 1)


@pytest.mark.parametrize('method', ['layercam', 'hirescam', 'gradcam'])
def test_maps_equal_pytorch_grad_cam(method, tiny_cnn):
    cams = pytest.importorskip('pytorch_grad_cam', reason='test extra')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    model = tiny_cnn.eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    classes = {'layercam': cams.LayerCAM, 'hirescam': cams.HiResCAM, 'gradcam': cams.GradCAM}
    with classes[method](model=model, target_layers=[model.layer3]) as cam:
        theirs = torch.tensor(cam(images, [ClassifierOutputTarget(int(y)) for y in labels]))
    ours = attribute(model, images, labels, 'layer3', method, 'logit')

    def stretch(maps):
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low + 1e-7)

    # Theirs stretches each map to [0, 1], before and again after resizing it.
    pixels = nn.functional.interpolate(stretch(ours.map)[:, None], (64, 64), mode='bilinear')[:, 0]
    assert torch.allclose(theirs, stretch(pixels), atol=1e-4)
    assert not ours.degenerate.all()


def test_several_layers_are_fused_on_the_finest_grid(tiny_cnn, batch):
    one, two = (attribute(tiny_cnn, *batch, layers=name) for name in ('layer1', 'layer3'))
    both = attribute(tiny_cnn, *batch, layers=['layer3', 'layer1'])
    assert both.map.shape == one.map.shape
    scaled = [m.map / m.map.amax((1, 2), keepdim=True) for m in (one, two)]
    scaled[1] = nn.functional.interpolate(scaled[1][:, None], one.map.shape[1:], mode='bilinear')[:, 0]
    want = sum(scaled) / sum(scaled).sum((1, 2), keepdim=True)
    assert torch.allclose(both.map, want, atol=1e-6)
    assert torch.allclose(both.map.sum((1, 2)), torch.ones(8), atol=1e-5)


def test_tiny_gradients_make_the_same_map(tiny_cnn, batch):
    plain = attribute(tiny_cnn, *batch)
    with torch.no_grad():
        tiny_cnn.get_classifier().weight.mul_(1e-12)
    small = attribute(tiny_cnn, *batch, score='logit')
    with torch.no_grad():
        tiny_cnn.get_classifier().weight.mul_(1e12)
    assert not small.degenerate.any()
    assert torch.allclose(small.map, attribute(tiny_cnn, *batch, score='logit').map, atol=1e-4)
    assert plain.map.shape == small.map.shape


def test_float16_keeps_its_maps(tiny_vit):
    model = tiny_vit.half()
    found = attribute(model, torch.randn(4, 3, 64, 64).half(), torch.arange(4))
    assert not found.degenerate.any()
    assert found.map.dtype == torch.float32


@pytest.mark.parametrize('name', ['tiny_cnn', 'tiny_vit'])
def test_a_model_of_half_precision_may_keep_its_norms_in_float32(name, request):
    model = request.getfixturevalue(name).bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.float()
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    one, other = attribute(model, images, labels), attribute(model, images.bfloat16(), labels)
    assert not one.degenerate.any()
    assert torch.equal(one.map, other.map)


def test_a_broken_image_breaks_its_own_row_only(tiny_cnn, batch):
    images, labels = batch
    images = images.clone()
    images[3] = float('inf')
    found = attribute(tiny_cnn, images, labels)
    assert found.degenerate.tolist() == [False] * 3 + [True] + [False] * 4
    assert found.map[3].sum() == 0
    assert torch.allclose(found.map[:3], attribute(tiny_cnn, *batch).map[:3], atol=1e-6)


# ---- cost, counted

def flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.fixture
def unfused(monkeypatch):
    """The counter does not see fused attention on the CPU."""
    import timm.layers
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'size', 'layer', 'p'), [
    ('resnet18', 96, 'layer4', 0.0),
    ('resnet18', 96, 'layer3', 0.227),
    ('resnet50', 96, 'layer3', 0.198),
    ('vit_tiny_patch16_224', 96, 'blocks.10', None),
    ('vit_tiny_patch16_224', 96, 'blocks.8', None),
    ('vit_tiny_patch16_224', 112, None, None),
])
def test_the_pass_costs_a_forward_and_the_tail_back(name, size, layer, p, unfused):
    options = {'img_size': size} if 'vit' in name else {}
    model = timm.create_model(name, num_classes=10, **options).train()
    images, labels = torch.randn(2, 3, size, size), torch.arange(2)
    targets = torch.eye(10)[labels]
    mixer = create_mixer('gradmix', num_classes=10, layers=layer)
    mixer.prepare(model, (3, size, size))
    forward = flops(lambda: model(images))
    if layer is None:
        (target,) = resolve_layers(model, (3, size, size))
        p = cost_share(model, target, (3, size, size))
        assert 0.05 < p < 0.1, 'the last block but for its norm'
    elif p is None:
        module = model.get_submodule(layer)
        tail = (11 - int(layer.split('.')[1])) * flops(lambda: module(torch.randn(2, (size // 16) ** 2 + 1, 192)))
        p = tail / forward

    def train(mixed, rows):
        model.zero_grad()
        step(model, None, mixed, rows, False)

    attribution = flops(lambda: mixer.draw(images, labels, model))
    plain = flops(lambda: train(images, targets))
    whole = flops(lambda: train(*mixer(images, labels, model)))
    assert attribution / forward <= 1 + 1.15 * p + 0.02
    assert whole / plain <= (4 + 1.15 * p) / 3 * 1.015
    assert attribution / forward >= 1, 'the counter saw the pass'


def test_half_scale_costs_a_quarter(unfused):
    model = timm.create_model('resnet18', num_classes=10).train()
    images, labels = torch.randn(2, 3, 224, 224), torch.arange(2)
    mixer = create_mixer('gradmix', num_classes=10, attr_scale=0.5)
    mixer.prepare(model, (3, 224, 224))
    forward = flops(lambda: model(images))
    p = 0.227  # layer3 is the deepest with a 7 x 7 grid at 112 px
    ratio = flops(lambda: mixer.draw(images, labels, model)) / forward
    assert ratio <= (1 + p) / 4 + 0.09
    assert (3 + ratio) / 3 <= (3 + (1 + p) / 4) / 3 * 1.03


def test_layers_are_resolved_once(tiny_cnn, batch):
    mixer = create_mixer('gradmix', num_classes=10)
    mixer.prepare(tiny_cnn, (3, 64, 64))
    seen = []
    tiny_cnn.register_forward_hook(lambda *a: seen.append(1))
    for _ in range(3):
        mixer(*batch, tiny_cnn)
    assert len(seen) == 3


@pytest.mark.parametrize('fill', ['donor', 'mean'])
def test_no_graph_is_kept_before_the_target(fill, batch):
    """Bytes saved for the backward of the pass: the tail's alone."""
    model = timm.create_model('resnet18', num_classes=10).train()
    images, labels = batch

    def saved(function):
        total, seen = 0, set()
        parameters = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}

        def pack(tensor):
            nonlocal total
            if tensor.data_ptr() not in parameters | seen:
                seen.add(tensor.data_ptr())
                total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function()
        return total

    mixer = create_mixer('gradmix', num_classes=10, fill=fill, layers='layer4')
    mixer.prepare(model, (3, 64, 64))
    attribution = saved(lambda: mixer.draw(images, labels, model))
    training = saved(lambda: model(images))
    assert attribution < 0.05 * training
