"""TransMix and TokenMix against slow references; what is read of a forward pass, and what is left behind."""
from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from spots import Spots
from timm.loss import SoftTargetCrossEntropy

from gradmix_timm import create_mixer
from gradmix_timm.attribution import watch_class_attention
from gradmix_timm.mixers.tokenmix import block_mask
from gradmix_timm.objectives import LateLabelTask

K = 10
VITS = ['test_vit', 'deit_tiny_distilled_patch16_224', 'cait_xxs24_224']


def make(name):
    torch.manual_seed(0)
    options = {} if name.startswith('test') else {'depth': 2, 'embed_dim': 96, 'num_heads': 3, 'img_size': 64}
    return timm.create_model(name, num_classes=K, **options)


def batch(size=4, side=64):
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(size)


def side_of(model):
    return model.pretrained_cfg['input_size'][1] if 'test' in model.pretrained_cfg['architecture'] else 64


def by_hand(model, images):
    """The class token's attention of the last block, from queries and keys of the plain formula."""
    attention = model.blocks[-1].attn
    held = []
    handle = attention.qkv.register_forward_hook(lambda module, args, out: held.append(out.detach()))
    with torch.no_grad():
        model(images)
    handle.remove()
    b, n, _ = held[0].shape
    q, k, _ = held[0].reshape(b, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    found = torch.zeros(b, n - model.num_prefix_tokens)
    for row in range(b):
        for head in range(attention.num_heads):
            scores = torch.stack([q[row, head, 0] @ k[row, head, j] for j in range(n)]) * attention.scale
            found[row] += scores.softmax(0)[model.num_prefix_tokens:] / attention.num_heads
    side = int(found.shape[1] ** 0.5)
    return (found / found.sum(1, keepdim=True)).view(b, side, side)


@pytest.mark.parametrize(('fused', 'options'), [(True, {}), (False, {'area': 0.25})])
def test_the_attention_is_that_of_the_formula_and_the_label_follows_it(fused, options):
    model = make('test_vit').eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    side = side_of(model)
    images, labels = batch(4, side)
    mixer = create_mixer('transmix', num_classes=K, label_smoothing=0.1, seed=1, **options)
    area = options.get('area', 0.5)
    mixer.prepare(model, (3, side, side))
    mixed = mixer.mix(images, labels, model)
    with mixer.watch(model, mixed) as finish:
        output = model(mixed.input)
    targets = finish(output)
    attention, patch = by_hand(model, mixed.input), side // by_hand(model, mixed.input).shape[1]
    rows = torch.full((4, K), 0.01).scatter_(1, labels[:, None], 0.91)
    for row in range(4):
        yl, yh, xl, xh = mixed.draw.dst[row].tolist()
        pasted = torch.zeros(side, side)
        pasted[yl:yh, xl:xh] = 1
        seen = sum(attention[row, i, j] * pasted[i * patch:(i + 1) * patch, j * patch:(j + 1) * patch].mean()
                   for i in range(attention.shape[1]) for j in range(attention.shape[2]))
        other = area * pasted.mean() + (1 - area) * seen
        assert torch.allclose(targets[row], (1 - other) * rows[row] + other * rows[mixed.draw.partner[row]], atol=1e-4)
    plain = create_mixer('cutmix', num_classes=K, label_smoothing=0.1, seed=1).mix(images, labels)
    assert torch.equal(plain.input, mixed.input)
    assert torch.equal(plain.target, mixed.target), 'until the pass, by area'
    with pytest.warns(UserWarning, match=r'labels by area.*mixer\.watch'):
        mixer(images, labels, model)
    assert all(block.attn.fused_attn is fused for block in model.blocks)


@pytest.mark.parametrize('name', VITS)
def test_class_tokens_of_every_kind_are_read_and_nothing_is_left_behind(name):
    model = make(name).train()
    side = side_of(model)
    images, labels = batch(2, side)
    mixer = create_mixer('transmix', num_classes=K)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [(m.training, getattr(m, 'fused_attn', None), len(m._forward_pre_hooks)) for m in model.modules()]
    mixer.prepare(model, (3, side, side))
    mixed = mixer.mix(images, labels, model)
    with mixer.watch(model, mixed) as finish:
        output = model(mixed.input)
    targets = finish(output)
    assert torch.allclose(targets.sum(1), torch.ones(2), atol=1e-5)
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    with pytest.raises(RuntimeError, match='boom'), mixer.watch(model, mixed):
        raise RuntimeError('boom')
    assert flags == [(m.training, getattr(m, 'fused_attn', None), len(m._forward_pre_hooks)) for m in model.modules()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(('name', 'options', 'match'), [
    ('test_resnet', {}, 'ResNet has no class token'),
    ('test_vit2', {'class_token': False, 'global_pool': 'avg'}, 'no class token'),
    ('test_vit', {'global_pool': 'avg'}, "pools its tokens by 'avg'")])
def test_models_without_a_class_token_that_is_read_are_refused_by_name(name, options, match):
    model = timm.create_model(name, num_classes=K, **options)
    with pytest.raises(ValueError, match=match):
        create_mixer('transmix', num_classes=K).prepare(model, model.pretrained_cfg['input_size'])


def test_a_switch_finishes_the_labels_of_the_one_that_drew():
    model = make('test_vit').eval()
    side = side_of(model)
    images, labels = batch(4, side)
    mixer = create_mixer('mixup+transmix', num_classes=K)
    assert mixer.labels_after_forward
    changed = set()
    for step in range(6):
        mixer.set_step(0, step)
        mixed = mixer.mix(images, labels, model)
        with mixer.watch(model, mixed) as finish:
            output = model(mixed.input)
        changed.add((mixed.draw.name, torch.equal(finish(output), mixed.target)))
    assert changed == {('mixup', True), ('transmix', False)}
    mixer.mixup_enabled = False
    mixed = mixer.mix(images, labels, model)
    with mixer.watch(model, mixed) as finish:
        output = model(mixed.input)
    assert torch.equal(finish(output), torch.eye(K)[labels])


def test_labels_of_a_switch_are_smoothed_as_the_one_that_drew_smooths_them():
    model = make('test_vit').eval()
    side = side_of(model)
    mixer = create_mixer('mixup+transmix', num_classes=K, switch_prob=1.0, parts={'transmix': {'label_smoothing': 0.2}})
    mixed = mixer.mix(*batch(4, side), model)
    with mixer.watch(model, mixed) as finish:
        found = finish(model(mixed.input))
    assert found.min().item() == pytest.approx(0.2 / K)
    assert torch.allclose(found.sum(1), torch.ones(4), atol=1e-5)


def test_a_pass_that_never_happened_is_named():
    with watch_class_attention(make('test_vit')) as seen:
        pass
    with pytest.raises(ValueError, match=r'the attention of blocks\.\d+\.attn was not computed'):
        seen.maps((64, 64))


def test_a_class_token_that_looks_at_itself_alone_gives_labels_by_area():
    model = make('test_vit').eval()
    side = side_of(model)
    images, labels = batch(4, side)
    mixer = create_mixer('transmix', num_classes=K)
    mixed = mixer.mix(images, labels, model)
    model.blocks[-1].attn.attn_drop.register_forward_pre_hook(
        lambda module, inputs: (torch.nn.functional.one_hot(torch.zeros_like(inputs[0][..., 0]).long(),
                                                            inputs[0].shape[-1]).to(inputs[0]),))
    with mixer.watch(model, mixed) as finish:
        output = model(mixed.input)
    assert torch.allclose(finish(output), mixed.target, atol=1e-6)


def test_the_task_takes_its_loss_on_the_finished_labels():
    model = make('test_vit').train()
    side = side_of(model)
    images, labels = batch(4, side)
    mixer = create_mixer('transmix', num_classes=K, area=0.0)
    task = LateLabelTask(model, mixer, SoftTargetCrossEntropy(), device=torch.device('cpu'), verbose=False)
    mixer.set_step(3, 1)
    result = task(images, labels)
    mixer.set_step(3, 1)
    mixed = mixer.mix(images, labels, model)
    with mixer.watch(model, mixed) as finish:
        output = model(mixed.input)
    assert torch.equal(result['draw'].dst, mixed.draw.dst)
    assert torch.allclose(result['loss'], SoftTargetCrossEntropy()(output, finish(output)))
    assert not torch.equal(finish(output), mixed.target)


def test_a_model_that_would_recompute_its_attention_outside_the_pass_is_refused():
    model = make('test_vit').train()
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match='recomputes its activations'), watch_class_attention(model):
        pass
    with torch.no_grad(), watch_class_attention(model):
        pass


# ---- tokenmix

@pytest.mark.parametrize('grid', [(14, 14), (7, 10), (1, 4), (2, 2)])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.93])
def test_blocks_cover_the_share(grid, share):
    cells = grid[0] * grid[1]
    for seed in range(20):
        mask = block_mask(np.random.default_rng(seed), grid, share)
        assert mask.shape == grid
        assert mask.sum() == min(max(round(share * cells), 1), cells - 1)


