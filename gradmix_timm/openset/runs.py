"""Find and read evaluations on disk as records to compare; group them and check that they are comparable."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradmix_timm.registry import nearest

from .metrics.summary import RANK_METRICS
from .results import RESULTS, Manifest, PartResults, RunResults, is_figures, read_figures, read_parts, read_run

__all__ = ['CLOSED_SET', 'Run', 'check_runs', 'find_evaluations', 'find_runs', 'notes', 'read_runs']

#: Key in place of a score, for the metric without one, ``top1``.
CLOSED_SET = ''
# Facts in which runs of one comparison may differ without being in separate groups; such differences are noted.
_FACTS = ('model', 'objective', 'moving_average', 'pretraining')
# Commands of which a run may have folders beside that of `osr`; cells of a study that are not done keep theirs here.
_OTHERS, _UNFINISHED = ('ood', 'corrupt', 'probe', 'shortcut'), 'work'
# Options of a mixer that do not change the method.
_INCIDENTAL = ('seed', 'rank', 'num_classes')

Split = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation.

    Attributes:
        group: Of the comparison: the mixer's name, or as set by ``by``.
        folder: Where results.json is.
        protocol: Name and family.
        trial: Number, or None.
        seed: Of the training run, or None.
        split: Known and unknown class names as sets; trials of one protocol may share them.
        values: (score, metric) to value; the score is CLOSED_SET for ``top1``.
        images: Counts and hashes of the test images.
        facts: Model, objective, ...
        options: Of the mixer.
        levels: Of the axes of a study.
        part: Positions among the unknown classes of those that ``values`` are of; None: all.
        fold: Level of a study's axis of that name, whose images are its own; or None.
        name: Of the run's folder, which ``by`` calls 'folder'.
    """

    group: str
    folder: Path
    protocol: tuple[str | None, str | None]
    trial: int | None
    seed: int | None
    split: Split
    values: Mapping[tuple[str, str], float]
    images: tuple[Any, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Any] = field(default_factory=dict)
    part: tuple[int, ...] | None = None
    fold: str | None = None
    name: str = ''

    @property
    def cell(self) -> tuple[int | None, int | None, str | None]:
        """Trial, seed and fold: what the runs of a pair share."""
        return self.trial, self.seed, self.fold

    @property
    def cell_name(self) -> str:
        """The same in words, the fold where there is one."""
        return f'trial {self.trial}, seed {self.seed}' + ('' if self.fold is None else f', fold {self.fold}')


