"""Dtype and device of new tensors: float64 none, as Apple's devices (mps) have none; PyTorch's defaults never."""
from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradmix_timm import attribute, create_mixer, list_mixers
from gradmix_timm.attribution import METHODS, TARGET_SCORES
from gradmix_timm.attribution.deletion import Place, deletion_drops
from gradmix_timm.mixers import TIMM_MODES

K = 5
OURS = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith(('doctest', 'test-'))]
OPTIONS = [
    ('gradmix', {'center': 'sample'}), ('gradmix', {'center': 'sample', 'sign': 'low'}),
    ('gradmix', {'recipe': 'authors', 'layers': 'default'}), ('gradmix', {'confidence': 0.2}),
    ('gradmix', {'label': 'mass', 'fill': 'donor-resized'}),
    ('random-box', {'center': 'argmax', 'placement': 'clip'}),
    ('random-box', {'fill': 'noise'}), ('pixmix', {'mean': (0.5,) * 3, 'std': (0.2,) * 3}),
    ('tokenmix', {'lam': 'image'})]


class WithoutFloat64(TorchDispatchMode):
    """Refuses what such a device refuses; numbers in tensors without dimensions come from the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.dim() and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f'{function} met {value.dtype} {list(value.shape)}')
        return result


def net(name=''):
    torch.manual_seed(0)
    if 'transmix' in name:
        return VisionTransformer(img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=K).train()
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))


@pytest.fixture
def batch():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % K


@pytest.mark.parametrize(('name', 'options'), [*((name, {}) for name in [*OURS, 'gradmix+cutmix']), *OPTIONS], ids=str)
def test_no_mixer_makes_a_float64_tensor(name, options, batch):
    mixer, model = create_mixer(name, num_classes=K, label_smoothing=0.1, prob_elem=0.7, **options), net(name)
    with WithoutFloat64():
        mixer.prepare(model, (3, 16, 16))
        mixed = mixer.mix(*batch, model)
        with mixer.watch(model, mixed) as finish:
            rows = finish(model(mixed.input))
    assert rows.dtype == torch.float32
    assert len(rows) == 6 * mixer.rows_per_image


@pytest.mark.parametrize('name', ['mixup', 'gradmix', 'torchvision-cutmix'])
@pytest.mark.parametrize('enabled', [True, False])
def test_labels_of_numpy_become_float32(name, enabled, batch):
    mixer = create_mixer(name, num_classes=K)
    mixer.mixup_enabled = enabled
    with WithoutFloat64():
        assert mixer(batch[0], np.eye(K)[batch[1]], net())[1].dtype == torch.float32


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('score', TARGET_SCORES)
def test_no_attribution_makes_a_float64_tensor(method, score, batch):
    with WithoutFloat64():
        found = attribute(net(), batch[0], np.eye(K)[batch[1]], method=method, score=score)
    assert found.map.dtype == torch.float32


@pytest.fixture
def restored():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize('change', [
    partial(torch.set_default_dtype, torch.float64), partial(torch.set_default_dtype, torch.bfloat16),
    partial(torch.set_default_device, 'meta')], ids=['float64', 'bfloat16', 'another device'])
@pytest.mark.parametrize(('name', 'options'), [*((name, {}) for name in OURS), *OPTIONS], ids=str)
def test_torchs_defaults_for_new_tensors_change_no_mix(name, options, change, batch, restored):
    mixes = []
    for changed in (False, True):
        mixer, model = create_mixer(name, num_classes=K, label_smoothing=0.1, prob_elem=0.7, **options), net(name)
        if changed:
            change()
        mixes.append(mixer(*batch, model))
    for plain, other in zip(*mixes, strict=True):
        assert (other.dtype, other.device) == (plain.dtype, plain.device)
        assert torch.equal(other, plain)


@pytest.mark.parametrize('change', [partial(torch.set_default_dtype, torch.bfloat16),
                                    partial(torch.set_default_device, 'meta')], ids=['bfloat16', 'another device'])
def test_torchs_defaults_for_new_tensors_change_no_map(change, batch, restored):
    places = [Place('random'), Place('layercam')]
    found, drops = [], []
    for changed in (False, True):
        model = net()
        if changed:
            change()
        found.append(attribute(model, *batch).map)
        drops.append(deletion_drops(model, *batch, places, 6))
    assert torch.equal(*found)
    assert torch.equal(*drops)
