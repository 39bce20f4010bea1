"""GradMix: what is covered, with what, where, and which label follows."""
from __future__ import annotations

import pytest
import timm
import torch
from authors_reference import authors_boxes, authors_lam
from spots import Spots
from torch import nn
from torch.nn import functional as F

from gradmix_timm import GradMix, create_mixer
from gradmix_timm.attribution import attribute, capture, resolve_layers, to_pixels
from gradmix_timm.attribution.authors import authors_map, normalise_over_batch
from gradmix_timm.attribution.maps import METHODS, loss
from gradmix_timm.ops import box_mass, soft_targets

K = 4


def spotted(places):
    """Images with one bright 4 x 4 spot in the channel of their label; label = row."""
    images = torch.zeros(len(places), K, 16, 16)
    for row, (y, x) in enumerate(places):
        images[row, row, y:y + 4, x:x + 4] = 1.0
    return images


PLACES = [(0, 0), (10, 2), (4, 12), (8, 8)]


@pytest.mark.parametrize('attribution', ['layercam', 'hirescam', 'gradcam'])
@pytest.mark.parametrize('center', ['window', 'argmax'])
def test_the_box_covers_the_evidence(attribution, center):
    mixer = create_mixer('gradmix', num_classes=K, attribution=attribution, center=center, layers='grid',
                         placement='shift', lam_range=(0.6, 0.7))
    draw = mixer.draw(spotted(PLACES), torch.arange(K), Spots())
    for row, (y, x) in enumerate(PLACES):
        yl, yh, xl, xh = draw.dst[row].tolist()
        assert (yl <= y, y + 4 <= yh, xl <= x, x + 4 <= xh) == (True,) * 4
    assert not draw.fallback.any()


def test_low_covers_what_is_not_evidence():
    mixer = create_mixer('gradmix', num_classes=K, sign='low', layers='grid', lam_range=(0.6, 0.7))
    images = spotted(PLACES)
    draw = mixer.draw(images, torch.arange(K), Spots())
    maps = to_pixels(attribute(Spots(), images, torch.arange(K), 'grid').map, (16, 16))
    assert box_mass(maps, draw.dst).max() < 0.05


def test_samples_land_on_the_evidence_more_often_than_not():
    mixer = create_mixer('gradmix', num_classes=K, center='sample', layers='grid', lam_range=(0.8, 0.9))
    images, model = spotted(PLACES), Spots()
    maps = to_pixels(attribute(model, images, torch.arange(K), 'grid').map, (16, 16))
    mass = torch.stack([box_mass(maps, mixer.draw(images, torch.arange(K), model).dst) for _ in range(60)])
    assert 0.3 < mass.mean() < 0.95
    assert mass.std(0).min() > 0.01, 'it is drawn, not fixed'


def test_the_scores_differ_in_direction():
    """Evidence for the label, and the loss, which rises with the evidence against it."""
    images = torch.zeros(2, K, 16, 16)
    images[:, 0, :4, :4] = 1.0
    images[:, 1, 12:, 12:] = 1.0
    labels = torch.tensor([0, 0])
    centers = {}
    for score in ('evidence', 'logit', 'loss'):
        draw = GradMix(K, score=score, layers='grid', lam_range=(0.8, 0.85)).draw(images, labels, Spots())
        centers[score] = draw.dst[0, :2].float().mean().item()
    assert centers['evidence'] < 8
    assert centers['logit'] < 8
    assert centers['loss'] > 8


def test_a_callable_score_is_differentiated():
    images = torch.zeros(2, K, 16, 16)
    images[:, 0, :4, :4] = 1.0
    images[:, 2, 12:, :4] = 1.0
    mixer = GradMix(K, score=lambda logits, labels: logits[:, 2], layers='grid', lam_range=(0.8, 0.85))
    draw = mixer.draw(images, torch.tensor([0, 0]), Spots(), torch.Generator().manual_seed(0))
    assert draw.dst[:, 0].min() >= 8