def find_evaluations(paths: Sequence[str | Path]) -> list[Path]:
    """Folders of evaluations among files, folders of evaluations, run folders and folders above; each once.

    Raises:
        ValueError: An empty path, one that is not there, or below which there is no results.json.
    """
    return _find(paths, lambda path, inside: inside)


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The same, without results of other commands for a run that ``openset osr`` evaluated.

    Folders of ``gradmix-study`` are read by their finished cells; a folder without evaluations by its JSON files with
    the figures of one run each, as in benchmarks/results, which may also be named themselves.

    Raises:
        ValueError: As :func:`find_evaluations`.
    """
    def of_osr(path: Path, inside: list[Path]) -> list[Path]:
        whole = [folder for folder in inside if _UNFINISHED not in folder.relative_to(path).parts]
        return [folder for folder in whole if folder.name == 'osr'] or [
            folder for folder in whole if not (folder.name in _OTHERS and folder.parent in whole)]

    return _find(paths, of_osr)


def _find(paths: Sequence[str | Path], choose: Callable[[Path, list[Path]], list[Path]]) -> list[Path]:
    found: dict[Path, Path] = {}
    for word in paths:
        path = Path(word)
        if not str(word).strip():
            raise ValueError("an empty path, as of a variable that is not set; name run folders, or '.' for this one")
        if not path.exists():
            raise ValueError(f'there is no {path}; name run folders, or the folders that `openset osr` wrote')
        if path.is_file():
            inside = [path.parent if path.name == RESULTS else path] if path.suffix == '.json' else []
        elif (path / RESULTS).is_file():
            inside = [path]
        else:
            inside = choose(path, sorted(file.parent for file in path.rglob(RESULTS))) or sorted(
                file for file in path.glob('*.json') if is_figures(file))
        if not inside:
            raise ValueError(f'no {RESULTS} in {path}; run `openset osr --checkpoint {_checkpoint(path)}` first')
        found |= {folder.resolve(): folder for folder in inside if folder.resolve() not in found}
    return list(found.values())


def _checkpoint(path: Path) -> str:
    """A checkpoint at or below a path, the best of its run where there is one; the form of its name where not."""
    found = [path] if path.is_file() else sorted(path.rglob('*.pth.tar'))
    found = [file for file in found if file.name.endswith('.pth.tar')]
    best = [file for file in found if file.name == 'model_best.pth.tar']
    return str(next(iter(best or found), 'RUN/model_best.pth.tar'))


def read_runs(folders: Sequence[Path], by: Sequence[str] = ('mixer',), part: str | None = None) -> list[Run]:
    """Read results.json of each.

    Args:
        folders: Of :func:`find_runs`.
        by: Grouping keys: 'mixer', 'model', 'objective', 'folder' (its name), options of the mixer.
        part: Of the unknown images, as results.json calls it ('hard+medium', a data set of ``ood``); None: all.

    Raises:
        ValueError: A file is not a valid evaluation, or lacks what ``by`` or ``part``
            names.
    """
    runs = []
    for folder in folders:
        if folder.is_file():
            runs.append(_of_figures(folder, by, part))
            continue
        run = _run(folder, read_run(folder), by)
        runs.append(run if part is None else _narrowed(run, read_parts(folder), part))
    return runs


def check_runs(runs: Sequence[Run]) -> None:
    """Reject runs that cannot be averaged or compared.

    Raises:
        ValueError: Different protocols, other classes or images under one trial number and fold, two runs of one group
            for one trial, seed and fold.
    """
    _check_starts(runs)
    first = runs[0]
    seen: dict[Any, Run] = {}
    splits: dict[tuple[int | None, str | None], Run] = {}
    for run in runs:
        if run.protocol != first.protocol:
            raise ValueError(f'runs of different protocols: {_protocol(first)} in {first.folder} and {_protocol(run)} '
                             f'in {run.folder}; compare one protocol at a time')
        other = splits.setdefault((run.trial, run.fold), run)
        if run.split != other.split:
            which = 'runs' if run.trial is None else f'runs of trial {run.trial}'
            raise ValueError(f'{which} with other classes: {other.folder} and {run.folder}'
                             f'{_first_difference(other, run)}; compare runs of the same classes')
        if any(a != b for a, b in zip(run.images, other.images, strict=True) if None not in (a, b)):
            raise ValueError(f'{other.folder} and {run.folder} were evaluated on different images of the same classes; '
                             'evaluate both on the same data')
        twin = seen.setdefault((run.group, run.cell), run)
        if twin is not run:
            axes = [axis for axis in run.levels if twin.levels.get(axis) != run.levels[axis]]
            differ = sorted(key for key in {*twin.options, *run.options} - set(_INCIDENTAL)
                            if twin.options.get(key) != run.options.get(key))
            differ += [key for key in _FACTS if twin.facts.get(key) != run.facts.get(key)]
            hint = (f'separate them, --by {",".join(axes)}' if axes else f'separate them, --by mixer,{differ[0]}'
                    if differ else 'leave one out, or --by mixer,folder' if twin.name != run.name else 'leave one out')
            raise ValueError(f'two runs of {run.group} for {run.cell_name}: {twin.folder} and {run.folder}; {hint}')


def notes(runs: Sequence[Run]) -> list[str]:
    """Descriptions of differences among runs that the grouping does not cover."""
    found = []
    for name in dict.fromkeys((*_FACTS, *(name for run in runs for name in run.facts))):
        values = sorted({str(run.facts.get(name)) for run in runs})
        groups: dict[str, set[str]] = {run.group: set() for run in runs}
        for run in runs:
            groups[run.group].add(str(run.facts.get(name)))
        if len(values) > 1:
            each = '; '.join(f'{group}: {", ".join(sorted(has))}' for group, has in groups.items())
            found.append(f'the runs differ in {name} as well ({each})')
    for group in dict.fromkeys(run.group for run in runs):
        options = [run.options for run in runs if run.group == group]
        for key in sorted({key for one in options for key in one} - set(_INCIDENTAL)):
            values = sorted({str(one[key]) for one in options if key in one})  # older versions did not record all
            if len(values) > 1:
                found.append(f'the runs of {group} differ in {key} ({", ".join(values)})')
    return found


def _values(scores: Mapping[str, Any], top1: float) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], float] = {}
    for score, entry in scores.items():
        values |= {(score, metric): entry[metric] for metric in RANK_METRICS if metric in entry}
        values |= {(score, f'ccr_at_fpr_{rate}'): value for rate, value in entry.get('ccr_at_fpr', {}).items()}
    return values | {(CLOSED_SET, 'top1'): top1}


def _narrowed(run: Run, results: PartResults, part: str) -> Run:
    """The run on a part of its unknown images."""
    if part not in results['groups']:
        raise ValueError(f'--part {part}: {run.folder} has no such part of the unknown images: '
                         f'{nearest(part, results["groups"])}')
    group, unknown = results['groups'][part], results['unknown_classes']
    classes = group.get('unknown_classes', [])
    closed = group.get('closed_set', results['closed_set'])
    return replace(run, values=_values(group['scores'], closed['top1']),
                   split=(run.split[0], frozenset(classes)), images=(*run.images, group['n_unknown']),
                   part=tuple(unknown.index(name) for name in classes))


def _run(folder: Path, results: RunResults, by: Sequence[str]) -> Run:
    manifest = results['manifest']
    hashes, levels = manifest.get('list_sha256', {}), _levels(manifest)
    trial = results['trial']
    if trial is None and str(levels.get('trial')).isdecimal():  # `ood` has no protocol, but a cell's training has
        trial = int(levels['trial'])
    return Run(
        group=_group(folder, manifest, by), folder=folder, protocol=(results['protocol'], results['family']),
        trial=trial, seed=results['seed'],
        split=(frozenset(results['known_classes']), frozenset(results['unknown_classes'])),
        values=_values(results['scores'], results['closed_set']['top1']),
        images=(results['n_known'], results['n_unknown'], hashes.get('known'), hashes.get('unknown')),
        facts={**{name: manifest.get(name) for name in _FACTS}, **_judged_on(results), **_preprocessing(manifest)},
        options=manifest.get('mixer_options') or {},
        levels=levels, fold=levels.get('fold'), name=_run_name(folder, manifest))


def _judged_on(results: RunResults) -> dict[str, Any]:
    """The command, and the mark of a shortcut that the images bear; folders may differ from machine to machine."""
    name = str((results['manifest'].get('data') or {}).get('dataset') or '')
    return {'command': results.get('command') or 'osr', 'shortcut': name if name.startswith('shortcut:') else 'none'}


def _preprocessing(manifest: Manifest) -> dict[str, Any]:
    return {f'preprocessing.{name}': value for name, value in (manifest.get('preprocessing') or {}).items()}


def _levels(manifest: Manifest) -> Mapping[str, Any]:
    return (manifest.get('study') or {}).get('levels', {})


def _of_figures(path: Path, by: Sequence[str], part: str | None) -> Run:
    """A run whose file holds only metrics: its folder names the experiment, its trial the classes."""
    if part is not None:
        raise ValueError(f'--part {part}: {path} holds the figures of all unknown images alone')
    if list(by) != ['mixer']:
        raise ValueError(f'--by {",".join(by)}: {path} names its mixer and nothing else; leave --by out')
    found = read_figures(path)
    trial = found['trial']
    return Run(group=found['mixer'], folder=path, protocol=(path.absolute().parent.name, None), trial=trial,
               seed=found['seed'], split=(frozenset({f'known of trial {trial}'}), frozenset({f'unknown of {trial}'})),
               values=_values(found['scores'], found['top1']),
               images=(found.get('n_known'), found.get('n_unknown'), None, None))


def _run_name(folder: Path, manifest: Manifest) -> str:
    """The run's folder is a better name than that of its evaluation, which is osr in every run."""
    return Path(manifest.get('run_folder') or folder).name


