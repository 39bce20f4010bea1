"""The nets of the open-set papers are models of timm's: features, layers, a step of GradMix, public weights."""
from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from tiny_checkpoints import CONFIG, class_folders, save_checkpoint

from gradmix_timm.attribution import usable_layers
from gradmix_timm.checkpoint import build_model, load_checkpoint
from gradmix_timm.mixers import create_mixer
from gradmix_timm.models import own_names

NETS = ('classifier32', 'resnet18_cifar', 'wrn_40_2', 'wrn_28_10')
SMALL = {'resnet18_cifar': {'width': 8}, 'wrn_28_10': {'factor': 1, 'depth': 10}, 'wrn_40_2': {'depth': 16},
         'classifier32': {}}
#: Grids of the feature layers at 32 px.
GRIDS = {'classifier32': [16, 8, 4], 'resnet18_cifar': [32, 16, 8, 4], 'wrn_40_2': [32, 16, 8],
         'wrn_28_10': [32, 16, 8]}


def small(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=6, **SMALL[name], **options)


# ---- the public code's weights: counts and shapes of its state dicts, batch counters left out

#: Parameters for 10 classes: classifier32 (ARPL) without its unused bn10; OpenOOD's ResNet18_32x32; xternalz' WRNs.
PARAMETERS = {'classifier32': 1_000_384, 'resnet18_cifar': 11_173_962, 'wrn_40_2': 2_243_546, 'wrn_28_10': 36_479_194}


def normalisation(name, width):
    return {f'{name}.{part}': (width,) for part in ('weight', 'bias', 'running_mean', 'running_var')}


def public_classifier32(classes=10):
    """https://github.com/iCGY96/ARPL, models/models.py."""
    widths = (3, 64, 64, 128, 128, 128, 128, 128, 128, 128)
    shapes = {f'conv{n}.weight': (widths[n], widths[n - 1], 3, 3) for n in range(1, 10)}
    for number in range(1, 11):
        shapes |= normalisation(f'bn{number}', widths[min(number, 9)])
    return {**shapes, 'fc.weight': (classes, 128)}


