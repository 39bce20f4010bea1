"""Open-set protocols: known and unknown classes of each trial of each family.

The lists under ``splits/`` are those of the papers, by index, with their sources; this module uses class names.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from gradmix_timm.registry import nearest
from gradmix_timm.schema import naming, read_yaml, shown

from .class_names import find_classes

__all__ = [
    'ClassSplit', 'check_split', 'class_names_of', 'custom_split', 'duplicates', 'list_families', 'list_protocols',
    'load_split', 'n_distinct', 'n_trials']

# Longest name of a class in a file; folders and files have at most 255 characters.
_NAME_LENGTH = 255
_KEYS = ('known', 'unknown', 'groups', 'name')
_FAMILIES = ('arpl2020', 'neal2018_cac', 'dias_auroc', 'dias_f1', 'gradmix_authors', 'ssb', 'ssb_2021')


@dataclass(frozen=True, slots=True)
class _Protocol:
    summary: str
    lists: str  # name of its lists in a family's file
    dataset: str  # whose class names the known lists index
    unknown_dataset: str | None = None  # if the unknowns are of another data set


_PROTOCOLS = {
    'digits': _Protocol("scikit-learn's 8x8 digits with MNIST's class lists: 6 known, 4 unknown", 'mnist', 'digits'),
    'mnist': _Protocol('MNIST: 6 known, 4 unknown', 'mnist', 'digits'),
    'svhn': _Protocol('SVHN: 6 known, 4 unknown', 'svhn', 'digits'),
    'cifar10': _Protocol('CIFAR-10: 6 known, 4 unknown', 'cifar10', 'cifar10'),
    'cifar+10': _Protocol('4 known of CIFAR-10, 10 unknown of CIFAR-100', 'cifar+10', 'cifar10', 'cifar100'),
    'cifar+50': _Protocol('4 known of CIFAR-10, 50 unknown of CIFAR-100', 'cifar+50', 'cifar10', 'cifar100'),
    'tinyimagenet': _Protocol('TinyImageNet: 20 known, 180 unknown (the official val part is the test)',
                              'tinyimagenet', 'tinyimagenet'),
    'cub': _Protocol('CUB-200-2011: 100 known, unknowns easy, medium, hard (SSB)', 'cub', 'cub'),
    'aircraft': _Protocol('FGVC-Aircraft: 50 known, unknowns easy, medium, hard (SSB)', 'aircraft', 'aircraft'),
    'cars': _Protocol('Stanford Cars: 98 known, unknowns easy, medium, hard (SSB)', 'cars', 'cars'),
    'imagenet': _Protocol('ImageNet-1k known, unknowns easy and hard of ImageNet-21K-P (SSB), folders by WordNet id',
                          'imagenet', 'imagenet', 'imagenet21k'),
}


@dataclass(frozen=True, slots=True)
class ClassSplit:
    """Known and unknown classes of one trial, by name.

    Attributes:
        known: In head order: position = index of the logit.
        unknown: Empty only in a file's split that means all others, until :func:`check_split` fills it.
        protocol: Name, or None for a user's list.
        family: Whose trials, or None.
        trial: Number, from 0, or None.
        groups: Parts of ``unknown`` that are reported apart ('easy', 'medium', 'hard', and as papers report it
            'hard+medium').
        dataset: Data set whose classes these are, or None.
        unknown_dataset: Data set of the unknowns where it is another, else None.
    """

    known: tuple[str, ...]
    unknown: tuple[str, ...]
    protocol: str | None = None
    family: str | None = None
    trial: int | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dataset: str | None = None
    unknown_dataset: str | None = None

    def __post_init__(self) -> None:
        if len(self.known) < 2:
            raise ValueError(f'a classifier needs two known classes or more, got {shown(self.known)}')
        for kind in ('known', 'unknown'):
            names = getattr(self, kind)
            twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
            if twice is not None:
                raise ValueError(f'class {shown(twice)} is twice among the {kind} classes; name each once')
        both = [name for name in self.known if name in self.unknown]
        if both and not self.unknown_dataset:
            raise ValueError(f'class {shown(both[0])} is known and unknown; name it on one side')
        for group, names in self.groups.items():
            if group == 'all':
                raise ValueError("a group called 'all': results call all unknown images so; give it another name")
            strays = [name for name in names if self.unknown and name not in self.unknown]
            if strays:
                raise ValueError(f'group {shown(group)} holds {shown(strays[0])}, which is not among the unknown '
                                 f'classes: {nearest(strays[0], self.unknown)}')


def list_protocols() -> dict[str, str]:
    """Names to one line each."""
    return {name: protocol.summary for name, protocol in _PROTOCOLS.items()}


def list_families(protocol: str) -> tuple[str, ...]:
    """Families that have trials of a protocol, the default first.

    Example:
        >>> list_families('cub')
        ('ssb', 'gradmix_authors')
    """
    lists = _protocol(protocol).lists
    found = [family for family in _FAMILIES if lists in _family(family)['trials']]
    return tuple(sorted(found, key=lambda family: family != 'ssb'))


def n_trials(protocol: str, family: str | None = None) -> int:
    """Number of trials of a protocol in a family."""
    return len(_trials(protocol, family)[1])


def duplicates(protocol: str, family: str | None = None) -> tuple[tuple[int, ...], ...]:
    """Groups of trials with the same known and the same unknown classes in another order.

    They measure the seed, not the split: average over a group before averaging over trials.

    Example:
        >>> duplicates('cifar10'), duplicates('mnist')
        (((0, 1),), ())
    """
    groups: dict[tuple[frozenset[int | str], frozenset[int | str]], list[int]] = {}
    for number, trial in enumerate(_trials(protocol, family)[1]):
        groups.setdefault((frozenset(_known(trial)), frozenset(_unknown(trial))), []).append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def n_distinct(protocol: str, family: str | None = None) -> int:
    """Number of trials that differ as class sets.

    Example:
        >>> n_distinct('svhn'), n_distinct('cifar+50', 'neal2018_cac')
        (4, 1)
    """
    return n_trials(protocol, family) - sum(len(group) - 1 for group in duplicates(protocol, family))


def load_split(protocol: str, trial: int = 0, family: str | None = None) -> ClassSplit:
    """Known and unknown classes of one trial.

    Args:
        protocol: A name of :func:`list_protocols`, or the path of a YAML file: ``known`` (names), ``unknown`` (names;
            left out: all others), ``groups`` (name: part of the unknowns), ``name``.
        trial: From 0, in the order of the family's own list.
        family: Of :func:`list_families`; None: 'arpl2020', for cub, aircraft, cars and imagenet 'ssb'. Never compare
            figures of two families.

    Raises:
        ValueError: No such protocol, family or trial; an invalid file.

    Example:
        >>> split = load_split('cifar10', trial=3)
        >>> split.known, split.unknown
        (('ship', 'frog', 'automobile', 'truck', 'airplane', 'horse'), ('bird', 'cat', 'deer', 'dog'))
    """
    if protocol.endswith(('.yaml', '.yml')):
        return _from_file(Path(protocol), trial, family)
    entry = _protocol(protocol)
    family, trials = _trials(protocol, family)
    if not 0 <= trial < len(trials):
        raise ValueError(f'protocol {protocol!r} has trials 0 to {len(trials) - 1} in family {family!r}, got {trial}')
    chosen = trials[trial]

    others = entry.unknown_dataset or entry.dataset

    def named(classes: Sequence[int | str], dataset: str = others) -> tuple[str, ...]:
        return tuple(_class_names()[dataset]['names'][at] if isinstance(at, int) else at for at in classes)

    groups = {group: named(part) for group, part in chosen.get('groups', {}).items()}
    if {'medium', 'hard'} <= set(groups):
        # The published "hard" of SSB is this union (github.com/sgvaze/osr_closed_set_all_you_need, issue 18).
        groups['hard+medium'] = groups['hard'] + groups['medium']
    return ClassSplit(
        known=named(_known(chosen), entry.dataset), unknown=named(_unknown(chosen)), protocol=protocol,
        family=family, trial=trial, groups=groups, dataset=entry.dataset, unknown_dataset=entry.unknown_dataset)


def class_names_of(dataset: str) -> tuple[str, ...]:
    """Names of a data set's classes in the order of its own labels ('cifar10', 'cifar100', 'cub', ...)."""
    return tuple(_class_names()[dataset]['names'])


