"""Tables of README and docs/results/study.md from the JSON of studies: ``python benchmarks/study_figures.py``.

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. The studies are ``benchmarks/studies/*.yaml``;
``gradmix-study benchmarks/studies/NAME.yaml`` runs the cells that are missing.
"""
from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gradmix_timm.openset.metrics.intervals import FEWEST_PAIRS, over_trials
from gradmix_timm.study import Cell, Study, read_study, study_tables

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / 'benchmarks' / 'studies'
PAGES = (ROOT / 'README.md', ROOT / 'docs' / 'results' / 'study.md')
QUICK_SCORES = ('msp', 'mls', 'energy', 'knn', 'mahalanobis')
PLAIN_SCORES = ('msp', 'mls', 'knn', 'mahalanobis')
HEADLINES = {'shortcut-cifar10': ('none', 'cutmix', 'random-small', 'gradmix-small')}
PAIRS = {
    'shortcut-digits': (('gradmix', 'random-box'), ('gradmix-small', 'random-small'), ('gradmix-small', 'cutmix')),
    'shortcut-cifar10': (('gradmix-small', 'random-small'), ('gradmix-small', 'cutmix'),
                         ('gradmix-small', 'saliencymix'), ('gradmix', 'cutmix')),
}


def opened(name: str) -> Study:
    """A study whose files are found from every folder."""
    study = read_study(STUDIES / f'{name}.yaml')
    return replace(study, output=ROOT / study.output)


def finished(name: str) -> Iterator[tuple[Cell, dict]]:
    """Cells of a study that are done, and their results."""
    study = opened(name)
    for cell in study.cells:
        file = study.output / cell.name / 'results.json'
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


def headline(study: str, methods: tuple[str, ...]) -> str:
    """README's table of a shortcut."""
    rows = [line.strip('| ').split(' | ') for line in shortcut(study, methods).splitlines()[2:]]
    lines = ['| training | accuracy, conflict | accuracy, none | AUROC, conflict | AUROC, none | n |', f'|{"---|" * 6}']
    return '\n'.join(lines + [f'| {row[0]} | {row[3]} | {row[2]} | {row[6]} | {row[5]} | {row[7]} |' for row in rows])


def gaps(study: str, first: str, second: str, view: str, score: str = '') -> list[float]:
    """Points of one method above another by class split: accuracy, or AUROC of a score."""
    found: dict[str, dict[str, float]] = {first: {}, second: {}}
    for cell, results in finished(study):
        if cell.levels['method'] in found:
            group = results['groups'][view] if view else results
            value = group['scores'][score]['auroc'] if score else group['closed_set']['top1']
            found[cell.levels['method']][cell.levels['trial']] = 100 * value
    return [value - found[second][trial] for trial, value in found[first].items() if trial in found[second]]


def interval(values: list[float], level: float) -> str:
    """Mean over class splits and Student's interval; of fewer than five the range in its place."""
    if len(values) < FEWEST_PAIRS:
        return f'{statistics.mean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})'
    found = over_trials(values, level)
    return f'{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]'


def gains(study: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """Differences of pairs of methods, with intervals that hold for all of the table at 95% (Bonferroni)."""
    lines = ['| points above | accuracy, conflict | AUROC, conflict | accuracy, none | AUROC, none | n |',
             f'|{"---|" * 6}']
    for first, second in pairs:
        row = [gaps(study, first, second, view, score) for view in ('conflict', 'absent') for score in ('', 'mls')]
        cells = [interval(found, 1 - 0.05 / (4 * len(pairs))) for found in row]
        lines.append(f'| {first} above {second} | {" | ".join(cells)} | {len(row[0])} |')
    return '\n'.join(lines)


def plain(study: str) -> str:
    """One row a method of a study without shortcut: accuracy, and AUROC of scores."""
    rows: dict[str, list[dict]] = {}
    for cell, results in finished(study):
        rows.setdefault(cell.levels['method'], []).append(results)
    lines = [f'| training | accuracy | {" | ".join(f"AUROC, {name}" for name in PLAIN_SCORES)} | n |', f'|{"---|" * 7}']
    for method, found in rows.items():
        cells = [percent([run['closed_set']['top1'] for run in found]),
                 *(percent([run['scores'][name]['auroc'] for run in found]) for name in PLAIN_SCORES)]
        lines.append(f'| {method} | {" | ".join(cells)} | {len(found)} |')
    return '\n'.join(lines)


def table(name: str) -> str:
    """A table by the name in its marker: 'quickstart', a study, or a study and 'differences', 'gains', 'headline'."""
    study, _, which = name.partition(' ')
    if which == 'headline':
        return headline(study, HEADLINES[study])
    if which == 'gains':
        return gains(study, PAIRS[study])
    if which == 'differences':
        return study_tables(opened(study), ['mls'], ['auroc']).strip()
    if study == 'quickstart':
        return quickstart()
    return plain(study) if study.startswith('small') else shortcut(study)


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


if __name__ == '__main__':
    main()
