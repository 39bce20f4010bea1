"""Match class names of a protocol with those of a data set, which may be spelled differently."""
from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from gradmix_timm.registry import nearest

__all__ = ['find_classes', 'found_classes', 'name_hint', 'shared_classes']

_logger = logging.getLogger(__name__)

_SYNONYMS = {'plane': 'airplane', 'aeroplane': 'airplane', 'car': 'automobile', 'auto': 'automobile'}
# Alike this much, and apart by two letters at most, are a name and its misspelling; cat and bat are less alike.
_ALIKE = 0.85


def find_classes(names: Sequence[str], all_classes: Sequence[str]) -> tuple[int, ...]:
    """Position of each name in the class names of a data set.

    A name is matched as written; failing that, without case and punctuation, accents composed or not, without the
    number that folders put before a name ('001.Black_footed_Albatross'), without torchvision's spelling of MNIST
    ('0 - zero'), and with 'plane' and 'car' for CIFAR-10's two long names.

    Raises:
        ValueError: A name is missing; the message gives the nearest.

    Example:
        >>> find_classes(['automobile', 'Maple Tree'], ['maple_tree', 'car'])
        (1, 0)
    """
    exact = {name: place for place, name in enumerate(all_classes)}
    keys = [_key(name) for name in all_classes]
    times = Counter(keys)
    loose = {key: place for place, key in enumerate(keys) if times[key] == 1}
    found = []
    for name in names:
        place = exact.get(name, loose.get(_key(name)))
        if place is None:
            quoted = '; a name with a comma goes in double quotes' if any(',' in one for one in all_classes) else ''
            raise ValueError(f'no class {name!r} among the {len(all_classes)} of the data set: '
                             f'{name_hint(name, all_classes)}{quoted}')
        found.append(place)
    return tuple(found)


def shared_classes(names: Sequence[str], others: Sequence[str]) -> dict[int, str]:
    """Positions in ``names`` of classes that ``others`` has too, spelled as :func:`find_classes` allows.

    Returns:
        Position to the other's spelling.

    Example:
        >>> shared_classes(['car', 'monkey', 'truck'], ['automobile', 'truck'])
        {0: 'automobile', 2: 'truck'}
    """
    theirs = {_key(name): name for name in others}
    return {place: theirs[_key(name)] for place, name in enumerate(names) if _key(name) in theirs}


def found_classes(known: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """Positions in ``known`` of the classes that a data set has; a warning says how many it lacks.

    Args:
        known: Names in head order.
        names: Of the data set's classes.
        where: What the data set is, for messages.

    Raises:
        ValueError: It has none of them, or lacks one and has a name that differs from it by little more than a letter.
    """
    there = sorted(shared := shared_classes(known, names))
    if not there:
        raise ValueError(f'{where}: none of its classes ({", ".join(names[:5])}, ...) is known to the model '
                         f'({", ".join(known[:5])}, ...)')
    strays = sorted(set(names) - set(shared.values()))
    for name in (name for place, name in enumerate(known) if place not in shared):
        if close := _misspelt(name, strays):
            raise ValueError(f'{where} has no class {name!r}, which the model knows: did you mean {close!r}? Correct '
                             'known_classes=A,B,..., or rename the folder; if that is another class, take its folder '
                             'out')
    if len(there) < len(known):
        _logger.warning(f'{where} has {len(there)} of the {len(known)} known classes')
    return there


def name_hint(name: str, known: Sequence[str]) -> str:
    """Hint for an error message: the nearest names, or the first ones."""
    if len(known) <= 30:
        return nearest(name, known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f'did you mean {" or ".join(map(repr, close))}?' if close else f'the first are {", ".join(known[:5])}'


def _misspelt(name: str, others: Sequence[str]) -> str:
    """The name that was meant by one with a letter too few, too many or in the wrong place; '' if there is none."""
    apart = [other for other in others if _bare(other) != _bare(name)]  # numbered names are all alike
    close = difflib.get_close_matches(name, apart, n=1, cutoff=_ALIKE)
    match = difflib.SequenceMatcher(None, name, close[0] if close else '')
    return close[0] if close and (1 - match.ratio()) * len(name + close[0]) < 2.5 else ''


@lru_cache(2 ** 16)
def _bare(name: str) -> str:
    return re.sub(r'\d', '', name)


def _key(name: str) -> str:
    name = re.sub(r'^(\d) - \w+$', r'\1', name.strip())
    name = re.sub(r'^\d{3,4}[ ._]+(?=[A-Za-z])', '', name)
    # Marks (category M) are vowels and tones in many scripts, no punctuation; macOS writes accents as marks.
    plain = ''.join(letter if letter.isalnum() or unicodedata.category(letter)[0] == 'M' else ' '
                    for letter in unicodedata.normalize('NFC', name.casefold()))
    plain = '_'.join(plain.split()) or name  # a sign alone is its own name
    return _SYNONYMS.get(plain, plain)
