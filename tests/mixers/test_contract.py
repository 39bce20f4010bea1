"""What every registered mixer promises; to register is to be tested."""
from __future__ import annotations

import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradmix_timm import create_mixer, list_mixers, register_mixer
from gradmix_timm.mixers import TIMM_MODES, GradMix, Mixer, SwitchMixer

OURS = [name for name in list_mixers() if name not in TIMM_MODES and not name.startswith('doctest')]
PAIRED = [*OURS, 'gradmix+cutmix']
K = 10


def soft(labels, smoothing=0.1):
    return torch.full((len(labels), K), smoothing / K).scatter_(1, labels[:, None], 1 - smoothing + smoothing / K)


class ToyCNN(nn.Module):
    """Any module with a grid will do."""

    def __init__(self, in_chans=3):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, K)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return ToyCNN().train()


def test_the_names_that_others_rely_on_are_there():
    assert set(list_mixers()) >= {
        'batch', 'pair', 'elem', 'half', 'none', 'mixup', 'cutmix', 'random-box', 'center-box', 'gradmix'}
    assert all(line and '\n' not in line for line in list_mixers().values())


@pytest.mark.parametrize('name', [*TIMM_MODES, *PAIRED])
def test_every_mixer_is_one_by_its_type_and_names_its_parts(name):
    mixer = create_mixer(name, num_classes=K)
    assert isinstance(mixer, Mixer)
    assert [part.name for part in mixer.parts] == name.split('+')
    assert (mixer.parts == (mixer,)) == ('+' not in name)


@pytest.mark.parametrize('name', PAIRED)
@pytest.mark.parametrize(('size', 'kind'), [(8, 'int'), (7, 'soft'), (2, 'int'), (1, 'int'), (1, 'soft')])
@pytest.mark.filterwarnings('ignore:mixer')
def test_any_batch_and_both_kinds_of_labels(name, size, kind, toy):
    mixer = create_mixer(name, num_classes=K, label_smoothing=0.1)
    images, labels = torch.randn(size, 3, 16, 16), torch.arange(size) % K
    before = images.clone()
    given = labels if kind == 'int' else torch.eye(K)[labels]
    mixed, targets = mixer(images, given, toy)
    assert torch.equal(images, before), 'out of place'
    rows = size * mixer.rows_per_image
    assert mixed.shape == (rows, *images.shape[1:])
    assert mixed.dtype == images.dtype
    assert targets.dtype == torch.float32
    assert targets.shape == (rows, K)
    if mixer.rows_sum_to_one:
        assert torch.allclose(targets.sum(1), torch.ones(rows), atol=1e-5)
    assert torch.allclose(targets[:-size], soft(labels)[:rows - size]), 'clean rows first'
    if not mixer.changes_labels:
        assert torch.allclose(targets, soft(labels))
    if size > 2 and name != 'none':
        assert not torch.equal(mixed[-size:], images)