def custom_split(known: Sequence[str], all_classes: Sequence[str]) -> ClassSplit:
    """The user's own known classes of a data set; all its others are unknown.

    Args:
        known: Names, in head order.
        all_classes: Names of the data set's classes.

    Raises:
        ValueError: A name is missing or repeated, fewer than two are given, or none is left as unknown.
    """
    return check_split(ClassSplit(known=tuple(known), unknown=()), all_classes)


def check_split(split: ClassSplit, all_classes: Sequence[str],
                unknown_classes: Sequence[str] | None = None) -> ClassSplit:
    """The split, checked against a data set, with its unknowns filled in if the split means all others.

    Names stay as the split spells them; :func:`~gradmix_timm.data.select_classes` finds them as this does.

    Args:
        split: The split.
        all_classes: Names of the data set's classes.
        unknown_classes: Names of the other data set's classes, where the unknowns are of another (CIFAR+N). None:
            those unknowns are not looked for.

    Raises:
        ValueError: A class that is not in its data set, with the nearest; no class left as unknown.
    """
    known = set(find_classes(split.known, all_classes))
    if len(known) < len(split.known):
        raise ValueError('two known classes are one class of the data set under two spellings; name each once')
    if split.unknown_dataset:
        if unknown_classes is not None:
            find_classes(split.unknown, unknown_classes)
        return split
    if split.unknown:
        find_classes(split.unknown, all_classes)
        return split
    others = tuple(name for place, name in enumerate(all_classes) if place not in known)
    if not others:
        raise ValueError(f'all {len(all_classes)} classes of the data set are known and none is left as unknown: '
                         'evaluate on other images, gradmix-openset ood --unknown folder:NAME=DIR (in Python '
                         'evaluate(..., unknown=...)), or leave classes out of training, --known-classes A,B,...')
    return replace(split, unknown=others)