def test_blocks_hang_together():
    """Rectangles, not scattered cells: a covered cell's neighbours are mostly covered."""
    alike = []
    for seed in range(30):
        mask = block_mask(np.random.default_rng(seed), (14, 14), 0.5)
        alike.append((mask[:, 1:] == mask[:, :-1]).mean())
    assert np.mean(alike) > 0.75


def test_tokenmix_hides_half_of_fourteen_rows_of_tokens_alike_in_a_batch():
    images, labels = torch.rand(K, K, 28, 28), torch.arange(K)
    draws = [create_mixer('tokenmix', num_classes=K, seed=3, **options).draw(images, labels, Spots())
             for options in ({}, {'share': 'beta'})]
    for draw in draws:
        assert (draw.mask == draw.mask[:1]).all(), 'one mask a batch'
        assert torch.equal(draw.mask, draw.mask[..., ::2, ::2].repeat_interleave(2, -2).repeat_interleave(2, -1))
    assert draws[0].mask[0, 0, ::2, ::2].sum() == 98
    assert draws[1].mask[0, 0, ::2, ::2].sum() != 98, 'drawn from Beta(1, 1)'


def test_tokenmix_weighs_what_is_seen_of_both_contents():
    images, labels, model = torch.rand(K, K, 16, 16), torch.arange(K), Spots()
    mixer = create_mixer('tokenmix', num_classes=K, tokens=8, layers='grid', lam='image', prob_elem=0.7, seed=2)
    draw = mixer.draw(images, labels, model)
    mixed, targets = mixer.apply(images, labels, draw)
    maps = mixer.class_maps(model, images, labels)
    for row in range(K):
        keep, other = draw.mask[row, 0], int(draw.partner[row])
        assert torch.equal(mixed[row], torch.where(keep > 0, images[row], images[other]))
        assert torch.equal(keep, keep[::2, ::2].repeat_interleave(2, 0).repeat_interleave(2, 1)), 'whole tokens'
        want = torch.zeros(K)
        want[row] += (maps[row] * keep).sum() if draw.lam[row] < 1 else 1.0
        want[other] += (maps[other] * (1 - keep)).sum()
        assert torch.allclose(targets[row], want, atol=1e-5)
    assert (draw.lam == 1).any()
    assert not mixer.rows_sum_to_one


@pytest.mark.parametrize(('name', 'options', 'match'), [
    ('transmix', {'area': 1.5}, 'weight in'),
    ('tokenmix', {'share': 1.0}, 'share of the tokens'), ('tokenmix', {'share': 'half'}, "or 'beta'"),
    ('tokenmix', {'tokens': 1}, 'tokens is a whole number')])
def test_options_out_of_range(name, options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer(name, num_classes=K, **options)
