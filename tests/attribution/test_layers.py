"""Target layers: which are found, which is the default, what a user's words mean, and that nothing is left behind."""
from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradmix_timm.attribution import (
    TargetLayer,
    attribute,
    borrow,
    default_layer,
    resolve_layers,
    unwrap,
    usable_layers,
)
from gradmix_timm.attribution import layers as layers_module
from gradmix_timm.attribution.capture import capture
from gradmix_timm.attribution.cost import cost_share, cost_shares
from gradmix_timm.attribution.dry_run import hooked
from gradmix_timm.attribution.grids import Hints, fold, read_grid
from gradmix_timm.attribution.maps import evidence

# Arguments that make families small.
SMALL = {'img_size': 64, 'depth': 3, 'embed_dim': 48, 'num_heads': 4}
SWIN = {'window_size': 2, 'depths': (1, 1, 1, 1), 'embed_dim': 24, 'num_heads': (1, 1, 1, 1)}
TWINS = {'depths': (1, 1, 2, 2), 'embed_dims': (16, 32, 48, 64), 'num_heads': (1, 1, 1, 1)}
HIERA = {'img_size': 96, 'embed_dim': 16, 'num_heads': 1, 'stages': (1, 1, 2, 1)}


def create(name: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **kwargs)


def outputs(model: nn.Module, images: torch.Tensor, targets) -> list[torch.Tensor]:
    """What each target gave, in evaluation mode, with its gradient of the sum of all logits."""
    seen: dict[str, object] = {}
    with borrow(model) as inner, hooked(inner, list({t.name for t in targets}), seen.__setitem__):
        inner(images)
    return [seen[t.name] if t.index is None else seen[t.name][t.index] for t in targets]


def names(layers) -> list[str]:
    return [str(layer) for layer in layers]


