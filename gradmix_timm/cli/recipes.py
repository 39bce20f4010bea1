"""Recipes: the YAML files of ``configs/``, by name from wherever the package is installed."""
from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any

from gradmix_timm.registry import nearest

__all__ = ['ListRecipes', 'find_recipe', 'list_recipes', 'recipe_folder']

# Files for --aug-config, of which --list-recipes says nothing.
_PIPELINES = 'aug'


def recipe_folder() -> Path:
    """The folder with the recipes: an installed package has it inside, a clone beside."""
    inside, beside = (Path(__file__).parents[level] / 'configs' for level in (1, 2))
    return inside if inside.is_dir() else beside


def list_recipes(pipelines: bool = False) -> dict[str, str]:
    """Recipe to the first sentence of its header.

    Args:
        pipelines: Those for --aug-config in place of those for --config.
    """
    found = {}
    for path in sorted(recipe_folder().rglob('*.yaml')):
        name = path.relative_to(recipe_folder()).with_suffix('').as_posix()
        if name.startswith(f'{_PIPELINES}/') == pipelines:
            head = ' '.join(line[1:].strip() or '\n' for line in path.read_text(encoding='utf-8').splitlines()
                            if line.startswith('#'))
            found[name] = re.split(r'\.(?:\s|$)|\n', head, maxsplit=1)[0]
    return found


def find_recipe(name: str, flag: str = '--config') -> str:
    """The path of a file, or of the recipe of that name: ``finetune``, ``osr/cifar10``, also ``configs/finetune.yaml``.

    Args:
        name: As typed; a file of that name comes first, a folder does not.
        flag: ``--config`` or ``--aug-config``.

    Raises:
        ValueError: Neither a file nor a recipe; the message names the nearest.
    """
    if Path(name).exists() and not Path(name).is_dir():
        return name
    recipes = list_recipes(pipelines=flag == '--aug-config')
    short = Path(name).as_posix().removeprefix('configs/').removesuffix('.yaml')
    if short not in recipes:
        if Path(name).exists():
            return name  # a folder, which its reader refuses
        raise ValueError(f'{flag} {name}: no such file, and no recipe of that name: {nearest(short, recipes)}')
    return str(recipe_folder() / f'{short}.yaml')


class ListRecipes(argparse.Action):
    """``--list-recipes``: print the names with a line each, and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:  # noqa: D102
        for name, line in list_recipes().items():
            print(name)
            print(textwrap.fill(line, 80, break_on_hyphens=False, initial_indent='    ', subsequent_indent='    '))
        print(f'\n{parser.prog} -c NAME --data-dir DIR ...; the head of each file in\n{recipe_folder()}\n'
              'has its command, its controls, what was published, and the hardware it takes.')
        parser.exit()
