"""One clean forward for the loss and for the attribution."""
from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import create_mixer
from gradmix_timm.attribution import attribute
from gradmix_timm.mixers import GradMix
from gradmix_timm.objectives import KeepCleanTask


def make(model, **options):
    mixer = create_mixer('gradmix', num_classes=10, keep_clean=True, **options)
    return KeepCleanTask(model, mixer, SoftTargetCrossEntropy(), verbose=False), mixer


def test_the_clean_forward_runs_once_and_costs_are_counted():
    model = timm.create_model('resnet18', num_classes=10).train()
    task, _ = make(model, layers='layer3')
    images, labels = torch.randn(2, 3, 96, 96), torch.arange(2)
    task(images, labels)  # resolves the layers

    def flops(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    seen = []
    model.register_forward_hook(lambda *a: seen.append(1))
    p = 0.227
    forward = flops(lambda: model(images))
    plain = flops(lambda: SoftTargetCrossEntropy()(model(images), torch.eye(10)[labels]).backward())
    seen.clear()
    step = flops(lambda: task(images, labels)['loss'].backward())
    assert len(seen) == 2, 'the clean batch and the mixed one'
    assert step <= (2 * plain + 1.15 * p * forward) * 1.015
    assert step > 2 * plain


def test_both_losses_train_and_nothing_else_writes_gradients(batch):
    images, labels = batch
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=10, img_size=64)
    twin = copy.deepcopy(model)
    task, mixer = make(model, seed=3)
    mixer.set_step(0, 0)
    result = task(images, labels)
    result['loss'].backward()
    replay = create_mixer('gradmix', num_classes=10, seed=3)
    mixed, rows = replay(images, labels, twin)  # no dropout here: training mode makes the same maps
    loss = (SoftTargetCrossEntropy()(twin(images), torch.eye(10)[labels])
            + SoftTargetCrossEntropy()(twin(mixed), rows)) / 2
    loss.backward()
    assert torch.allclose(result['loss'], loss, atol=1e-5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


def test_a_frozen_backbone_has_maps_too(batch):
    images, labels = batch
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=10).eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith('fc'))
    task, mixer = make(model)
    result = task(images, labels)
    result['loss'].backward()
    want = mixer.maps(model, images, labels)
    assert not result['draw'].fallback[~want.degenerate].any()
    assert model.fc.weight.grad.any()
    assert all(weight.grad is None for weight in model.layer1.parameters())


def test_of_multi_hot_labels_the_logits_are_differentiated(batch, monkeypatch):
    images, labels = batch
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=10).eval()
    targets = torch.eye(10)[labels] + torch.eye(10)[(labels + 1) % 10]
    task, mixer = make(model, multi_label_mix='weight', prob_elem=0.999)
    seen = []
    monkeypatch.setattr(mixer, 'draw_from', lambda images, captured, labels: seen.append(captured) or GradMix.draw_from(
        mixer, images, captured, labels))
    task(images, targets)
    (captured,), (want,) = seen[0], mixer.captured(model, images, targets)
    assert torch.allclose(captured.gradient, want.gradient, atol=1e-6)


def test_clean_multi_hot_rows_are_smoothed_as_the_mixed_ones(batch, tiny_cnn):
    images, labels = batch
    rows, seen = torch.eye(10)[labels] + torch.eye(10)[(labels + 1) % 10], []
    mixer = create_mixer('gradmix', num_classes=10, keep_clean=True, multi_label_mix='weight', label_smoothing=0.2)
    task = KeepCleanTask(tiny_cnn, mixer, lambda output, target: seen.append(target) or output.sum(), verbose=False)
    task(images, rows)
    mixer.mixup_enabled = False
    task(images, rows)
    for clean in (seen[0], seen[2]):
        assert torch.allclose(clean, rows * 0.8 + 0.1)


@pytest.mark.slow
def test_a_compiled_model_takes_the_same_step(batch):
    images, labels = batch

    def step(compiled):
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=10).train()
        task, _ = make(model, seed=3)
        if compiled:
            task.compile(backend='aot_eager')
        result = task(images, labels)
        result['loss'].backward()
        return result['loss'].detach(), *(weight.grad for weight in model.parameters()), *model.buffers()

    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(step(False), step(True), strict=True))


def test_confidence_goes_by_the_clean_forward(batch, tiny_cnn):
    images, labels = batch
    model = tiny_cnn.eval()
    with torch.no_grad():
        sure = model(images).softmax(1)[torch.arange(8), labels]
    middle = float(sure.median()) + 1e-6
    task, _ = make(model, confidence=middle)
    assert (task(images, labels)['draw'].lam < 1).tolist() == (sure >= middle).tolist()


def test_switched_off_it_is_the_plain_loss(batch, tiny_vit):
    images, labels = batch
    task, mixer = make(tiny_vit.eval())
    mixer.mixup_enabled = False
    want = SoftTargetCrossEntropy()(tiny_vit(images), torch.eye(10)[labels])
    assert torch.allclose(task(images, labels)['loss'], want)


def test_in_anybodys_loop_the_clean_rows_come_first(batch, tiny_cnn):
    images, labels = batch
    both, rows = create_mixer('gradmix', num_classes=10, keep_clean=True)(images, labels, tiny_cnn)
    assert both.shape[0] == rows.shape[0] == 16
    assert torch.equal(both[:8], images)
    assert torch.equal(rows[:8], torch.eye(10)[labels])
    assert not torch.equal(both[8:], images)


@pytest.mark.parametrize('options', [{'attribution': 'center'}, {'attribution': 'input-gradient'}, {'attr_scale': 0.5}])
def test_what_cannot_share_a_forward_is_refused(options, tiny_cnn):
    with pytest.raises(ValueError, match='--gradmix-keep-clean'):
        make(tiny_cnn, **options)


def test_the_maps_are_those_of_a_pass_of_its_own_without_batch_statistics(batch, tiny_cnn):
    model = tiny_cnn.eval()
    task, mixer = make(model, seed=1)
    mixer.set_step(0, 0)
    captured = []
    draw_from = mixer.draw_from
    mixer.draw_from = lambda images, layers, labels: captured.append(layers) or draw_from(images, layers, labels)
    task(*batch)
    shared = mixer.fused(captured[0], (64, 64)).map
    assert torch.allclose(shared, attribute(model, *batch).map, atol=1e-6)


def test_a_model_that_recomputes_activations_takes_the_same_step(batch):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=10)
        model.set_grad_checkpointing(checkpointed)
        task, _ = make(model, seed=1)
        task(*batch)['loss'].backward()
        found.append([weight.grad for weight in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