class Residual(nn.Module):
    """A user's block: a branch and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.shortcut = nn.Sequential(nn.Conv2d(width, width, 1))

    def forward(self, x):
        return self.branch(x) + self.shortcut(x)


class ToyNet(nn.Module):
    """A user's network: functional activations, a pooling used twice, residual blocks, an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.block1, self.block2 = Residual(8), Residual(8)
        self.aux_head = nn.Conv2d(8, 5, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.block1(self.pool(F.relu(self.conv1(x))))
        x = self.block2(self.pool(x))
        return self.fc(x.mean((2, 3))), self.aux_head(x)


# ---- what is found

@pytest.mark.parametrize(('name', 'kwargs', 'side', 'deepest', 'layout', 'prefix', 'grid', 'default'), [
    ('test_resnet', {}, 64, 'layer4', 'NCHW', 0, (2, 2), 'layer2'),
    ('test_convnext', {}, 160, 'stages.3', 'NCHW', 0, (5, 5), 'stages.3.downsample.0'),
    ('test_mambaout', {}, 96, 'stages.3', 'NHWC', 0, (3, 3), 'stages.2.downsample.norm'),
    ('swin_s3_tiny_224', SWIN | {'img_size': 64}, 64, 'layers.3', 'NHWC', 0, (2, 2), 'layers.1'),
    ('test_vit_relpos', {}, 160, 'blocks.8', 'NLC', 0, (10, 10), 'blocks.8'),
    ('test_vit', {}, 64, 'blocks.5.norm1', 'NLC', 1, (4, 4), 'blocks.5.norm1'),
    ('deit_tiny_distilled_patch16_224', SMALL | {'img_size': 48}, 48, 'blocks.2.norm1', 'NLC', 2, (3, 3),
     'blocks.2.norm1'),
    ('vit_tiny_patch16_dinov3_qkvb', {'img_size': 64, 'depth': 3}, 64, 'norm', 'NLC', 5, (4, 4), 'norm'),
    ('cait_xxs24_224', SMALL, 64, 'blocks_token_only.0.norm1', 'NLC', 1, (4, 4), 'blocks_token_only.0.norm1'),
    ('convit_tiny', SMALL | {'local_up_to_layer': 1}, 64, 'blocks.2.norm1', 'NLC', 1, (4, 4), 'blocks.2.norm1'),
    ('crossvit_tiny_240', {}, 240, 'blocks.1[0]', 'NLC', 1, (20, 20), 'blocks.1[0]'),
    ('tnt_s_legacy_patch16_224', {'img_size': 64, 'depth': 3}, 64, 'blocks.1[1]', 'NLC', 1, (4, 4), 'blocks.1[1]'),
    ('pit_ti_224', {'img_size': 64}, 64, 'transformers.1[0]', 'NCHW', 0, (4, 4), 'transformers.0[0]'),
    ('efficientvim_m1', {}, 128, 'stages.2.blocks.1[0]', 'NCHW', 0, (2, 2), 'stages.0.blocks.1[0]'),
    ('coat_tiny', {'img_size': 64}, 64, 'parallel_blocks.4[3]', 'NLC', 1, (2, 2), 'serial_blocks2.1'),
    ('mvitv2_tiny', {}, 64, 'stages.3[0]', 'NLC', 0, (2, 2), 'stages.2.blocks.0.norm1'),
    ('twins_pcpvt_small', TWINS, 64, 'blocks.3.1', 'NLC', 0, (2, 2), 'blocks.1.0'),
    ('hrnet_w18_small', {}, 64, 'stage4[0]', 'NCHW', 0, (16, 16), 'stage4[0]'),
    ('gmlp_ti16_224', {'img_size': 64}, 64, 'norm', 'NLC', 0, (4, 4), 'norm'),
])
def test_layout_prefix_and_grid_are_read_off_the_model(name, kwargs, side, deepest, layout, prefix, grid, default):
    layers = usable_layers(create(name, **kwargs), (3, side, side))
    last = layers[-1]
    assert (str(last), last.layout, last.prefix, last.grid) == (deepest, layout, prefix, grid)
    assert str(default_layer(layers)) == default
    assert [layer.number for layer in layers] == list(range(len(layers)))


def test_a_resnet_offers_its_stages_and_a_vit_its_blocks_and_the_norm_before_its_last_attention():
    assert names(usable_layers(create('test_resnet'), (3, 64, 64))) == ['layer1', 'layer2', 'layer3', 'layer4']
    assert names(usable_layers(create('test_vit'), (3, 64, 64))) == [
        *(f'blocks.{n}' for n in range(5)), 'blocks.5.norm1']


def test_prefix_tokens_may_join_on_the_way():
    layers = usable_layers(create('convit_tiny', **SMALL | {'local_up_to_layer': 1}), (3, 64, 64))
    assert [(layer.name, layer.prefix) for layer in layers] == [('blocks.0', 0), ('blocks.1', 1), ('blocks.2.norm1', 1)]


def test_layouts_may_change_on_the_way():
    layers = usable_layers(create('efficientformer_l1', depths=(1, 1, 1, 2)), (3, 224, 224))
    assert [layer.layout for layer in layers] == ['NCHW', 'NCHW', 'NCHW', 'NLC', 'NLC']


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_mambaout'])
def test_usable_means_a_gradient_on_the_grid(name):
    model = create(name).eval()
    layers = usable_layers(model, (3, 160, 160))
    images = torch.randn(2, 3, 160, 160, requires_grad=True)
    kept: dict[str, torch.Tensor] = {}
    with hooked(model, [layer.name for layer in layers], kept.__setitem__):
        score = model(images)[:, 0].sum()
    grads = torch.autograd.grad(score, [kept[layer.name] for layer in layers])
    for layer, grad in zip(layers, grads, strict=True):
        folded = fold(grad, layer, (160, 160))
        assert folded.shape[2:] == layer.grid
        assert folded.ne(0).any()


def test_the_block_before_a_class_token_is_dead_and_its_norm_is_not():
    model = create('test_vit')
    with pytest.raises(ValueError, match=r"'blocks.5'.*class token.*--gradmix-layers"):
        resolve_layers(model, (3, 64, 64), 'blocks.5')
    assert names(resolve_layers(model, (3, 64, 64), 'blocks.5.norm1')) == ['blocks.5.norm1']
    pooled = create('test_vit', class_token=False, global_pool='avg')
    assert names(usable_layers(pooled, (3, 64, 64)))[-1] == 'blocks.5'


def test_a_zero_classifier_is_judged_by_a_copy_and_stays_zero():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    assert not model.heads.head.weight.any()
    layers = usable_layers(model, (3, 32, 32))
    assert names(layers) == ['encoder.layers.encoder_layer_0', 'encoder.layers.encoder_layer_1',
                             'encoder.layers.encoder_layer_2.ln_1']
    assert layers[-1].prefix == 1
    assert not model.heads.head.weight.any()


def test_torchvision_models_are_traced():
    # The first outputs are [B, 16, 16, 16]: the others tell their layout.
    swin = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4], num_classes=5)
    assert [(str(layer), layer.layout) for layer in usable_layers(swin, (3, 64, 64))] == [
        (name, 'NHWC') for name in ('features.0', 'features.1', 'features.2', 'features.3', 'norm')]
    resnet = torchvision.models.resnet18(num_classes=5)
    assert names(usable_layers(resnet, (3, 64, 64))) == ['layer1', 'layer2', 'layer3', 'layer4']
    mobile = usable_layers(torchvision.models.mobilenet_v3_small(num_classes=5), (3, 64, 64))
    assert names(mobile)[-1] == 'features.12'


def test_class_scores_are_no_features():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.classifier = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return self.classifier(self.features(x)).mean((2, 3))

    assert names(usable_layers(Convolutional(), (3, 16, 16))) == ['features']


def test_a_users_network_offers_its_blocks():
    layers = usable_layers(ToyNet(), (3, 32, 32))
    assert [(str(layer), layer.grid) for layer in layers] == [('block1', (16, 16)), ('block2', (8, 8))]


def test_bare_layers_offer_the_end_of_each_run_but_no_pooling_that_spreads_a_cell():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8),
        nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(392, 5))
    assert [(str(layer), layer.grid) for layer in usable_layers(net, (3, 32, 32))] == [('3', (16, 16)), ('6', (2, 2))]


def test_a_timm_model_inside_a_users_module_keeps_its_stages():
    net = nn.Sequential(timm.create_model('test_resnet', num_classes=0), nn.Linear(192, 5))
    net[1] = nn.Linear(net[0].num_features, 5)
    assert names(usable_layers(net, (3, 64, 64))) == ['0.layer1', '0.layer2', '0.layer3', '0.layer4']


