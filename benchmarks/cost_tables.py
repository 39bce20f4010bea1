"""docs/results/cost.md and its picture from benchmarks/results: ``python benchmarks/cost_tables.py``."""
from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
# The day of the commit since which a model is borrowed in one walk over its modules.
_LIGHTER = '2026-11-27'
DOCS = HERE.parent / 'docs' / 'results'
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


def flops_table(rows: list[dict]) -> str:
    """One row a count."""
    lines = ['| model | px | fill | layer | p | FLOPs / unmixed | bound | |', '|---|---|---|---|---|---|---|---|']
    lines += [f'| {row["model"]} | {row["side"]} | {row["fill"]} | {row["layer"]} | {row["p"]:.3f} '
              f'| {row["ratio"]:.3f} | {row["bound"]:.3f} | {"met" if row["ratio"] <= row["bound"] else "missed"} |'
              for row in rows]
    return '\n'.join(lines)


def mixing_table(figures: dict) -> str:
    """One row a batch, one column a mixer."""
    names = list(next(iter(figures.values())))
    lines = ['| batch | ' + ' | '.join(names) + ' |', '|---|' + '---|' * len(names)]
    lines += [f'| {case} | ' + ' | '.join(f'{found[n]["ratio"]:.2f}' for n in names) + ' |'
              for case, found in figures.items()]
    return '\n'.join(lines)


def mixer_table(figures: dict) -> str:
    """One row a mixer, two columns a model."""
    names = list(dict.fromkeys(name for found in figures.values() for name in found['steps']))
    lines = ['| mixer | ' + ' | '.join(f'{case} x {found["batch"]}: FLOPs / unmixed | time / unmixed (range)'
                                       for case, found in figures.items()) + ' |', '|---|' + '---|---|' * len(figures)]
    for name in names:
        cells = []
        for found in figures.values():
            step = found['steps'].get(name)
            cells += ['-', '-'] if step is None else [
                f'{step["flop_ratio"]:.3f}', '{:.2f} ({:.2f}-{:.2f})'.format(step['ratio'], *step['ratio_range'])]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def half_table(pages: dict) -> str:
    """One row a set of images and way to place the box."""
    lines = ['| images | box from | layer | mean IoU with the exact box | share above 0.5 | fall of log-odds |',
             '|---|---|---|---|---|---|']
    for name, page in pages.items():
        exact = f'{page["fall of log-odds"]:.2f}'
        lines.append(f'| {name}, {page["images"]} | the image | {page["layer"]} | 1 | 1 | {exact} |')
        for key, found in page.items():
            if isinstance(found, dict):
                lines.append(f'| | {key} | {found.get("layer", "")} | {found["mean_iou"]:.2f} '
                             f'| {found["share_above_half"]:.2f} | {found["fall of log-odds"]:.2f} |')
    return '\n'.join(lines)


def stale_table(page: dict) -> str:
    """One row an epoch, clean and mixed side by side."""
    clean, mixed = page['clean batches'], page['batches mixed by the kept maps']
    keys = ('iou', 'iou_of_a_random_box', 'iou_of_another_view')
    lines = ['| epoch | clean: kept map | random box | another view, same weights | mixed by kept maps: kept map '
             '| random box | another view, same weights |', '|---|' + '---|' * 6]
    lines += [f'| {a["epoch"]} | ' + ' | '.join(f'{row[key]:.2f}' for row in (a, b) for key in keys) + ' |'
              for a, b in zip(clean, mixed, strict=True)]
    return '\n'.join(lines)


def start_table(page: dict) -> str:
    """One row a stage of a run's start."""
    stages = {**page['stages'], 'all': {'seconds': page['seconds'],
                                        'modules': sum(part['modules'] for part in page['stages'].values())}}
    return '\n'.join(['| stage | seconds of the processor | modules imported |', '|---|---|---|',
                      *(f'| {name} | {part["seconds"]:.2f} | {part["modules"]:,} |' for name, part in stages.items())])


