"""Tables of README and docs/results/study.md from the JSON of studies: ``python benchmarks/study_figures.py``.

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. The studies are ``benchmarks/studies/*.yaml``;
``gradmix-study benchmarks/studies/NAME.yaml`` runs the cells that are missing.
"""
from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradmix_timm.openset.metrics.intervals import FEWEST_PAIRS, over_trials
from gradmix_timm.study import Cell, Study, read_study

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / 'benchmarks' / 'studies'
PAGES = (ROOT / 'README.md', ROOT / 'docs' / 'results' / 'study.md')
QUICK_SCORES = ('msp', 'mls', 'energy', 'knn', 'mahalanobis')
PLAIN_SCORES = ('msp', 'mls', 'knn', 'class-knn', 'mahalanobis')
CURVE = ('none', 'cutmix', 'random-small', 'gradmix-small', 'confident-50', 'confident-90',
         'confident-90-keep')
# README's names of trainings: GradMix as train.py mixes by default, and every image with labels by area.
HEADLINE = {'none': 'none', 'cutmix': 'CutMix', 'random-small': 'random box', 'gradmix-small': 'GradMix, every image',
            'gradmix+regmixup': 'GradMix and RegMixup in turn', 'confident-90-keep': '**GradMix**'}
# Settings without a cue: study and levels.
WITHOUT_CUE = {
    '450 images a class, 20 epochs': ('small-cifar10', {}),
    'the same, 60 epochs': ('curve-cifar10', {'budget': 'e60'}),
    'the same, 200 epochs': ('curve-cifar10', {'budget': 'e200'}),
    'the same, `classifier32`, 200 epochs': ('budget-cifar10', {}),
    '4,500 images a class, 10 epochs': ('full-cifar10', {}),
    'pretrained, 45 images a class, 20 epochs': ('finetune-cifar10', {'budget': '50x20'}),
    'pretrained, the same, 60 epochs': ('finetune-cifar10', {'budget': '50x60'}),
    'pretrained at 128 px, 20 epochs': ('finetune-cifar10-nets', {'setting': '50x20-128px'}),
    'a larger pretrained net, 20 epochs': ('finetune-cifar10-nets', {'setting': '50x20-lite2'}),
    'a small transformer, 40 epochs': ('small-vit', {}),
    '80 printed characters, 40 epochs': ('glyphs', {})}

# A class, without those held out for validation: of CIFAR-10, of few_images.py and of glyphs.py.
TRAINING_IMAGES = {'data/cifar10': 4500, 'data/cifar10-few': 450, 'data/cifar10-50': 45, 'data/textures-split': 13,
                   'data/glyphs': 45}
# Of mixing images alone whose label the model is sure of.
CONFIDENT = (*(('confident-90-keep', other) for other in (
    'cutmix', 'saliencymix', 'random-small', 'center-small', 'resizemix', 'none', 'mixup', 'regmixup', 'gradmix-small',
    'gradmix+regmixup', 'confident-90')),
    *(('confident-90', other) for other in ('cutmix', 'random-small', 'none', 'gradmix-small')))
