"""Two processes with half the images each are one process with all of them."""
from __future__ import annotations

import socket

import pytest
import timm
import torch

from gradmix_timm import create_mixer
from gradmix_timm.objectives import JointTask, MocoTask
from gradmix_timm.objectives.gather import gather_rows, own_rows

IMAGES, LABELS = 8, torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def views(rows=slice(None)):
    """[view 1 of the rows, view 2 of the rows]."""
    both = torch.randn(2, IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return both[:, rows].flatten(0, 1)


def build(kind: str, model: str = 'test_vit'):
    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=4, **({'img_size': 64} if model == 'test_vit' else {}))
    # A box of one size over each map's most, filled with the image's own mean: nothing is drawn for a row.
    mixer = create_mixer('gradmix', num_classes=4, fill='mean', lam_range=(0.6, 0.6 + 1e-9))
    options = {'dim': 8, 'verbose': False}
    return JointTask(net, mixer, **options) if kind == 'joint' else MocoTask(net, mixer, queue=20, **options)


def train(task, images, labels, steps: int = 2):
    """Losses, boxes, and the gradients of the first step; weights stay, so that rounding does not grow."""
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.0)
    losses, boxes, gradients = [], [], None
    for step in range(steps):
        task.mixer.set_step(0, step)
        result = task(images, labels.repeat(2))
        result['loss'].backward()
        losses.append(result['loss'].detach())
        boxes.append(result['draw'].dst)
        if gradients is None:
            gradients = torch.cat([w.grad.flatten() for w in task.get_clip_parameters()])
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()
    return torch.stack(losses), torch.stack(boxes), gradients


def _task(rank: int, kind: str, model: str = 'test_vit'):
    task = build(kind, model)
    if rank == 1:  # as timm's script, which seeds every process differently: the first one's weights count
        with torch.no_grad():
            for weight in task.parameters():
                weight.add_(1)
    task.prepare_distributed()
    rows = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)
    return (*train(task, views(rows), LABELS[rows]), task.get_task_state().get('queue', {}).get('keys'))


def _gradients(rank: int):
    rows = torch.arange(4.).view(2, 2) + 10 * rank
    rows.requires_grad_()
    gathered = gather_rows(rows)
    # Every process asks something else of every row.
    (gathered * (torch.arange(8.).view(4, 2) + 100 * rank)).sum().backward()
    return gathered.detach(), rows.grad, own_rows(2, rows.device)


def _keys(rank: int, model: str):
    """Keys with and without a shuffle, and the images that this process encoded, by number, step by step."""
    task = build('moco', model)
    task.prepare_distributed()
    mine, found = views()[IMAGES:][rank * IMAGES // 2:(rank + 1) * IMAGES // 2], []
    seen = []
    task.key_module.register_forward_pre_hook(lambda module, args: seen.append(
        [next(n for n, image in enumerate(views()[IMAGES:]) if torch.equal(image, one)) for one in args[0]]))
    for shuffles in (True, True, False):
        task.shuffles = shuffles
        found.append(task._keys(mine))
    return found, seen, build('moco', model).shuffles


def _worker(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    results[rank] = {
        'joint': _task(rank, 'joint'), 'moco': _task(rank, 'moco'), 'norms': _task(rank, 'joint', 'test_resnet'),
        'gradients': _gradients(rank), 'keys': _keys(rank, 'test_vit'), 'norm keys': _keys(rank, 'test_resnet')}
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def both():
    """What two processes found; they start once, which takes longer than what they do."""
    context = torch.multiprocessing.get_context('spawn')
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_worker, (free_port(), results), nprocs=2)
        return results[0], results[1]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['joint', 'moco'])
def test_two_processes_equal_one_with_the_joined_batch(kind, both):
    first, second = (found[kind] for found in both)
    task = build(kind)
    losses, boxes, gradients = train(task, views(), LABELS)
    assert torch.equal(torch.cat([first[1], second[1]], 1), boxes), 'the maps meet the features of all'
    assert torch.allclose((first[0] + second[0]) / 2, losses, rtol=1e-4)
    assert torch.equal(first[2], second[2])
    assert (first[2] - gradients).abs().max() <= 1e-3 * gradients.abs().max()
    if kind == 'moco':
        assert torch.equal(first[3], second[3])
        assert torch.allclose(first[3], task.queue.keys, atol=1e-4)


@pytest.mark.slow
def test_shuffled_keys_come_back_in_order(both):
    """Without BatchNorm a key does not depend on the images beside it, and they are those of no shuffle."""
    sides = [found['keys'] for found in both]
    for step in range(3):
        own = [keys[step][0] for keys, _, _ in sides]
        for keys, _, needed in sides:
            assert not needed, 'nothing to hide: no images are sent round'
            assert torch.equal(torch.cat(own), keys[step][1])
            assert torch.allclose(keys[step][1], sides[0][0][2][1], atol=1e-5)
    for step in range(3):
        assert sorted([*sides[0][1][step], *sides[1][1][step]]) == list(range(IMAGES))
    assert sides[0][1][2] == [0, 1, 2, 3]
    assert sides[0][1][0] != sides[0][1][1]


@pytest.mark.slow
def test_batch_norm_sees_keys_of_both_processes(both):
    sides = [found['norm keys'] for found in both]
    assert all(needed for _, _, needed in sides)
    encoder, images = build('moco', 'test_resnet').key_module, views()[IMAGES:]
    for step in range(2):
        want = torch.empty(IMAGES, 8)
        for _, seen, _ in sides:
            with torch.no_grad():
                want[seen[step]] = encoder(images[seen[step]])
        for keys, _, _ in sides:
            assert torch.allclose(keys[step][1], want, atol=1e-5)
    assert {number // 4 for number in sides[0][1][0] + sides[0][1][1]} == {0, 1}


@pytest.mark.slow
def test_batch_norm_trains_in_two_processes(both):
    """Two passes a step under DDP, whose broadcast of buffers must not spoil the first one's graph."""
    first, second = (found['norms'] for found in both)
    assert torch.equal(first[2], second[2])
    assert first[0].isfinite().all()


def test_one_process_gathers_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert own_rows(3, rows.device) is None


@pytest.mark.slow
def test_rows_come_in_the_order_of_ranks_and_gradients_add_up(both):
    (rows, grad, own), (others, other_grad, other_own) = (found['gradients'] for found in both)
    assert torch.equal(rows, others)
    assert rows[:, 0].tolist() == [0, 2, 10, 12]
    asked = 2 * torch.arange(8.).view(4, 2) + 100
    assert torch.equal(torch.cat([grad, other_grad]), asked)
    assert own.tolist() == [0, 1]
    assert other_own.tolist() == [2, 3]