def _of_cuda(date: str) -> list[str]:
    """What the table of the CUDA machine says, and what has changed since that day."""
    said = ['In bfloat16 by autocast, timed by events. ResNet-50 keeps this GPU busy, and GradMix costs what its FLOPs '
            'say. The other two wait for Python to launch kernels, whatever the batch: there a pass costs its '
            "launches, a smaller copy of the images saves nothing, and a mixer that loops over images (timm's `elem`) "
            'costs most.\n']
    if date < _LIGHTER:
        said += ['Since then the attribution pass borrows the model in a third of the time (a ResNet-18 0.6 for 1.6 ms '
                 'of a processor, an EfficientNet-B0 1.8 for 5.6): where launches decide, the rows of `gradmix` are '
                 'upper bounds.\n']
    return said


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
                      '"by hooks and a full backward" is the straightforward implementation: hooks on the same layer, '
                      'cross-entropy, `backward()` into every parameter, gradients thrown away. On small images the '
                      'rule for layers (a grid side of at least 7) chooses an earlier layer, behind which more of the '
                      'forward lies, so the pass costs more.\n']
            if kind:
                parts += _of_cuda(page['date'])
    path = HERE / 'results' / 'mixer_cost.json'
    if path.exists():
        page = json.loads(path.read_text())
        parts += ['## Every mixer\n', f'By `benchmarks/test_mixer_cost.py`, {page["date"]}, CPU time of one thread '
                  'beside other work: the counts of a step (forward and backward of the model, products of the mixer, '
                  'not its FFTs and copies) say more than its times. A dash: the model is refused by name.\n',
                  mixer_table(page['figures']) + '\n']
    path = HERE / 'results' / 'step_flops.json'
    if path.exists():
        parts += ['## FLOPs of a step against their bound\n',
                  'By `python benchmarks/step_flops.py`: counts, not times, on models without grouped convolutions. '
                  'The bound is (4 + 1.15 p) / 3 of the unmixed step and 1.5%, p the share of the forward behind the '
                  'layer. Where attention is much of a small net, each of its products takes two in the backward; the '
                  'resize of `donor-resized` counts as products.\n',
                  flops_table(json.loads(path.read_text())['figures']) + '\n']
    path = HERE / 'results' / 'mixing.json'
    if path.exists():
        parts += ['## Boxes, pastes and targets alone\n',
                  "Time relative to torchvision's CutMix, which cuts one box for the whole batch and holds a second "
                  'copy of it. On large batches the ratios depend on whether new memory has to be touched, as '
                  'copying then takes most of the time; on small ones the draw of a box, a size and a partner for '
                  'each image shows. A select by exclusive or, `lerp` with the mask and a loop over slices were tried '
                  'and dropped: no faster over the three sizes, or not bit-exact.\n',
                  mixing_table(json.loads(path.read_text())['figures']) + '\n']
    path = HERE / 'results' / 'start.json'
    if path.exists():
        parts += ['## Before the first step\n',
                  'What `gradmix-train -c quickstart --cache-images` does before its first step, by '
                  '`python benchmarks/start.py`: the median over fresh processes. The aim was 5 seconds. Nearly all is '
                  'the import of PyTorch, torchvision and timm; `torch._dynamo` cannot be put off, since every '
                  "optimizer of PyTorch imports it as it is made. The package's own modules and the set-up "
                  '(data set, model, checks of the flags) are the last two rows.\n',
                  start_table(json.loads(path.read_text())) + '\n']
    path = HERE / 'results' / 'half_scale.json'
    if path.exists():
        pages = json.loads(path.read_text())
        parts += ['## What a smaller copy loses\n',
                  '`--gradmix-attr-scale 0.5` makes the attribution on a copy of half the side. Same draws as the '
                  f'exact boxes; {next(iter(pages.values()))["model"]} trained at 32 px without mixing; by '
                  '`benchmarks/half_scale.py`. Areas are those of uniform lam, so that boxes are large and random ones '
                  'overlap too. The fall of log-odds is what the box is for: it says whether the smaller copy still '
                  'names evidence.\n', half_table(pages) + '\n',
                  'At 32 and 64 px the copy is so small that its boxes hide less than random ones: leave the scale at '
                  '1 there. At 128 px half the scale keeps most of what the exact box hides.\n']
    path = HERE / 'results' / 'stale_maps.json'
    if path.exists():
        page = json.loads(path.read_text())
        parts += ['## Maps for free, tried and left out\n',
                  "The training step's own backward passes the target layer, so that its gradient can be kept for each "
                  'image and place the box of the next epoch. `benchmarks/stale_maps.py` tries it on digits with known '
                  f'shifts: the tap costs {page["cost"]["flop_ratio"]:.2f} of the plain step in FLOPs and '
                  f'{page["cost"]["time_ratio"]:.2f} in time. Overlap (IoU) of the box with the exact one:\n',
                  stale_table(page) + '\n',
                  'An epoch later the box is nearer to a random one than to what another view of the image gives by '
                  'the same weights, most of all where the net trains on the mixed batches that it is for (their maps '
                  'belong to two images). It would make GradMix a random box with a cache and a crop to keep track '
                  'of, so it is not in the library.\n']
    (DOCS / 'cost.md').write_text('\n'.join(parts))


if __name__ == '__main__':
    main()
