"""docs/cost.md and its picture from benchmarks/results: ``python benchmarks/cost_tables.py``."""
from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
DOCS = HERE.parent / 'docs'
COLOURS = {'cutmix (timm, elem)': '#999999', 'random-box': '#bbbbbb', 'gradmix': '#0072b2',
           'gradmix, half scale': '#56b4e9', 'gradmix, two layers': '#009e73',
           'gradmix by hooks and a full backward': '#d55e00'}


def step_table(figures: dict) -> str:
    """One row a model and mixer."""
    lines = ['| model | layer (grid) | mixing | time / unmixed (range) | FLOPs / unmixed | peak MiB |',
             '|---|---|---|---|---|---|']
    for case, found in figures.items():
        for name, step in found['steps'].items():
            low, high = step['ratio_range']
            flops = '(grouped convolutions)' if step['flop_ratio'] is None else f'{step["flop_ratio"]:.3f}'
            grid = 'x'.join(map(str, found['grid']))
            lines.append(f'| {case} x {found["batch"]} | {found["layer"]} ({grid}) | {name} '
                         f'| {step["ratio"]:.2f} ({low:.2f}-{high:.2f}) | {flops} | {step["peak_mib"]:.0f} |')
    return '\n'.join(lines)


def plot(figures: dict, path: Path) -> None:
    """Bars of the time ratio."""
    figure = Figure(figsize=(8, 0.95 * len(figures) + 0.9), layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    height = 0.8 / len(COLOURS)
    for index, found in enumerate(figures.values()):
        for turn, (name, colour) in enumerate(COLOURS.items()):
            if name in found['steps']:
                axis.barh(index - 0.4 + (turn + 0.5) * height, found['steps'][name]['ratio'], height, color=colour,
                          label=name if index == 0 or name not in axis.get_legend_handles_labels()[1] else None)
    axis.axvline(1, color='black', linewidth=0.8)
    axis.set_yticks(range(len(figures)), list(figures), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel('time of a training step / step without mixing (median of interleaved rounds)')
    figure.legend(fontsize=7, loc='outside upper center', ncols=3)
    figure.savefig(path, dpi=110)


def mixing_table(figures: dict) -> str:
    """One row a batch, one column a mixer."""
    names = list(next(iter(figures.values())))
    lines = ['| batch | ' + ' | '.join(names) + ' |', '|---|' + '---|' * len(names)]
    lines += [f'| {case} | ' + ' | '.join(f'{found[n]["ratio"]:.2f}' for n in names) + ' |'
              for case, found in figures.items()]
    return '\n'.join(lines)


def main() -> None:
    parts = ['# What mixing costs\n\nMade by `make bench` and `python benchmarks/cost_tables.py` from '
             '`benchmarks/results/*.json`. Ratios are medians over rounds in which every variant runs once; the '
             'machine is shared and small, so counts (FLOPs, peak bytes of live tensors) say more than times.\n']
    for kind in ('', '_cuda'):
        path = HERE / 'results' / f'step_cost{kind}.json'
        if path.exists():
            page = json.loads(path.read_text())
            machine = ', '.join(f'{k} {v}' for k, v in page['machine'].items() if v)
            picture = f'step_cost{kind}.png'
            plot(page['figures'], DOCS / picture)
            parts += [f'## A training step{" on CUDA" if kind else ""}\n', f'{page["date"]}, {machine}.\n',
                      f'![Step time by model and mixer]({picture})\n', step_table(page['figures']) + '\n',
                      '"by hooks and a full backward" is what one would write by hand: hooks on the same layer, '
                      'cross-entropy, `backward()` into every parameter, gradients thrown away. On small images the '
                      'rule for layers (a grid side of at least 7) chooses an earlier layer, behind which more of the '
                      'forward lies, so the pass costs more.\n']
    path = HERE / 'results' / 'mixing.json'
    if path.exists():
        parts += ['## Boxes, pastes and targets alone\n',
                  "Time relative to torchvision's CutMix, which cuts one box for the whole batch.\n",
                  mixing_table(json.loads(path.read_text())['figures']) + '\n']
    (DOCS / 'cost.md').write_text('\n'.join(parts))


if __name__ == '__main__':
    main()
