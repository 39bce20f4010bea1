"""The table of docs/results/attribution.md from the files beside it: ``python benchmarks/attribution_tables.py``."""
from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / 'docs' / 'results'
START, END = '<!-- deletion table -->', '<!-- end of deletion table -->'
# Net -> (file, which has a twin with shift; places). Its first place is what the library does by default.
NETS = {
    'resnet10t trained without mixing': ('deletion-resnet-unmixed', (
        'layercam evidence default window', 'layercam evidence default argmax', 'layercam evidence -2 window',
        'layercam evidence -2,-1 window', 'gradcam evidence -2 window', 'layercam loss default window',
        'input-gradient evidence default window')),
    'resnet10t trained with GradMix': ('deletion-resnet', (
        'layercam evidence default window', 'layercam evidence -2 window', 'layercam evidence -2,-1 window',
        'layercam loss default window')),
    'ViT (4 blocks, patch 4) trained without mixing': ('deletion-vit-unmixed', (
        'layercam evidence default window', 'layercam evidence blocks.2 window', 'layercam loss default window',
        'input-gradient evidence default window', 'layercam evidence blocks.2.norm1 window',
        'layercam evidence blocks.1.norm1 window', 'hirescam evidence blocks.1.norm1 window')),
    'ViT (6 blocks, patch 4) trained without mixing': ('deletion-vit6-unmixed', (
        'layercam evidence default window', 'layercam evidence blocks.4 window', 'layercam loss default window',
        'input-gradient evidence default window', 'layercam evidence blocks.4.norm1 window',
        'layercam evidence blocks.3.norm1 window', 'layercam evidence blocks.2.norm1 window')),
    'ViT (6 blocks, patch 4, average pooling behind the norm) trained without mixing': ('deletion-vitavg-unmixed', (
        'layercam evidence default window', 'layercam evidence blocks.5 window', 'layercam loss default window',
        'input-gradient evidence default window', 'layercam evidence blocks.5.norm1 window',
        'layercam evidence blocks.3.norm1 window', 'layercam evidence blocks.2.norm1 window')),
    'Swin (2 stages, patch 2) trained without mixing': ('deletion-swin-unmixed', (
        'layercam evidence default window', 'layercam evidence layers.1 window', 'layercam loss default window',
        'input-gradient evidence default window', 'layercam evidence layers.1.blocks.3.norm1 window',
        'layercam evidence layers.1.blocks.2.norm1 window')),
    'ConvNeXt (8x8 first stage) trained without mixing': ('deletion-convnext-unmixed', (
        'layercam evidence default window', 'layercam evidence stages.0 window', 'layercam loss default window',
        'input-gradient evidence default window', 'layercam evidence stages.1 window')),
}


def page(name: str, shifted: bool) -> dict:
    """What the deletion test wrote: accuracy, and place -> side -> mean fall of the log-odds."""
    return json.loads((DOCS / f'{name}{"-shifted" if shifted else ""}.json').read_text())


def share(falls: dict, place: str, side: str) -> str:
    """What the place hides in percent of the centre, with its own standard error."""
    percent = 100 / falls['center'][side]
    return f'{percent * falls[place][side]:.0f} ± {percent * falls[place][f"{side}_se"]:.0f}%'


def block() -> str:
    """The table between its markers: percent of what a box in the middle hides."""
    sides = ('8', '14', '20')
    lines = [START, '', '| net | place | centred, 8 px | 14 px | 20 px | shifted, 8 px | 14 px | 20 px |',
             '|---|---|---|---|---|---|---|---|']
    for net, (name, places) in NETS.items():
        found = [page(name, shifted)['fall_of_log_odds'] for shifted in (False, True)]
        middles = [falls['center'] for falls in found]
        own = [f'{middle[side]:.2f} ± {middle[f"{side}_se"]:.2f}' for middle in middles for side in sides]
        accuracy = page(name, shifted=False)['accuracy']
        lines.append(f'| {net}, accuracy {accuracy:.2f} | *center box: fall of log-odds* | ' + ' | '.join(own) + ' |')
        for place in ('random', *places):
            shares = [share(falls, place, side) for falls in found for side in sides]
            lines.append(f'| | {place} | ' + ' | '.join(shares) + ' |')
    return '\n'.join([*lines, '', END])


def main() -> None:
    path = DOCS / 'attribution.md'
    path.write_text(re.sub(f'{START}.*?{END}', lambda match: block(), path.read_text(), flags=re.DOTALL))


if __name__ == '__main__':
    main()