def test_fills():
    images, labels, model = torch.randn(6, K, 16, 16), torch.arange(6) % K, Spots()
    for fill in ('donor', 'donor-resized', 'noise', 'mean'):
        mixer = create_mixer('gradmix', num_classes=K, fill=fill, layers='grid', seed=3)
        draw = mixer.draw(images, labels, model)
        mixed, targets = mixer.apply(images, labels, draw)
        again, _ = mixer.apply(images, labels, draw)
        assert torch.equal(mixed, again)
        for row in range(6):
            yl, yh, xl, xh = draw.dst[row].tolist()
            inside = mixed[row, :, yl:yh, xl:xh]
            outside = mixed[row].clone()
            outside[:, yl:yh, xl:xh] = images[row, :, yl:yh, xl:xh]
            assert torch.equal(outside, images[row])
            donor = images[draw.partner[row]]
            if fill == 'donor':
                assert torch.equal(inside, donor[:, yl:yh, xl:xh])
            elif fill == 'donor-resized' and inside.numel():
                want = nn.functional.interpolate(donor[None], inside.shape[1:], mode='bilinear', antialias=True)[0]
                assert torch.allclose(inside, want, atol=1e-5)
            elif fill == 'noise' and inside.numel():
                assert ((inside >= 0) & (inside < 1)).all()
                assert torch.equal(inside[0], inside[-1])
            elif fill == 'mean':
                assert torch.allclose(inside, images[row].mean((1, 2))[:, None, None].expand_as(inside))
        if fill in ('noise', 'mean'):
            assert torch.equal(targets, torch.eye(K)[labels]), 'noise and mean keep the label'
            assert not mixer.changes_labels


def test_labels_by_area_mass_and_kept():
    images, model = spotted(PLACES), Spots()
    labels = torch.arange(K)
    maps = to_pixels(attribute(model, images, labels, 'grid').map, (16, 16))
    for label in ('area', 'mass', 'keep'):
        draw = GradMix(K, label=label, layers='grid', seed=1).draw(images, labels, model)
        assert torch.allclose(draw.weight.sum(1), torch.ones(K))
        area = (draw.dst[:, 1] - draw.dst[:, 0]) * (draw.dst[:, 3] - draw.dst[:, 2])
        assert torch.allclose(draw.lam, 1 - area / 256)
        if label == 'area':
            assert torch.equal(draw.weight[:, 0], draw.lam)
        elif label == 'keep':
            assert torch.equal(draw.weight[:, 0], torch.ones(K))
        else:
            own = 1 - box_mass(maps, draw.dst)
            donor = box_mass(maps[draw.partner], draw.src)
            both = own + donor > 1e-6
            assert torch.allclose(draw.weight[both, 0], (own / (own + donor))[both], atol=1e-5)


def test_mass_of_a_resized_donor_is_whole():
    images, model = spotted(PLACES), Spots()
    maps = to_pixels(attribute(model, images, torch.arange(K), 'grid').map, (16, 16))
    draw = GradMix(K, label='mass', fill='donor-resized', layers='grid').draw(images, torch.arange(K), model)
    own = 1 - box_mass(maps, draw.dst)
    full = draw.lam < 1
    assert torch.allclose(draw.weight[full, 0], (own / (own + 1))[full], atol=1e-5)


def test_lam_per_batch_and_its_range():
    images, labels = torch.randn(16, 1, 224, 224), torch.arange(16) % K
    one = GradMix(K, lam='batch', attribution='random').draw(images, labels)
    assert one.lam.unique().numel() == 1
    lam = torch.cat([GradMix(K, lam_range=(0.5, 0.9), attribution='random', seed=s).draw(images, labels).lam
                     for s in range(20)])
    assert lam.min() >= 0.5
    assert lam.max() < 0.905
    assert lam.unique().numel() > 50


def test_lam_is_measured_after_clipping_unless_told_otherwise():
    images = spotted(PLACES)
    options = {'center': 'argmax', 'layers': 'grid', 'lam_range': (0.4, 0.6), 'seed': 5}
    real = GradMix(K, **options).draw(images, torch.arange(K), Spots())
    drawn = GradMix(K, correct_lam=False, **options).draw(images, torch.arange(K), Spots())
    assert torch.equal(real.dst, drawn.dst)
    assert real.lam[0] > drawn.lam[0], 'the spot in the corner clips its box'
    area = (real.dst[:, 1] - real.dst[:, 0]) * (real.dst[:, 3] - real.dst[:, 2])
    assert torch.allclose(real.lam, 1 - area / 256)


