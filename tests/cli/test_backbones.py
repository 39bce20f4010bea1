"""The table of target layers, and what it answers to what does not exist."""
from __future__ import annotations

import re

import pytest
import timm

from gradmix_timm.attribution import usable_layers
from gradmix_timm.attribution.cost import cost_shares
from gradmix_timm.backbones import console
from gradmix_timm.cli.backbones import main
from gradmix_timm.cli.errors import run_console


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_has_a_row_a_layer_and_marks_the_default(capsys):
    assert run_console(main, ['test_resnet', '--img-size', '64']) == 0
    head, columns, *table = rows(capsys.readouterr().out)
    model = timm.create_model('test_resnet')
    layers = usable_layers(model, (3, 64, 64))
    shares = cost_shares(model, layers, (3, 64, 64))
    assert head[:3] == ['test_resnet', 'on', '3x64x64']
    assert columns == ['#', 'layer', 'grid', 'layout', 'prefix', 'p']
    assert table == [
        ['*'] * (layer.name == 'layer2') + [str(layer.number), str(layer), f'{layer.grid[0]}x{layer.grid[1]}', 'NCHW',
                                            '0', f'{share:.3f}']
        for layer, share in zip(layers, shares, strict=True)]


@pytest.mark.parametrize(('flags', 'size', 'grid'), [
    ([], '3x160x160', '10x10'),
    (['--img-size', '64'], '3x64x64', '4x4'),
    (['--img-size', '64', '--in-chans', '1'], '1x64x64', '4x4'),
    (['--input-size', '3', '64', '96'], '3x64x96', '4x6'),
    (['--model-kwargs', 'img_size=96', 'patch_size=8'], '3x96x96', '12x12'),
])
def test_the_size_is_that_of_training(flags, size, grid, capsys):
    assert run_console(main, ['test_vit', *flags]) == 0
    head, _, *table = rows(capsys.readouterr().out)
    assert head[2] == size
    assert {row[-4] for row in table} == {grid}
    assert [row[1:3] for row in table if row[0] == '*'] == [['5', 'blocks.5.norm1']]


def test_a_model_for_one_size_is_built_for_the_size_asked(capsys):
    assert run_console(main, ['vit_tiny_patch16_224', '--img-size', '32']) == 0
    assert rows(capsys.readouterr().out)[-1][:4] == ['*', '11', 'blocks.11.norm1', '2x2']


def test_a_model_without_classes_gets_some(capsys):
    name = 'vit_tiny_patch16_dinov3_qkvb'
    assert timm.create_model(name).num_classes == 0
    assert run_console(main, [name, '--img-size', '32']) == 0
    assert rows(capsys.readouterr().out)[-1][:3] == ['*', '12', 'norm']


@pytest.mark.parametrize(('argv', 'message'), [
    (['resnet19'], r'timm has no model .resnet19.: did you mean resnet18'),
    (['test_resnet', '--img-size', '0'], '--img-size is at least 1'),
    (['test_resnet', '--model-kwargs', 'patch_sise=3'], 'patch_sise'),
    (['test_resnet', '--img-size', '1'], 'test_resnet has no layer with a map on 1x1 pixels'),
    (['test_vit', '--img-size', '40'], r'does not take images of 3x40x40.*choose a multiple'),
    (['test_resnet', '--imgsize', '64'], 'did you mean --img-size'),
    ([], 'required: MODEL'),
])
def test_what_the_user_can_mend_is_one_line_and_status_2(argv, message, capsys):
    assert run_console(main, argv) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert 'Traceback' not in '\n'.join(lines)


def test_the_door_leads_to_the_command(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['gradmix-backbones', 'test_resnet', '--img-size', '64'])
    assert console() == 0
    assert 'layer4' in capsys.readouterr().out
