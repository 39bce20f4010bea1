"""ODIN: OpenOOD's confidences, the model as it was, and the way to it through an evaluation."""
from __future__ import annotations

from pathlib import Path

import embedded
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradmix_timm import evaluate
from gradmix_timm.openset import metrics, score_images
from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.scores import fit_score

DATA = Path(__file__).parent / 'data' / 'odin.npz'


@pytest.fixture
def stored():
    """A small net, images for it, and what OpenOOD's ODIN says of them (``benchmarks/openood_reference.py odin``)."""
    with np.load(DATA) as kept:
        arrays = {name: torch.from_numpy(kept[name]) for name in kept.files}
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(),
                        nn.Linear(54, 4))
    net.load_state_dict({name.removeprefix('net/'): value for name, value in arrays.items() if name[:4] == 'net/'})
    return net.eval(), arrays


def batches(images, size=32):
    return DataLoader(TensorDataset(images, torch.zeros(len(images), dtype=torch.int64)), size)


@pytest.mark.parametrize(('name', 'theirs'), [
    ('odin', '1000/0.0014'), ('odin:temperature=10,epsilon=0.01', '10/0.01')])
def test_confidences_are_openoods(stored, name, theirs):
    net, arrays = stored
    found = score_images(fit_score(name, None), net, batches(arrays['images']), 'cpu', std=arrays['std'].tolist())
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, arrays[theirs], rtol=2e-6)  # theirs are float32
    assert spearmanr(found, arrays[theirs]).statistic >= 0.9999


def test_a_step_is_the_sign_of_the_gradient_image_by_image(stored):
    """The formula, one image at a time, in float64."""
    net, arrays = stored
    twin, expected = net.double(), []
    for image in arrays['images'][:6].double():
        moving = image[None].requires_grad_()
        (twin(moving) / 50).log_softmax(1).max().backward()
        moved = image + .02 * moving.grad[0].sign()
        expected.append((twin(moved[None]) / 50).softmax(1).max())
    score = fit_score('odin', None, temperature=50., epsilon=.02)
    found = score_images(score, net, batches(arrays['images'][:6].double()), 'cpu')
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-6, atol=0)


def test_no_step_is_msp_at_that_temperature(stored):
    net, arrays = stored
    logits = net(arrays['images']).detach()
    found = score_images(fit_score('odin:epsilon=0', None), net, batches(arrays['images']), 'cpu')
    embeddings = embedded.Embeddings(logits, logits, None, torch.arange(80), torch.arange(80))
    torch.testing.assert_close(found, fit_score('msp:temperature=1000', None)(embeddings))


def test_an_image_is_scored_the_same_in_any_company(stored):
    net, arrays = stored
    score = fit_score('odin', None)
    whole, few = (score_images(score, net, batches(arrays['images'], size), 'cpu') for size in (80, 7))
    torch.testing.assert_close(whole, few, rtol=1e-7, atol=0)


class Net(nn.Module):
    """Batch norm and dropout, in training mode, half of it frozen."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                  nn.Flatten(), nn.Dropout(.5))
        self.top = nn.Linear(8, 3)
        self.top.requires_grad_(False)

    def forward(self, images):
        return {'logits': self.top(self.body(images))}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().train()


def test_the_model_is_left_as_it_was(net, stored):
    net.body[1].eval()
    flags = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode():
        found = score_images(fit_score('odin', None), net, batches(stored[1]['images']), 'cpu')
    assert found.shape == (80,)
    assert not found.requires_grad
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True] * 4 + [False] * 2


def test_embeddings_alone_do_not_do():
    score = fit_score('odin', None)
    with pytest.raises(ValueError, match='odin goes back to the model for every image, and here are embeddings alone'):
        score(embedded.make(5))
    with pytest.raises(ValueError, match='computed from embeddings'):
        score_images(fit_score('mls', None), nn.Identity(), [], 'cpu')
    sets = EmbeddedSets(known=embedded.make(20), unknown=embedded.make(20, unknown=True), train=None,
                        unknown_label=np.zeros(20, int), known_classes=tuple('abcd'), unknown_classes=('x',))
    with pytest.raises(ValueError, match='scores=odin cannot be served: goes back to the model'):
        judge(sets, ['odin'], draws=0)
    usual = judge(sets, draws=0).results
    assert 'odin' not in {**usual['scores'], **usual['not_served']}


def test_values_that_are_not_numbers_are_refused(stored):
    net, arrays = stored
    net[-1].weight.data.fill_(float('nan'))
    with pytest.raises(ValueError, match='odin gives NaN for 32 of 32 images'):
        score_images(fit_score('odin', None), net, batches(arrays['images']), 'cpu')


# ---- through an evaluation

def images_of(seed, count=60, shift=0.):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 3, 12, 12, generator=generator) + labels[:, None, None, None] + shift
    return TensorDataset(images, labels)


QUICK = {'bootstrap': 0, 'trivial_images': 0, 'feature_map': 0, 'duplicates': 0}


def test_an_evaluation_hands_it_the_live_model(net):
    known, unknown, held = images_of(1), images_of(2, shift=3.), images_of(3)
    found = evaluate(net, known=DataLoader(known, 16), unknown={'near': unknown, 'far': images_of(4, 20, 9.)},
                     held_out=held, scores=('odin:temperature=10',), **QUICK)
    score = fit_score('odin:temperature=10', None)
    ours, near, calm = (score_images(score, net, DataLoader(part, 16), 'cpu') for part in (known, unknown, held))
    near_figures = found.groups['near']['scores']['odin:temperature=10']
    assert near_figures['auroc'] == pytest.approx(metrics.auroc(ours, near), abs=1e-3)  # batches of other sizes
    assert [row['odin:temperature=10'] for row in found.predictions[:60]] == pytest.approx(ours.tolist())
    assert found.results['threshold']['held_out']
    third = float(calm.sort().values[2])  # floor(0.05 x 61)
    assert found.results['threshold']['value'] == pytest.approx(third)


def test_images_that_cannot_be_read_twice_alike_are_refused(net):
    known, unknown = images_of(1), images_of(2, shift=3.)
    with pytest.raises(ValueError, match=r'can be read only once, .*; pass a data set or a DataLoader'):
        evaluate(net, known=known, unknown=iter(DataLoader(unknown, 16)), scores=('odin',), **QUICK)
    loader = DataLoader(known, batch_sampler=torch.utils.data.BatchSampler(
        torch.utils.data.SubsetRandomSampler(range(60)), 20, drop_last=False))
    with pytest.raises(ValueError, match=r'known test images differ when read a second time.*without shuffling'):
        evaluate(net, known=loader, unknown=unknown, scores=('odin',), **QUICK)