def test_random_control_has_the_size_of_the_guided_box():
    images, labels, model = torch.randn(8, K, 16, 16), torch.arange(8) % K, Spots()
    guided = GradMix(K, layers='grid', seed=2).draw(images, labels, model)
    for name in ('random-box', 'center-box'):
        control = create_mixer(name, num_classes=K, seed=2).draw(images, labels)
        assert torch.equal(control.lam, guided.lam)
        assert torch.equal(control.partner, guided.partner)
        assert control.name == name
    middle = create_mixer('center-box', num_classes=K, seed=2).draw(images, labels).dst.float()
    assert ((middle[:, 0] + middle[:, 1] - 16).abs() <= 1).all()


def test_flat_and_broken_maps_fall_back_to_a_random_box_and_are_counted():
    images = spotted(PLACES)
    images[1] = 0.0
    images[2, 0, 0, 0] = float('nan')
    mixer = GradMix(K, layers='grid', seed=4)
    draw = mixer.draw(images, torch.arange(K), Spots())
    assert draw.fallback.tolist() == [False, True, True, False]
    random = create_mixer('random-box', num_classes=K, seed=4).draw(images, torch.arange(K))
    assert torch.equal(draw.dst[1:3], random.dst[1:3])
    assert draw.weight.isfinite().all()
    some = GradMix(K, layers='grid', prob_elem=0.5)
    captured = some.captured(Spots(), images, torch.arange(K))
    draws = [some.draw_from(images, captured) for _ in range(20)]
    mixed, fell = (torch.stack([getattr(draw, name) for draw in draws]) for name in ('lam', 'fallback'))
    assert torch.equal(fell, (mixed < 1) & draw.fallback), 'of the images that are mixed alone'


def test_a_zero_head_falls_back_until_it_has_moved():
    model = timm.create_model('test_resnet', num_classes=K)
    nn.init.zeros_(model.get_classifier().weight)
    nn.init.zeros_(model.get_classifier().bias)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    mixer = create_mixer('gradmix', num_classes=K)
    mixer.prepare(model, (3, 64, 64))
    assert mixer.draw(images, labels, model).fallback.all()
    nn.init.normal_(model.get_classifier().weight)
    assert not mixer.draw(images, labels, model).fallback.any()


def test_images_that_will_not_be_mixed_cost_no_attribution(tiny_cnn):
    seen = []
    tiny_cnn.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    mixer = create_mixer('gradmix', num_classes=10, prob_elem=0.5, seed=1)
    mixer.prepare(tiny_cnn, (3, 64, 64))
    seen.clear()
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    draw = mixer.draw(images, labels, tiny_cnn)
    assert seen == [int((draw.weight[:, 1] > 0).sum())]
    seen.clear()
    create_mixer('gradmix', num_classes=10, prob=0.0)(images, labels, tiny_cnn)
    assert not seen


def test_maps_of_a_part_of_the_batch_are_those_of_the_whole(tiny_cnn):
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    half = create_mixer('gradmix', num_classes=10, prob_elem=0.5, seed=1).draw(images, labels, tiny_cnn)
    whole = create_mixer('gradmix', num_classes=10, seed=1).draw(images, labels, tiny_cnn)
    mixed = half.lam < 1
    assert 0 < mixed.sum() < 8
    assert torch.equal(half.dst[mixed], whole.dst[mixed])


def test_attribution_at_half_scale_sees_half_the_pixels(tiny_cnn):
    seen = []
    mixer = create_mixer('gradmix', num_classes=10, attr_scale=0.5)
    mixer.prepare(tiny_cnn, (3, 64, 64))
    tiny_cnn.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape[2:])))
    mixer.draw(torch.randn(4, 3, 64, 64), torch.arange(4), tiny_cnn)
    assert seen == [(32, 32)]


def test_a_scale_that_leaves_no_pixel_is_refused(tiny_cnn):
    mixer = create_mixer('gradmix', num_classes=10, attr_scale=0.005)
    with pytest.raises(ValueError, match=r'attr_scale=0.005 of 64x128 pixels leaves 0x1.*--gradmix-attr-scale'):
        mixer.prepare(tiny_cnn, (3, 64, 128))
    with pytest.raises(ValueError, match=r'attr_scale=0.005 of 64x128 pixels leaves 0x1'):
        mixer(torch.randn(4, 3, 64, 128), torch.arange(4), tiny_cnn)


