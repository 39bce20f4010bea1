"""MoCo: InfoNCE against a slow loop, the queue's order, the key encoder's steps, what a checkpoint carries."""
from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from gradmix_timm import create_mixer
from gradmix_timm.objectives import MocoTask
from gradmix_timm.objectives.moco import KeyQueue, follow, key_logits

LABELS = torch.zeros(12, dtype=torch.int64)


def views(images: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(2 * images, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=4, img_size=64)


def moco(model, mixer=None, **options):
    torch.manual_seed(0)
    return MocoTask(model, mixer, **{'dim': 8, 'queue': 20, 'verbose': False, **options})


def slow_info_nce(query, key, queue, temperature, lam=None):
    """-log of the positive's share, one query at a time; with lam its weighted mean."""
    terms = []
    for i in range(len(query)):
        logits = [float(query[i] @ key[i]) / temperature, *(float(query[i] @ row) / temperature for row in queue)]
        terms.append(math.log(sum(map(math.exp, logits))) - logits[0])
    weights = [1.] * len(terms) if lam is None else lam.tolist()
    return sum(w * t for w, t in zip(weights, terms, strict=True)) / len(terms)


def test_the_loss_is_info_nce_of_the_clean_and_the_mixed_query():
    model, images = vit(), views()
    mixer = create_mixer('gradmix', num_classes=4, seed=2)
    task = moco(model, mixer, temperature=0.2)
    with torch.no_grad():  # a key encoder of its own
        for weight in task.key_module.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    queue = task.queue.keys.clone()
    with torch.no_grad():
        query, key = task.trainable_module(images[:6]), task.key_module(images[6:])
    result = task(images, LABELS)
    assert float(result['loss_ssl']) == pytest.approx(slow_info_nce(query, key, queue, 0.2), rel=1e-4)
    with torch.no_grad():
        mixed = task.trainable_module(mixer.apply(images[:6], LABELS[:6], result['draw'])[0])
    want = slow_info_nce(mixed, key, queue, 0.2, result['draw'].lam)
    assert float(result['loss_mix']) == pytest.approx(want, rel=1e-4)
    assert float(result['loss'].detach()) == pytest.approx(float(result['loss_ssl'] + result['loss_mix']), rel=1e-6)
    result['loss'].backward()
    assert all(weight.grad is None for weight in task.key_module.parameters())


def test_the_maps_ask_which_key_is_the_images_own():
    model, images = vit(), views()
    mixer = create_mixer('gradmix', num_classes=4, score='evidence', layers=2)
    task = moco(model, mixer, temperature=0.2)
    found = []
    draw_from = mixer.draw_from
    mixer.draw_from = lambda view, captured, rows: found.append(captured[0]) or draw_from(view, captured, rows=rows)
    twin, kept = copy.deepcopy(task.trainable_module), []
    queue = task.queue.keys.clone()
    with torch.no_grad():
        key = task.key_module(images[6:])
    task(images, LABELS)
    twin.student.blocks[2].register_forward_hook(lambda m, a, out: kept.append(out))
    query = twin(images[:6])
    # Log-odds of the own key against the queue, at the temperature of the maps.
    odds = (query * key).sum(1) / 0.05 - (query @ queue.T / 0.05).logsumexp(1)
    grad = torch.autograd.grad(odds.sum(), kept)[0]
    want = grad[:, 1:].mT.unflatten(2, (4, 4))
    assert (found[0].gradient - want).abs().max() <= 1e-4 * want.abs().max()


def test_logits_in_half_precision_are_computed_in_float32():
    query, key, queue = (F.normalize(torch.randn(n, 8), dim=1) for n in (3, 3, 5))
    with torch.autocast('cpu', torch.bfloat16):
        found = key_logits(query.half(), key.half(), queue, 0.01)
    assert found.dtype == torch.float32
    assert torch.allclose(found, key_logits(query.half().float(), key.half().float(), queue, 0.01), rtol=1e-6)


# ---- the queue

def test_the_queue_replaces_the_oldest_keys_in_order():
    queue = KeyQueue(7, 3)
    newest: list[torch.Tensor] = []
    for step in range(9):
        keys = torch.full((3, 3), float(step)) + torch.arange(3.)[:, None] / 10
        queue.push(keys)
        newest = [*newest, *keys]
        inside = {float(row[0]) for row in queue.keys}
        if len(newest) >= 7:
            assert inside == {float(row[0]) for row in newest[-7:]}
        assert int(queue.place) == 3 * (step + 1) % 7
    with pytest.raises(ValueError, match='--objective-queue'):
        queue.push(torch.zeros(8, 3))


def test_the_queue_starts_alike_everywhere_without_touching_a_random_stream():
    before = torch.get_rng_state()
    first, second = KeyQueue(5, 4), KeyQueue(5, 4)
    assert torch.equal(first.keys, second.keys)
    assert torch.allclose(first.keys.norm(dim=1), torch.ones(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_queues_its_keys_after_it_has_compared():
    task, images = moco(vit()), views()
    with torch.no_grad():
        key = task.key_module(images[6:])
    task(images, LABELS)['loss'].backward()
    assert torch.allclose(task.queue.keys[:6], key, atol=1e-6)
    assert int(task.queue.place) == 6


# ---- the key encoder

def test_the_key_encoder_follows_exactly():
    slow, fast = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [weight.detach().clone() for weight in slow.parameters()]
    follow(slow, fast, 0.9)
    for old, kept, new in zip(before, slow.parameters(), fast.parameters(), strict=True):
        assert torch.allclose(kept, 0.9 * old + 0.1 * new, rtol=1e-6, atol=0)
    for momentum, source in ((1.0, slow), (0.0, fast)):
        moved = copy.deepcopy(slow)
        follow(moved, fast, momentum)
        assert all(torch.equal(a, b) for a, b in zip(moved.parameters(), source.parameters(), strict=True))


def test_the_key_encoder_moves_once_an_update_and_never_by_gradients(tiny_cnn):
    task = moco(tiny_cnn, momentum=0.75)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    want = [weight.detach().clone() for weight in task.key_module.parameters()]
    for _ in range(2):
        for _ in range(2):  # two batches an update
            task(views(), LABELS)['loss'].backward()
        assert all(torch.equal(a, b) for a, b in zip(want, task.key_module.parameters(), strict=True))
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=1)
        want = [0.75 * old + 0.25 * new for old, new in zip(want, task.trainable_module.parameters(), strict=True)]
        for a, b in zip(want, task.key_module.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        want = [weight.detach().clone() for weight in task.key_module.parameters()]


def test_the_moving_average_is_kept_beside_it(tiny_cnn):
    task = moco(tiny_cnn, momentum=0.5)
    task.setup_ema(decay=0.9)
    with torch.no_grad():
        tiny_cnn.conv1[0].weight.add_(1)
    average = task.get_eval_model(ema=True)
    before = average.conv1[0].weight.clone()
    task.update_ema(step=5)  # timm's first steps copy
    assert torch.allclose(average.conv1[0].weight, 0.9 * before + 0.1 * tiny_cnn.conv1[0].weight, atol=1e-6)


# ---- state

def test_a_checkpoint_carries_key_encoder_queue_and_place():
    task = moco(vit(), momentum=0.5)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    for seed in range(2):
        task(views(seed=seed), LABELS)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()
    state = copy.deepcopy(task.get_checkpoint_state())
    assert set(state['task_state']) == {'projection_head', 'key_encoder', 'queue'}
    other = moco(vit(), momentum=0.5)
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    assert torch.equal(task(views(seed=5), LABELS)['loss'], other(views(seed=5), LABELS)['loss'])
    assert torch.equal(task.queue.keys, other.queue.keys)
    with pytest.raises(ValueError, match='--objective-queue 20'):
        moco(vit(), queue=24).load_checkpoint_state(state['state_dict'], state['task_state'])
    with pytest.raises(ValueError, match='no key encoder'):
        other.load_task_state({'projection_head': state['task_state']['projection_head']})


@pytest.mark.parametrize('options', [{'queue': 0}, {'momentum': 1.1}, {'momentum': -0.1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r'a queue holds|momentum of the key encoder'):
        moco(vit(), **options)
