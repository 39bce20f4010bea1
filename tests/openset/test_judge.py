"""Judging: every figure is its metric's, the threshold is honest, the tables add up."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from embedded import CLASSES, make, make_head, take

from gradmix_timm.openset import metrics
from gradmix_timm.openset.judge import EmbeddedSets, judge, needs_train
from gradmix_timm.openset.metrics.thresholds import observed_threshold
from gradmix_timm.openset.scores import fit_score, list_scores

KNOWN, UNKNOWN = ('ant', 'bee', 'cat', 'dog'), ('elk', 'fox', 'gnu')


def subjects(**changes):
    unknown = make(90, seed=2, unknown=True)
    made = EmbeddedSets(
        train=make(120, seed=0), known=make(80, seed=1), unknown=unknown, unknown_label=np.arange(90) % 3,
        known_classes=KNOWN, unknown_classes=UNKNOWN, held_out=make(60, seed=3), head=make_head(),
        groups={'easy': ('elk',), 'hard': ('fox', 'gnu')})
    return replace(made, **changes)


@pytest.fixture(scope='module')
def judged():
    return judge(subjects(), draws=20)


def test_all_registered_scores_are_judged_or_say_why_not_but_for_those_that_go_back_to_the_model(judged):
    assert {*judged.results['scores'], *judged.results['not_served']} == set(list_scores()) - {'odin'}
    assert {'msp', 'mls', 'energy', 'knn', 'vim'} <= set(judged.results['scores'])


def test_reasons_name_classes_and_no_score_twice():
    few = subjects()
    rows = (few.train.label != 2) | (few.train.label == 2).cumsum(0).eq(1)  # one image of the cats is left
    missing = judge(replace(few, train=take(few.train, rows)), draws=0).results['not_served']
    assert missing['openmax'].startswith('needs two training samples of every class')
    for name in ('openmax', 'class-knn'):
        assert ', but cat has ' in missing[name]
    assert not [reason for name, reason in missing.items() if reason.startswith(name)]


@pytest.mark.parametrize('name', ['msp', 'mls', 'knn', 'class-knn', 'react'])
def test_figures_are_those_of_the_metrics(judged, name):
    given = subjects()
    score = fit_score(name, given.train, head=given.head)
    known, unknown = score(given.known), score(given.unknown)
    found = judged.results['scores'][name]
    assert found['auroc'] == metrics.auroc(known, unknown)
    assert found['fpr_at_95_known'] == metrics.fpr_at_95_known(known, unknown)
    # The class belongs to the predictor whose score it is.
    assert found['oscr'] == metrics.oscr(known, score.predict(given.known) == given.known.label, unknown)
    assert found['top1'] == float((score.predict(given.known) == given.known.label).double().mean())  # red before
    assert found['oscr'] <= found['top1'] + 1e-12
    assert found['auroc_ci'] == list(metrics.delong_ci(known, unknown))
    np.testing.assert_array_equal(judged.arrays[f'known/{name}'], known.numpy())


def test_labels_at_the_threshold_are_of_the_predictor_whose_score_it_is():
    given = subjects()
    given = replace(given, known=replace(given.known, logits=-given.known.logits),
                    unknown=replace(given.unknown, logits=-given.unknown.logits))
    found = judge(given, ['class-knn'], draws=0)
    score = fit_score('class-knn', given.train, head=given.head)
    answers, label = score.predict(given.known), given.known.label
    assert (answers == label).double().mean() > 0.8 > 0.3 > found.results['closed_set']['top1']  # the head's
    value = found.results['threshold']['value']
    accepted = score(given.known) >= value
    taken = score(given.unknown) >= value
    expected = metrics.macro_f1(
        np.r_[np.where(accepted, answers, -1), np.where(taken, score.predict(given.unknown), -1)],
        np.r_[label, np.full(90, -1)], len(KNOWN))
    assert found.results['threshold']['open_set']['macro_f1'] == pytest.approx(expected)
    np.testing.assert_array_equal(found.arrays['known_pred'], answers)
    np.testing.assert_array_equal(found.arrays['known_correct'], answers == label)
    np.testing.assert_array_equal(found.arrays['confusion'].diagonal(),
                                  [int((accepted & (answers == label) & (label == place)).sum()) for place in range(4)]
                                  + [int((~taken).numpy()[given.unknown_label == 0].sum())])
    headed = judge(given, ['class-knn', 'mls'], draws=0)  # mls goes first, whose classes are the head's
    np.testing.assert_array_equal(headed.arrays['known_pred'], given.known.logits.argmax(1))


@pytest.mark.parametrize(('part', 'title'), [('train', 'training'), ('held_out', 'held-out'), ('known', 'known')])
@pytest.mark.parametrize('label', [-1, 4])
def test_labels_that_are_no_class_are_refused_in_every_set(part, title, label):
    images = getattr(subjects(), part)
    images.label[5] = label
    with pytest.raises(ValueError, match=f'label {label} of {title} image 5 is no class: expected 0 to 3'):
        subjects(**{part: images})


def test_groups_are_judged_on_their_own_unknowns_and_all_knowns(judged):
    groups = judged.results['groups']
    assert list(groups) == ['easy', 'hard']
    assert (groups['easy']['n_unknown'], groups['hard']['n_unknown']) == (30, 60)
    rows = np.arange(90) % 3 == 0
    known, unknown = judged.arrays['known/mls'], judged.arrays['unknown/mls']
    assert groups['easy']['scores']['mls']['auroc'] == metrics.auroc(known, unknown[rows])
    assert groups['hard']['scores']['mls']['auroc'] == metrics.auroc(known, unknown[~rows])


def test_threshold_comes_from_held_out_images_and_never_from_test_ones():
    first, second = judge(subjects(), ['mls'], draws=0), judge(subjects(known=make(80, seed=9)), ['mls'], draws=0)
    assert first.results['threshold']['value'] == second.results['threshold']['value']
    held = make(60, seed=3).logits.amax(1).double().sort().values
    assert first.results['threshold']['value'] == float(held[2])  # floor(0.05 x 61) = 3rd smallest
    assert first.results['threshold']['held_out']
    source = first.results['threshold']['source']
    assert 'so as to reject on average at most 5% of new ones' in source  # of a given evaluation 11.2% were
    assert 'model_best' in source


@pytest.mark.parametrize('held', [None, make(18, seed=3)])
def test_without_enough_held_out_images_the_threshold_is_that_of_the_test_and_says_so(held):
    found = judge(subjects(held_out=held), ['mls'], draws=0).results
    assert not found['threshold']['held_out']
    assert 'test images themselves' in found['threshold']['source']
    assert found['threshold']['known_accepted'] == 0.95
    assert found['threshold']['unknown_accepted'] == found['scores']['mls']['fpr_at_95_known']


def test_a_score_of_held_out_images_is_fit_on_them_and_no_threshold_set_on_them():
    given = subjects(train=None)
    found = judge(given, ['klm'], draws=0)
    expected = fit_score('klm', given.held_out)(given.known)
    np.testing.assert_array_equal(found.arrays['known/klm'], expected.numpy())
    assert found.results['fits']['klm']['diagnostics']['fit_on'] == 'held-out images'
    threshold = found.results['threshold']
    assert not threshold['held_out']
    assert 'test images themselves' in threshold['source']
    assert 'the score is fit on the held-out images' in threshold['source']
    assert judge(given, ['klm', 'mls'], draws=0).results['threshold']['held_out']


@pytest.mark.parametrize('count', [1, 5, 19, 20, 21, 40, 101])
def test_observed_threshold_is_the_largest_that_keeps_95_percent(count):
    known = np.random.default_rng(0).permutation(count).astype(float)
    tau = observed_threshold(known)
    assert (known >= tau).mean() >= 0.95
    assert not [other for other in known if other > tau and (known >= other).mean() >= 0.95]


def test_every_fit_says_its_options_and_how_sound_it_is(judged):
    fits = judged.results['fits']
    assert list(fits) == list(judged.results['scores'])
    assert fits['knn'] == {'options': {'k': 50}, 'diagnostics': {'samples': 120}}
    found = fits['mahalanobis']['diagnostics']
    assert found['rank'] == 12
    assert found['condition'] > 1
    assert fits['vim']['diagnostics']['origin_norm'] > 0
    assert json.loads(json.dumps(fits)) == fits


def test_labels_with_rejection_are_measured_at_the_threshold():
    judged = judge(subjects(), ('mls', 'msp'), draws=20)
    counts, found = judged.arrays['confusion'], judged.results['threshold']['open_set']
    classes = len(KNOWN)
    right = np.r_[np.diag(counts)[:classes], counts[classes, classes:].sum()]
    guess, truth = counts.sum(1), np.r_[counts[:, :classes].sum(0), counts[:, classes:].sum()]
    assert found['macro_f1'] == pytest.approx(float((2 * right / (guess + truth)).mean()), abs=1e-12)
    assert found['balanced_accuracy_with_unknown'] == pytest.approx(float((right / truth).mean()), abs=1e-12)
    assert found['macro_f1_ci'][0] <= found['macro_f1'] <= found['macro_f1_ci'][1]


def test_calibration_is_told_as_it_is_and_at_the_temperature_of_the_held_out_images():
    found = judge(subjects(), ('mls',), draws=0).results['calibration']
    held, known = subjects().held_out, subjects().known
    assert found['temperature'] == metrics.fit_temperature(held.logits.numpy(), held.label.numpy())
    assert found['temperature_n'] == len(held.label)
    logits = known.logits.double()
    for part, scale in ((found, 1.), (found['scaled'], found['temperature'])):
        probs = (logits / scale).softmax(1).numpy()
        assert part['ece'] == pytest.approx(metrics.ece(probs, known.label.numpy()), abs=1e-9)
        assert part['adaptive_ece'] == pytest.approx(metrics.adaptive_ece(probs, known.label.numpy()), abs=1e-9)
        assert part['brier'] == pytest.approx(metrics.brier(probs, known.label.numpy()), abs=1e-9)
        assert part['nll'] == pytest.approx(metrics.nll((logits / scale).numpy(), known.label.numpy()), abs=1e-9)
    assert 'temperature' not in judge(subjects(held_out=None), ('mls',), draws=0).results['calibration']


def test_tables_add_up(judged):
    results, confusion = judged.results, judged.arrays['confusion']
    assert confusion.shape == (CLASSES + 1, CLASSES + 3)
    assert confusion.sum(0).tolist() == [20] * CLASSES + [30] * 3
    rows = results['per_class']
    accuracy = sum(row['n'] * row['accuracy'] for row in rows['known']) / 80
    assert accuracy == pytest.approx(results['closed_set']['top1'])
    for side, total in (('known', 80), ('unknown', 90)):
        accepted = sum(row['n'] * row['accepted'] for row in rows[side]) / total
        assert accepted == pytest.approx(results['threshold'][f'{side}_accepted'])
    assert confusion[CLASSES, :CLASSES].sum() / 80 == pytest.approx(1 - results['threshold']['known_accepted'])
    shares = [row['accepted'] for row in rows['unknown']]
    assert shares == sorted(shares, reverse=True)


def test_a_score_that_needs_a_head_is_left_out_with_the_reason():
    found = judge(subjects(head=None, head_missing='its head is a CosineLinear'), draws=0).results
    assert 'its head is a CosineLinear' in found['not_served']['react']
    assert 'mls' in found['scores']
    with pytest.raises(ValueError, match=r'scores=react cannot be served: .*CosineLinear'):
        judge(subjects(head=None, head_missing='its head is a CosineLinear'), ['mls', 'react'], draws=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_embeddings_in_half_precision_are_judged(dtype):
    sets = subjects()
    half = {name: replace(part, logits=part.logits.to(dtype), features=part.features.to(dtype))
            for name in ('train', 'known', 'unknown', 'held_out') for part in [getattr(sets, name)]}
    found, whole = (judge(made, ('mls', 'knn', 'react'), draws=0).results for made in (replace(sets, **half), sets))
    assert found['calibration']['ece'] == pytest.approx(whole['calibration']['ece'], abs=0.02)
    assert found['scores']['mls']['auroc'] == pytest.approx(whole['scores']['mls']['auroc'], abs=0.01)


def test_an_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"scores=mlz: no score named 'mlz': .*'mls'"):
        judge(subjects(), ['mlz'])


def test_scores_of_logits_need_no_training_images():
    assert not needs_train(['msp', 'mls'])
    assert needs_train(['mls', 'knn'])
    assert needs_train(None)
    found = judge(subjects(train=None), ['msp', 'mls'], draws=0)
    assert list(found.results['scores']) == ['msp', 'mls']


def test_the_headline_is_fixed_beforehand():
    assert judge(subjects(), ['msp', 'mls', 'vim'], draws=0).results['threshold']['score'] == 'mls'
    assert judge(subjects(), ['msp', 'vim'], draws=0).results['threshold']['score'] == 'msp'


def test_same_seed_same_figures():
    one, two = (judge(subjects(), ['mls', 'knn'], draws=20, seed=4).results for _ in range(2))
    assert one == two
    assert judge(subjects(), ['mls', 'knn'], draws=20, seed=5).results['scores'] != one['scores']


def test_order_of_the_images_does_not_matter():
    turn = torch.arange(79, -1, -1)
    known = make(80, seed=1)
    turned = replace(known, logits=known.logits[turn], features=known.features[turn], label=known.label[turn])
    one, two = (judge(subjects(known=part), ['mls', 'knn'], draws=0).results for part in (known, turned))
    assert one['scores'] == two['scores']
    assert one['threshold'] == two['threshold']
    assert [row['accepted'] for row in one['per_class']['known']] == [
        row['accepted'] for row in two['per_class']['known']]
