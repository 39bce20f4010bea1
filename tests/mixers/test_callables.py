"""Mixers of others: torchvision's two classes bit for bit, and plain functions, under the registry's contract."""
from __future__ import annotations

import pickle
import random
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import v2

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.mixers import CallableMixer, register_mixer

K = 10
KINDS = {'torchvision-mixup': v2.MixUp, 'torchvision-cutmix': v2.CutMix}


def states():
    return random.getstate(), np.hstack(np.random.get_state()[1:3]).tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def noisy(images, labels, scale=1.0):
    """Draws from every global stream, in place, and rolls the labels."""
    drawn = random.random() + np.random.rand() + torch.rand(len(images), 1, 1, 1)  # noqa: NPY002
    rows = torch.nn.functional.one_hot(labels, K).float() if labels.dim() == 1 else labels
    return images.add_(scale * drawn), rows.roll(1, 0)


@pytest.fixture(scope='module', autouse=True)
def _registered():
    if 'doctest-noisy' not in list_mixers():
        register_mixer('doctest-noisy', 'noise', function=True)(noisy)


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('alpha', [1.0, 0.2])
@pytest.mark.parametrize('shape', [(8, 3, 16, 16), (7, 1, 12, 20)])
def test_images_and_labels_are_torchvisions_bit_for_bit(name, alpha, shape):
    images, labels = torch.randn(shape), torch.arange(shape[0])
    mixer = create_mixer(name, num_classes=K, alpha=alpha, seed=3)
    for _ in range(5):
        draw = mixer.draw(images, labels)
        got, targets = mixer.apply(images, labels, draw)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw.noise_seed)
            want, rows = KINDS[name](alpha=alpha, num_classes=K)(images, labels)
        assert torch.equal(got, want)
        assert torch.allclose(targets, rows, atol=1e-6)
        assert len(draw.lam.unique()) == 1


@pytest.mark.parametrize('name', KINDS)
def test_prob_elem_leaves_some_rows_as_they_were(name):
    images, labels = torch.randn(64, 3, 16, 16), torch.arange(64) % K
    mixer = create_mixer(name, num_classes=K, prob_elem=0.5)
    mixed, targets = mixer(images, labels)
    same = (mixed == images).flatten(1).all(1)
    assert 16 < same.sum() < 48
    assert torch.equal(targets[same], torch.eye(K)[labels[same]])


@pytest.mark.parametrize('name', [*KINDS, 'doctest-noisy'])
def test_global_streams_are_seeded_inside_and_go_on_behind(name):
    mixer, before = create_mixer(name, num_classes=K, seed=1), states()
    mixer(torch.zeros(4, 3, 8, 8), torch.arange(4))
    assert states() == before


def test_an_exception_inside_leaves_the_global_streams_alone_too():
    mixer = create_mixer('doctest-noisy', num_classes=K, seed=1)
    mixer.own, before = {'scale': 'not a number'}, states()
    with pytest.raises(TypeError):
        mixer(torch.zeros(4, 3, 8, 8), torch.arange(4))
    assert states() == before


def test_a_function_gets_copies_and_labels_as_they_come_and_smoothing_is_added():
    seen = []

    def watch(images, labels):
        seen.append((images.data_ptr(), labels.dtype, labels.dim()))
        return noisy(images, labels)

    mixer = CallableMixer('watch', watch, K, label_smoothing=0.1)
    images, labels = torch.ones(4, 3, 8, 8), torch.arange(4)
    for given in (labels, torch.eye(K)[labels]):
        before = images.clone()
        _, targets = mixer(images, given)
        assert torch.equal(images, before)
        assert torch.allclose(targets, torch.eye(K)[labels.roll(1)] * 0.9 + 0.01)
    assert [(dtype, dim) for _, dtype, dim in seen] == [(torch.int64, 1), (torch.float32, 2)]
    assert all(pointer != images.data_ptr() for pointer, *_ in seen)


def test_a_registered_function_takes_its_own_options_seeds_and_coins():
    images, labels = torch.zeros(32, 1, 4, 4), torch.arange(32) % K

    def mixed(step=0, **options):
        mixer = create_mixer('doctest-noisy', num_classes=K, **options)
        mixer.set_step(0, step)
        return mixer(images, labels)[0]

    assert torch.equal(mixed(), mixed())
    assert torch.allclose(mixed(scale=2.0), 2 * mixed())
    assert not torch.equal(mixed(), mixed(step=1))
    assert not torch.equal(mixed(), mixed(rank=1))
    assert 8 < (mixed(prob_elem=0.5) == 0).flatten(1).all(1).sum() < 24
    assert torch.equal(mixed(prob=0.0), images)
    assert create_mixer('doctest-noisy', num_classes=K, scale=3.0).options['scale'] == 3.0
    again = pickle.loads(pickle.dumps(create_mixer('doctest-noisy', num_classes=K, scale=3.0)))
    assert torch.equal(again(images, labels)[0], mixed(scale=3.0))
    with pytest.raises(ValueError, match="no option 'scal': did you mean 'scale'"):
        create_mixer('doctest-noisy', num_classes=K, scal=3.0)


@pytest.mark.parametrize(('made', 'words'), [
    (lambda x, y: x, 'two tensors'),
    (lambda x, y: (x[:1], y), r'images \[4, 3, 8, 8\]'),
    (lambda x, y: (x, torch.ones(4, 3)), r'targets \[4, 10\]'),
])
def test_a_function_that_returns_something_else_is_told_so(made, words):
    with pytest.raises(ValueError, match=words):
        CallableMixer('odd', made, K)(torch.ones(4, 3, 8, 8), torch.arange(4))


def test_torchvision_and_gradmix_alternate(batch, tiny_cnn):
    mixer = create_mixer('gradmix+torchvision-cutmix', num_classes=K)
    kept = deepcopy(tiny_cnn.state_dict())
    names = {mixer.mix(*batch, tiny_cnn).draw.name for _ in range(12)}
    assert names == {'gradmix', 'torchvision-cutmix'}
    assert all(torch.equal(kept[key], value) for key, value in tiny_cnn.state_dict().items())


def test_a_function_that_asks_for_the_number_of_classes_is_given_it():
    def shifted(images, labels, num_classes, by=1):
        return images, torch.nn.functional.one_hot((labels + by) % num_classes, num_classes).float()

    _, targets = CallableMixer('shifted', shifted, 4, by=2)(torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 3]))
    assert targets.argmax(1).tolist() == [2, 3, 1]
    assert 'num_classes' not in CallableMixer('shifted', shifted, 4).own


def test_an_option_without_a_default_is_asked_for_before_the_first_batch():
    def stripes(images, labels, width):
        return images, labels

    with pytest.raises(ValueError, match="mixer 'stripes' needs width; type width="):
        CallableMixer('stripes', stripes, 4)
    assert CallableMixer('stripes', stripes, 4, width=2).options['width'] == 2


def test_a_functions_multi_hot_rows_are_smoothed_as_timm_smooths_them():
    rows = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    mixer = CallableMixer('same', lambda images, labels: (images, labels), 4, label_smoothing=0.2,
                          multi_label_mix='weight')
    theirs = timm.data.Mixup(label_smoothing=0.2, num_classes=4, multi_label=True)
    theirs.mixup_enabled = False
    images = torch.randn(2, 3, 8, 8)
    assert torch.allclose(mixer(images, rows)[1], theirs(images.clone(), rows)[1])