def test_a_transformer_encoder_offers_its_layers():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 8, stride=8)
            self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3)
            self.fc = nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))

    layers = usable_layers(Tokens(), (3, 32, 48))
    assert [(str(x), x.grid) for x in layers] == [(f'blocks.layers.{n}', (4, 6)) for n in range(3)]


def test_a_tensor_that_only_looks_like_the_output_is_refused():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2, 2)

        def forward(self, x):
            x = self.conv(x)
            return x, self.down(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage, self.fc = Stage(), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.stage(x)[1].mean((2, 3)))

    net = Net()
    # The first element leads to the logits inside the stage, but nothing behind the stage reads it.
    assert [(str(x), x.grid) for x in resolve_layers(net, (3, 32, 32), 'stage')] == [('stage[1]', (16, 16))]
    with pytest.raises(ValueError, match=r"'stage\[0\]' of Net has no map: the gradient .* does not reach it"):
        resolve_layers(net, (3, 32, 32), 'stage[0]')
    assert attribute(net, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), 'stage').map.shape == (2, 16, 16)


def test_a_model_without_a_map_is_refused_with_the_remedy():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 5))
    for layers in (None, -1):
        with pytest.raises(ValueError, match=r'Sequential has no layer with a map on 4x4.*random-box'):
            resolve_layers(net, (3, 4, 4), layers)


def test_a_module_that_runs_twice_is_refused():
    with pytest.raises(ValueError, match=r"'pool' of ToyNet has no map: it runs 2 times"):
        resolve_layers(ToyNet(), (3, 32, 32), 'pool')


# ---- the default

def layer(grid: tuple[int, int], number: int = 0) -> TargetLayer:
    return TargetLayer(f'stage{number}', None, 'NCHW', 0, grid, number)


@pytest.mark.parametrize(('grids', 'expected'), [
    ([(56, 56), (28, 28), (14, 14), (7, 7)], 3),
    ([(40, 40), (20, 20), (10, 10), (5, 5)], 2),
    ([(14, 28), (7, 14), (6, 12)], 1),
    ([(8, 8), (4, 4), (2, 2)], 0),
    ([(6, 6), (4, 4), (2, 2)], 1),
    ([(3, 3), (3, 3), (2, 2)], 1),
    ([(14, 14)] * 5, 4),
])
def test_default_is_the_deepest_fine_enough(grids, expected):
    layers = [layer(grid, number) for number, grid in enumerate(grids)]
    assert default_layer(layers).number == expected


def test_the_default_follows_the_image_size():
    model = create('resnet18')
    assert [str(resolve_layers(model, (3, side, side))[0]) for side in (32, 64, 128, 224)] == [
        'layer1', 'layer2', 'layer3', 'layer4']


# ---- what a user's words mean

@pytest.mark.parametrize(('words', 'expected'), [
    (None, ['layer2']), (-1, ['layer4']), (0, ['layer1']), ([-2, -1], ['layer3', 'layer4']),
    ('-2,-1', ['layer3', 'layer4']), ('layer3, layer1', ['layer3', 'layer1']), (['layer1', 3], ['layer1', 'layer4']),
    ('1,layer2', ['layer2']), ('layer4.0.conv1,-1', ['layer4.0.conv1', 'layer4']), (('layer1,layer2', 2), [
        'layer1', 'layer2', 'layer3']),
])
def test_numbers_and_names(words, expected):
    model = create('test_resnet', zero_init_last=False)
    assert names(resolve_layers(model, (3, 64, 64), words)) == expected


def test_an_element_of_a_tuple_has_its_number_in_brackets():
    model = create('hrnet_w18_small')
    found = resolve_layers(model, (3, 64, 64), 'stage4[3],stage4')
    assert [(str(x), x.grid, x.number) for x in found] == [('stage4[3]', (2, 2), -1), ('stage4[0]', (16, 16), 2)]
    with pytest.raises(ValueError, match=r"'stage4\[7\]'.*no such element"):
        resolve_layers(model, (3, 64, 64), 'stage4[7]')


@pytest.mark.parametrize(('words', 'message'), [
    ('layr3', r"no layer 'layr3': did you mean 'layer3'.*layer1, layer2, layer3, layer4.*numbers 0 to 3"),
    (4, r'no layer 4: test_resnet has 4 usable layers.*-4 to 3'),
    (-5, r'no layer -5'),
    ('fc', r"'fc' of test_resnet has no map: its output has no grid: \[2, 5\]; choose another, layers="),
    ('layer3,', r'names no layer'),
    ('', r'names no layer'),
    ([], r'names no layer'),
])
def test_a_wrong_word_is_answered_with_the_right_ones(words, message):
    with pytest.raises(ValueError, match=message):
        resolve_layers(create('test_resnet'), (3, 64, 64), words)


@pytest.mark.parametrize('words', [1.5, [True], [None], {'layer3': 1}])
def test_other_things_than_numbers_and_names_are_refused(words):
    with pytest.raises(TypeError, match='numbers or module names'):
        resolve_layers(create('test_resnet'), (3, 64, 64), words)


