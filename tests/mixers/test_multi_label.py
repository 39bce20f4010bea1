"""Multi-hot targets: every mixer's own rule for images, labels by weight or by union."""
from __future__ import annotations

import pickle
from functools import partial

import pytest
import timm
import torch
from timm.loss import create_classification_loss
from torch import nn

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.attribution import attribute
from gradmix_timm.mixers import TIMM_MODES
from gradmix_timm.mixers.contract import adopt
from gradmix_timm.records import MixDraw

K = 6
NAMES = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith(('doctest', 'test-'))]
MODES = ['weight', 'union']


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Linear(8, K)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def multi_hot(batch=8, seed=0):
    rows = (torch.rand(batch, K, generator=torch.Generator().manual_seed(seed)) < 0.4).float()
    rows[0] = 0
    return rows


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', [*NAMES, 'gradmix+cutmix'])
def test_labels_follow_the_draw(name, mode, net):
    images, rows = torch.randn(8, 3, 16, 16), multi_hot()
    mixer = create_mixer(name, num_classes=K, multi_label_mix=mode, prob_elem=0.7)
    assert mixer.multi_label
    draw = mixer.draw(images, rows, net)
    mixed, targets = mixer.apply(images, rows, draw)
    assert mixed.shape == images.shape
    for row in range(8):
        a, b = draw.weight[row].tolist()
        own, other = rows[row], rows[draw.partner[row]]
        if mode == 'weight':
            want = a * own + b * other
        else:
            want = torch.tensor([max(own[k] * (a > 0), other[k] * (b > 0)) for k in range(K)])
        assert torch.allclose(targets[row], want, atol=1e-6)
    again = create_mixer(name, **mixer.options)
    assert repr(again) == repr(mixer) == repr(pickle.loads(pickle.dumps(mixer)))
    assert again.multi_label
    assert torch.equal(create_mixer(name, num_classes=K, multi_label_mix=mode)(images, rows.long(), net)[1],
                       create_mixer(name, num_classes=K, multi_label_mix=mode)(images, rows, net)[1])


def test_evidence_is_the_sum_of_the_positive_logits(net):
    images, rows = torch.randn(8, 3, 16, 16), multi_hot()
    mixer = create_mixer('gradmix', num_classes=K, multi_label_mix='weight', layers='stage')
    found = mixer.maps(net, images, rows)
    assert torch.equal(found.map, attribute(net, images, rows, 'stage', score='logit').map)
    assert found.degenerate[0], 'an image without a label has no evidence'
    one = torch.eye(K)[torch.arange(6)]
    single = create_mixer('gradmix', num_classes=K, layers='stage', score='logit')
    assert torch.allclose(mixer.maps(net, images[:6], one).map, single.maps(net, images[:6], torch.arange(6)).map)


def test_what_is_no_multi_hot_row_is_refused(net):
    images = torch.randn(4, 3, 16, 16)
    mixer = create_mixer('cutmix', num_classes=K, multi_label_mix='union')
    for rows in (torch.full((4, K), 1.5), torch.full((4, K), -0.1), torch.full((4, K), torch.nan)):
        with pytest.raises(ValueError, match=r'multi-hot targets are in \[0, 1\]'):
            mixer(images, rows)
    with pytest.raises(ValueError, match=r"multi_label_mix='weight' or 'union'"):
        create_mixer('cutmix', num_classes=K)(images, torch.ones(4, K))
    with pytest.raises(ValueError, match="'weight', 'union' or None"):
        create_mixer('cutmix', num_classes=K, multi_label_mix='sum')
    with pytest.raises(ValueError, match="score='loss'"):
        create_mixer('gradmix', num_classes=K, multi_label_mix='weight', score='loss')


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', [name for name in NAMES if name != 'none'])
def test_smoothing_of_multi_hot_rows_is_timms(name, mode, net):
    images, rows, smoothing = torch.randn(8, 3, 16, 16), multi_hot(), 0.2
    theirs = timm.data.Mixup(label_smoothing=smoothing, num_classes=K, multi_label=True)
    theirs.mixup_enabled = False
    want = theirs(images.clone(), rows)[1]
    mixer = create_mixer(name, num_classes=K, multi_label_mix=mode, label_smoothing=smoothing, prob=0.0)
    assert torch.allclose(mixer(images, rows, net)[1][-8:], want)
    mixer.mixup_enabled = False
    assert torch.allclose(mixer(images, rows, net)[1], want)


def test_a_mix_of_smoothed_multi_hot_rows_is_timms():
    images, rows = torch.randn(8, 3, 16, 16), multi_hot()
    mixer = create_mixer('mixup', num_classes=K, multi_label_mix='weight', label_smoothing=0.2)
    draw = MixDraw.of('mixup', torch.arange(8).flip(0), torch.full((8,), 0.75))
    want = timm.data.mixup.mixup_target(rows, K, 0.75, 0.2, multi_label=True)
    assert torch.allclose(mixer.apply(images, rows, draw)[1], want)


def test_an_unmixed_step_has_the_loss_that_timm_smooths_itself():
    images, rows, logits = torch.randn(8, 3, 16, 16), multi_hot(), torch.randn(8, K)
    loss = partial(create_classification_loss, 'bce', multi_label=True, smoothing=0.2)
    soft = create_mixer('none', num_classes=K, multi_label_mix='weight', label_smoothing=0.2)(images, rows)[1]
    assert torch.allclose(loss(soft_targets=True)(logits, soft), loss(soft_targets=False)(logits, rows))


def test_a_foreign_mixer_that_is_switched_off_smooths_as_timm():
    class Foreign:
        multi_label, label_smoothing = True, 0.2

        def __call__(self, images, targets, model=None):
            return images, targets

    mixer = adopt('foreign', Foreign(), K)
    mixer.mixup_enabled = False
    targets = mixer(torch.zeros(8, 3, 4, 4), multi_hot())[1]
    assert torch.allclose(targets, timm.data.mixup.mixup_target(multi_hot(), K, 1.0, 0.2, multi_label=True))