def public_resnet18(head='fc', classes=10):
    """https://github.com/Jingkang50/OpenOOD, openood/networks/resnet18_32x32.py; Liu's and ARPL's head is `linear`."""
    shapes = {'conv1.weight': (64, 3, 3, 3), **normalisation('bn1', 64)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            place = f'layer{stage}.{block}'
            shapes |= {f'{place}.conv1.weight': (width, before, 3, 3), f'{place}.conv2.weight': (width, width, 3, 3)}
            shapes |= normalisation(f'{place}.bn1', width) | normalisation(f'{place}.bn2', width)
            if before != width:
                shapes |= {f'{place}.shortcut.0.weight': (width, before, 1, 1),
                           **normalisation(f'{place}.shortcut.1', width)}
            before = width
    return {**shapes, f'{head}.weight': (classes, 512), f'{head}.bias': (classes,)}


def public_wide(depth, factor, classes=10):
    """https://github.com/xternalz/WideResNet-pytorch, wideresnet.py; OpenOOD's wrn.py is the same."""
    shapes, before = {'conv1.weight': (16, 3, 3, 3)}, 16
    for stage in (1, 2, 3):
        width = 16 * factor * 2 ** (stage - 1)
        for block in range((depth - 4) // 6):
            place = f'block{stage}.layer.{block}'
            shapes |= {f'{place}.conv1.weight': (width, before, 3, 3), f'{place}.conv2.weight': (width, width, 3, 3)}
            shapes |= normalisation(f'{place}.bn1', before) | normalisation(f'{place}.bn2', width)
            if before != width:
                shapes[f'{place}.convShortcut.weight'] = (width, before, 1, 1)
            before = width
    return {**shapes, **normalisation('bn1', before), 'fc.weight': (classes, before), 'fc.bias': (classes,)}


PUBLIC = {'arpl': ('classifier32', public_classifier32()), 'openood': ('resnet18_cifar', public_resnet18()),
          'liu': ('resnet18_cifar', public_resnet18('linear')), 'wrn 40 2': ('wrn_40_2', public_wide(40, 2)),
          'wrn 28 10': ('wrn_28_10', public_wide(28, 10))}


@pytest.mark.parametrize(('name', 'shapes'), PUBLIC.values(), ids=PUBLIC)
def test_weights_of_the_public_code_have_a_place_each(name, shapes):
    with torch.device('meta'):
        net = timm.create_model(name, num_classes=10)
        weights = own_names(name, {key: torch.empty(shape) for key, shape in shapes.items()})
    own = {key: tuple(value.shape) for key, value in net.state_dict().items() if not key.endswith('batches_tracked')}
    assert {key: tuple(value.shape) for key, value in weights.items()} == own
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize('head', ['fc', 'linear'])
def test_a_public_checkpoint_is_read_whatever_wraps_its_names(head, tmp_path):
    torch.manual_seed(0)
    weights = {f'module.{key}': torch.randn(shape) for key, shape in public_resnet18(head, 6).items()}
    torch.save(weights, tmp_path / 'net.pth')
    net = build_model(load_checkpoint(tmp_path / 'net.pth'), 'resnet18_cifar')
    assert net.num_classes == 6
    assert net.layer2[0].downsample[0].weight.equal(weights['module.layer2.0.shortcut.0.weight'])


# ---- as models of timm's

@pytest.mark.parametrize('name', NETS)
def test_features_head_and_classifier_are_as_timm_has_them(name):
    net, images = small(name).eval(), torch.randn(2, 3, 32, 32)
    features = net.forward_features(images)
    assert features.shape[1:] == (net.num_features, GRIDS[name][-1], GRIDS[name][-1])
    assert net.forward_head(features, pre_logits=True).shape == (2, net.num_features)
    assert net.forward_head(features).equal(net(images))
    assert net.get_classifier() is net.fc
    net.reset_classifier(3)
    assert (net(images).shape, net.num_classes) == ((2, 3), 3)
    net.reset_classifier(0)
    assert net(images).shape == (2, net.num_features)
    net.reset_classifier(0, '')
    assert net(images).equal(features)
    config = timm.get_pretrained_cfg(name)
    assert (config.input_size, config.crop_pct, config.classifier) == ((3, 32, 32), 1.0, 'fc')
    assert small(name, in_chans=1, global_pool='max')(torch.randn(2, 1, 32, 32)).shape == (2, 6)


@pytest.mark.parametrize('name', NETS)
def test_feature_layers_are_where_maps_are_made(name):
    net = small(name)
    assert [layer.grid for layer in usable_layers(net, (3, 32, 32))] == [(side, side) for side in GRIDS[name]]
    grids = [out.shape[2] for out in small(name, features_only=True)(torch.randn(2, 3, 32, 32))]
    assert grids[-len(GRIDS[name]):] == GRIDS[name]


@pytest.mark.parametrize('name', NETS)
def test_gradmix_mixes_and_the_step_has_gradients_everywhere(name):
    net, images = small(name).train(), torch.randn(4, 3, 32, 32)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    mixed, target = create_mixer('gradmix', num_classes=6)(images, torch.arange(4), net)
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    torch.nn.functional.cross_entropy(net(mixed), target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('name', NETS)
def test_a_checkpoint_of_ours_is_read_again(name, tmp_path):
    class_folders(tmp_path / 'data', count=4)
    net = timm.create_model(name, num_classes=2, **SMALL[name])
    path = save_checkpoint(tmp_path / 'run' / 'a.pth.tar', tmp_path / 'data', held=(), net=net, model=name,
                           model_kwargs={'num_classes': 2, **SMALL[name]}, data_config={**CONFIG, 'crop_pct': 1.0})
    again = build_model(load_checkpoint(path))
    assert all(value.equal(net.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.slow
def test_a_fresh_backbones_command_knows_them():
    done = subprocess.run([sys.executable, '-m', 'gradmix_timm.backbones', 'classifier32', '--img-size', '32'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'act9' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('name', NETS)
def test_exported_to_onnx_the_logits_are_the_same(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    net, images = small(name).eval(), torch.randn(2, 3, 32, 32)
    torch.onnx.export(net, (images,), str(tmp_path / 'net.onnx'), dynamo=False, input_names=['x'])
    session = onnxruntime.InferenceSession(str(tmp_path / 'net.onnx'), providers=['CPUExecutionProvider'])
    found = torch.from_numpy(session.run(None, {'x': images.numpy()})[0])
    torch.testing.assert_close(found, net(images), rtol=1e-3, atol=1e-4)  # other kernels, float32


@pytest.mark.parametrize(('name', 'options', 'words'), [
    ('resnet18_cifar', {'width': 7}, 'even'), ('wrn_40_2', {'depth': 30}, '6 n')])
def test_sizes_that_cannot_be_made_say_so(name, options, words):
    with pytest.raises(ValueError, match=words):
        timm.create_model(name, **options)