def _protocol(name: str) -> _Protocol:
    if name not in _PROTOCOLS:
        raise ValueError(f'no protocol {name!r}: {nearest(name, [*_PROTOCOLS, "FILE.yaml"])}')
    return _PROTOCOLS[name]


def _trials(protocol: str, family: str | None) -> tuple[str, list[dict[str, Any]]]:
    families = list_families(protocol)
    family = families[0] if family is None else family
    if family not in families:
        raise ValueError(f'protocol {protocol!r} has no family {family!r}: {nearest(family, families)}')
    return family, _family(family)['trials'][_protocol(protocol).lists]


def _known(trial: dict[str, Any]) -> list[int | str]:
    """Positions in a data set's list of names, or the names; those of ImageNet's 1000 classes come from timm."""
    known = trial['known']
    return ImageNetInfo(known).label_names() if isinstance(known, str) else known


def _unknown(trial: dict[str, Any]) -> list[int | str]:
    return trial['unknown'] if 'unknown' in trial else [index for part in trial['groups'].values() for index in part]


@cache
def _family(name: str) -> dict[str, Any]:
    return _read(f'{name}.json')


@cache
def _class_names() -> dict[str, Any]:
    return _read('class_names.json')


def _read(file: str) -> dict[str, Any]:
    return json.loads((resources.files(__package__) / 'splits' / file).read_text(encoding='utf-8'))


def _from_file(path: Path, trial: int, family: str | None) -> ClassSplit:
    if trial or family:
        raise ValueError(f'{path} holds one trial of no family; leave out --osr-trial and --osr-family')
    if not path.is_file():
        raise ValueError(f'no protocol file at {path}; protocols of this package: {nearest(path.stem, _PROTOCOLS)}')
    content = read_yaml(path)
    if not isinstance(content, dict) or 'known' not in content:
        raise ValueError(f'{path} should be a mapping with known: [names], and optionally unknown, groups, name; got '
                         f'{"one without known" if isinstance(content, dict) else type(content).__name__}')
    strays = [str(key) for key in content if key not in _KEYS]
    if strays:
        raise ValueError(f'{path}: no key {shown(strays[0])}: {nearest(strays[0], _KEYS)}')
    groups = content.get('groups') or {}
    if not isinstance(groups, dict):
        raise ValueError(f'{path}: groups should be a mapping of names to lists of classes, got {shown(groups)}')
    unknown = _names(content['unknown'], f'{path}: unknown') if 'unknown' in content else ()
    known = _names(content['known'], f'{path}: known')
    parts = {str(group): _names(part, f'{path}: groups: {shown(group)}') for group, part in groups.items()}
    name = content.get('name', path.stem)
    if isinstance(name, bool) or not isinstance(name, str | int) or len(str(name)) > 100:
        raise ValueError(f'{path}: name should be a word, got {shown(name)}')
    with naming(path):
        return ClassSplit(known=known, unknown=unknown, protocol=str(name), groups=parts)


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'{where} should be a list of class names, got {shown(value)}')
    for name in value:
        # YAML reads no, yes, on, off and null as other types; numbers are accepted as names.
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise ValueError(f'{where} holds {shown(name)}, which YAML reads as {type(name).__name__}; write class '
                             'names in quotes')
        if len(str(name)) > _NAME_LENGTH:
            raise ValueError(f'{where} holds a name of {len(str(name)):,} characters, expected at most {_NAME_LENGTH}')
    return tuple(str(name) for name in value)
