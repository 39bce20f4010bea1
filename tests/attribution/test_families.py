"""Every timm family: its smallest model has the layers that were found by running it once, a map there, and trains."""
from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from gradmix_timm import create_mixer
from gradmix_timm.attribution import capture, default_layer, usable_layers
from gradmix_timm.attribution.cost import cost_share
from gradmix_timm.attribution.maps import evidence

# One row a family of timm 1.0.31: the deepest usable layer of its smallest model, measured by hooking every module and
# differentiating, and the default at that size. `img_size_arg` 1: built for the size.
FAMILIES = list(csv.DictReader((Path(__file__).parent.parent / 'data' / 'timm_families.csv').read_text().splitlines()))


def move_zero_weights(model: nn.Module) -> None:
    """As the first update would: behind a classifier of zeros every gradient is zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('row', FAMILIES, ids=[row['family'] for row in FAMILIES])
def test_the_family_has_its_layers_and_a_gradient_there(row):
    torch.manual_seed(0)
    side = int(row['input_size'])
    model = timm.create_model(row['model'], num_classes=10, **{'img_size': side} if row['img_size_arg'] == '1' else {})
    layers = usable_layers(model, (3, side, side))
    deepest, chosen = layers[-1], default_layer(layers)
    grid = tuple(map(int, row['grid'].split('x')))
    assert (str(deepest), deepest.layout, deepest.prefix, deepest.grid) == (
        row['deepest'], row['layout'], int(row['prefix']), grid)
    assert str(chosen) == row['default']
    assert min(chosen.grid) >= 7
    move_zero_weights(model)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = capture(model.train(), images, torch.tensor([0, 1]), [chosen], evidence)[0]
    assert found.activation.shape == found.gradient.shape
    assert tuple(found.gradient.shape[2:]) == chosen.grid
    assert found.gradient.isfinite().all()
    assert found.gradient.flatten(1).ne(0).any(1).all()
    assert chosen.signed
    assert 0 <= cost_share(model, chosen, (3, side, side)) <= 1
    train_a_step(model, images)


def train_a_step(model: nn.Module, images: torch.Tensor) -> None:
    """One step on a mixed batch moves the weights, and they stay finite."""
    images, targets = create_mixer('gradmix', num_classes=10)(images, torch.tensor([0, 1]), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = -(targets * model(images).log_softmax(1)).sum(1).mean()
    loss.backward()
    before = [parameter.detach().sum() for parameter in model.parameters()]
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(parameter.detach().sum() != sum_ for parameter, sum_ in zip(model.parameters(), before, strict=True))


def test_no_family_is_missing():
    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    families = {module.rsplit('.', 1)[-1] for module in modules if module.startswith('timm.')}  # not ours
    assert {row['family'] for row in FAMILIES} == families