# ---- sizes, channels, dtypes, modes

@pytest.mark.parametrize(('name', 'kwargs', 'size', 'message'), [
    ('vit_tiny_patch16_224', {}, (3, 64, 64),
     r'vit_tiny_patch16_224 does not take images of 3x64x64.*--img-size 224.*dynamic_img_size=True or img_size=64'),
    ('test_vit', {}, (3, 60, 64), r'3x60x64.*divisible.*choose a multiple'),
    ('test_resnet', {}, (1, 64, 64), r'1x64x64.*built for 3 channels.*--in-chans 1'),
    ('test_resnet', {'in_chans': 4}, (3, 64, 64), r'3x64x64.*built for 4 channels'),
])
def test_a_refused_size_is_answered_with_the_remedy(name, kwargs, size, message):
    with pytest.raises(ValueError, match=message):
        resolve_layers(create(name, **kwargs), size)


def test_a_model_without_logits_is_refused_by_name():
    with pytest.raises(ValueError, match=r'ResNet|test_resnet.*logits'):
        usable_layers(timm.create_model('test_resnet', num_classes=0, global_pool=''), (3, 64, 64))


def test_running_out_of_memory_is_not_taken_for_a_refused_size():
    class Full(nn.Module):
        feature_info = ()

        def forward(self, x):
            raise torch.OutOfMemoryError('full')

    with pytest.raises(torch.OutOfMemoryError):
        usable_layers(Full(), (3, 8, 8))


@pytest.mark.parametrize(('name', 'kwargs', 'size', 'grid'), [
    ('test_resnet', {'in_chans': 1}, (1, 64, 96), (8, 12)),
    ('test_vit', {}, (3, 64, 96), (4, 6)),
    ('test_vit', {'dynamic_img_pad': True}, (3, 70, 100), (5, 7)),
    ('test_mambaout', {}, (3, 96, 160), (12, 20)),
    ('swin_s3_tiny_224', SWIN | {'img_size': (32, 64)}, (3, 32, 64), (8, 16)),
    ('xcit_nano_12_p8_224', {}, (3, 32, 72), (4, 9)),
    pytest.param('hrnet_w18_small', {}, (3, 64, 128), (16, 32), marks=pytest.mark.slow),
    pytest.param('inception_v3', {}, (3, 128, 192), (13, 21), marks=pytest.mark.slow),
])
def test_images_need_not_be_square(name, kwargs, size, grid):
    assert resolve_layers(create(name, **kwargs), size)[0].grid == grid


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'cait_xxs24_224'])
def test_half_precision_finds_the_same_layers(name, dtype):
    model = create(name, **SMALL if name.startswith('cait') else {})
    assert usable_layers(model, (3, 64, 64)) == usable_layers(copy.deepcopy(model).to(dtype), (3, 64, 64))


def test_float16_gradients_are_not_lost_to_rounding():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    nn.init.uniform_(net[3].weight, -2e-6, 2e-6)
    # Spread over 1024 cells they are below the smallest float16.
    assert names(usable_layers(net.half(), (3, 32, 32))) == ['0']


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode,
                                  lambda: torch.autocast('cpu', dtype=torch.bfloat16)])
def test_the_callers_mode_does_not_matter(mode):
    model, size = create('test_vit'), (3, 64, 64)
    frozen = copy.deepcopy(model).requires_grad_(False).to(memory_format=torch.channels_last)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled('cpu')
        found = usable_layers(frozen, size)
        after = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled('cpu')
    assert before == after
    assert found == usable_layers(model, size)


def test_distilled_heads_give_tuples_in_training():
    model = create('deit_tiny_distilled_patch16_224', **SMALL).train()
    model.set_distilled_training(True)
    assert isinstance(model(torch.randn(1, 3, 64, 64)), tuple)
    assert usable_layers(model, (3, 64, 64))[-1].prefix == 2


def test_wrappers_share_what_was_found():
    model = create('test_resnet')
    compiled = nn.Module()  # as torch.compile wraps, without the seconds it takes to import
    compiled._orig_mod = model
    assert unwrap(compiled) is model
    assert resolve_layers(compiled, (3, 64, 64)) is resolve_layers(model, (3, 64, 64))
    with pytest.raises(ValueError, match='DataParallel'):
        resolve_layers(nn.DataParallel(model), (3, 64, 64))


# ---- folding

