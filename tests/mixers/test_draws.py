"""What a draw depends on, and who meets whom."""
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from gradmix_timm import create_mixer
from gradmix_timm.mixers.base import partners

K = 10
NAMES = ['cutmix', 'mixup', 'random-box', 'mixup+cutmix', 'torchvision-cutmix']


class Collate:
    """A mixer as torchvision's documentation uses its own: behind ``default_collate``, in the workers."""

    def __init__(self, mixer, step=None):
        self.mixer, self.step = mixer, step

    def __call__(self, samples):
        images, labels = default_collate(samples)
        if self.step is not None:
            self.mixer.set_step(*self.step)
        draw = self.mixer.draw(images, labels)
        return torch.cat([draw.lam[:, None], draw.dst], 1).flatten()


def epochs(mixer, count=2, workers=4, step=None, **options):
    data = TensorDataset(torch.randn(64, 1, 64, 64), torch.arange(64) % K)
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=Collate(mixer, step), **options)
    return [tuple(drawn.tolist()) for _ in range(count) for drawn in loader]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize('name', NAMES)
def test_workers_of_a_loader_and_their_epochs_draw_differently(name):
    torch.manual_seed(0)
    drawn = epochs(create_mixer(name, num_classes=K))
    assert len(set(drawn)) == len(drawn) == 32


@pytest.mark.slow
@pytest.mark.parametrize('persistent', [False, True])
def test_draws_in_workers_reproduce_with_torchs_seed_and_differ_with_the_mixers(persistent):
    def run(seed, torch_seed=0):
        torch.manual_seed(torch_seed)
        return epochs(create_mixer('cutmix', num_classes=K, seed=seed), workers=2, persistent_workers=persistent)

    assert run(1) == run(1)
    assert not set(run(1)) & set(run(2))
    assert not set(run(1)) & set(run(1, torch_seed=1))


def test_a_step_that_is_set_in_the_worker_decides_alone():
    torch.manual_seed(0)
    drawn = epochs(create_mixer('cutmix', num_classes=K), workers=2, step=(3, 7))
    here = Collate(create_mixer('cutmix', num_classes=K), (3, 7))
    assert set(drawn) == {tuple(here([(torch.zeros(1, 64, 64), 0)] * 4).tolist())}


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_a_step_that_was_set_before_the_workers_began_does_not_make_them_alike():
    torch.manual_seed(0)
    mixer = create_mixer('cutmix', num_classes=K)
    mixer.set_step(1, 2)
    assert len(set(epochs(mixer))) == 32


@pytest.mark.parametrize('batch', [2, 3, 4, 7, 16])
def test_nobody_is_its_own_partner_and_everybody_else_is_as_likely(batch):
    rng, counts, draws = np.random.default_rng(0), np.zeros((batch, batch)), 3000
    for _ in range(draws):
        partner = partners(rng, batch)
        assert sorted(partner) == list(range(batch)), 'everybody gives once'
        counts[np.arange(batch), partner] += 1
    assert not counts.diagonal().any()
    expected = draws / (batch - 1)
    off = counts[~np.eye(batch, dtype=bool)]
    assert abs(off - expected).max() < 5 * np.sqrt(expected) + 1e-9


@pytest.mark.parametrize('prob_elem', [1.0, 0.5])
@pytest.mark.parametrize('name', ['cutmix', 'mixup', 'gradmix', 'random-box', 'center-box', 'torchvision-mixup'])
@pytest.mark.parametrize('batch', [2, 5])
def test_every_mixed_image_meets_another(name, prob_elem, batch, tiny_cnn):
    mixer = create_mixer(name, num_classes=K, prob_elem=prob_elem)
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch)
    mixed = 0
    for _ in range(10):
        draw = mixer.draw(images, labels, tiny_cnn)
        met = draw.lam < 1
        assert (draw.partner[met] != torch.arange(batch)[met]).all()
        mixed += int(met.sum())
    assert mixed > 0


def test_maps_from_a_shared_forward_meet_no_self_either(tiny_cnn):
    mixer = create_mixer('gradmix', num_classes=K)
    images, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    captured = mixer.captured(tiny_cnn, images, labels)
    assert all(mixer.draw_from(images, captured).partner.tolist() == [1, 0] for _ in range(8))


