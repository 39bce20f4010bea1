"""Networks that people write: what their forward pass keeps, draws, writes on or hands over."""
from __future__ import annotations

import random
from collections import namedtuple

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm import attribute, create_mixer
from gradmix_timm.attribution import METHODS, resolve_layers


class Plain(nn.Module):
    """Two stages and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


class Busy(Plain):
    """Counts, averages and remembers in evaluation mode too, draws, and writes on its input."""

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))
        self.register_buffer('average', torch.zeros(8))
        self.register_buffer('replaced', torch.zeros(()))
        self.steps, self.last = 0, None
        self.seen, self.stats = [], {'calls': 0}

    def forward(self, x):
        x.mul_(0.5)
        self.calls += random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        self.replaced = self.replaced + 1
        self.steps += 1
        self.seen.append(x)
        self.stats['calls'] += 1
        self.last = self.deep(self.stem(x)).mean((2, 3))
        with torch.no_grad():
            self.average.mul_(0.9).add_(self.last.mean(0))
        self.added_later = True
        return self.head(self.last)


Pair = namedtuple('Pair', 'features extra')


class Named(nn.Module):
    """A stage that gives a named tuple."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(6, 8, 3, 2, 1)

    def forward(self, x):
        return Pair(self.convolution(x).relu(), 'extra')


class HandsOver(Plain):
    """A named tuple between stages, a dictionary of logits at the end."""

    def __init__(self):
        super().__init__()
        self.deep = Named()

    def forward(self, x):
        return {'logits': self.head(self.deep(self.stem(x)).features.mean((2, 3))), 'loss': None}


class Frozen(Plain):
    """The first stage runs without a graph."""

    def forward(self, x):
        with torch.no_grad():
            x = self.stem(x)
        return self.head(self.deep(x).mean((2, 3)))