def test_a_model_that_refuses_the_smaller_size_is_an_error_at_start():
    tiny_vit = timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=64, depth=2)
    with pytest.raises(ValueError, match='dynamic_img_size=True'):
        create_mixer('gradmix', num_classes=10, attr_scale=0.5).prepare(tiny_vit, (3, 64, 64))


def test_the_authors_recipe_is_their_functions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % K
    mixer = create_mixer('gradmix', num_classes=K, recipe='authors', layers=(0, 1), seed=8)
    assert mixer.options['score'] == 'loss'
    assert mixer.options['lam_range'] == (0.5, 0.9)
    draw = mixer.draw(images, labels, model)
    captured = capture(model, images, labels, resolve_layers(model, (3, 32, 32), (0, 1)), loss)
    maps = authors_map(captured, (32, 32))
    flat = maps.flatten(1).argmax(1)
    center = torch.stack([flat // 32, flat % 32], 1)
    nominal = 1 - draw.lam
    kept = torch.linspace(0.5, 0.9, 4001)
    drawn = kept[(authors_lam(kept, (32, 32)) - draw.lam[0]).abs().argmin()]
    assert torch.equal(draw.dst, authors_boxes(center, drawn, (32, 32)))
    assert nominal.unique().numel() == 1
    assert torch.equal(draw.weight[:, 0], torch.ones(6))
    override = create_mixer('gradmix', num_classes=K, recipe='authors', fill='donor', label='area')
    assert (override.options['fill'], override.options['score']) == ('donor', 'loss')


@pytest.mark.parametrize('method', ['layercam', 'hirescam', 'gradcam', 'input-gradient'])
def test_the_authors_recipe_takes_another_attribution(method):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(8, K))
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % K
    mixer = create_mixer('gradmix', num_classes=K, recipe='authors', layers=('1',), attribution=method)
    only = mixer.captured(model, images, labels)[0]
    want = normalise_over_batch(METHODS[method](only.activation, only.gradient))
    want = F.interpolate(want[None], size=(32, 32), mode='bilinear', align_corners=False)[0]
    found = mixer.maps(model, images, labels).map
    assert torch.allclose(found, want / want.sum((1, 2), keepdim=True), atol=1e-6)


def test_soft_labels_weigh_the_evidence():
    images = torch.zeros(2, K, 16, 16)
    images[:, 0, :4, :4] = 1.0
    images[:, 1, 12:, 12:] = 1.0
    targets = torch.tensor([[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]])
    draw = GradMix(K, layers='grid', lam_range=(0.8, 0.85)).draw(images, targets, Spots())
    assert draw.dst[0, 0] < 8 <= draw.dst[1, 1]
    hard = GradMix(K, layers='grid', lam_range=(0.8, 0.85)).draw(images, torch.tensor([0, 1]), Spots())
    rows = GradMix(K, layers='grid', lam_range=(0.8, 0.85)).draw(images, torch.eye(K)[[0, 1]], Spots())
    assert torch.equal(hard.dst, rows.dst)


def test_label_by_mass_asks_for_the_maps_of_partners_that_are_not_mixed_themselves():
    """Half of the images are mixed, and every weight is that of the maps, not of the area."""
    images, labels = spotted(PLACES), torch.arange(4)
    mixer = GradMix(K, layers='grid', label='mass', prob_elem=0.5, lam_range=(0.5, 0.9), seed=1)
    lonely = 0
    for _ in range(20):
        draw = mixer.draw(images, labels, Spots())
        pixels = to_pixels(attribute(Spots(), images, labels, 'grid').map, (16, 16))
        own, donor = 1 - box_mass(pixels, draw.dst), box_mass(pixels[draw.partner], draw.src)
        mixed = draw.lam < 1
        want = torch.where(mixed & (own + donor > 0), own / (own + donor), draw.lam)
        assert torch.allclose(draw.weight[:, 0], want, atol=1e-5)
        lonely += int((mixed & ~mixed[draw.partner] & (draw.weight[:, 0] != draw.lam)).sum())
    assert lonely > 0


@pytest.mark.parametrize('answer', [
    lambda logits, labels: logits, lambda logits, labels: logits.sum(), lambda logits, labels: logits[:, :1],
    lambda logits, labels: 1.0, lambda logits, labels: logits[0, :3]])
def test_a_score_of_ones_own_gives_one_number_an_image(answer):
    images, labels = spotted(PLACES), torch.arange(4)
    for use in (lambda: GradMix(K, layers='grid', score=answer).draw(images, labels, Spots()),
                lambda: attribute(Spots(), images, labels, 'grid', score=answer)):
        with pytest.raises(ValueError, match=r'one number per image, \(logits, labels\) -> \[4\]'):
            use()


@pytest.mark.parametrize(('images', 'labels', 'error', 'match'), [
    (torch.zeros(4, K, 16, 16, dtype=torch.uint8), torch.arange(4), ValueError, 'normalised float images'),
    (torch.zeros(K, 16, 16), torch.arange(4), ValueError, 'normalised float images'),
    (torch.zeros(4, K, 16, 16), torch.arange(4) + 3, ValueError, r'labels run from 3 to 6, expected 0\.\.3'),
    (torch.zeros(4, K, 16, 16), torch.arange(4) - 1, ValueError, r'labels run from -1 to 2'),
    (torch.zeros(4, K, 16, 16), torch.arange(3), ValueError, r'labels int64 \[4\] or float \[4, 4\]'),
    (torch.zeros(4, K, 16, 16), torch.zeros(4), ValueError, r'labels int64 \[4\]'),
    (torch.zeros(4, K, 16, 16), torch.zeros(4, 9), ValueError, r'float \[4, 4\]'),
    (torch.zeros(4, K, 16, 16), ['a'] * 4, TypeError, 'labels are class indices'),
])
def test_attribute_says_what_it_takes(images, labels, error, match):
    with pytest.raises(error, match=match):
        attribute(Spots(), images, labels, 'grid')


@pytest.mark.parametrize('kind', [torch.int32, torch.uint8, list, 'numpy'])
def test_attribute_takes_class_indices_of_any_kind(kind):
    labels = torch.arange(4)
    given = labels.tolist() if kind is list else labels.numpy() if kind == 'numpy' else labels.to(kind)
    images = spotted(PLACES)
    assert torch.equal(attribute(Spots(), images, given, 'grid').map, attribute(Spots(), images, labels, 'grid').map)


# ---- images of whose label the model is not sure

def certain():
    """Probabilities of the own label of about .95, .95, .71 and .25."""
    images, model = spotted(PLACES), Spots()
    images[2] *= 0.5
    images[3] = 0
    model.scale.data.fill_(64)
    return images, torch.arange(K), model


@pytest.mark.parametrize('options', [
    {}, {'label': 'mass'}, {'correct_lam': False}, {'fill': 'donor-resized'},
    {'fill': 'noise'}, {'attribution': 'input-gradient', 'layers': (-1,)}], ids=str)
@pytest.mark.parametrize(('confidence', 'which'), [(0.9, [True, True, False, False]), (0.7, [True, True, True, False])])
def test_only_images_whose_label_the_model_is_sure_of_are_mixed(options, confidence, which):
    images, labels, model = certain()
    options = {'layers': 'grid', 'seed': 2, **options}
    mixer = create_mixer('gradmix', num_classes=K, confidence=confidence, **options)
    draw = mixer.draw(images, labels, model)
    assert [lam < 1 for lam in draw.lam.tolist()] == which
    left = ~torch.tensor(which)
    assert torch.equal(draw.partner[left], labels[left])
    assert not draw.fallback.any(), 'without evidence left alone, not mixed at random'
    mixed, targets = mixer.apply(images, labels, draw)
    assert torch.equal(mixed[left], images[left])
    assert torch.equal(targets[left], torch.eye(K)[left])
    all_of_them = create_mixer('gradmix', num_classes=K, **options).draw(images, labels, model)
    assert torch.equal(draw.lam[~left], all_of_them.lam[~left]), 'the draw of the others is as without the option'
    assert torch.equal(draw.dst[~left], all_of_them.dst[~left])


@pytest.mark.parametrize(('smoothing', 'mixed'), [(0.0, 2), (0.2, 3)])
def test_a_smoothed_label_asks_for_less(smoothing, mixed):
    """A probability of .71 is short of .8, and 84% of the .85 that labels smoothed by .2 ask for."""
    images, labels, model = certain()
    mixer = create_mixer('gradmix', num_classes=K, layers='grid', confidence=0.8, label_smoothing=smoothing)
    assert (mixer.draw(images, labels, model).lam < 1).sum() == mixed


@pytest.mark.parametrize(('num_classes', 'smoothing'), [(4, 0.1), (4, 0.4), (1000, 0.1)])
def test_a_net_that_fits_its_smoothed_labels_is_sure(num_classes, smoothing):
    """Where the loss is least, so that a net may train for long and never give a label more."""
    target = soft_targets(torch.zeros(8, dtype=torch.int64), num_classes, smoothing)
    fits = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes))
    with torch.no_grad():
        fits[3].weight.zero_()
        fits[3].bias.copy_(target[0].log())
    mixer = create_mixer('gradmix', num_classes=num_classes, layers=('0',), confidence=0.95, label_smoothing=smoothing)
    assert (mixer.draw(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64), fits).lam < 1).all()