PAIRS = {
    'shortcut-digits': (('gradmix', 'random-box'), *(
        (method, other) for method in ('gradmix-small', 'confident-90-keep') for other in ('random-small', 'cutmix'))),
    'shortcut-cifar10': tuple(('gradmix-small', other) for other in (
        'random-small', 'cutmix', 'saliencymix', 'resizemix', 'mixup', 'center-small', 'none')),
    **dict.fromkeys(('shortcut-lite0', 'shortcut-vit'), (
        ('gradmix-small', 'random-small'), ('gradmix-small', 'cutmix'), ('gradmix-small', 'none'),
        ('argmax', 'gradmix-small'))),
    'curve-cifar10': (*((other, 'none') for other in (
        'confident-90-keep', 'confident-90', 'confident-90-random', 'cutmix')),
        ('confident-90', 'confident-90-random')),
    'finetune-cifar10': tuple((other, 'none') for other in (
        'confident-90-keep', 'confident-90', 'cutmix', 'gradmix-small', 'random-small')),
    'full-cifar10': tuple((other, 'none') for other in (
        'confident-90-keep', 'confident-90', 'gradmix-small', 'cutmix', 'random-small')),
    'shortcut-cifar10-full': (*(('gradmix-small', other) for other in ('random-small', 'cutmix', 'none')),
                              *((method, other) for method in ('confident-90-keep', 'confident-90')
                                for other in ('cutmix', 'none'))),
    'shortcut-ablation': tuple((other, 'gradmix-small') for other in (
        'authors-sign', 'argmax', 'gradmix-second', 'gradmix-gradcam')),
    'budget-cifar10': (*((other, 'none') for other in (
        'confident-90-keep', 'confident-90-keep-random', 'confident-90', 'confident-90-random', 'gradmix-small',
        'cutmix', 'random-small', 'random-box', 'gradmix', 'smoothing', 'negcos', 'gradmix-negcos')),
        ('confident-90-keep', 'cutmix'), ('confident-90-keep', 'confident-90-keep-random'), ('confident-90', 'cutmix'),
        ('confident-90', 'confident-90-random'), ('gradmix-small', 'random-small')),
    'glyphs': (*((other, 'none') for other in (
        'confident-90-keep', 'confident-90-keep-random', 'confident-90', 'cutmix', 'gradmix-small')),
        ('confident-90-keep', 'confident-90-keep-random')),
    'small-vit': tuple((other, 'none') for other in (
        'confident-90-keep', 'confident-90', 'gradmix-small', 'cutmix', 'random-small')),
    'small-cifar10': (*((other, 'none') for other in (
        'confident-90-keep', 'confident-75-keep', 'confident-90', 'confident-50', 'gradmix-small', 'cutmix',
        'random-small')), ('confident-90-keep', 'cutmix'), ('confident-90-keep', 'confident-90')),
}
# Pairs that intervals of a table allow for, where more were looked at than stand in it.
LOOKED_AT = {'shortcut-ablation': 7}
# Of other ways to mix where there is no cue.
OTHERS = tuple((method, 'none') for method in (
    'regmixup', 'gradmix+regmixup', 'gradmix-clean', 'openmix', 'gradmix-keep'))
# Of trainings of 200 epochs.
LONG = (*((method, 'none') for method in ('confident-90-keep', 'gradmix-small', 'cutmix', 'random-small')), *OTHERS,
        *(('confident-90-keep', other) for other in ('cutmix', 'random-small')), ('gradmix-small', 'random-small'),
        ('regmixup', 'cutmix'))
# Columns of shortcut-kinds, and of its table by side and share.
KINDS = ('none', 'cutmix', 'random-small', 'gradmix-small', 'confident-90-keep')
GRID = ('none', 'mixup', 'cutmix', 'resizemix', 'saliencymix', 'random-small', 'center-small', 'gradmix-small',
        'confident-90-keep')
# Levels of further axes that those pairs are of.
PAIRED_AT = {'curve-cifar10': {'budget': 'e60'}, 'finetune-cifar10': {'budget': '50x20'}}


@cache
def opened(name: str) -> Study:
    """A study whose files are found from every folder."""
    study = read_study(STUDIES / f'{name}.yaml')
    return replace(study, output=ROOT / study.output)


@cache
def finished(name: str, command: str = '') -> tuple[tuple[Cell, dict], ...]:
    """Cells of a study that are done, and their results: of the first evaluation, or of the one that is named."""
    study = opened(name)
    files = ((cell, study.output / cell.name / command / 'results.json') for cell in study.cells)
    return tuple((cell, json.loads(file.read_text())) for cell, file in files if file.is_file())