def positions(height: int, width: int, batch: int = 2) -> torch.Tensor:
    """A picture [B, 2, h, w] whose values are its own coordinates."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return torch.stack([rows, columns]).float().expand(batch, -1, -1, -1)


@pytest.mark.parametrize('size', [(64, 64), (64, 160), (160, 64), (150, 225)])
@pytest.mark.parametrize('prefix', [0, 1, 5])
def test_tokens_fold_to_their_places_at_any_size(size, prefix):
    height, width = -(-size[0] // 16), -(-size[1] // 16)
    picture = positions(height, width)
    tokens = torch.cat([torch.full((2, prefix, 2), -1.0), picture.flatten(2).transpose(1, 2)], 1)
    target = TargetLayer('blocks.3', None, 'NLC', prefix, (14, 14))
    assert fold(tokens, target, size).equal(picture)
    assert read_grid(tokens, size, Hints(prefix=prefix)) == ('NLC', prefix, (height, width))


def test_a_declared_prefix_goes_before_a_guess():
    tokens = torch.zeros(2, 9, 4)
    assert read_grid(tokens, (32, 32), Hints(prefix=5)) == ('NLC', 5, (2, 2))
    assert read_grid(tokens, (32, 32)) == ('NLC', 0, (3, 3))
    # cait declares a class token that its patch blocks do not carry.
    assert read_grid(torch.zeros(2, 196, 4), (224, 224), Hints(prefix=1)) == ('NLC', 0, (14, 14))


def test_images_fold_by_their_layout():
    picture = positions(3, 5)
    assert fold(picture, TargetLayer('a', None, 'NCHW', 0, (3, 5)), (96, 160)).equal(picture)
    last = picture.permute(0, 2, 3, 1)
    assert fold(last, TargetLayer('a', None, 'NHWC', 0, (3, 5)), (96, 160)).equal(picture)
    assert fold([None, last], TargetLayer('a', 1, 'NHWC', 0, (3, 5)), (96, 160)).equal(picture)


def test_folding_is_differentiable():
    tokens = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    target = TargetLayer('a', None, 'NLC', 1, (2, 3), order=(5, 4, 3, 2, 1, 0))
    assert torch.autograd.gradcheck(lambda t: fold(t, target, (32, 48)), tokens)


def test_a_count_without_a_grid_is_refused():
    with pytest.raises(ValueError, match=r'blocks.3: 13 tokens make no grid over 64x64.*--gradmix-layers'):
        fold(torch.zeros(1, 14, 2), TargetLayer('blocks.3', None, 'NLC', 1, (4, 4)), (64, 64))


@pytest.mark.parametrize(('shape', 'size', 'hints', 'expected'), [
    ((2, 8, 8, 8), (64, 64), Hints(), 'NCHW'),
    ((2, 8, 8, 8), (64, 64), Hints(channels_last=True), 'NHWC'),
    ((2, 8, 8, 64), (64, 64), Hints(), 'NHWC'),
    ((2, 64, 8, 8), (64, 64), Hints(channels_last=True), 'NCHW'),
    ((2, 4, 8, 16), (64, 128), Hints(channels=16), 'NHWC'),
    ((2, 4, 8, 16), (64, 128), Hints(channels=4), 'NCHW'),
])
def test_the_layout_is_told_by_shape_then_by_what_the_model_says(shape, size, hints, expected):
    assert read_grid(torch.zeros(shape), size, hints).layout == expected


@pytest.mark.parametrize('shape', [(2, 10), (2, 64, 1, 1), (2, 1, 8), (2, 2, 3, 4, 5), (2, 12, 31, 7)])
def test_what_has_no_grid_reads_as_none(shape):
    assert read_grid(torch.zeros(shape), (64, 64)) is None


def moved(model: nn.Module, target: TargetLayer, side: int) -> float:
    """Correlation of where the layer's output moves with the third of the image that was changed; mean of four."""
    generator = torch.Generator().manual_seed(0)
    third, found = side // 3, []
    for row, column in ((0, 0), (0, 2), (2, 0), (1, 2)):
        images = torch.randn(1, 3, side, side, generator=generator).repeat(2, 1, 1, 1)
        place = (slice(row * third, (row + 1) * third), slice(column * third, (column + 1) * third))
        images[1][:, place[0], place[1]] += 2 * torch.randn(3, third, third, generator=generator)
        mask = torch.zeros(1, 1, side, side)
        mask[0, 0][place] = 1
        folded = fold(outputs(model, images, [target])[0], target, (side, side))
        change = (folded[1] - folded[0]).norm(dim=0)
        inside = F.interpolate(mask, size=tuple(change.shape), mode='area')[0, 0]
        found.append(torch.corrcoef(torch.stack([change.flatten(), inside.flatten()]))[0, 1].item())
    return sum(found) / len(found)


def test_hieras_tokens_are_put_in_raster_order():
    model = create('hiera_tiny_224', **HIERA)
    layers = usable_layers(model, (3, 96, 96))
    assert [x.name for x in layers] == ['blocks.0', 'blocks.1', 'blocks.3', 'blocks.4']
    # hiera_tiny at 224 px: 0.98, 0.97, 0.98, 0.95; in the order the model gives them the first three are far below.
    assert all(moved(model, x, 96) > 0.8 for x in layers)
    assert all(moved(model, replace(x, order=None), 96) < 0.5 for x in layers[:3])
    assert layers[3].order is None


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_mambaout'])
def test_a_change_of_the_image_moves_the_map_there(name):
    model = create(name)
    assert all(moved(model, x, 96) > 0.7 for x in usable_layers(model, (3, 96, 96))[:3])


# ---- nothing left behind, nothing done twice

