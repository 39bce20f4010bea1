"""``gradmix-openset probe``: what frozen features are worth, by a linear, a nearest-neighbour and few-shot probes."""
from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradmix_timm.checkpoint import atomic_path, write_atomic
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.errors import user_errors
from gradmix_timm.data import CutDataset
from gradmix_timm.data.subsets import stratified
from gradmix_timm.openset.metrics.intervals import over_trials, top1
from gradmix_timm.openset.metrics.summary import summarize
from gradmix_timm.openset.probes import choose_l2, draw_shots, fit_linear, fit_neighbours, fit_prototypes
from gradmix_timm.openset.reports.probe_report import (
    probe_csv,
    probe_figures,
    probe_latex,
    probe_line,
    probe_markdown,
    probe_table,
    render_probe,
)
from gradmix_timm.openset.reports.report import ARRAYS, RESULTS, read_results
from gradmix_timm.openset.scores import fit_score
from gradmix_timm.records import Embeddings
from gradmix_timm.registry import nearest

from .closed_set import TestImages, open_test, told_split
from .embedding import Subject
from .known import KnownImages, open_known
from .outcome import REPORT, draw_plain, identity, manifest
from .subject import add_subject_flags, check_output, check_positive, load_subject, read_checkpoint

__all__ = ['add_probe', 'draw_probe', 'run_probe']

#: Kinds of probes.
PROBES = ('linear', 'knn', 'few-shot')
_FITTED = 'probes.npz'


def add_probe(commands: Any) -> None:
    """Register the sub-command.

    Args:
        commands: Of ``add_subparsers``.
    """
    probe = commands.add_parser(
        'probe', help='linear, nearest-neighbour and few-shot probes of frozen features',
        description='Fit probes on frozen features of training images; judge them once on the test images.')
    add_subject_flags(probe)
    add = probe.add_argument_group('Probes').add_argument
    add('--probes', type=words, default=list(PROBES), metavar='A,B,...', help='(default: linear,knn,few-shot)')
    add('--shots', type=words, default=['1', '5', '10'], metavar='1,5,10', help='(default: 1,5,10)')
    add('--draws', type=int, default=10, metavar='N', help='few-shot draws of each size (default: 10)')
    add('--knn-k', type=int, metavar='N', help='neighbours (default: 20; 200 for half a million images)')
    add('--held-out', type=float, default=0.2, metavar='SHARE',
        help='of the training images, to choose the penalty on, where the checkpoint held none out (default: 0.2)')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples for the intervals (default: 1000)')
    add('--seed', type=int, default=0, metavar='N', help='of held-out images, draws and resamples (default: 0)')
    add('--output', metavar='DIR', help='(default: the folder probe beside the checkpoint)')
    probe.set_defaults(run=run_probe)


