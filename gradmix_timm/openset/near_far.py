"""Near and far data sets of unknowns for given knowns, and means over the sets of each kind."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gradmix_timm.openset.results import Group, Mean

from .metrics.summary import RANK_METRICS

__all__ = ['NEAR_FAR', 'near_and_far', 'set_means', 'suite_of']

_SMALL_FAR = ('mnist', 'svhn', 'dtd', 'places365')
#: Of OpenOOD v1.5: knowns to (near, far), in our names.
NEAR_FAR: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'cifar10': (('cifar100', 'tinyimagenet'), _SMALL_FAR),
    'cifar100': (('cifar10', 'tinyimagenet'), _SMALL_FAR),
    'imagenet': (('ssb_hard', 'ninco'), ('inaturalist', 'dtd', 'openimage_o')),
}
# What the same sets are called elsewhere, without case and punctuation.
_ALIASES = {'textures': 'dtd', 'texture': 'dtd', 'tin': 'tinyimagenet', 'tinyimagenet200': 'tinyimagenet',
            'places': 'places365', 'inat': 'inaturalist', 'ssbhard': 'ssb_hard', 'openimageo': 'openimage_o',
            'imagenet1k': 'imagenet', 'imagenet200': 'imagenet', 'ilsvrc2012': 'imagenet', 'ilsvrc': 'imagenet'}
_CIFAR10 = frozenset(('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'))


def suite_of(dataset: str, known_classes: Sequence[str]) -> str | None:
    """Entry of ``NEAR_FAR`` that the knowns belong to; None if the names do not determine it.

    Args:
        dataset: timm's name of the known data set ('torch/cifar10'), or a folder's.
        known_classes: Names; CIFAR-10's ten are recognised without ``dataset``.

    Example:
        >>> suite_of('torch/cifar100', ['apple']), suite_of('', ['ant', 'bee'])
        ('cifar100', None)
    """
    if frozenset(known_classes) == _CIFAR10:
        return 'cifar10'
    name = _plain(dataset.rstrip('/').rpartition('/')[2])
    return name if name in NEAR_FAR else None


def near_and_far(suite: str | None, names: Sequence[str], near: Sequence[str] = (),
                 far: Sequence[str] = ()) -> dict[str, list[str]]:
    """Data sets of unknowns by kind.

    Args:
        suite: Of :func:`suite_of`.
        names: Of the data sets.
        near: Names given as near; they take precedence over the table.
        far: The same.

    Returns:
        'near' and 'far' to the names among ``names``; a kind without any is left out.

    Raises:
        ValueError: A given name is not a data set, or is on both sides.
    """
    for name in (*near, *far):
        if name not in names or (name in near and name in far):
            raise ValueError('near= and far= name each of the unknown sets once at most; they are '
                             f'{", ".join(names)}, got {name!r}')
    table = NEAR_FAR.get(suite or '', ((), ()))
    found = {kind: [name for name in names if name in hand or (_plain(name) in listed and name not in (*near, *far))]
             for kind, hand, listed in (('near', near, table[0]), ('far', far, table[1]))}
    return {kind: sets for kind, sets in found.items() if sets}


def set_means(groups: Mapping[str, Group], kinds: Mapping[str, Sequence[str]]) -> dict[str, Mean]:
    """Plain mean over data sets of each metric and score, as benchmarks report near and far.

    Args:
        groups: Of results.json, one a data set.
        kinds: Of :func:`near_and_far`.

    Returns:
        Kind to 'data_sets' and 'scores' (name to metric to mean).
    """
    means: dict[str, Mean] = {}
    for kind, names in kinds.items():
        parts = [groups[name]['scores'] for name in names]
        means[kind] = {'data_sets': list(names), 'n_unknown': sum(groups[name]['n_unknown'] for name in names),
                       'scores': {score: {metric: sum(part[score][metric] for part in parts) / len(parts)
                                          for metric in RANK_METRICS} for score in parts[0]}}
    return means


def _plain(name: str) -> str:
    plain = re.sub(r'[\W_]+', '', name.casefold())
    return _ALIASES.get(plain, plain)
