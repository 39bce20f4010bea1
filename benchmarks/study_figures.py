"""Tables of README and docs/results/study.md from the JSON of studies: ``python benchmarks/study_figures.py``.

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. The studies are ``benchmarks/studies/*.yaml``;
``gradmix-study benchmarks/studies/NAME.yaml`` runs the cells that are missing.
"""
from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
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
CURVE = ('none', 'cutmix', 'random-small', 'gradmix-small', 'confident-50', 'confident-90')
HEADLINE = ('none', 'cutmix', 'random-small', 'gradmix-small')
# Of CIFAR-10 and of few_images.py.
IMAGES_A_CLASS = {'data/cifar10': 5000, 'data/cifar10-few': 500, 'data/cifar10-50': 50, 'data/textures-split': 14}
# Of mixing images alone whose label the model is sure of.
CONFIDENT = (*(('confident-90', other) for other in (
    'cutmix', 'saliencymix', 'random-small', 'center-small', 'resizemix', 'none', 'mixup', 'gradmix-small')),
    ('confident-50', 'cutmix'), ('confident-50', 'gradmix-small'))
PAIRS = {
    'shortcut-digits': (('gradmix', 'random-box'), ('gradmix-small', 'random-small'), ('gradmix-small', 'cutmix')),
    'shortcut-cifar10': tuple(('gradmix-small', other) for other in (
        'random-small', 'cutmix', 'saliencymix', 'resizemix', 'mixup', 'center-small', 'none')),
    'shortcut-lite0': (('gradmix-small', 'random-small'), ('gradmix-small', 'cutmix'), ('gradmix-small', 'none')),
    'shortcut-vit': (('gradmix-small', 'random-small'), ('gradmix-small', 'cutmix'), ('gradmix-small', 'none')),
    'curve-cifar10': tuple((other, 'none') for other in ('confident-90', 'cutmix')),
    'finetune-cifar10': tuple((other, 'none') for other in ('confident-90', 'cutmix', 'gradmix-small')),
    'shortcut-ablation': tuple((other, 'gradmix-small') for other in (
        'authors-sign', 'argmax', 'gradmix-second', 'gradmix-gradcam')),
    'budget-cifar10': tuple((other, 'none') for other in (
        'cutmix', 'random-box', 'gradmix', 'gradmix-small', 'smoothing', 'negcos', 'gradmix-negcos')),
}
# Of trainings on the clean batch and on its mix, at twice the cost of a step.
CLEAN = (('regmixup', 'none'), ('gradmix-clean', 'none'))
# Of the trainings that have two more seeds, in NAME-seeds.
SEEDED = {
    'small-cifar10': (*((method, 'none') for method in (
        'confident-90', 'confident-50', 'gradmix-small', 'cutmix', 'random-small')), ('confident-90', 'cutmix')),
}
# Levels of further axes that those pairs are of.
PAIRED_AT = {'curve-cifar10': {'budget': 'e60'}, 'finetune-cifar10': {'budget': '50x20'}}


def opened(name: str) -> Study:
    """A study whose files are found from every folder."""
    study = read_study(STUDIES / f'{name}.yaml')
    return replace(study, output=ROOT / study.output)


def finished(name: str, command: str = '') -> Iterator[tuple[Cell, dict]]:
    """Cells of a study that are done, and their results: of the first evaluation, or of the one that is named."""
    study = opened(name)
    for cell in study.cells:
        file = study.output / cell.name / command / 'results.json'
        if file.is_file():
            yield cell, json.loads(file.read_text())


def percent(values: list[float]) -> str:
    """Mean and standard deviation."""
    spread = f' ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{100 * statistics.mean(values):.1f}{spread}'


def quickstart() -> str:
    """README's figures of ``make quickstart``."""
    runs = [results for _, results in finished('quickstart')]
    aurocs = ', '.join(f'{name} {percent([run["scores"][name]["auroc"] for run in runs])}' for name in QUICK_SCORES)
    return (f'Closed-set accuracy {percent([run["closed_set"]["top1"] for run in runs])}, AUROC {aurocs}: percent, '
            f'mean ± standard deviation over {len(runs)} seeds\n({runs[0]["n_known"]} known and '
            f'{runs[0]["n_unknown"]} unknown test images; `gradmix-study benchmarks/studies/quickstart.yaml`).')


def shortcut(name: str, methods: tuple[str, ...] | None = None) -> str:
    """One row a method: accuracy by view, AUROC by what the unknown images bear."""
    rows: dict[str, list[dict]] = {}
    for cell, results in finished(name):
        rows.setdefault(cell.levels['method'], []).append(results['groups'])
    head = ('training', 'accuracy, own mark', 'no mark', "another class's mark", 'AUROC (MLS), own mark', 'no mark',
            "another class's mark", 'n')
    lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
    for method in methods or rows:
        found = rows[method]
        accuracy = [percent([groups[view]['closed_set']['top1'] for groups in found]) for view in found[0]]
        auroc = [percent([groups[view]['scores']['mls']['auroc'] for groups in found]) for view in found[0]]
        lines.append(f'| {method} | {" | ".join(accuracy)} | {" | ".join(auroc)} | {len(found)} |')
    return '\n'.join(lines)