@dataclass(frozen=True)
class _Features:
    """Embeddings of training images, of those held out from them, and of the test images.

    Attributes:
        fit: Training images, none of ``held`` among them.
        held: Training images that choices are made on.
        known: Test images of known classes.
        unknown: Of unknown ones, or None.
        num_classes: K.
    """

    fit: Embeddings
    held: Embeddings
    known: Embeddings
    unknown: Embeddings | None
    num_classes: int

    @property
    def train(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels of all training images, in which those held out take part again."""
        return (torch.cat([self.fit.features, self.held.features]), torch.cat([self.fit.label, self.held.label]))


def run_probe(args: argparse.Namespace) -> int:
    """Embed, fit, judge, print the table, write the files; the report's path comes last."""
    began = time.monotonic()
    with user_errors():
        args.shots = _check(args)
        folder = _output(args)
        check_output(folder)
        subject, images, known = _open(args)
        features = _embed(args, subject, images, known)
        groups, fitted, missing = _judge(args, subject, features)
    cuts = {'train': known.train, 'validation': known.validation, 'known': images.known, 'unknown': images.unknown}
    first, split = next(iter(groups.values())), images.split
    results = {
        'format': 1, 'command': 'probe', 'protocol': split.protocol, 'family': split.family, 'trial': split.trial,
        **identity(args, subject), 'known_classes': list(split.known), 'unknown_classes': list(split.unknown),
        'n_known': first['n_known'], 'n_unknown': first['n_unknown'], 'closed_set': first['closed_set'],
        'scores': first['scores'], 'groups': groups, 'not_served': missing, 'warnings': _warnings(subject, images),
        'skipped': subject.skipped, 'manifest': manifest(args, subject, cuts, images.source, time.monotonic() - began)}
    _write(folder, results, fitted, features)
    draw_probe(folder)
    print(f'\n{probe_line(results)}\n\n{probe_table(results)}')
    for name, reason in missing.items():
        print(f'not served: {name}: {reason}')
    for warning in results['warnings']:
        print(f'warning: {warning}')
    print(folder / REPORT)
    return 0


def draw_probe(folder: Path) -> None:
    """Figures and page, from files."""
    draw_plain(folder, probe_figures(read_results(folder)), render_probe)


# ---- opening

def _check(args: argparse.Namespace) -> list[int]:
    """The shots as numbers."""
    for name in args.probes:
        if name not in PROBES:
            raise ValueError(f'--probes: no probe {name!r}: {nearest(name, PROBES)}')
    if not args.probes:
        raise ValueError(f'--probes: expected one or more of {", ".join(PROBES)}')
    if not args.shots or any(not part.isdecimal() or part == '0' for part in args.shots):
        raise ValueError(f'--shots {",".join(args.shots)}: expected training images of a class, as in 1,5,10')
    if not 0 < args.held_out < 1:
        raise ValueError(f'--held-out {args.held_out:g}: expected a share between 0 and 1')
    check_positive(args, ('batch_size', 'workers', 'bootstrap', 'seed', 'img_size', 'draws', 'knn_k'))
    return sorted({int(part) for part in args.shots})


def _output(args: argparse.Namespace) -> Path:
    if args.output:
        return Path(args.output)
    return Path(args.checkpoint).parent / 'probe' if args.checkpoint else Path('output') / f'probe-{args.model}'


def _open(args: argparse.Namespace) -> tuple[Subject, TestImages, KnownImages]:
    loaded = read_checkpoint(args)
    # Features are read, so that the head need not fit the classes.
    subject = load_subject(args, loaded, None)
    images = open_test(args, loaded, told_split(args, loaded), subject.preprocessing)
    known = open_known(args, loaded, images.split.known, subject.preprocessing)
    assert known.train is not None  # only a folder in place of the test split does without
    _check_apart(known.train, images.known)
    return subject, images, known


def _check_apart(train: CutDataset, test: CutDataset) -> None:
    """Refuse test images that are training images, as where a folder without splits is read twice."""
    paths = set(filter(os.path.isabs, train.filenames(absolute=True)))
    both = [name for name in test.filenames(absolute=True) if name in paths]
    if both:
        raise ValueError(f'{len(both)} of the {len(test)} test images are training images ({both[0]}, ...); name two '
                         'splits, --train-split and --test-split')


def _embed(args: argparse.Namespace, subject: Subject, images: TestImages, known: KnownImages) -> _Features:
    assert known.train is not None
    train = subject.embed(known.train, 'known training images')
    if known.validation is not None:
        fit, held = train, subject.embed(known.validation, 'held-out images')
    else:
        _check_two_each(train.label.numpy(), known.train.classes)
        place = stratified(train.label.numpy(), args.held_out, args.seed, known.train.classes)
        chosen = torch.zeros(len(train.label), dtype=torch.bool)
        chosen[torch.from_numpy(place)] = True
        fit, held = train.rows(~chosen), train.rows(chosen)
    unknown = None if images.unknown is None else subject.embed(images.unknown, 'unknown test images')
    return _Features(fit, held, subject.embed(images.known, 'known test images'), unknown, len(images.split.known))


def _check_two_each(labels: NDArray[Any], names: Sequence[str]) -> None:
    """Choices are made on held-out images, so that one image of a class is too few."""
    few = np.flatnonzero(np.bincount(labels, minlength=len(names)) < 2)
    if len(few):
        raise ValueError(f'class {names[few[0]]!r} has fewer than two training images; the probes hold a share of '
                         'every class out to choose on (--held-out), so two of each are needed: add images')


# ---- fitting and judging

def _judge(args: argparse.Namespace, subject: Subject, features: _Features
           ) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, str]]:
    """Groups by probe, everything that was fitted, and why a probe could not be served."""
    groups: dict[str, Any] = {}
    fitted: dict[str, NDArray[Any]] = {}
    missing: dict[str, str] = {}
    if 'linear' in args.probes:
        groups['linear'] = _linear(args, subject, features, fitted)
    if 'knn' in args.probes:
        groups['knn'] = _neighbours(args, features, fitted)
    for shots in args.shots if 'few-shot' in args.probes else ():
        try:
            groups[f'few-shot-{shots}'] = _few_shots(args, features, shots, fitted)
        except ValueError as error:
            missing[f'few-shot-{shots}'] = str(error)
    if not groups:
        raise ValueError('no probe could be served: ' + '; '.join(f'{k}: {v}' for k, v in missing.items()))
    record = subject.loaded.record if subject.loaded is not None else None
    if record is not None and features.known.logits.shape[1] == features.num_classes and (
            record.objective == 'ce' or record.probe):
        groups['own head'] = {'probe': 'head', 'n_train': len(features.fit.label), 'parameters': {}, **_group(
            args, features, features.known.logits, dict.fromkeys(('msp', 'mls'), (features.known, features.unknown)))}
    return groups, fitted, missing