def state(model: nn.Module) -> dict[str, object]:
    """Everything a borrower could leave: tensors by identity and value, flags, hooks, other attributes."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if not isinstance(value, dict) or key[0] != '_'}
        found[name] = (module.training, own, {k: len(v) for k, v in vars(module).items() if 'hooks' in k})
    return found


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('test_resnet', {}), ('test_vit', {}), ('convit_tiny', SMALL), ('levit_128s', {}), ('hiera_tiny_224', HIERA)])
@pytest.mark.parametrize('size', [None, 50])
def test_nothing_is_left_on_the_model(name, kwargs, size):
    model = create(name, drop_rate=0.1, **kwargs).train()
    next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d | nn.BatchNorm1d)).eval()
    before, rng = copy.deepcopy(state(model)), torch.get_rng_state()
    tensors = {k: (v, v.clone()) for k, v in (*model.named_parameters(), *model.named_buffers())}
    side = size or {'levit_128s': 224, 'hiera_tiny_224': 96}.get(name, 64)
    try:
        usable_layers(model, (3, side, side))
    except ValueError:
        assert size
    assert torch.get_rng_state().equal(rng)
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert after.keys() == tensors.keys()
    assert all(after[k] is v and v.equal(value) for k, (v, value) in tensors.items())
    assert all(p.grad is None for p in model.parameters())
    assert str(state(model)) == str(before)


def test_borrowed_levit_keeps_no_stale_biases():
    model = create('levit_128s').train()
    images, labels = torch.randn(1, 3, 224, 224), torch.tensor([1])
    attribute(model, images, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    fresh = copy.deepcopy(model).eval()
    assert model.eval()(images).equal(fresh.train().eval()(images))


class Counter:
    """How often a model's forward ran."""

    def __init__(self, model: nn.Module) -> None:
        self.runs = 0
        model.register_forward_pre_hook(self)

    def __call__(self, *_: object) -> None:
        self.runs += 1


def test_the_dry_run_happens_once_for_a_model_and_a_size():
    model = create('test_resnet')
    counter = Counter(model)
    for words in (None, -1, '-2,-1', 'layer3'):
        resolve_layers(model, (3, 64, 64), words)
    usable_layers(model, (3, 64, 64))
    assert counter.runs == 1
    resolve_layers(model, (3, 96, 96))
    assert counter.runs == 2
    resolve_layers(model, (3, 96, 96), 'layer1.0')
    resolve_layers(model, (3, 96, 96), 'layer1.0')
    assert counter.runs == 3