def test_with_coins_for_images_the_sure_ones_of_heads_are_mixed():
    images, labels, model = certain()
    for seed in range(20):
        options = {'num_classes': K, 'layers': 'grid', 'seed': seed, 'prob_elem': 0.5}
        coins = create_mixer('gradmix', **options).draw(images, labels, model).lam < 1
        mixed = create_mixer('gradmix', confidence=0.7, **options).draw(images, labels, model).lam < 1
        assert mixed.tolist() == (coins & torch.tensor([True, True, True, False])).tolist()


def test_a_random_place_is_the_control_with_the_same_images_sizes_and_labels():
    images, labels, model = certain()
    options = {'num_classes': K, 'layers': 'grid', 'confidence': 0.7, 'label': 'mass'}
    found = set()
    for seed in range(60):
        guided = create_mixer('gradmix', seed=seed, **options).draw(images, labels, model)
        random = create_mixer('gradmix', seed=seed, center='random', **options).draw(images, labels, model)
        assert torch.equal(random.lam, guided.lam)
        assert torch.equal(random.partner, guided.partner)
        assert random.lam[3] == 1
        found.add(tuple(random.dst[0, ::2].tolist()))
    assert len(found) > 30, 'anywhere, as the corner that holds the evidence is one place'


def test_of_several_labels_the_least_sure_counts():
    images, _, model = certain()
    rows = torch.eye(K)  # sigmoids of about .98, .98, .88 and .5
    rows[0, 1] = 1       # of which the image shows nothing
    mixer = create_mixer('gradmix', num_classes=K, layers='grid', confidence=0.8, multi_label_mix='weight')
    assert (mixer.draw(images, rows, model).lam < 1).tolist() == [False, True, True, False]