def _linear(args: argparse.Namespace, subject: Subject, features: _Features, fitted: dict[str, NDArray[Any]]
            ) -> dict[str, Any]:
    count, device = features.num_classes, subject.device
    fit = (features.fit.features.to(device), features.fit.label.to(device))
    l2, by_l2 = choose_l2(fit, (features.held.features.to(device), features.held.label), count)
    rows, labels = features.train
    probe = fit_linear(rows.to(device), labels.to(device), count, l2)
    fitted |= {f'linear/{name}': value for name, value in probe.parameters().items()}
    known = replace(features.known, logits=probe.logits(features.known.features.to(device)))
    unknown = None if features.unknown is None else replace(
        features.unknown, logits=probe.logits(features.unknown.features.to(device)))
    return {'probe': 'linear', 'n_train': len(labels), 'held_out_top1': by_l2[l2],
            'parameters': {'l2': l2, 'held_out_by_l2': {f'{key:g}': value for key, value in by_l2.items()},
                           'n_held_out': len(features.held.label)},
            **_group(args, features, known.logits, dict.fromkeys(('msp', 'mls'), (known, unknown)))}


def _neighbours(args: argparse.Namespace, features: _Features, fitted: dict[str, NDArray[Any]]) -> dict[str, Any]:
    rows, labels = features.train
    probe = fit_neighbours(rows, labels, features.num_classes, args.knn_k)
    part = fit_neighbours(features.fit.features, features.fit.label, features.num_classes, args.knn_k)
    fitted |= {f'knn/{name}': value for name, value in probe.parameters().items()}
    held = part.logits(features.held.features).argmax(1) == features.held.label
    bank = replace(features.fit, features=rows, label=labels)
    return {'probe': 'knn', 'n_train': len(labels), 'held_out_top1': float(held.double().mean()),
            'parameters': {'k': probe.k},
            **_group(args, features, probe.logits(features.known.features),
                     {'knn': (features.known, features.unknown)}, bank, {'k': probe.k})}


def _few_shots(args: argparse.Namespace, features: _Features, shots: int, fitted: dict[str, NDArray[Any]]
               ) -> dict[str, Any]:
    rows, labels = features.train
    found = []
    for draw in range(args.draws):
        chosen = torch.from_numpy(draw_shots(labels.numpy(), shots, args.seed, draw))
        probe = fit_prototypes(rows[chosen], labels[chosen], features.num_classes)
        fitted |= {f'few-shot-{shots}/{draw}/{name}': value for name, value in probe.parameters().items()}
        right = probe.logits(features.known.features).argmax(1) == features.known.label
        found.append((float(right.double().mean()), right.numpy()))
    values = [value for value, _ in found]
    closed: dict[str, Any] = top1(found[0][1])
    if len(values) > 1:
        over = over_trials(values)
        closed = {'top1': over.mean, 'top1_ci': [max(over.low, 0.), min(over.high, 1.)]}
    return {'probe': 'few-shot', 'n_train': shots * features.num_classes, 'n_known': len(features.known.label),
            'n_unknown': 0 if features.unknown is None else len(features.unknown.label), 'closed_set': closed,
            'top1_sd': float(np.std(values, ddof=1)) if len(values) > 1 else None, 'scores': {},
            'parameters': {'shots': shots, 'draws': args.draws, 'top1_by_draw': values}}


def _group(args: argparse.Namespace, features: _Features, logits: torch.Tensor,
           sides: Mapping[str, tuple[Embeddings, Embeddings | None]], bank: Embeddings | None = None,
           options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Accuracy of logits on the known test images, and scores of knowns against unknowns."""
    right = (logits.argmax(1) == features.known.label).numpy()
    scores = {}
    for name, (known, unknown) in sides.items():
        if unknown is None:
            continue
        score = fit_score(name, bank, **(options or {}))
        scores[name] = summarize(np.asarray(score(known), dtype=np.float64), right,
                                 np.asarray(score(unknown), dtype=np.float64), draws=args.bootstrap, seed=args.seed)
    return {'n_known': len(right), 'n_unknown': 0 if features.unknown is None else len(features.unknown.label),
            'closed_set': top1(right), 'scores': scores}


def _warnings(subject: Subject, images: TestImages) -> list[str]:
    if images.unknown is None:
        return []
    record = subject.loaded.record if subject.loaded is not None else None
    if record is None:
        return ['nobody says what the features were trained on; it may have held images of the unknown classes']
    if set(images.split.unknown) & set(record.known_classes):
        return ['the features were trained on classes that are judged as unknown here']
    return []


# ---- files

def _write(folder: Path, results: dict[str, Any], fitted: dict[str, NDArray[Any]], features: _Features) -> None:
    """Each file whole or not at all; results.json last."""
    arrays = {'known_label': features.known.label.numpy(), 'known_index': features.known.index.numpy()}
    for name, content in ((ARRAYS, arrays), (_FITTED, fitted)):
        with atomic_path(folder / name) as temporary:
            np.savez_compressed(temporary, **content)  # type: ignore[arg-type]  # names hold no keyword of it
    write_atomic(folder / 'results.csv', probe_csv(results))
    write_atomic(folder / 'results.md', probe_markdown(results))
    write_atomic(folder / 'results.tex', probe_latex(results))
    write_atomic(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + '\n')
