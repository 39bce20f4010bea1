"""Near and far by names, means over data sets, and the accuracy that a model should have."""
from __future__ import annotations

import numpy as np
import pytest

from gradmix_timm.evaluation.accuracy import check_accuracy
from gradmix_timm.openset.metrics.summary import RANK_METRICS
from gradmix_timm.openset.near_far import NEAR_FAR, near_and_far, set_means, suite_of

TEN = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


@pytest.mark.parametrize(('dataset', 'classes', 'suite'), [
    ('torch/cifar10', TEN, 'cifar10'), ('', TEN[::-1], 'cifar10'), ('torch/cifar100', ('apple',), 'cifar100'),
    ('hfds/timm/imagenet-1k', ('n01440764',), 'imagenet'), ('/data/ILSVRC2012/', ('n01440764',), 'imagenet'),
    ('', TEN[:6], None), ('torch/mnist', tuple('0123456789'), None)])
def test_the_suite_by_data_set_or_classes(dataset, classes, suite):
    assert suite_of(dataset, classes) == suite


def test_sets_by_their_many_names():
    names = ['Textures', 'svhn', 'CIFAR-100', 'mine', 'TIN', 'places365']
    assert near_and_far('cifar10', names) == {'near': ['CIFAR-100', 'TIN'], 'far': ['Textures', 'svhn', 'places365']}
    assert near_and_far('imagenet', ['dtd', 'SSB-hard', 'svhn']) == {'near': ['SSB-hard'], 'far': ['dtd']}
    assert near_and_far(None, names) == {}


@pytest.mark.parametrize(('suite', 'near', 'far'), [
    ('cifar10', ['cifar100', 'tin'], ['mnist', 'svhn', 'texture', 'places365']),
    ('cifar100', ['cifar10', 'tin'], ['mnist', 'svhn', 'texture', 'places365']),
    ('imagenet', ['ssb_hard', 'ninco'], ['inaturalist', 'texture', 'openimage_o'])])
def test_the_sets_of_openood(suite, near, far):
    assert near_and_far(suite, [*far, *near]) == {'near': near, 'far': far}


def test_names_by_hand_go_before_the_table():
    names = ['textures', 'svhn', 'mine']
    assert near_and_far('cifar10', names, near=['textures', 'mine']) == {'near': ['textures', 'mine'], 'far': ['svhn']}
    assert near_and_far(None, names, far=['mine']) == {'far': ['mine']}
    for wrong in ({'near': ['gone']}, {'near': ['mine'], 'far': ['mine']}):
        with pytest.raises(ValueError, match='near= and far='):
            near_and_far('cifar10', names, **wrong)


def test_no_set_is_near_and_far():
    for near, far in NEAR_FAR.values():
        assert not set(near) & set(far)


def test_means_are_over_sets_not_images():
    def group(value, count):
        return {'n_unknown': count, 'scores': {'mls': dict.fromkeys(RANK_METRICS, value)}}
    means = set_means({'a': group(0.9, 1000), 'b': group(0.5, 10), 'c': group(0.1, 1)}, {'far': ['a', 'b']})
    assert means['far']['scores']['mls']['auroc'] == pytest.approx(0.7)
    assert (means['far']['n_unknown'], means['far']['data_sets']) == (1010, ['a', 'b'])


def right(share, count=1000):
    return np.arange(count) < round(share * count)


@pytest.mark.parametrize(('share', 'reference', 'count', 'passes'), [
    (0.95, 0.95, 1000, True), (0.94, 0.95, 1000, True), (0.938, 0.95, 1000, False), (0.99, 0.5, 1000, True),
    (0.98, 1.0, 50, True), (0.96, 1.0, 50, False)])  # one image of fifty is two points and no proof
def test_one_point_and_more_than_one_image(share, reference, count, passes):
    if passes:
        assert check_accuracy(right(share, count), reference, 'images', 'the paper')['n'] == count
    else:
        with pytest.raises(ValueError, match=r"the paper says .*gate='off'"):
            check_accuracy(right(share, count), reference, 'images', 'the paper')
