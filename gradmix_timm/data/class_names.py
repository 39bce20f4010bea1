"""Match class names of a protocol with those of a data set, which may be spelled differently."""
from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from gradmix_timm.registry import nearest

__all__ = ['find_classes', 'name_hint', 'shared_classes']

_SYNONYMS = {'plane': 'airplane', 'aeroplane': 'airplane', 'car': 'automobile', 'auto': 'automobile'}


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


def name_hint(name: str, known: Sequence[str]) -> str:
    """Hint for an error message: the nearest names, or the first ones."""
    if len(known) <= 30:
        return nearest(name, known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f'did you mean {" or ".join(map(repr, close))}?' if close else f'the first are {", ".join(known[:5])}'


def _key(name: str) -> str:
    name = re.sub(r'^(\d) - \w+$', r'\1', name.strip())
    name = re.sub(r'^\d{3,4}[ ._]+(?=[A-Za-z])', '', name)
    # Marks (category M) are vowels and tones in many scripts, no punctuation; macOS writes accents as marks.
    plain = ''.join(letter if letter.isalnum() or unicodedata.category(letter)[0] == 'M' else ' '
                    for letter in unicodedata.normalize('NFC', name.casefold()))
    plain = '_'.join(plain.split()) or name  # a sign alone is its own name
    return _SYNONYMS.get(plain, plain)
