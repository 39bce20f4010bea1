"""The attribution pass among the things that people put around a model."""
from __future__ import annotations

import copy
import socket

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from gradmix_timm import attribute, create_mixer


def loss_of(model, images, rows):
    return -(rows * model(images).float().log_softmax(1)).sum(1).mean()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def test_gradient_checkpointing_is_off_for_the_pass_and_on_again(batch):
    for name in ('test_resnet', 'test_vit'):
        model = timm.create_model(name, num_classes=10, img_size=64) if 'vit' in name else timm.create_model(
            name, num_classes=10)
        model.eval()
        plain = attribute(model, *batch).map
        model.set_grad_checkpointing(True)
        assert torch.equal(attribute(model, *batch).map, plain)
        assert any(getattr(m, 'grad_checkpointing', False) for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize('how', ['wrapped', 'in place'])
def test_compiled_models_are_attributed_on_the_module_inside(how, tiny_cnn, batch):
    model = tiny_cnn.eval()
    plain = attribute(model, *batch).map
    torch._dynamo.reset()
    if how == 'wrapped':
        compiled = torch.compile(model, backend='aot_eager')
    else:
        model.compile(backend='aot_eager')
        compiled = model
    compiled(batch[0])
    frames = torch._dynamo.utils.counters['stats']['unique_graphs']
    assert torch.equal(attribute(compiled, *batch).map, plain)
    compiled(batch[0])
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == frames, 'nothing is compiled again'


@pytest.mark.slow
@pytest.mark.parametrize('how', ['wrapped', 'in place'])
def test_a_model_of_compiled_parts_has_the_same_maps_and_is_not_compiled_for_them(how, tiny_vit, batch):
    plain = attribute(tiny_vit, *batch).map
    torch._dynamo.reset()
    for place, block in enumerate(tiny_vit.blocks):
        if how == 'wrapped':
            tiny_vit.blocks[place] = torch.compile(block, backend='eager')
        else:
            block.compile(backend='eager')
    torch._dynamo.utils.counters.clear()
    assert torch.equal(attribute(tiny_vit, *batch).map, plain)
    assert not torch._dynamo.utils.counters['stats']['unique_graphs'], 'the training would run out of recompilations'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['gradmix', 'gradmix+cutmix'])
def test_a_step_compiled_as_a_whole_leaves_the_draw_out(name, batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    mixer = create_mixer(name, num_classes=10)

    def step(images, labels):
        mixed, rows = mixer(images, labels, model)
        return loss_of(model, mixed, rows)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.compile(step, backend='eager')(*batch).backward()
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] < 5, 'a whole attribution pass was traced'
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('method', ['layercam', 'input-gradient'])
def test_backward_hooks_see_the_training_alone(method, tiny_cnn, batch):
    plain, seen = attribute(tiny_cnn, *batch, method=method).map, []
    for place in ('layer4', 'fc'):
        tiny_cnn.get_submodule(place).register_full_backward_pre_hook(lambda *args: seen.append('before'))
        tiny_cnn.get_submodule(place).register_full_backward_hook(lambda *args: seen.append('after'))
    assert torch.equal(attribute(tiny_cnn, *batch, method=method).map, plain)
    assert seen == []
    loss_of(tiny_cnn, *create_mixer('gradmix', num_classes=10)(*batch, tiny_cnn)).backward()
    assert sorted(seen) == ['after', 'after', 'before', 'before']


def test_cached_weights_of_parametrizations_are_those_of_the_training(tiny_cnn, batch):
    parametrizations.weight_norm(tiny_cnn.fc)
    mixer = create_mixer('gradmix', num_classes=10)
    mixer(*batch, tiny_cnn)  # finds the layers, with gradients
    with parametrize.cached():
        loss_of(tiny_cnn, *mixer(*batch, tiny_cnn)).backward()
        assert [n for n, p in tiny_cnn.named_parameters() if p.grad is None] == []
        assert tiny_cnn.fc.weight is tiny_cnn.fc.weight, 'cached again'