def test_one_label_among_several_is_judged_by_its_own_sigmoid():
    """As the loss has it, whatever the other labels say: a softmax would share its certainty with them."""
    images, labels, model = certain()
    images[:2] += images[[1, 0]]  # two labels are seen in either
    for targets in (labels, torch.eye(K)):
        mixer = create_mixer('gradmix', num_classes=K, layers='grid', confidence=0.8, multi_label_mix='weight')
        assert (mixer.draw(images, targets, model).lam < 1).tolist() == [True, True, True, False]


def test_an_image_without_any_label_has_none_to_be_sure_of():
    images, _, model = certain()
    rows = torch.eye(K)
    rows[1] = 0
    options = {'num_classes': K, 'layers': 'grid', 'multi_label_mix': 'union'}
    for confidence, which in ((0.0, [True] * 4), (0.01, [True, False, True, True])):
        draw = create_mixer('gradmix', confidence=confidence, **options).draw(images, rows, model)
        assert (draw.lam < 1).tolist() == which


def test_soft_labels_are_judged_by_the_largest_share():
    images, labels, model = certain()
    mixer = create_mixer('gradmix', num_classes=K, layers='grid', confidence=0.7)
    sure = [True, True, True, False]
    for rows in (torch.eye(K), torch.eye(K) * 0.8 + 0.2 / K):
        mixer.set_step(0, 0)
        assert (mixer.draw(images, rows, model).lam < 1).tolist() == sure
    mixer.set_step(0, 0)
    assert (mixer.draw(images, labels, model).lam < 1).tolist() == sure


