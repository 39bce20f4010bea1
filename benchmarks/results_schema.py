"""docs/results-schema.md from the types of gradmix_timm.openset.results: ``python benchmarks/results_schema.py``."""
from __future__ import annotations

import inspect
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

from gradmix_timm.openset.results import base, corrupt_and_probe, files, open_set, shortcut
from gradmix_timm.schema import Range

HEAD = """# Files of an evaluation

Made by `python benchmarks/results_schema.py` from the types in `gradmix_timm/openset/results/`, which every file is
checked against when `report` and `compare` read it. Keys that are marked *optional* may be missing, and readers should
let keys pass that they do not know. Shares and metrics are fractions from 0 to 1; intervals are `[low, high]`.

- `results.json`: of `osr` and `ood` [OpenSetResults](#opensetresults), of `corrupt`
  [CorruptionResults](#corruptionresults), of `probe` [ProbeResults](#proberesults), of
  `shortcut` [ShortcutResults](#shortcutresults).
- `arrays.npz`: one row per image. `known/SCORE`, `unknown/SCORE` (knownness, float64), `correct/SCORE` (bool),
  `known_label`, `known_pred`, `known_index`, and the same of `unknown`; `confusion` (answer, the last one rejected, by
  true class); `bin_confidence`, `bin_accuracy`, `bin_share`; `plane/known`, `plane/PCA`, `plane/t-SNE`. Of `corrupt`:
  `right/CORRUPTION/SEVERITY` (bool).
- `predictions.csv`: file, label, known, predicted, probability, one column per score.
- `mistakes.json`: [Mistakes](#mistakes), the thumbnails of the report.
- `results.csv`, `results.md`, `results.tex`: the tables of results.json.
- `figures/*.png`, `report.html`: drawn from the files above; `openset report` draws them again.
- `mixes.png`, `mixes.json` ([Mixes](#mixes)): of the training run, copied from its folder.
"""
SECTIONS = {
    'Of every command': (base.RunResults, base.Results, base.ClosedSet, base.ScoreFigures, base.Manifest),
    'Of osr and ood': (open_set.OpenSetResults,),
    'Of corrupt and probe': (corrupt_and_probe.CorruptionResults, corrupt_and_probe.ProbeResults),
    'Of shortcut': (shortcut.ShortcutResults,),
    'Beside results.json': (files.Mistakes, files.Mistake, files.ClosePair, files.Mixes, files.Mix)}
# Aliases that a reader knows by name.
NAMES = {base.Share: 'share', base.Count: 'whole number', base.Size: 'whole number, 1 or more',
         base.Interval: '[share, share]'}


def type_text(kind: Any) -> str:
    """A type in words; those of the page as links."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in NAMES:
        return NAMES[kind]
    if origin is Annotated:
        ranges = [part for part in inner[1:] if isinstance(part, Range)]
        ends = ''.join(f', {round(part.low, 3):g} to {round(part.high, 3):g}' for part in ranges)
        return type_text(inner[0]) + ends
    if origin is typing.NotRequired:
        return type_text(inner[0])
    if origin is typing.Literal:
        return ', '.join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(map(type_text, inner))
    if origin is list:
        return f'list of {type_text(inner[0])}'
    if origin is tuple:
        return f'[{", ".join(map(type_text, inner))}]'
    if origin is dict:
        return f'mapping to {type_text(inner[1])}'
    if typing.is_typeddict(kind):
        return f'[{kind.__name__}](#{kind.__name__.lower()})'
    return {float: 'number', int: 'whole number', str: 'text', bool: 'true or false', type(None): 'null',
            Any: 'anything'}[kind]


def keys_of(kind: Any) -> dict[str, tuple[Any, bool, str]]:
    """Own keys, to type, whether they are optional, and what they are."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {key: (hints[key], key in kind.__optional_keys__, text) for key, text in descriptions(kind).items()}


def bases_of(kind: Any) -> list[Any]:
    """The types whose keys this one has besides those it describes itself, the largest first."""
    whole = set(typing.get_type_hints(kind))
    left, found = whole - set(descriptions(kind)), []
    kinds = {value for module in (base, corrupt_and_probe, open_set, files) for name, value in vars(module).items()
             if typing.is_typeddict(value) and not name.startswith('_')}
    for other in sorted(kinds, key=lambda other: (-len(typing.get_type_hints(other)), other.__name__)):
        keys = set(typing.get_type_hints(other))
        if keys & left and keys < whole and not keys & set(descriptions(kind)):
            found.append(other)
            left -= keys
    return found


def descriptions(kind: Any) -> dict[str, str]:
    """Key to words, from the section ``Attributes`` of the docstring."""
    text = inspect.cleandoc(kind.__doc__).partition('Attributes:\n')[2]
    return {key: ' '.join(words.split()) for key, words in re.findall(
        r'^    (\w+): (.+?)(?=^    \w+: |\Z)', text, re.MULTILINE | re.DOTALL)}


def nested(kinds: tuple[Any, ...]) -> list[Any]:
    """The types, each followed by those of its values that are not among them."""
    found: list[Any] = []

    def visit(kind: Any) -> None:
        if typing.is_typeddict(kind):
            if kind not in found:
                found.append(kind)
                for base in bases_of(kind):
                    visit(base)
                for hint in typing.get_type_hints(kind, include_extras=True).values():
                    visit(hint)
        else:
            for part in typing.get_args(kind):
                visit(part)

    for kind in kinds:
        visit(kind)
    return found


def page() -> str:
    """docs/results-schema.md."""
    parts, shown = [HEAD], set()
    for title, kinds in SECTIONS.items():
        parts.append(f'## {title}\n')
        for kind in nested(kinds):
            if kind not in shown:
                shown.add(kind)
                parts.append(section(kind))
    return '\n'.join(parts).replace('``', '`')


def section(kind: Any) -> str:
    """One type as a table."""
    summary = inspect.cleandoc(kind.__doc__).partition('\n')[0]
    links = ' and '.join(f'[{base.__name__}](#{base.__name__.lower()})' for base in bases_of(kind))
    own = f' All keys of {links}{", and:" if descriptions(kind) else "."}' if links else ''
    rows = [f'| `{key}` | {type_text(hint)}{", *optional*" if optional else ""} | {words} |'
            for key, (hint, optional, words) in keys_of(kind).items()]
    table = ['| key | type | meaning |', '|---|---|---|', *rows, ''] if rows else []
    return '\n'.join([f'### {kind.__name__}', '', f'{summary}{own}', '', *table])


if __name__ == '__main__':
    (Path(__file__).parents[1] / 'docs' / 'results-schema.md').write_text(page())