class Recomputing(Plain):
    """Calls the old kind of checkpointing itself."""

    def forward(self, x):
        return self.head(checkpoint(self.deep, self.stem(x), use_reentrant=True).mean((2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return torch.randn(4, 3, 32, 32), torch.arange(4)


def streams() -> tuple:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), name, keys.tolist(), *rest, torch.get_rng_state().tolist()


@pytest.mark.parametrize('mode', [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize('method', list(METHODS))
def test_what_a_forward_keeps_draws_or_writes_is_as_before(method, mode, small):
    images, labels = small
    model = Busy()
    model(images.clone())
    del model.added_later
    given, drawn = images.clone(), streams()
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    steps, last, names = model.steps, model.last, set(vars(model))
    seen, stats = model.seen, model.stats
    with mode():
        mixer = create_mixer('gradmix', num_classes=4, attribution=method)
        mixer.prepare(model, (3, 32, 32))
        mixer.draw(images, labels, model)
    assert torch.equal(images, given)
    assert streams() == drawn
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1]), name
    assert (model.steps, set(vars(model))) == (steps, names)
    assert model.last is last
    assert (model.seen is seen, len(seen), model.stats is stats, stats) == (True, 1, True, {'calls': 1})


def test_named_tuples_between_stages_and_a_dictionary_of_logits(small):
    model = HandsOver()
    assert [str(layer) for layer in resolve_layers(model, (3, 32, 32))] == ['deep[0]']
    found = attribute(model, *small)
    plain = Plain()
    plain.stem, plain.head = model.stem, model.head
    plain.deep = nn.Sequential(model.deep.convolution, nn.ReLU())
    assert torch.equal(found.map, attribute(plain, *small).map)


def test_a_backbone_without_its_classifier_is_refused():
    net = timm.create_model('test_resnet', num_classes=0)
    with pytest.raises(ValueError, match='num_classes=0 and gives features; give the whole classifier'):
        attribute(net, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    net.fc = nn.Linear(net.num_features, 2)
    assert attribute(net, torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).map.shape[0] == 2


def test_the_input_gradient_is_checked_at_start_too():
    options = {'num_classes': 10, 'attribution': 'input-gradient'}
    create_mixer('gradmix', **options).prepare(Plain(), (3, 32, 32))
    with pytest.raises(ValueError, match=r"no gradient of the logits of Frozen .* 'input-gradient' has no map"):
        create_mixer('gradmix', **options).prepare(Frozen(), (3, 32, 32))
    with pytest.raises(ValueError, match=r'nn\.DataParallel'):
        create_mixer('gradmix', **options).prepare(nn.DataParallel(Plain()), (3, 32, 32))
    with pytest.raises(TypeError, match=r'expected an nn\.Module'):
        create_mixer('gradmix', **options).prepare('resnet18', (3, 32, 32))  # type: ignore[arg-type]
    model = timm.create_model('test_vit', img_size=64, dynamic_img_size=False)
    with pytest.raises(ValueError, match=r'runs the model on 32x32 .* Leave attr_scale at 1'):
        create_mixer('gradmix', attr_scale=0.5, **options).prepare(model, (3, 64, 64))


def test_a_stage_without_a_graph_leaves_the_layers_behind_it(small):
    model = Frozen()
    assert [str(layer) for layer in resolve_layers(model, (3, 32, 32), [0, -1])] == ['deep']
    assert not attribute(model, *small).degenerate.any()


def test_a_model_that_no_gradient_can_be_taken_of_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r'Recomputing cannot be differentiated .* use_reentrant=False'):
        create_mixer('gradmix', num_classes=4).prepare(Recomputing(), (3, 32, 32))


def test_the_input_gradient_costs_two_forwards_and_can_be_counted(small):
    model, mixer = Plain(), create_mixer('gradmix', num_classes=4, attribution='input-gradient')

    def flops(function) -> int:
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    assert flops(lambda: mixer.draw(*small, model)) == 2 * flops(lambda: model(small[0]))


def test_a_part_that_runs_in_replicas_is_refused_by_name():
    model = Plain()
    model.stem = nn.DataParallel(model.stem)
    with pytest.raises(ValueError, match=r'nn\.DataParallel .* DistributedDataParallel'):
        create_mixer('gradmix', num_classes=4).prepare(model, (3, 32, 32))


def test_a_value_remembered_from_the_weights_is_computed_again_for_the_pass(small):
    class Remembers(Plain):
        """Keeps the bias of its logits in evaluation mode, as timm's levit does with its attention's."""

        def __init__(self):
            super().__init__()
            self.bias, self.bias_cache = nn.Parameter(torch.zeros(4)), {}

        def forward(self, x):
            bias = self.bias if self.training else self.bias_cache.setdefault('now', self.bias.detach().clone())
            return super().forward(x) + bias

    images, labels = small
    net = Remembers().eval()
    net(images)
    kept = net.bias_cache['now']
    with torch.no_grad():
        net.bias += torch.tensor([0., 9., -9., 0.])
    found = attribute(net, images, labels)
    net.bias_cache.clear()
    torch.testing.assert_close(found, attribute(net, images, labels))
    net.bias_cache['now'] = kept
    attribute(net, images, labels)
    assert net.bias_cache['now'] is kept, 'what it remembered is its own affair'


def test_a_scripted_part_is_in_evaluation_mode_for_the_pass_and_trains_again(small):
    images, labels = small
    net = Plain()
    net.head = torch.jit.script(nn.Sequential(nn.Dropout(0.9), net.head))
    net.train()
    found = attribute(net, images, labels)
    assert net.head.training
    torch.testing.assert_close(found, attribute(net.eval(), images, labels))


class Mistaken(Plain):
    def forward(self, x):
        return self.head(self.deep(self.stem(x)).mean((2, 3)), 1)


class Cut(Plain):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize(('net', 'words'), [
    (Mistaken, r'Mistaken fails in its forward, called with a batch of noise images of 3x32x32 .* takes 2 positional'),
    (Cut, r'Cut has no layer with a map .* Where its forward cuts the gradient \(torch\.no_grad, detach')])
def test_a_mistake_in_a_forward_is_not_taken_for_a_size(net, words, small):
    with pytest.raises(ValueError, match=words):
        create_mixer('gradmix', num_classes=4)(*small, net())