@pytest.mark.parametrize('name', PAIRED)
@pytest.mark.parametrize('shape', [(4, 1, 16, 16), (4, 3, 12, 20), (4, 5, 17, 9)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_grey_wide_and_half_precision_images(name, shape, dtype):
    model = ToyCNN(shape[1]).to(dtype)
    mixer = create_mixer(name, num_classes=K)
    images = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    mixed, targets = mixer(images, torch.arange(4), model)
    assert mixed.dtype == dtype
    assert targets.dtype == torch.float32
    assert mixed.isfinite().all()
    if shape[1] > 1:
        assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('name', PAIRED)
def test_disabled_means_same_images_smoothed_one_hots_and_no_pass(name):
    mixer = create_mixer(name, num_classes=K, label_smoothing=0.1)
    mixer.mixup_enabled = False
    calls = []
    model = ToyCNN()
    model.register_forward_hook(lambda *a: calls.append(1))
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    mixed, targets = mixer(images, labels, model)
    assert torch.equal(mixed, images)
    assert torch.allclose(targets, soft(labels))
    assert not calls


@pytest.mark.parametrize('name', PAIRED)
def test_a_draw_replays_and_depends_on_seed_rank_epoch_and_step_alone(name, toy):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)

    def mix(epoch=2, step=5, **seeds):
        mixer = create_mixer(name, num_classes=K, **seeds)
        mixer.set_step(epoch, step)
        np.random.rand(3)  # noqa: NPY002
        torch.rand(3)
        draw = mixer.draw(images, labels, toy)
        return mixer.apply(images, labels, draw), draw

    (first, targets), draw = mix(seed=3, rank=1)
    (again, same), _ = mix(seed=3, rank=1)
    assert torch.equal(first, again)
    assert torch.equal(targets, same)
    if name == 'none':
        return
    for other in (mix(seed=4, rank=1), mix(seed=3, rank=2), mix(seed=3, rank=1, epoch=3), mix(seed=3, rank=1, step=6)):
        assert not torch.equal(first, other[0][0])
    with pytest.raises(AttributeError):
        draw.lam = None


@pytest.mark.parametrize('name', ['gradmix', 'cutmix', 'gradmix+cutmix'])
def test_each_process_of_a_group_draws_for_itself_without_being_told_its_rank(name):
    assert create_mixer(name, num_classes=K).rank == 0
    dist.init_process_group('fake', store=FakeStore(), rank=1, world_size=2)
    try:
        made, told = create_mixer(name, num_classes=K), create_mixer(name, num_classes=K, rank=3)
    finally:
        dist.destroy_process_group()
    assert (made.rank, told.rank) == (1, 3)
    assert {part.rank for part in made.parts} == {1}
    assert create_mixer(name, **made.options).rank == 1


@pytest.mark.parametrize('name', PAIRED)
def test_the_private_counter_makes_steps_differ_and_follows_set_step(name, toy):
    if name == 'none':
        return
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    counted, stepped = (create_mixer(name, num_classes=K, seed=1) for _ in range(2))
    runs = [counted(images, labels, toy)[0] for _ in range(3)]
    assert not torch.equal(runs[0], runs[1])
    for step, run in enumerate(runs):
        stepped.set_step(0, step)
        assert torch.equal(stepped(images, labels, toy)[0], run)


@pytest.mark.parametrize('name', PAIRED)
def test_mixers_pickle_and_say_what_they_are(name, toy):
    mixer = create_mixer(name, num_classes=K, seed=9)
    again = pickle.loads(pickle.dumps(mixer))
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    assert torch.equal(mixer(images, labels, toy)[0], again(images, labels, toy)[0])
    assert 'num_classes=10' in repr(mixer)
    assert 'seed=9' in repr(mixer)
    assert repr(create_mixer(name, **mixer.options)) == repr(mixer)


@pytest.mark.parametrize('name', [name for name in OURS if not create_mixer(name, num_classes=K).requires_model])
def test_images_of_a_few_pixels(name):
    mixer = create_mixer(name, num_classes=K)
    for shape in ((1, 1), (2, 1), (3, 2)):
        images = torch.arange(4.0)[:, None, None, None].expand(4, 3, *shape).contiguous()
        draw = mixer.draw(images, torch.arange(4))
        mixed, targets = mixer.apply(images, torch.arange(4), draw)
        assert mixed.shape == images.shape
        assert mixed.isfinite().all()
        assert torch.allclose(targets.sum(1), torch.ones(4), atol=1e-5)
        if name in LAM_OF_LABELS:
            share = (mixed.mean((1, 2, 3)) - images[draw.partner].mean((1, 2, 3))) / (
                images.mean((1, 2, 3)) - images[draw.partner].mean((1, 2, 3)))
            assert torch.allclose(share, draw.lam, atol=1e-4)
        if name == 'resizemix':
            assert (draw.lam < 1).all(), 'at least one pixel is pasted'
        if name == 'cutout':
            assert ((mixed == 0) | (mixed == images)).all()
            assert (draw.lam < 1).all()


@pytest.mark.parametrize('name', [name for name in PAIRED if create_mixer(name, num_classes=K).requires_model])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_images_may_be_of_another_dtype_than_the_model(name, dtype, toy):
    images = torch.randn(4, 3, 16, 16)
    mixed, targets = create_mixer(name, num_classes=K)(images.to(dtype), torch.arange(4), toy)
    want, rows = create_mixer(name, num_classes=K)(images.to(dtype).float(), torch.arange(4), toy)
    assert mixed.dtype == dtype
    assert torch.allclose(mixed.float(), want, atol=0.02)
    assert torch.allclose(targets, rows, atol=1e-3)


@pytest.mark.parametrize('name', ['gradmix', 'snapmix', 'tokenmix', 'puzzlemix'])
def test_a_model_with_fewer_outputs_than_classes_is_refused(name, toy):
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([3, 50, 99, 0])
    mixer = create_mixer(name, num_classes=100)
    for given in (labels, torch.eye(100)[labels]):
        with pytest.raises(ValueError, match='num_classes=100, but the model gives 10 logits'):
            mixer(images, given, toy)
    with pytest.raises(ValueError, match='num_classes=5, but the model gives 10 logits'):
        create_mixer(name, num_classes=5)(images, torch.eye(5)[:4], toy)


@pytest.mark.parametrize('name', ['regmixup', 'openmix', 'cutmix'])
def test_mixed_images_have_no_graph(name):
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    assert not create_mixer(name, num_classes=K)(images, torch.arange(4))[0].requires_grad


@pytest.mark.parametrize(('options', 'match'), [
    ({'seed': 1.5}, 'seed is a whole number, got 1.5'), ({'rank': 0.5}, 'rank is a whole number'),
    ({'num_classes': '10'}, "num_classes is a number, got '10'")])
def test_numbers_that_are_not_whole_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer('cutmix', **{'num_classes': K, **options})


@pytest.mark.parametrize(('name', 'option', 'value'), [
    ('gridmix', 'cells', 'two'), ('cutout', 'length', 'half'), ('gradmix', 'attr_scale', '0.5'),
    ('gradmix', 'confidence', None), ('random-box', 'alpha', (1, 2)), ('transmix', 'area', '1'),
    ('cutmix', 'prob', '0.5'), ('gradmix+cutmix', 'label_smoothing', '0.1')])
def test_what_is_no_number_is_named(name, option, value):
    with pytest.raises(ValueError, match=rf"mixer '\w.*': {option} is a number, got {re.escape(repr(value))}"):
        create_mixer(name, num_classes=K, **{option: value})
    create_mixer('tokenmix', num_classes=K, share='beta')


@pytest.mark.parametrize(('name', 'option'), [('batch', 'mixup_alpha'), ('cutmix', 'alpha'), ('gradmix', 'confidence')])
def test_numpys_numbers_are_numbers(name, option):
    create_mixer(name, num_classes=K, **{option: np.float32(0.5)})
    assert create_mixer('gradmix', num_classes=K, lam_range=np.array([0.5, 0.75])).config.lam_range == (0.5, 0.75)


@pytest.mark.parametrize(('name', 'options', 'match'), [
    ('gradmix', {'lam_range': (None, 1)}, r'lam_range is \(lo, hi\) .* got \(None, 1\)'),
    ('resizemix', {'scale': 0.3}, r'scale is \(lo, hi\) .* got 0\.3'),
    ('random-erasing', {'ratio': ('a', 1)}, r'ratio is \(lo, hi\)'),
    ('gradmix+cutmix', {'parts': ['gradmix']}, r"parts is .*'cutmix': .*got \['gradmix'\]"),
    ('gradmix+cutmix', {'parts': {'gradmix': 0.9}}, 'options by mixer'),
    ('gradmix+cutmix', {'switch_prob': 'a'}, "switch_prob is a number, got 'a'"),
    ('gradmix+cutmix', {'confidense': 0.9}, "no option 'confidense'.*confidence")])
def test_values_of_another_kind_are_named(name, options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer(name, num_classes=K, **options)


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match=r'asked for by its name.*got None'):
        create_mixer(None)


def test_an_option_of_one_of_two_mixers_is_its_own():
    mixer = create_mixer('gradmix+regmixup', num_classes=K, confidence=0.9, alpha=2.0)
    assert mixer.first.config.confidence == 0.9
    assert mixer.first.config.alpha == mixer.second.alpha == 2.0


@pytest.mark.parametrize('name', PAIRED)
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_a_broken_image_spoils_no_label(name, value, toy):
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    images[2, 0, 3, 4] = value
    mixer = create_mixer(name, num_classes=K)
    for _ in range(3):
        assert mixer(images, labels, toy)[1].isfinite().all()


@pytest.mark.parametrize('name', PAIRED)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_grad_modes_are_worked_under_and_restored(name, mode, toy):
    mixer = create_mixer(name, num_classes=K)
    plain = create_mixer(name, num_classes=K)(torch.ones(4, 3, 16, 16), torch.arange(4), toy)[0]
    with mode():
        images = torch.ones(4, 3, 16, 16)
        mixed, _ = mixer(images, torch.arange(4), toy)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(mixed, plain)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('name', PAIRED)
def test_no_random_stream_of_the_training_moves(name, toy):
    states = random.getstate(), torch.get_rng_state(), np.hstack(np.random.get_state()[1:3])  # noqa: NPY002
    create_mixer(name, num_classes=K)(torch.ones(4, 3, 16, 16), torch.arange(4), toy)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(np.hstack(np.random.get_state()[1:3]), states[2])  # noqa: NPY002


@pytest.mark.parametrize('name', [n for n in PAIRED if n != 'none'])
def test_prob_is_the_rate_of_mixed_batches_and_prob_elem_of_images(name, toy):
    def changed(count, size, **options):
        mixer = create_mixer(name, num_classes=K, **options)
        images, labels = torch.randn(size, 3, 8, 8), torch.arange(size) % K
        draws = [mixer.draw(images, labels, toy) for _ in range(count)]
        return torch.stack([draw.lam < 1 for draw in draws]).float()

    per_batch = changed(60, 4, prob=0.5)
    assert 0.3 < (per_batch.amax(1)).mean() < 0.7
    full = changed(10, 64).mean()
    assert changed(15, 64, prob_elem=0.5).mean() == pytest.approx(full.item() / 2, abs=0.05)
    assert changed(10, 4, prob=0.0).sum() == 0


@pytest.mark.parametrize('name', OURS)
def test_unmixed_images_are_their_own_pixels_whatever_their_partner_holds(name, toy):
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % K
    images[::2, 0, 3, 4] = torch.nan
    mixer = create_mixer(name, num_classes=K, prob_elem=0.5)
    draw = mixer.draw(images, labels, toy)
    mixed, _ = mixer.apply(images, labels, draw)
    kept = draw.lam == 1
    assert kept.any()
    assert torch.equal(mixed[kept].nan_to_num(9.), images[kept].nan_to_num(9.))


LAM_OF_LABELS = [name for name in OURS if (mixer := create_mixer(name, num_classes=K)).tells_lam
                 and mixer.changes_labels and mixer.rows_sum_to_one]


@pytest.mark.parametrize('name', LAM_OF_LABELS)
def test_lam_and_partner_read_back_from_label_coded_images(name, toy):
    """A constant image a row: what is pasted shows whose it is, and how much."""
    labels = torch.arange(8)
    images = (labels.float()[:, None, None, None] + 1).expand(-1, 3, 16, 16).contiguous()
    mixer = create_mixer(name, num_classes=K, seed=2)
    draw = mixer.draw(images, labels, toy)
    mixed, targets = mixer.apply(images, labels, draw)
    own = images[:, 0, 0, 0]
    donor = own[draw.partner]
    want = draw.lam * own + (1 - draw.lam) * donor
    assert torch.allclose(mixed.mean((1, 2, 3)), want, atol=1e-4)
    rows = torch.eye(K)
    assert torch.allclose(targets, draw.weight[:, :1] * rows[labels] + draw.weight[:, 1:] * rows[labels[draw.partner]])
    assert torch.allclose(draw.weight.sum(1), torch.ones(8))


def test_uniform_cutmix_pastes_a_third_of_the_image():
    """The mean share 1/2 - 1/5 + 1/48 of a clipped box with a uniform centre."""
    mixer = create_mixer('cutmix', num_classes=K)
    images = torch.zeros(512, 1, 224, 224)
    lam = torch.cat([mixer.draw(images, torch.zeros(512, dtype=torch.int64)).lam for _ in range(40)])
    assert (1 - lam).mean().item() == pytest.approx(0.3208, abs=0.006)


@pytest.mark.parametrize('name', ['cutmix', 'random-box', 'mixup'])
def test_rows_are_independent(name):
    mixer = create_mixer(name, num_classes=K)
    images = torch.zeros(2, 1, 64, 64)
    draws = [mixer.draw(images, torch.tensor([0, 1])) for _ in range(800)]
    columns = torch.stack([torch.cat([d.lam[:, None], d.dst.float()], 1) for d in draws])
    spread = columns.std(0).amin(1) > 0
    first, second = columns[:, 0].T, columns[:, 1].T
    for a, b in zip(first, second, strict=True):
        if a.std() > 0:
            assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.12
    assert name == 'mixup' or spread.all()


def test_a_switch_takes_its_second_with_switch_prob():
    mixer = create_mixer('mixup+cutmix', num_classes=K, switch_prob=0.25, parts={'mixup': {'alpha': 0.2}})
    images, labels = torch.zeros(4, 1, 8, 8), torch.arange(4)
    names = [mixer.draw(images, labels).name for _ in range(400)]
    assert 0.18 < names.count('cutmix') / 400 < 0.32
    assert set(names) == {'mixup', 'cutmix'}
    again = create_mixer('mixup+cutmix', num_classes=K, switch_prob=0.25)
    assert [again.draw_from(images, ()).name for _ in range(400)] == names, 'from a shared forward too'
    assert mixer.first.alpha == 0.2


def test_a_part_of_a_switch_may_have_its_own_rate():
    mixer = create_mixer('mixup+cutmix', num_classes=K, prob=0.9, parts={'cutmix': {'prob': 0.25, 'prob_elem': 0.5}})
    assert (mixer.first.prob, mixer.second.prob, mixer.second.prob_elem) == (0.9, 0.25, 0.5)
    again = create_mixer('mixup+cutmix', **mixer.options)
    assert (again.options, again.second.options) == (mixer.options, mixer.second.options)


@pytest.mark.parametrize(('option', 'value', 'name'), [
    ('num_classes', K + 1, 'num_classes'), ('multi_label_mix', 'union', 'multi_label'),
    ('unknown_output', True, 'unknown_output')])
def test_the_parts_of_a_switch_give_targets_of_one_kind(option, value, name):
    with pytest.raises(ValueError, match=f"targets of one kind, got {name}=.* for 'mixup' and .* for 'cutmix'"):
        create_mixer('mixup+cutmix', num_classes=K, parts={'cutmix': {option: value}})
    create_mixer('mixup+cutmix', num_classes=K, multi_label_mix='weight',
                 parts={'cutmix': {'multi_label_mix': 'union'}})


def test_two_names_of_one_class_alternate_as_two_mixers():
    for name, fill in (('test-noise', 'noise'), ('test-donor', 'donor')):
        if name not in list_mixers():
            @register_mixer(name, 'a control with another fill')
            def make(num_classes, fill=fill, **common):
                return create_mixer('random-box', num_classes=num_classes, fill=fill, **common)

    mixer = create_mixer('test-noise+test-donor', num_classes=K)
    assert [part.name for part in mixer.parts] == ['test-noise', 'test-donor']
    images, labels = torch.arange(1., 5)[:, None, None, None].expand(-1, 1, 8, 8), torch.arange(4)
    names = set()
    for _ in range(8):
        draw = mixer.draw(images, labels)
        whole = set(mixer.apply(images, labels, draw)[0].unique().tolist()) <= {1., 2., 3., 4.}
        assert whole == (draw.name == 'test-donor')
        names.add(draw.name)
    assert len(names) == 2
    with pytest.raises(ValueError, match='different names'):
        SwitchMixer(mixer.first, mixer.first)


# ---- timm's own

@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem', 'half'])
@pytest.mark.parametrize('options', [
    {'mixup_alpha': 0.8, 'cutmix_alpha': 1.0},
    {'mixup_alpha': 0.8},
    {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0, 'prob': 0.5},
    {'mixup_alpha': 0.2, 'cutmix_minmax': (0.2, 0.6), 'switch_prob': 0.7, 'correct_lam': False},
])
def test_timms_names_give_bit_for_bit_what_timm_gives(mode, options, toy):
    images, labels = torch.randn(8, 3, 20, 20), torch.arange(8)
    theirs = timm.data.Mixup(mode=mode, num_classes=K, label_smoothing=0.1, **options)
    ours = create_mixer(mode, num_classes=K, label_smoothing=0.1, **options)
    for _ in range(4):
        np.random.seed(7)  # noqa: NPY002
        want, rows = theirs(images.clone(), labels)
        end = np.hstack(np.random.get_state()[1:3])  # noqa: NPY002
        np.random.seed(7)  # noqa: NPY002
        given = images.clone()
        got, targets = ours(given, labels, toy)
        assert torch.equal(got, want)
        assert torch.equal(targets, rows)
        assert got.data_ptr() == given.data_ptr(), 'in place, as timm'
        assert np.array_equal(np.hstack(np.random.get_state()[1:3]), end)  # noqa: NPY002


def test_timms_names_refuse_what_timm_takes_wrongly():
    mixer = create_mixer('batch', num_classes=K, mixup_alpha=1.0)
    with pytest.raises(ValueError, match='odd number; use an even batch'):
        mixer(torch.randn(5, 3, 8, 8), torch.arange(5))
    with pytest.raises(ValueError, match=r'integer labels \[B\]'):
        mixer(torch.randn(4, 3, 8, 8), torch.eye(K)[:4])
    with pytest.raises(ValueError, match='expected float images'):
        mixer(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(ValueError, match='mixup_alpha, cutmix_alpha'):
        create_mixer('elem', num_classes=K, mixup_alpha=0.0)


def test_timm_disabled_draws_nothing():
    mixer = create_mixer('elem', num_classes=K, label_smoothing=0.1, mixup_alpha=1.0)
    mixer.mixup_enabled = False
    np.random.seed(0)  # noqa: NPY002
    state = np.hstack(np.random.get_state()[1:3])  # noqa: NPY002
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    mixed, targets = mixer(images, labels)
    assert torch.equal(mixed, images)
    assert torch.allclose(targets, soft(labels))
    assert np.array_equal(np.hstack(np.random.get_state()[1:3]), state)  # noqa: NPY002


# ---- errors

def test_unknown_names_and_options_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gradmix'"):
        create_mixer('gradmx', num_classes=K)
    with pytest.raises(ValueError, match="did you mean 'center'"):
        create_mixer('gradmix', num_classes=K, centre='window')
    with pytest.raises(ValueError, match="did you mean 'window'"):
        create_mixer('gradmix', num_classes=K, center='windw')
    with pytest.raises(ValueError, match="did you mean 'alpha'"):
        create_mixer('cutmix', num_classes=K, alph=1)
    for control, other in (('random-box', 'layercam'), ('center-box', 'random')):
        with pytest.raises(ValueError, match=f"'{control}' has attribution=.*got '{other}'.*'gradmix'"):
            create_mixer(control, num_classes=K, attribution=other)
        assert create_mixer(control, **create_mixer(control, num_classes=K).options).name == control
    with pytest.raises(ValueError, match='needs num_classes'):
        create_mixer('gradmix')
    with pytest.raises(ValueError, match='two different mixers'):
        create_mixer('gradmix+gradmix', num_classes=K)
    with pytest.raises(ValueError, match='cannot alternate'):
        create_mixer('gradmix+elem', num_classes=K)


class Detached(nn.Module):
    """No gradient reaches its layers."""

    def forward(self, images):
        return images.detach().mean((2, 3))


@pytest.mark.parametrize('name', ['gradmix', 'attentivemix', 'snapmix', 'tokenmix', 'puzzlemix', 'transmix'])
def test_a_model_that_cannot_be_served_is_refused_by_the_names_of_both_and_the_right_flag(name, toy):
    mixer, images, labels = create_mixer(name, num_classes=K), torch.randn(4, 3, 16, 16), torch.arange(4)
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, K, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    for model, called in ((nn.DataParallel(toy), 'DataParallel'), (script, 'RecursiveScriptModule'),
                          (Detached(), 'Detached')):
        with pytest.raises(ValueError, match=f"^mixer '{name}' with {called}: ") as told:
            mixer.prepare(model, (3, 16, 16))
        assert name == 'gradmix' or '--gradmix' not in str(told.value)
        if name == 'transmix':
            with pytest.raises(ValueError, match=f"^mixer 'transmix' with {called}: "), mixer.watch(
                    model, mixer.mix(images, labels)):
                pass
            continue
        for call in (mixer, create_mixer(f'{name}+cutmix', num_classes=K, switch_prob=0.0)):
            with pytest.raises(ValueError, match=f"^mixer '{name}' with {called}: ") as told:
                call(images, labels, model)
            assert name == 'gradmix' or '--gradmix' not in str(told.value)


def test_the_class_says_that_it_reads_the_model_and_its_controls_do_not():
    assert (GradMix.requires_model, GradMix.requires_grad) == (True, True)
    control = create_mixer('random-box', num_classes=K)
    assert (control.requires_model, control.requires_grad) == (False, False)


@pytest.mark.parametrize(('name', 'flag'), [
    ('gradmix', '--gradmix-layers'), ('attentivemix', '--mixup-kwargs layers=...'),
    ('snapmix', '--mixup-kwargs layers=...'), ('tokenmix', '--mixup-kwargs layers=...')])
def test_a_layer_that_cannot_be_used_names_the_mixers_own_flag(name, flag, toy):
    with pytest.raises(ValueError, match=f"^mixer '{name}' with .* no layer 'nope'.*{flag}"):
        create_mixer(name, num_classes=K, layers='nope').prepare(toy, (3, 16, 16))


@pytest.mark.parametrize(('options', 'match'), [
    ({'prob': 1.5}, 'prob is a probability'),
    ({'seed': torch.inf}, 'seed is a whole number'),
    ({'rank': torch.nan}, 'rank is a whole number'),
    ({'attr_scale': torch.inf}, r'attr_scale is in \(0, 1\]'),
    ({'confidence': torch.nan}, 'confidence is a probability'),
    ({'label_smoothing': 1.0}, r'label_smoothing is in \[0, 1\)'),
    ({'alpha': 0.0}, 'above 0'),
    ({'lam_range': (0.0, torch.nan)}, 'lam_range'),
    ({'lam_range': (0.5,)}, r'lam_range is \(lo, hi\)'),
    ({'lam_range': 0.5}, r'lam_range is \(lo, hi\)'),
    ({'correct_lam': 'false'}, 'correct_lam is True or False'),
    ({'keep_clean': 1}, 'keep_clean is True or False'),
    ({'unknown_output': 'no'}, "unknown_output is True or False, got 'no'"),
    ({'num_classes': 0}, 'a whole number of at least 1'),
    ({'num_classes': 9.5}, 'a whole number of at least 1'),
])
def test_options_out_of_range(options, match):
    with pytest.raises(ValueError, match=match):
        create_mixer('gradmix', **{'num_classes': K, **options})


@pytest.mark.parametrize(('images', 'targets', 'match'), [
    (torch.zeros(4, 3, 8), torch.arange(4), r'images \[B, C, H, W\]'),
    (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), 'mixing follows normalisation'),
    (torch.zeros(4, 3, 8, 8), torch.arange(3), '4 images but 3 targets'),
    (torch.zeros(4, 3, 8, 8), torch.arange(4) + 8, r'labels run from 8 to 11, expected 0\.\.9'),
    (torch.zeros(4, 3, 8, 8), torch.arange(4) + 7,
     r'from 7 to 10, expected 0\.\.9 \(num_classes=10\); labels begin at 0, num_classes is the width of the class'),
    (torch.zeros(4, 3, 8, 8), torch.zeros(4), 'class indices'),
    (torch.zeros(4, 3, 8, 8), torch.zeros(4, 7), r'float \[B, 10\]'),
    (torch.zeros(4, 3, 8, 8), torch.ones(4, 10), 'multi-hot'),
    (torch.zeros(4, 3, 8, 8), torch.full((4, 10), torch.nan), 'multi-hot'),
    (torch.zeros(4, 3, 8, 8), torch.ones(4, dtype=torch.bool), 'class indices'),
    (torch.zeros(4, 3, 8, 8), torch.tensor(3), 'a single number'),
])
def test_bad_batches_say_what_was_expected(images, targets, match):
    with pytest.raises(ValueError, match=match):
        create_mixer('cutmix', num_classes=K)(images, targets)


@pytest.mark.parametrize('name', [*TIMM_MODES, *PAIRED])
def test_class_indices_of_any_kind_are_the_same_labels(name, toy):
    labels, images = torch.arange(4), torch.randn(4, 3, 16, 16)
    kinds = {'int32': labels.int(), 'uint8': labels.to(torch.uint8), 'int16': labels.short(), 'list': labels.tolist(),
             'tuple': tuple(labels.tolist()), 'numpy': labels.numpy(), 'numpy int32': labels.numpy().astype(np.int32)}

    def results(targets):
        mixer = create_mixer(name, num_classes=K)
        np.random.seed(0)  # noqa: NPY002 - timm's stream
        mixed = mixer(images.clone(), targets, toy)
        mixer.mixup_enabled = False
        return *mixed, *mixer(images.clone(), targets, toy)

    want = results(labels)
    for kind, given in kinds.items():
        assert all(torch.equal(a, b) for a, b in zip(want, results(given), strict=True)), kind


@pytest.mark.parametrize('name', [*TIMM_MODES, *PAIRED])
def test_batches_and_labels_of_no_use_are_named(name, toy):
    mixer, images = create_mixer(name, num_classes=K), torch.zeros(4, 3, 16, 16)
    with pytest.raises(TypeError, match=r'unpack a batch: mixer\(\*batch\)'):
        mixer([images, torch.arange(4)])
    with pytest.raises(TypeError, match=r'unpack a batch'):
        mixer({'image': images, 'label': torch.arange(4)}, None, toy)
    with pytest.raises(TypeError, match='expected images as a float tensor'):
        mixer(images.numpy(), torch.arange(4), toy)
    for targets in (None, ['cat', 'dog', 'cat', 'dog'], 'cat'):
        with pytest.raises(TypeError, match='labels are class indices'):
            mixer(images, targets, toy)


@pytest.mark.parametrize('alpha', [torch.inf, -torch.inf, torch.nan, 0.0, -1.0])
@pytest.mark.parametrize('name', ['mixup', 'cutmix', 'gradmix', 'random-box', 'torchvision-mixup'])
def test_alpha_is_finite_and_above_zero(name, alpha):
    with pytest.raises(ValueError, match='finite number above 0'):
        create_mixer(name, num_classes=K, alpha=alpha)


@pytest.mark.parametrize('alpha', [torch.inf, torch.nan])
@pytest.mark.parametrize('option', ['mixup_alpha', 'cutmix_alpha'])
def test_timms_alphas_are_finite_too(option, alpha):
    with pytest.raises(ValueError, match=f'{option} of the Beta distribution is a finite number'):
        create_mixer('batch', num_classes=K, **{option: alpha})


def test_a_mixer_that_needs_a_model_says_so():
    with pytest.raises(ValueError, match=r"'gradmix' reads attribution maps .* mixer\(images, targets, model\)"):
        create_mixer('gradmix', num_classes=K)(torch.zeros(4, 3, 8, 8), torch.arange(4))


def test_a_users_own_mixer_is_a_name_like_any_other():
    name = 'test-own'
    if name not in list_mixers():
        @register_mixer(name, 'rolls the batch')
        class Roll:
            requires_model = False

            def __init__(self, num_classes, shift=1):
                self.num_classes, self.shift = num_classes, shift

            def __call__(self, images, targets, model=None):
                return images.roll(self.shift, 0), torch.eye(self.num_classes)[targets.roll(self.shift, 0)]

    images, _ = create_mixer(name, num_classes=3, shift=2)(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3))
    assert images.flatten().tolist() == [1, 2, 0]
    mixer = create_mixer(name, num_classes=3)
    assert isinstance(mixer, Mixer), 'with the defaults of the contract'
    assert (mixer.requires_model, mixer.tells_lam, mixer.options, mixer.mixup_enabled) == (False, False, {}, True)
    mixer.set_step(1, 2)
    mixer.prepare(nn.Identity(), (3, 8, 8))
    mixer.mixup_enabled = False
    images, targets = mixer(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3))
    assert (images.flatten().tolist(), targets.tolist()) == ([0, 1, 2], torch.eye(3).tolist())
    with pytest.raises(ValueError, match='registered already'):
        register_mixer('cutmix', 'again')(lambda: None)


def test_the_page_of_mixers_names_them_all():
    page = (Path(__file__).parent.parent.parent / 'docs' / 'mixers.md').read_text()
    rows = ' '.join(line.split('|')[1] for line in page.splitlines() if line.startswith('| `'))
    ours = [name for name in list_mixers() if not name.startswith(('doctest', 'test-'))]
    assert [name for name in ours if f'`{name}`' not in rows] == []