def with_seeds(name: str, command: str = '') -> Iterator[tuple[Cell, dict]]:
    """Cells of a study that are done, and those of NAME-seeds."""
    yield from finished(name, command)
    if (STUDIES / f'{name}-seeds.yaml').is_file():
        yield from finished(f'{name}-seeds', command)


def percent(values: list[float]) -> str:
    """Mean and standard deviation."""
    spread = f' ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{100 * statistics.mean(values):.1f}{spread}'


def quickstart() -> str:
    """README's figures of ``make quickstart``."""
    runs = [results for _, results in finished('quickstart')]
    aurocs = ', '.join(f'{name} {percent([run["scores"][name]["auroc"] for run in runs])}' for name in QUICK_SCORES)
    accuracy = [run['closed_set']['top1'] for run in runs]
    chosen = [results['closed_set']['top1'] for _, results in finished('quickstart-best')]
    return (f'Closed-set accuracy {percent(accuracy)} (lowest {percent([min(accuracy)])}), AUROC {aurocs}: percent, '
            f'mean ± standard deviation over {len(runs)} seeds\n({runs[0]["n_known"]} known and '
            f'{runs[0]["n_unknown"]} unknown test images; `gradmix-study benchmarks/studies/quickstart.yaml`). The '
            f'last checkpoint; `model_best.pth.tar` has {percent(chosen)} (lowest {percent([min(chosen)])}, '
            f'{len(chosen)} seeds; `quickstart-best.yaml`).')


def over_splits(runs: list[tuple[Cell, dict]], read: Callable[[dict], float]) -> list[float]:
    """A figure of each class split, the mean over its seeds."""
    found: dict[str, list[float]] = {}
    for cell, results in runs:
        found.setdefault(cell.levels.get('trial', ''), []).append(read(results))
    return [statistics.mean(values) for values in found.values()]


def by_method(name: str) -> dict[str, list[tuple[Cell, dict]]]:
    """Method to its cells and their results."""
    rows: dict[str, list[tuple[Cell, dict]]] = {}
    for cell, results in with_seeds(name):
        rows.setdefault(cell.levels['method'], []).append((cell, results))
    return rows


def accuracy_of(view: str) -> Callable[[dict], float]:
    """Reads the accuracy on images whose mark is the one of a view."""
    return lambda results: results['groups'][view]['closed_set']['top1']


def shortcut(name: str) -> str:
    """One row a method: accuracy by view, AUROC by what the unknown images bear."""
    def auroc_of(view: str) -> Callable[[dict], float]:
        return lambda results: results['groups'][view]['scores']['mls']['auroc']

    head = ('training', 'accuracy, own mark', 'no mark', "another class's mark", 'AUROC (MLS), own mark', 'no mark',
            "another class's mark", 'n')
    lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
    for method, runs in by_method(name).items():
        reads = [of(view) for of in (accuracy_of, auroc_of) for view in runs[0][1]['groups']]
        cells = [percent(over_splits(runs, read)) for read in reads]
        lines.append(f'| {method} | {" | ".join(cells)} | {len(over_splits(runs, reads[0]))} |')
    return '\n'.join(lines)