class Stages(nn.Module):
    """Three stages that halve the grid, and a head."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()) for _ in range(3)))
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.stages(x).mean((2, 3)))


SURGERY = {
    'a stage is replaced': lambda net: setattr(net.stages, '1', nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU())),
    'a stage is put in front': lambda net: net.stages.insert(0, nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU())),
    'a stage is removed': lambda net: net.stages.pop(2), 'stages change places': lambda net: net.stages.append(
        net.stages.pop(0).append(nn.AvgPool2d(2))),
    'a part of a stage is removed': lambda net: net.stages[1].pop(0),
    'a module is added inside': lambda net: net.stages[0].append(nn.AvgPool2d(2)),
    'a stage runs twice': lambda net: net.stages.append(net.stages[2])}


@pytest.mark.parametrize('words', SURGERY)
@pytest.mark.parametrize('choice', [None, -1, 'stages.1'])
def test_layers_are_found_again_once_the_model_is_built_otherwise(words, choice):
    net = Stages()
    resolve_layers(net, (3, 64, 64), choice)
    SURGERY[words](net)
    runs = Counter(net)
    assert resolve_layers(net, (3, 64, 64), choice) == resolve_layers(copy.deepcopy(net), (3, 64, 64), choice)
    assert usable_layers(net, (3, 64, 64)) == usable_layers(copy.deepcopy(net), (3, 64, 64))
    before = runs.runs
    assert before
    net.load_state_dict(net.state_dict())
    resolve_layers(net.eval().double(), (3, 64, 64), choice)
    assert runs.runs == before, 'weights, mode and dtype are not how it is built'


@pytest.mark.parametrize('change', [
    lambda net: net.reset_classifier(7, 'token'), lambda net: setattr(net, 'global_pool', 'token')])
def test_another_pooling_is_another_default_layer(change):
    """Behind the last block a class token alone is read: a map there is zero everywhere."""
    net = create('test_vit', global_pool='avg', fc_norm=False)
    before = resolve_layers(net, (3, 64, 64))
    change(net)
    after = resolve_layers(net, (3, 64, 64))
    assert before != after
    (found,) = capture(net, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), after, evidence)
    assert found.gradient.abs().sum() > 0


def test_a_layer_of_the_model_as_it_was_is_refused_by_name():
    net, images, labels = Stages(), torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    layers = resolve_layers(net, (3, 64, 64), 'stages.2')
    net.stages[2] = nn.Flatten(2)
    net.head = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(), nn.Linear(3, 4))
    net.forward = lambda x: net.head(net.stages(x).mean(2))
    with pytest.raises(ValueError, match=r'stages.2 gave \[2, 3, 256\], expected NCHW .* find layers again'):
        capture(net, images, labels, layers, evidence)
    net.stages.pop(2)
    with pytest.raises(ValueError, match=r'Stages has no layer stages.2: .* find layers again'):
        capture(net, images, labels, layers, evidence)


def test_what_was_found_dies_with_the_model():
    gc.collect()
    before = len(layers_module._found)
    model = create('test_resnet')
    resolve_layers(model, (3, 64, 64))
    assert len(layers_module._found) == before + 1
    del model
    gc.collect()
    assert len(layers_module._found) == before


def test_the_same_model_gives_the_same_layers_twice():
    assert usable_layers(create('test_vit'), (3, 64, 64)) == usable_layers(create('test_vit'), (3, 64, 64))


# ---- cost

def test_cost_shares_are_the_products_behind_the_layer():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(4 * 64, 5))
    first, second, last = 64 * 3 * 8 * 9, 64 * 8 * 4, 4 * 64 * 5
    total = first + second + last
    layers = usable_layers(net, (3, 8, 8))
    assert cost_shares(net, layers, (3, 8, 8)) == pytest.approx([(second + last) / total, last / total])


@pytest.mark.parametrize(('name', 'expected'), [
    ('resnet18', {'layer1': 0.680, 'layer3': 0.227, 'layer4': 0.0}),
    ('vit_tiny_patch16_224', {'blocks.10': 0.082, 'blocks.5': 0.489}),
])
def test_cost_shares_count_attention_product_by_product(name, expected):
    # Measured once with timm 1.0.31 at 224 px; 1000 classes.
    model = timm.create_model(name)
    layers = [x for x in usable_layers(model, (3, 224, 224)) if x.name in expected]
    for target in layers:
        assert cost_share(model, target, (3, 224, 224)) == pytest.approx(expected[target.name], abs=0.001)


@pytest.mark.parametrize(('name', 'kwargs', 'size'), [
    ('test_vit3', {'img_size': 64}, 64), ('cait_xxs24_224', SMALL, 64), ('pit_ti_224', {'img_size': 64}, 64)])
def test_learned_queries_and_class_tokens_handed_to_a_module_can_be_counted(name, kwargs, size):
    """Under ``no_grad`` a view of a parameter says that it wants a gradient, and the counter looks for its way."""
    model = create(name, **kwargs)
    chosen = default_layer(usable_layers(model, (3, size, size)))
    assert 0 < cost_share(model, chosen, (3, size, size)) < 1
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    with FlopCounterMode(display=False) as counter:
        attribute(model, torch.randn(2, 3, size, size), torch.arange(2))
    assert counter.get_total_flops() > 0
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_a_token_stream_read_through_a_layer_norm_alone_has_no_sign(pool):
    """LayerNorm does not see a token's scale: sum_c G A = 0 before it, so a map there cannot tell for from against."""
    model = create('test_vit', img_size=64, global_pool=pool, fc_norm=False)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12  # through eps it would see a little of the scale
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    blocks = [f'blocks.{i}' for i in range(len(model.blocks))]
    stream = blocks[-2] if pool == 'token' else blocks[-1]
    normed = f'{blocks[-1]}.norm1' if pool == 'token' else 'norm'
    for layer, signed in ((stream, False), (normed, True)):
        (found,) = capture(model, images, labels, resolve_layers(model, (3, 64, 64), layer), evidence)
        product = found.activation * found.gradient
        balance = product.sum(1).abs().max() / product.abs().sum(1).max()
        assert bool(balance > 0.05) is signed, (layer, balance)


@pytest.mark.parametrize(('name', 'kwargs', 'stream', 'reader'), [
    ('test_vit', {'img_size': 64}, 'blocks.4', 'blocks.5.norm1'),
    ('test_vit', {'img_size': 64, 'global_pool': 'avg', 'fc_norm': False}, 'blocks.5', 'norm'),
    ('swin_s3_tiny_224', SWIN | {'img_size': 224}, 'layers.3', 'norm'),
    ('test_convnext', {}, 'stages.1', 'stages.2.downsample.0'),
])
def test_behind_a_stream_without_a_sign_stands_the_norm_that_reads_it(name, kwargs, stream, reader):
    side = kwargs.get('img_size', 64)
    model = create(name, **kwargs)
    layers = usable_layers(model, (3, side, side))
    chosen = default_layer(layers)
    before = layers[chosen.number - 1]
    assert (str(before), before.signed, before.grid) == (stream, False, chosen.grid)
    assert (str(chosen), chosen.signed) == (reader, True)
    images, labels = torch.randn(2, 3, side, side), torch.arange(2)
    towards, against = (attribute(model, images, labels, score=score).map for score in ('evidence', 'loss'))
    assert (towards - against).abs().max() > 0.1 * towards.max()