def test_a_net_that_fits_its_soft_labels_is_sure():
    rows = torch.full((8, 4), 0.4 / 3)
    rows[:, 0] = 0.6
    fits = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))
    with torch.no_grad():
        fits[3].weight.zero_()
        fits[3].bias.copy_(rows[0].log())
    mixer = create_mixer('gradmix', num_classes=4, layers=('0',), confidence=0.95)
    assert (mixer.draw(torch.randn(8, 3, 8, 8), rows, fits).lam < 1).all()


def test_a_binary_cross_entropy_is_judged_by_the_sigmoid():
    """Two labels are seen in either of two images: each is sure by its sigmoid, and neither by the softmax."""
    images, labels, model = certain()
    images[:2] += images[[1, 0]]
    mixer = create_mixer('gradmix', num_classes=K, layers='grid', confidence=0.8)
    for sigmoids, sure in ((False, [False, False]), (True, [True, True])):
        mixer.sigmoids = sigmoids
        assert (mixer.draw(images, labels, model).lam < 1)[:2].tolist() == sure


def test_one_logit_is_the_log_odds_of_the_second_class():
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data.fill_(1.0)
    images = torch.full((4, 3, 8, 8), 1.0)  # a logit of 3, a probability of .95
    images[2:] *= -1
    mixer = create_mixer('gradmix', num_classes=2, layers=('0',), confidence=0.9)
    drawn = mixer.draw(images, torch.tensor([0, 1, 0, 1]), model)
    assert (drawn.lam < 1).tolist() == [False, True, True, False]


@pytest.mark.parametrize('multi', [None, 'weight'])
def test_a_net_is_sure_at_the_temperature_at_which_it_is_trained(multi):
    """Its loss fits the probabilities of logits / T to the labels: at T = 1/2 logits half as large suffice."""
    images, labels, model = certain()
    labels = labels if multi is None else torch.eye(K)
    mixer = create_mixer('gradmix', num_classes=K, layers='grid', confidence=0.9, multi_label_mix=multi)
    plain = mixer.draw(images, labels, model)
    model.scale.data /= 2
    mixer.set_step(0, 0)
    assert not (mixer.draw(images, labels, model).lam < 1).any()
    mixer.set_step(0, 0)
    mixer.temperature = 0.5
    assert torch.equal(mixer.draw(images, labels, model).lam, plain.lam)
    assert (plain.lam < 1).tolist() == [True, True, False, False]


@pytest.mark.parametrize(('options', 'label'), [
    ({}, 'area'), ({'confidence': 0.9}, 'keep'), ({'confidence': 0.9, 'label': 'area'}, 'area'),
    ({'confidence': 0.9, 'label': 'mass'}, 'mass'), ({'label': 'keep'}, 'keep'), ({'label': None}, 'area'),
    ({'recipe': 'authors'}, 'keep'), ({'recipe': 'authors', 'label': 'area'}, 'area')], ids=str)
def test_labels_are_kept_by_default_where_the_model_is_sure(options, label):
    mixer = create_mixer('gradmix', num_classes=K, **options)
    assert mixer.options['label'] == label


@pytest.mark.parametrize('recipe', ['author', None, ['authors']], ids=str)
def test_an_unknown_recipe_is_a_clear_error(recipe):
    with pytest.raises(ValueError, match=r'recipe=.*authors'):
        create_mixer('gradmix', num_classes=K, recipe=recipe)


@pytest.mark.parametrize('options', [{'confidence': 1.0}, {'confidence': -0.1},
                                     {'confidence': 0.5, 'attribution': 'random'}], ids=str)
def test_a_confidence_is_a_probability_and_needs_a_model(options):
    with pytest.raises(ValueError, match='confidence'):
        create_mixer('gradmix', num_classes=K, **options)


@pytest.mark.parametrize(('width', 'name'), [(0, 'gradmix'), (10, 'gradmix'), (10, 'snapmix'), (10, 'puzzlemix')])
def test_a_model_of_another_width_than_the_labels_is_refused(width, name):
    net = timm.create_model('test_resnet', num_classes=width)
    options = {'confidence': 0.9} if name == 'gradmix' else {}
    mixer = create_mixer(name, num_classes=3, prob=1.0, **options)
    found = width or net.num_features
    with pytest.raises(ValueError, match=f'num_classes=3, but the model gives {found} logits: give the whole'):
        mixer(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]), net)