def test_one_image_stays_as_it_is():
    mixer = create_mixer('cutmix', num_classes=K)
    images = torch.randn(1, 3, 8, 8)
    with pytest.warns(UserWarning, match='no partner'):
        mixed, targets = mixer(images, torch.tensor([3]))
    assert torch.equal(mixed, images)
    assert targets.argmax() == 3


def test_one_image_stays_as_it_is_with_maps_from_a_shared_forward_too(tiny_cnn):
    mixer = create_mixer('gradmix', num_classes=K)
    images = torch.randn(1, 3, 32, 32)
    captured = mixer.captured(tiny_cnn, images, torch.tensor([3]))
    with pytest.warns(UserWarning, match='no partner'):
        draw = mixer.draw_from(images, captured)
    assert (draw.lam.item(), draw.weight[0].tolist()) == (1, [1, 0])


# ---- a mixer with its model

def train_one_epoch(epoch, loader, mixup_fn, mixup_off_epoch, prefetcher=False):
    """timm's own lines (train.py of 1.0.31) about mixing."""
    if mixup_off_epoch and epoch >= mixup_off_epoch:
        if prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False
    for input, target in loader:
        if mixup_fn is not None:
            input, target = mixup_fn(input, target)
        yield input, target


@pytest.mark.parametrize('name', ['gradmix', 'cutmix', 'gradmix+cutmix', 'batch', 'torchvision-mixup'])
def test_timms_loop_ends_the_mixing_of_a_bound_mixer(name, tiny_cnn):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    mixup_fn = create_mixer(name, num_classes=K, label_smoothing=0.1).bound_to(tiny_cnn)
    soft = torch.full((4, K), 0.01).scatter_(1, labels[:, None], 0.91)
    mixed = [list(train_one_epoch(epoch, [(images.clone(), labels)] * 4, mixup_fn, 1)) for epoch in (0, 1)]
    assert any(not torch.equal(input, images) for input, _ in mixed[0])
    for input, target in mixed[1]:
        assert torch.equal(input, images)
        assert torch.allclose(target, soft)


def test_a_bound_mixer_is_the_mixer_but_for_its_call(tiny_cnn):
    mixer, other = (create_mixer('gradmix', num_classes=K, seed=4) for _ in range(2))
    bound, images, labels = mixer.bound_to(tiny_cnn), torch.randn(4, 3, 32, 32), torch.arange(4)
    assert bound.mixup_enabled
    assert (bound.label_smoothing, bound.num_classes, bound.name) == (0.0, K, 'gradmix')
    bound.set_step(2, 3)
    other.set_step(2, 3)
    assert torch.equal(bound(images, labels)[0], other(images, labels, tiny_cnn)[0])
    bound.prob = 0.0
    assert mixer.prob == 0.0
    bound.prob = 1.0
    average, last = copy.deepcopy(tiny_cnn), create_mixer('gradmix', num_classes=K, seed=5)
    bound.model = average
    assert bound.model is average
    assert not hasattr(mixer, 'model')
    bound.mixer = last
    assert bound.mixer is last
    assert bound.options == last.options
    with pytest.raises(AttributeError, match='no_such'):
        bound.no_such  # noqa: B018
    again = pickle.loads(pickle.dumps(create_mixer('cutmix', num_classes=K).bound_to(nn.Identity())))
    assert again(images, labels)[0].shape == images.shape
    assert 'bound_to' in repr(bound)


@pytest.mark.parametrize('never', [{'prob': 0.0}, {'prob_elem': 0.0}], ids=str)
def test_layers_captured_for_a_batch_that_stays_unmixed_give_a_draw_that_mixes_nothing(tiny_cnn, never):
    """As objectives draw that share the forward of the clean batch."""
    mixer = create_mixer('gradmix', num_classes=K, **never)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    draw = mixer.draw_from(images, mixer.captured(tiny_cnn, images, labels))
    assert (draw.lam == 1).all()
    assert torch.equal(mixer.apply(images, labels, draw)[0], images)