@pytest.mark.slow
def test_a_compiled_model_trains_with_live_maps(tiny_vit, batch):
    torch._dynamo.reset()
    compiled = torch.compile(tiny_vit, backend='aot_eager')
    mixer = create_mixer('gradmix', num_classes=10)
    optimizer = torch.optim.SGD(tiny_vit.parameters(), lr=0.01)
    for _ in range(3):
        mixed, rows = mixer(*batch, compiled)
        loss_of(compiled, mixed, rows).backward()
        assert all(p.grad.isfinite().all() for p in tiny_vit.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()


def test_frozen_backbones_have_maps_and_stay_frozen(tiny_cnn, batch):
    plain = attribute(tiny_cnn, *batch).map
    tiny_cnn.requires_grad_(False)
    tiny_cnn.get_classifier().requires_grad_(True)
    assert torch.equal(attribute(tiny_cnn, *batch).map, plain)
    mixed, rows = create_mixer('gradmix', num_classes=10)(*batch, tiny_cnn)
    loss_of(tiny_cnn, mixed, rows).backward()
    assert [name for name, p in tiny_cnn.named_parameters() if p.grad is not None] == ['fc.weight', 'fc.bias']


def test_an_ema_copy_made_between_steps_carries_no_hook(tiny_cnn, batch):
    mixer = create_mixer('gradmix', num_classes=10)
    mixer(*batch, tiny_cnn)
    ema = ModelEmaV3(tiny_cnn)
    mixer(*batch, tiny_cnn)
    assert not any(m._forward_hooks for m in ema.modules())
    ema.update(tiny_cnn, step=1)


def test_data_parallel_and_scripted_models_are_refused_by_name(tiny_cnn, batch):
    with pytest.raises(ValueError, match=r'nn\.DataParallel .* DistributedDataParallel'):
        attribute(nn.DataParallel(tiny_cnn), *batch)
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    with pytest.raises(ValueError, match='torchscript'):
        attribute(script, *batch)


def test_channels_last_models_and_images(tiny_cnn, batch):
    images, labels = batch
    plain = attribute(tiny_cnn, images, labels).map
    tiny_cnn.to(memory_format=torch.channels_last)
    last = attribute(tiny_cnn, images.contiguous(memory_format=torch.channels_last), labels).map
    assert torch.allclose(plain, last, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_amp_maps_are_close_to_those_of_full_precision(dtype, tiny_vit, batch):
    plain = attribute(tiny_vit, *batch).map
    with torch.autocast('cpu', dtype=dtype):
        half = attribute(tiny_vit, *batch)
    assert not half.degenerate.any()
    assert half.map.dtype == torch.float32
    assert (half.map - plain).abs().sum((1, 2)).max() < 0.2


def test_a_gradient_scaler_never_sees_the_pass(tiny_cnn, batch):
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0 ** 10)
    optimizer = torch.optim.SGD(tiny_cnn.parameters(), lr=0.01)
    images, labels = batch
    images = images.clone()
    images[0] = float('inf')
    with torch.autocast('cpu', dtype=torch.float16):
        draw = create_mixer('gradmix', num_classes=10).draw(images, labels, tiny_cnn)
    assert draw.fallback.tolist() == [True] + [False] * 7
    with torch.autocast('cpu', dtype=torch.float16):
        loss = loss_of(tiny_cnn, *create_mixer('gradmix', num_classes=10)(*batch, tiny_cnn))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0 ** 10


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet18', 'vit_b_16', 'swin_t', 'convnext_tiny'])
def test_torchvision_models(name):
    import torchvision
    torch.manual_seed(0)
    size = 64 if name != 'vit_b_16' else 32
    options = {'image_size': 32} if name == 'vit_b_16' else {}
    model = getattr(torchvision.models, name)(num_classes=5, **options).train()
    if name == 'vit_b_16':  # its head starts at zero
        nn.init.normal_(model.heads.head.weight)
    images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 1])
    mixer = create_mixer('gradmix', num_classes=5, label_smoothing=0.1)
    mixer.prepare(model, (3, size, size))
    draw = mixer.draw(images, labels, model)
    assert not draw.fallback.any()
    loss_of(model, *mixer.apply(images, labels, draw)).backward()
    assert any(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)


def _worker(rank: int, port: int, accumulate: int, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=10)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    mixer = create_mixer('gradmix', num_classes=10, rank=rank)
    generator = torch.Generator().manual_seed(rank)
    boxes = []
    for step in range(2 * accumulate):
        images, labels = torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)
        mixer.set_step(0, step)
        draw = mixer.draw(images, labels, wrapped)
        boxes.append(draw.dst)
        mixed, rows = mixer.apply(images, labels, draw)
        last = (step + 1) % accumulate == 0
        if last:
            loss_of(wrapped, mixed, rows).backward()
            grads = torch.cat([p.grad.flatten() for p in model.parameters()])
            both = [torch.zeros_like(grads) for _ in range(2)]
            torch.distributed.all_gather(both, grads)
            assert torch.equal(both[0], both[1]), 'gradients in step'
            optimizer.step()
            optimizer.zero_grad()
        else:
            with wrapped.no_sync():
                loss_of(wrapped, mixed, rows).backward()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    results[rank] = (weights, torch.cat(boxes))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_two_processes_keep_their_gradients_in_step_and_draw_differently(accumulate):
    context = torch.multiprocessing.get_context('spawn')
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_worker, (free_port(), accumulate, results), nprocs=2)
        (first, boxes), (second, others) = results[0], results[1]
        assert torch.equal(first, second)
        assert not torch.equal(boxes, others)


def _train_on_stored(model: nn.Module, batches, half: slice) -> torch.Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for mixed, rows in batches:
        loss_of(model, mixed[half], rows[half]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _stored_worker(rank: int, port: int, batches, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(0)
    wrapped = nn.parallel.DistributedDataParallel(timm.create_model('test_vit', img_size=32, num_classes=10))
    results[rank] = _train_on_stored(wrapped, batches, slice(4 * rank, 4 * rank + 4))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_what_one_with_twice_the_batch_does():
    torch.manual_seed(0)
    model = timm.create_model('test_vit', img_size=32, num_classes=10)  # no BatchNorm: its statistics are per process
    mixer = create_mixer('gradmix', num_classes=10)
    batches = [mixer(torch.randn(8, 3, 32, 32), torch.arange(8), model) for _ in range(3)]
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    context = torch.multiprocessing.get_context('spawn')
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_stored_worker, (free_port(), batches, results), nprocs=2)
        one = _train_on_stored(model, batches, slice(None))
        assert torch.equal(results[0], results[1])
        assert (results[0] - one).norm() < 1e-5 * (one - start).norm()


def test_accumulated_gradients_survive_the_pass(tiny_cnn, batch):
    loss_of(tiny_cnn, batch[0], torch.eye(10)[batch[1]]).backward()
    before = copy.deepcopy([p.grad for p in tiny_cnn.parameters()])
    create_mixer('gradmix', num_classes=10)(*batch, tiny_cnn)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, tiny_cnn.parameters(), strict=True))