def _group(folder: Path, manifest: Manifest, by: Sequence[str]) -> str:
    options = {**(manifest.get('mixer_options') or {}), **_levels(manifest)}
    named = {'mixer': manifest.get('mixer') or 'none', 'model': manifest.get('model'),
             'objective': manifest.get('objective'), 'folder': _run_name(folder, manifest)}
    parts = []
    for key in by:
        if key in named:
            parts.append(str(named[key]))
        elif isinstance(level := _levels(manifest).get(key), str):
            parts.append(level)  # a name that the study gave says enough
        elif key in options:
            parts.append(f'{key}={options[key]}')
        elif not options:
            continue  # without a mixer there are none
        else:
            raise ValueError(f'--by: {folder} has no {key!r}: {nearest(key, {*named, *options} - set(_INCIDENTAL))}')
    return ' '.join(parts)


def _protocol(run: Run) -> str:
    name, family = run.protocol
    return (f'{name}, {family}' if family else str(name)) if name else 'chosen classes'


def _check_starts(runs: Sequence[Run]) -> None:
    """Reject comparing pretrained runs, which may have seen the unknown classes, with runs from scratch."""
    began = {run.facts.get('pretraining'): run.folder for run in runs}
    trained = next((start for start in began if start not in ('none', None)), None)
    if trained is not None and 'none' in began:
        raise ValueError(f'{began["none"]} started from scratch and {began[trained]} from {trained}, which may have '
                         'seen the unknown classes; compare runs of one kind')


def _first_difference(one: Run, other: Run) -> str:
    missing = sorted((one.split[0] ^ other.split[0]) | (one.split[1] ^ other.split[1]))
    return f' ({missing[0]} is not in both, or not on the same side)' if missing else ''