def test_a_stream_too_small_for_its_norm_to_ignore_has_no_sign_either():
    """As an untrained maxxvitv2: its eps is much beside the variance, until the weights have grown."""
    model = create('test_vit', img_size=64, global_pool='avg', fc_norm=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(('cls_token', 'pos_embed', 'patch_embed')) or '.proj.' in name or '.fc2.' in name:
                parameter.mul_(1e-3)
    stream, reader = usable_layers(model, (3, 64, 64))[-2:]
    assert (stream.signed, str(reader), reader.signed) == (False, 'norm', True)


def test_a_stream_that_more_than_a_norm_reads_keeps_its_sign():
    layers = usable_layers(create('test_vit', img_size=64, class_token=False, global_pool='avg'), (3, 64, 64))
    assert str(default_layer(layers)) == 'blocks.5'
    assert all(layer.signed for layer in layers)


def test_a_stream_has_no_sign_however_small_it_starts():
    """Beside a variance of 1e-6 the eps of a LayerNorm is no rounding; what is found must not hang on the weights."""
    model = create('test_vit', img_size=64)
    with torch.no_grad():
        for parameter in (model.cls_token, model.pos_embed, *model.patch_embed.parameters(),
                          *(block.attn.proj.weight for block in model.blocks),
                          *(block.mlp.fc2.weight for block in model.blocks)):
            parameter.mul_(0.01)
    assert str(default_layer(usable_layers(model, (3, 64, 64)))) == 'blocks.5.norm1'
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


# ---- names before numbers, and what is no map

def numbered():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()), nn.ReLU(),
                        nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()),
                        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return net.eval()


def odd_names(*names):
    net = nn.Sequential()
    for name in names:
        net.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()))
    net.add_module('pool', nn.AdaptiveAvgPool2d(1))
    net.add_module('flat', nn.Flatten())
    net.add_module('last', nn.Linear(3, 4))
    return net


@pytest.mark.parametrize('make', [
    numbered, lambda: odd_names('2', '0', '1'), lambda: odd_names('-1', 'default', 'a,b'),
    lambda: odd_names('a[0]', 'a', ' b'), lambda: timm.create_model('test_resnet', num_classes=4)])
def test_a_printed_name_gives_that_layer_back(make):
    net, size = make(), (3, 32, 32)
    layers = usable_layers(net, size)
    assert len(layers) >= 3
    for layer in layers:
        assert resolve_layers(net, size, str(layer)) == (layer,)
        assert resolve_layers(net, size, [str(layer)]) == (layer,)
    assert resolve_layers(net, size, 1) == (layers[1],), 'an int stays a number'
    assert resolve_layers(net, size, [-1]) == (layers[-1],)


def test_digits_that_name_no_module_are_numbers():
    net = timm.create_model('test_resnet', num_classes=4)
    layers = usable_layers(net, (3, 64, 64))
    assert resolve_layers(net, (3, 64, 64), '1,-1') == (layers[1], layers[-1])
    assert [str(layer) for layer in resolve_layers(numbered(), (3, 32, 32), '3, 4')] == ['3', '4']


def test_a_transformer_with_one_patch_has_no_map_and_says_what_to_do():
    net = timm.create_model('vit_tiny_patch16_224', img_size=16, depth=3, num_classes=4)
    with pytest.raises(ValueError, match=r'no layer with a map on 16x16 pixels.*--img-size.*random-box'):
        usable_layers(net, (3, 16, 16))


class HeadsOutside(nn.Module):
    """Self-attention written out: heads x tokens are four sizes of a tensor, as many as an image's."""

    def __init__(self, heads, dim=32):
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm, self.attn_drop = nn.LayerNorm(dim // heads), nn.Identity(), nn.Dropout(0.0)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((self.q_norm(q) @ self.k_norm(k).transpose(2, 3)).softmax(-1))
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class PlainAttention(HeadsOutside):
    pass


class Tokens(nn.Module):
    def __init__(self, heads=4, patch=8):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, patch, patch)
        self.attn, self.norm, self.head = PlainAttention(heads), nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(x + self.attn(x)).mean(1))


@pytest.mark.parametrize(('heads', 'side'), [(4, 16), (8, 32), (2, 32), (4, 24)])
@pytest.mark.parametrize('name', ['attn.q_norm', 'attn.k_norm', 'attn.attn_drop'])
def test_nothing_inside_an_attention_is_a_map(heads, side, name):
    """With as many heads as tokens, or as tokens as channels of a head, the shape alone would pass for a grid."""
    net = Tokens(heads)
    with pytest.raises(ValueError, match='has no map'):
        resolve_layers(net, (3, side, side), name)
    assert not [layer for layer in usable_layers(net, (3, side, side)) if layer.name.startswith('attn.q')
                or layer.name.startswith('attn.k') or layer.name.startswith('attn.attn')]
    assert resolve_layers(net, (3, side, side), 'attn.proj')[0].grid == (side // 8, side // 8), 'tokens are'


@pytest.mark.parametrize(('shape', 'size'), [
    ((2, 3, 2, 64), (16, 16)), ((2, 3, 2, 3), (32, 32)), ((2, 2, 3, 7), (16, 16)), ((2, 3, 9, 64), (64, 64)),
    ((2, 3, 2, 64), (16, 32)), ((2, 64, 2, 2), (16, 32)), ((2, 64, 1, 3), (32, 32))])
def test_small_sides_have_no_slack(shape, size):
    assert read_grid(torch.zeros(shape), size) is None


@pytest.mark.parametrize(('grid', 'size'), [
    ((2, 3), (40, 72)), ((1, 2), (40, 72)), ((2, 2), (33, 40)), ((1, 3), (32, 96)), ((3, 4), (97, 101)),
    ((4, 5), (97, 130))])
def test_sides_that_the_same_layers_make_of_both_are_a_grid(grid, size):
    assert read_grid(torch.zeros(2, 64, *grid), size) == ('NCHW', 0, grid)