def headline() -> str:
    """README's table: a shortcut met by a net from scratch, and by a pretrained one."""
    parts = {'from scratch': 'shortcut-cifar10', 'pretrained': 'shortcut-lite0'}
    head, rows = ['training'], {method: [name] for method, name in HEADLINE.items()}
    *_, ours = HEADLINE
    for start, study in parts.items():
        level = 1 - 0.05 / (4 * sum(bool(gaps(study, *pair, 'conflict')) for pair in CONFIDENT))  # as its own table
        runs = by_method(study)
        splits = len(over_splits(runs[ours], accuracy_of('conflict')))
        for method in HEADLINE:
            conflict, absent = (over_splits(runs[method], accuracy_of(view)) for view in ('conflict', 'absent'))
            above = '' if method == ours else interval(gaps(study, ours, method, 'conflict'), level)
            fewer = '' if len(conflict) == splits else f' (n = {len(conflict)})'
            rows[method] += [f'{percent(conflict)}{fewer}', above, f'{percent(absent)}{fewer}']
        head += [f'{start} (n = {splits}): conflict', 'GradMix above it', 'no patch']
    lines = [head, ['---'] * len(head), *rows.values()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def without_cue(shown: int | None = None) -> str:
    """Points above plain training where there is no shortcut, a row a setting.

    Args:
        shown: Columns of figures, the first ones; None: all. Intervals allow for all figures of a row.
    """
    methods = {'GradMix': 'confident-90-keep', 'in turn': 'gradmix+regmixup', 'CutMix': 'cutmix',
               'GradMix, every image': 'gradmix-small', 'mixed labels': 'confident-90'}
    figures = {'accuracy': '', 'AUROC': 'mls'}
    heads = [f'{name}: {figure}' for name in methods for figure in figures][:shown]
    lines = [f'| no cue | n | {" | ".join(heads)} |', f'|{"---|" * (2 + len(heads))}']
    for setting, (study, levels) in WITHOUT_CUE.items():
        found = [gaps(study, method, 'none', '', score, levels)
                 for method in methods.values() for score in figures.values()]
        level = 1 - 0.05 / sum(map(bool, found))
        cells = [interval(splits, level) if splits else '' for splits in found][:shown]
        lines.append(f'| {setting} | {len(found[0])} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def in_turn(method: str = 'gradmix+regmixup') -> str:
    """GradMix and RegMixup in turn beside each alone, a row a setting; intervals allow for all figures of a row."""
    settings = {
        'patch on the training images: under conflict': ('shortcut-cifar10', {}, 'conflict'),
        'the same, patch gone': ('shortcut-cifar10', {}, 'absent'),
        'the same, pretrained: under conflict': ('shortcut-lite0', {}, 'conflict'),
        'pretrained, patch gone': ('shortcut-lite0', {}, 'absent'),
        **{f'no cue: {setting}': (*of, '') for setting, of in WITHOUT_CUE.items()}}
    others = {'none': 'none', 'GradMix': 'confident-90-keep', 'RegMixup': 'regmixup', 'CutMix': 'cutmix'}
    figures = {'accuracy': '', 'AUROC': 'mls'}
    heads = [f'above {name}: {figure}' for name in others for figure in figures]
    lines = [f'| {method} | n | {" | ".join(heads)} |', f'|{"---|" * (2 + len(heads))}']
    for setting, (study, levels, view) in settings.items():
        found = [gaps(study, method, other, view, score, levels)
                 for other in others.values() for score in figures.values()]
        if found[0]:
            level = 1 - 0.05 / sum(map(bool, found))
            fewer = ['' if len(splits) == len(found[0]) else f' (n = {len(splits)})' for splits in found]
            cells = [interval(splits, level) + few if splits else '' for splits, few in zip(found, fewer, strict=True)]
            lines.append(f'| {setting} | {len(found[0])} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def kinds(study: str) -> str:
    """One row a kind of mark: the guided boxes beside the random one, under conflict beside two peers too."""
    found: dict[str, dict[str, list[dict]]] = {}
    for cell, results in finished(study):
        found.setdefault(cell.levels['mark'], {}).setdefault(cell.levels['method'], []).append(results['groups'])
    found = {mark: by for mark, by in found.items() if not re.fullmatch(r'side\d+-share\d+', mark)}  # those of grid
    columns = (('accuracy, conflict', 'conflict', '', KINDS), ('no mark', 'absent', '', KINDS[2:]),
               ('AUROC, conflict', 'conflict', 'mls', KINDS[2:]))
    heads = [f'{figure}: {" | ".join(methods)}' for figure, *_, methods in columns]
    lines = [f'| mark | {" | ".join(heads)} | n |', f'|{"---|" * (2 + sum(len(methods) for *_, methods in columns))}']
    for mark, by in found.items():
        cells = [percent([groups[view]['scores'][score]['auroc'] if score else groups[view]['closed_set']['top1']
                          for groups in by[method]]) if method in by else ''
                 for _, view, score, methods in columns for method in methods]
        lines.append(f'| {mark} | {" | ".join(cells)} | {len(by["gradmix-small"])} |')
    return '\n'.join(lines)


def grid(study: str) -> str:
    """Accuracy under conflict by side of the patch and the share of training images that bear it.

    The patch of 5 pixels on every image is that of shortcut-cifar10, on the same splits with the same seed.
    """
    read = accuracy_of('conflict')
    done = {(cell.levels['mark'], cell.levels['method'], cell.levels['trial']): read(results)
            for cell, results in finished(study)}
    for cell, results in finished('shortcut-cifar10'):
        done['', cell.levels['method'], cell.levels['trial']] = read(results)
    lines = [f'| side | images with it | {" | ".join(GRID)} | n |', f'|{"---|" * (3 + len(GRID))}']
    for side, (share, shown) in itertools.product((5, 9, 13), (('', 'all'), ('share95', '95%'), ('share90', '90%'))):
        mark = '-'.join(filter(None, ('' if side == 5 else f'side{side}', share)))
        cells = [[done[mark, method, trial] for trial in opened(study).axes['trial'] if (mark, method, trial) in done]
                 for method in GRID]
        counts = {len(values) for values in cells if values}
        lines.append(f'| {side} | {shown} | {" | ".join(percent(values) if values else "" for values in cells)} | '
                     f'{"-".join(map(str, sorted(counts)))} |')
    return '\n'.join(lines)


def evidence(study: str) -> str:
    """One row a method: how much of its evidence a net finds on the mark of the image's own class."""
    lines = ["| training | map's mass on the mark | map's peak on the mark | fall of log-odds without the mark "
             '| without another place | n |', f'|{"---|" * 6}']
    for method, runs in by_method(study).items():
        figures = {key: over_splits(runs, lambda results, key=key: results['evidence'][key])
                   for key in ('mass', 'peak', 'fall', 'random_fall')}
        cells = [percent(figures['mass']), percent(figures['peak']),
                 *(f'{statistics.mean(figures[key]):.2f}' for key in ('fall', 'random_fall'))]
        lines.append(f'| {method} | {" | ".join(cells)} | {len(figures["mass"])} |')
    return '\n'.join(lines)


def grouped(study: str, command: str, figures: dict[str, Callable[[dict], float]],
            levels: Mapping[str, str] | None = None) -> str:
    """One row a method, and a level of each further axis that has several: percent of what is read from its results.

    Args:
        study: Its name.
        command: Of the evaluation; '' is the first.
        figures: Column to what reads its figure from a run's results.
        levels: Axis to the only level that is shown.
    """
    done = [(cell, results) for cell, results in with_seeds(study, command)
            if (levels or {}).items() <= cell.levels.items()]
    axes = [axis for axis in done[0][0].levels
            if axis not in ('method', 'trial', 'seed') and len({cell.levels[axis] for cell, _ in done}) > 1]
    rows: dict[tuple[str, ...], list[tuple[Cell, dict]]] = {}
    for cell, results in done:
        rows.setdefault((*(cell.levels[axis] for axis in axes), cell.levels['method']), []).append((cell, results))
    lines = [f'| {" | ".join([*axes, "training", *figures])} | n |', f'|{"---|" * (len(axes) + 2 + len(figures))}']
    for row in sorted(rows, key=lambda row: row[:-1]):
        found = [over_splits(rows[row], read) for read in figures.values()]
        lines.append(f'| {" | ".join([*row, *map(percent, found)])} | {len(found[0])} |')
    return '\n'.join(lines)


def curve(study: str) -> str:
    """One row a method: accuracy and AUROC by budget on class split 0; 20 epochs are of small-cifar10."""
    shown = {'e5': '5 epochs', 'e20': '20', 'e60': '60', 'e200': '200'}
    found: dict[str, dict[str, list[dict]]] = {method: {} for method in CURVE}
    for cell, results in (*finished(study), *finished('small-cifar10')):
        if cell.levels['trial'] == '0' and cell.levels['method'] in CURVE:
            found[cell.levels['method']].setdefault(cell.levels.get('budget', 'e20'), []).append(results)
    heads = [f'{figure}{head}' for figure in ('accuracy, ', 'AUROC (MLS), ') for head in shown.values()]
    lines = [f'| training | {" | ".join(heads)} |', f'|{"---|" * (1 + len(heads))}']
    for method, by in found.items():
        cells = [percent([read(run) for run in by[budget]]) if budget in by else ''
                 for read in (lambda run: run['closed_set']['top1'], lambda run: run['scores']['mls']['auroc'])
                 for budget in shown]
        lines.append(f'| {method} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def other_sets(study: str) -> str:
    """AUROC against each set of unknown images, a row a set and method."""
    def auroc(name: str, score: str) -> Callable[[dict], float]:
        return lambda results: results['groups'][name]['scores'][score]['auroc']

    _, results = finished(study)[0]
    lines: list[str] = []
    for name in results['groups']:
        heads, rule, *rows = grouped(study, '', {f'AUROC, {score}': auroc(name, score)
                                                 for score in ('msp', 'mls', 'knn')}).splitlines()
        lines += ([] if lines else [f'| unknown {heads}', f'|---{rule}']) + [f'| {name} {row}' for row in rows]
    return '\n'.join(lines)


def corrupted(study: str) -> str:
    """Errors of clean and of corrupted images, and AUROC where both known and unknown images are corrupted."""
    return grouped(study, 'corrupt', {
        'error, clean': lambda results: results['corruption']['clean_error'],
        'mean error, corrupted': lambda results: results['corruption']['mean_error'],
        **{f'AUROC, mls, severity {severity}': lambda results, severity=severity:
           results['corruption']['by_severity'][severity]['auroc']['mls']['corrupted'] for severity in '135'}})


def probed(study: str) -> str:
    """Accuracy of every probe."""
    _, results = finished(study)[0]
    return grouped(study, '', {name: lambda results, name=name: results['groups'][name]['closed_set']['top1']
                               for name in results['groups']})


def machine_time() -> str:
    """One row a study: cells, hours of training and evaluation, and median speed where the images are counted."""
    head = ('study', 'device', 'cells', 'hours', 'of these evaluation', 'images a second in training')
    lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
    for path in sorted(STUDIES.glob('*.yaml')):
        done = list(finished(path.stem))
        if not done:
            continue
        spent = [results['manifest']['study']['seconds'] for _, results in done]
        total = sum(sum(seconds.values()) for seconds in spent)
        speeds = [TRAINING_IMAGES[images] * len(results['known_classes']) * cell.train['epochs'] / seconds['train']
                  for (cell, results), seconds in zip(done, spent, strict=True)
                  if (images := cell.train.get('data_dir')) in TRAINING_IMAGES]
        speed = f'{statistics.median(speeds):,.0f}' if speeds else ''
        evaluated = 1 - sum(seconds['train'] for seconds in spent) / total
        devices = ', '.join(sorted({results['device'] for _, results in done}))
        lines.append(f'| {path.stem} | {devices} | {len(done)} | {total / 3600:.1f} | {evaluated:.0%} '
                     f'| {speed} |')
    return '\n'.join(lines)


def plot(studies: dict[str, str], path: Path) -> None:
    """Accuracy under conflict, a dot for each class split and a bar for the mean; one panel a study.

    Means over other splits do not compare, so a method that has fewer of them is left out.
    """
    figure = Figure(figsize=(8, 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    for axis, (title, study) in zip(figure.subplots(1, len(studies)), studies.items(), strict=True):
        rows = {method: [100 * value for value in over_splits(runs, accuracy_of('conflict'))]
                for method, runs in by_method(study).items()}
        splits = max(map(len, rows.values()))
        order = sorted((method for method in rows if len(rows[method]) == splits),
                       key=lambda method: statistics.mean(rows[method]))
        for height, method in enumerate(order):
            colour = '#0072b2' if method.startswith(('gradmix', 'confident', 'argmax')) else '#777777'
            axis.barh(height, statistics.mean(rows[method]), 0.6, color=colour, alpha=0.35)
            axis.plot(rows[method], [height] * len(rows[method]), 'o', color=colour, markersize=4)
        axis.set_yticks(range(len(order)), order, fontsize=8)
        axis.set_xlabel("accuracy in percent, another class's mark", fontsize=8)
        axis.set_title(f'{title}, {splits} class splits', fontsize=9)
    figure.savefig(path, dpi=120)


def measured(study: str, method: str, view: str, score: str = '', levels: Mapping[str, str] | None = None,
             ) -> dict[tuple[str, str], float]:
    """Percent by class split and seed, those of NAME-seeds among them: accuracy, or AUROC of a score."""
    levels = PAIRED_AT.get(study, {}) if levels is None else levels
    found = {}
    for cell, results in with_seeds(study):
        if cell.levels['method'] == method and levels.items() <= cell.levels.items():
            group = results['groups'][view] if view else results
            found[cell.levels['trial'], cell.levels['seed']] = 100 * (
                group['scores'][score]['auroc'] if score else group['closed_set']['top1'])
    return found


def gaps(study: str, first: str, second: str, view: str, score: str = '', levels: Mapping[str, str] | None = None,
         ) -> dict[str, list[float]]:
    """Points of one method above another, by class split and there by seed."""
    one, two = (measured(study, method, view, score, levels) for method in (first, second))
    by_split: dict[str, list[float]] = {}
    for split, seed in sorted(one.keys() & two.keys()):
        by_split.setdefault(split, []).append(one[split, seed] - two[split, seed])
    return by_split


def interval(by_split: dict[str, list[float]], level: float) -> str:
    """Mean over class splits and Student's interval; of fewer than five the range in its place, of one itself."""
    values = [statistics.mean(seeds) for seeds in by_split.values()]
    if len(values) == 1:
        return f'{values[0]:+.1f}'
    if len(values) < FEWEST_PAIRS:
        return f'{statistics.mean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})'
    found = over_trials(values, level)
    return f'{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]'


def gains(study: str, pairs: tuple[tuple[str, str], ...] = (), levels: Mapping[str, str] | None = None) -> str:
    """Differences of pairs of methods, with intervals that hold for all of the table at 95% (Bonferroni).

    A class split counts once, with the mean over its seeds. Pairs without a common class split are left out. Where a
    split has several seeds, a column says in how many pairs of runs the first is ahead, figure by figure.
    """
    figures = {f'{figure}, {shown}': (view, score) for view, shown in (('conflict', 'conflict'), ('absent', 'none'))
               for figure, score in (('accuracy', ''), ('AUROC', 'mls'))}
    if not study.startswith('shortcut'):
        figures = {'accuracy': ('', '')} | {f'AUROC, {score}': ('', score) for score in ('msp', 'mls', 'knn')}
    lines, seeds = [], False
    view, score = next(iter(figures.values()))
    pairs = tuple(pair for pair in pairs or PAIRS[study] if gaps(study, *pair, view, score, levels))
    for first, second in pairs:
        row = [gaps(study, first, second, view, score, levels) for view, score in figures.values()]
        cells = [interval(found, 1 - 0.05 / (len(figures) * max(len(pairs), LOOKED_AT.get(study, 0)))) for found in row]
        runs = sum(map(len, row[0].values()))
        seeds |= runs > len(row[0])
        count = f'{len(row[0])} ({runs} runs)' if runs > len(row[0]) else len(row[0])
        ahead = ', '.join(str(sum(gap > 0 for split in found.values() for gap in split)) for found in row)
        lines.append((f'| {first} above {second} | {" | ".join(cells)} | {count} |', f' {ahead} |'))
    head = (f'| points above | {" | ".join(figures)} | n |', ' runs ahead, by figure |')
    rule = (f'|{"---|" * (2 + len(figures))}', '---|')
    return '\n'.join(row + more * seeds for row, more in (head, rule, *lines))


def plain(study: str, *metrics: str, levels: Mapping[str, str] | None = None) -> str:
    """Metrics of each score of a study without shortcut; accuracy beside AUROC."""
    def of(score: str, metric: str) -> Callable[[dict], float]:
        return lambda results: results['scores'][score][metric]

    runs = [results for _, results in finished(study)]
    scores = [score for score in PLAIN_SCORES if all(score in run['scores'] for run in runs)]
    accuracy = {'accuracy': lambda results: results['closed_set']['top1']}
    return grouped(study, '', {**(accuracy if 'auroc' in metrics else {}),
                               **{f'{metric.upper()}, {score}': of(score, metric)
                                  for metric in metrics for score in scores}}, levels)


# A name in a marker alone.
WHOLE = {'quickstart': quickstart, 'headline': headline, 'without-cue': without_cue,
         'without-cue short': lambda: without_cue(6), 'in-turn': in_turn,
         'in-turn quarter': lambda: in_turn('gradmix+regmixup-25'), 'time': machine_time}
# After a study's name in a marker; a study alone has the table of its kind.
TABLES = {'gains': gains, 'confident': lambda study: gains(study, CONFIDENT),
          'others': lambda study: gains(study, OTHERS),
          '60 epochs': lambda study: gains(study, levels={'budget': '50x60'}),
          '200 epochs': lambda study: gains(study, LONG, {'budget': 'e200'}),
          '200 epochs scores': lambda study: plain(study, 'auroc', 'oscr', levels={'budget': 'e200'}),
          'oscr': lambda study: plain(study, 'oscr'),
          'evidence': evidence, 'grid': grid, 'sets': other_sets, 'corruptions': corrupted, 'probes': probed}


def table(name: str) -> str:
    """A table by the name in its marker: one of WHOLE, a study, or a study and one of TABLES."""
    study, _, which = name.partition(' ')
    if name in WHOLE:
        return WHOLE[name]()
    if which:
        return TABLES[which](study)
    if study in ('shortcut-kinds', 'curve-cifar10'):
        return kinds(study) if study == 'shortcut-kinds' else curve(study)
    return shortcut(study) if study.startswith('shortcut') else plain(study, 'auroc')


def filled(text: str) -> str:
    """A page with its tables as the files have them.

    Raises:
        ValueError: A marker without its end, or a name that no table can have.
    """
    found = re.findall(r'<!-- table [\w -]+ -->\n(?:(?!<!-- table ).)*?<!-- end -->', text, flags=re.DOTALL)
    if len(found) != text.count('<!-- table '):
        raise ValueError(f'{text.count("<!-- table ")} tables begin and {len(found)} are whole: expected '
                         '<!-- table NAME --> ... <!-- end --> for each')
    return re.sub(r'<!-- table ([\w -]+) -->\n.*?<!-- end -->',
                  lambda match: f'<!-- table {match[1]} -->\n\n{table(match[1])}\n\n<!-- end -->', text,
                  flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    plot({'from scratch': 'shortcut-cifar10', 'pretrained Lite0': 'shortcut-lite0'},
         PAGES[1].with_name('shortcut.png'))


if __name__ == '__main__':
    main()