def headline() -> str:
    """README's table: a shortcut met by a net from scratch, and by a pretrained one."""
    parts = {'from scratch': 'shortcut-cifar10', 'pretrained': 'shortcut-lite0'}
    head, rows = ['training'], {method: [method] for method in HEADLINE}
    for start, study in parts.items():
        splits = 0
        for line in shortcut(study, HEADLINE).splitlines()[2:]:
            method, _, absent, conflict, *_, count = line.strip('| ').split(' | ')
            above = '' if method == HEADLINE[-1] else interval(
                gaps((study,), HEADLINE[-1], method, 'conflict'), 1 - 0.05 / (4 * len(PAIRS[study])))
            rows[method] += [conflict, above, absent]
            splits = int(count)
        head += [f'{start} (n = {splits}): conflict', 'GradMix above it', 'no patch']
    lines = [head, ['---'] * len(head), *rows.values()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def kinds(study: str) -> str:
    """One row a kind of mark: the guided box beside the random one."""
    found: dict[str, dict[str, list[dict]]] = {}
    for cell, results in finished(study):
        found.setdefault(cell.levels['mark'], {}).setdefault(cell.levels['method'], []).append(results['groups'])
    lines = ['| mark | accuracy, conflict: random-small | gradmix-small | no mark: random-small | gradmix-small '
             '| AUROC, conflict: random-small | gradmix-small | n |', f'|{"---|" * 8}']
    for mark, by in found.items():
        cells = [percent([groups[view]['scores']['mls']['auroc'] if score else groups[view]['closed_set']['top1']
                          for groups in by[method]])
                 for view, score in (('conflict', ''), ('absent', ''), ('conflict', 'mls'))
                 for method in ('random-small', 'gradmix-small')]
        lines.append(f'| {mark} | {" | ".join(cells)} | {len(by["gradmix-small"])} |')
    return '\n'.join(lines)


def evidence(study: str) -> str:
    """One row a method: how much of its evidence a net finds on the mark of the image's own class."""
    rows: dict[str, list[dict]] = {}
    for cell, results in finished(study):
        rows.setdefault(cell.levels['method'], []).append(results['evidence'])
    lines = ["| training | map's mass on the mark | map's peak on the mark | fall of log-odds without the mark "
             '| without another place | n |', f'|{"---|" * 6}']
    for method, found in rows.items():
        falls = [f'{statistics.mean(run[key] for run in found):.2f}' for key in ('fall', 'random_fall')]
        shares = [percent([run[key] for run in found]) for key in ('mass', 'peak')]
        lines.append(f'| {method} | {" | ".join(shares + falls)} | {len(found)} |')
    return '\n'.join(lines)


def grouped(study: str, command: str, figures: dict[str, Callable[[dict], float]]) -> str:
    """One row a method, and a level of each further axis that has several: percent of what is read from its results."""
    done = list(finished(study, command))
    axes = [axis for axis in done[0][0].levels
            if axis not in ('method', 'trial', 'seed') and len({cell.levels[axis] for cell, _ in done}) > 1]
    rows: dict[tuple[str, ...], list[dict]] = {}
    for cell, results in done:
        rows.setdefault((*(cell.levels[axis] for axis in axes), cell.levels['method']), []).append(results)
    lines = [f'| {" | ".join([*axes, "training", *figures])} | n |', f'|{"---|" * (len(axes) + 2 + len(figures))}']
    for levels in sorted(rows, key=lambda levels: levels[:-1]):
        cells = [percent([read(results) for results in rows[levels]]) for read in figures.values()]
        lines.append(f'| {" | ".join([*levels, *cells])} | {len(rows[levels])} |')
    return '\n'.join(lines)


def curve(study: str) -> str:
    """One row a method: accuracy and AUROC by budget on class split 0; 20 epochs are of small-cifar10."""
    shown = {'e5': '5 epochs', 'e20': '20', 'e60': '60'}
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

    _, results = next(finished(study))
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
    _, results = next(finished(study))
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
        speeds = [IMAGES_A_CLASS[images] * len(results['known_classes']) * cell.train['epochs'] / seconds['train']
                  for (cell, results), seconds in zip(done, spent, strict=True)
                  if (images := cell.train.get('data_dir')) in IMAGES_A_CLASS]
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
        rows: dict[str, list[float]] = {}
        for cell, results in finished(study):
            rows.setdefault(cell.levels['method'], []).append(100 * results['groups']['conflict']['closed_set']['top1'])
        splits = max(map(len, rows.values()))
        order = sorted((method for method in rows if len(rows[method]) == splits),
                       key=lambda method: statistics.mean(rows[method]))
        for height, method in enumerate(order):
            colour = '#0072b2' if method.startswith(('gradmix', 'confident')) else '#777777'
            axis.barh(height, statistics.mean(rows[method]), 0.6, color=colour, alpha=0.35)
            axis.plot(rows[method], [height] * len(rows[method]), 'o', color=colour, markersize=4)
        axis.set_yticks(range(len(order)), order, fontsize=8)
        axis.set_xlabel("accuracy in percent where the mark is another class's", fontsize=8)
        axis.set_title(f'{title}, {splits} class splits', fontsize=9)
    figure.savefig(path, dpi=120)


def gaps(studies: tuple[str, ...], first: str, second: str, view: str, score: str = '') -> dict[str, list[float]]:
    """Points of one method above another, by class split and there by seed: accuracy, or AUROC of a score."""
    found: dict[str, dict[tuple[str, str], float]] = {first: {}, second: {}}
    for study in studies:
        for cell, results in finished(study):
            levels = cell.levels
            if levels['method'] in found and PAIRED_AT.get(study, {}).items() <= levels.items():
                group = results['groups'][view] if view else results
                value = group['scores'][score]['auroc'] if score else group['closed_set']['top1']
                found[levels['method']][levels['trial'], levels['seed']] = 100 * value
    by_split: dict[str, list[float]] = {}
    for split, seed in found[first].keys() & found[second].keys():
        by_split.setdefault(split, []).append(found[first][split, seed] - found[second][split, seed])
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


def gains(study: str, pairs: tuple[tuple[str, str], ...] = (), more: tuple[str, ...] = ()) -> str:
    """Differences of pairs of methods, with intervals that hold for all of the table at 95% (Bonferroni).

    A class split counts once, with the mean over its seeds, those of ``more`` studies among them. Pairs without a
    common class split are left out.
    """
    figures = {f'{figure}, {shown}': (view, score) for view, shown in (('conflict', 'conflict'), ('absent', 'none'))
               for figure, score in (('accuracy', ''), ('AUROC', 'mls'))}
    if not study.startswith('shortcut'):
        figures = {'accuracy': ('', '')} | {f'AUROC, {score}': ('', score) for score in ('msp', 'mls', 'knn')}
    lines = [f'| points above | {" | ".join(figures)} | n |', f'|{"---|" * (2 + len(figures))}']
    view, score = next(iter(figures.values()))
    pairs = tuple(pair for pair in pairs or PAIRS[study] if gaps((study, *more), *pair, view, score))
    for first, second in pairs:
        row = [gaps((study, *more), first, second, view, score) for view, score in figures.values()]
        cells = [interval(found, 1 - 0.05 / (len(figures) * len(pairs))) for found in row]
        runs = sum(map(len, row[0].values()))
        count = f'{len(row[0])} ({runs} runs)' if more else len(row[0])
        lines.append(f'| {first} above {second} | {" | ".join(cells)} | {count} |')
    return '\n'.join(lines)


def plain(study: str, metric: str = 'auroc') -> str:
    """A metric of each score of a study without shortcut; accuracy beside AUROC."""
    def of(score: str) -> Callable[[dict], float]:
        return lambda results: results['scores'][score][metric]

    runs = [results for _, results in finished(study)]
    scores = [score for score in PLAIN_SCORES if all(score in run['scores'] for run in runs)]
    accuracy = {'accuracy': lambda results: results['closed_set']['top1']}
    return grouped(study, '', {**(accuracy if metric == 'auroc' else {}),
                               **{f'{metric.upper()}, {score}': of(score) for score in scores}})


# After a study's name in a marker; a study alone has the table of its kind.
TABLES = {'gains': gains, 'confident': lambda study: gains(study, CONFIDENT),
          'clean': lambda study: gains(study, CLEAN),
          'seeds': lambda study: gains(study, SEEDED[study], (f'{study}-seeds',)),
          'oscr': lambda study: plain(study, 'oscr'),
          'evidence': evidence, 'sets': other_sets, 'corruptions': corrupted, 'probes': probed}


def table(name: str) -> str:
    """A table by the name in its marker: 'quickstart', 'headline', 'time', a study, or a study and one of TABLES."""
    study, _, which = name.partition(' ')
    if name in ('headline', 'time'):
        return headline() if name == 'headline' else machine_time()
    if which:
        return TABLES[which](study)
    if study == 'quickstart':
        return quickstart()
    if study in ('shortcut-kinds', 'curve-cifar10'):
        return kinds(study) if study == 'shortcut-kinds' else curve(study)
    return shortcut(study) if study.startswith('shortcut') else plain(study)


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
