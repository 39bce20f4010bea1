"""``gradmix-openset corrupt``: errors and open-set scores under the corruptions of CIFAR-C and ImageNet-C."""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradmix_timm.checkpoint import atomic_path, write_atomic
from gradmix_timm.cli.config_file import words
from gradmix_timm.cli.errors import user_errors
from gradmix_timm.data.corruptions import FAMILIES, SCALES, SEVERITIES, alexnet_errors, official_name
from gradmix_timm.openset.corruption import judge_corrupted, summarize_corruptions
from gradmix_timm.openset.judge import check_names, needs_train
from gradmix_timm.openset.reports.corruption_report import (
    corruption_csv,
    corruption_figures,
    corruption_latex,
    corruption_line,
    corruption_markdown,
    corruption_table,
    render_corruption,
)
from gradmix_timm.openset.reports.report import ARRAYS, FIGURES, RESULTS, read_results
from gradmix_timm.records import Embeddings

from .corrupt_plan import SMALL, Plan, draw_examples, make_plan, watched
from .group_store import GroupStore
from .outcome import REPORT, draw_plain, identity, manifest
from .subject import add_subject_flags, check_output, check_positive

__all__ = ['add_corrupt', 'draw_corrupt', 'run_corrupt']

_GROUPS, _EXAMPLES = 'groups.jsonl', 'examples.png'
_FAMILY = {name: family for family, names in FAMILIES.items() for name in names}


def add_corrupt(commands: Any) -> None:
    """Register the sub-command.

    Args:
        commands: Of ``add_subparsers``.
    """
    corrupt = commands.add_parser(
        'corrupt', help='errors and open-set scores under 15 corruptions at 5 severities',
        description='Judge a checkpoint on corrupted images, generated on the fly or of the official files.')
    add_subject_flags(corrupt)
    add = corrupt.add_argument_group('Corruption').add_argument
    add('--official', metavar='DIR', help='files of CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C in place of '
                                          'generated images; the clean test set is needed all the same')
    add('--corruptions', type=words, metavar='A,B,...', help=f'names, or {", ".join(FAMILIES)} (default: the 15)')
    add('--severities', type=_severities, default=SEVERITIES, metavar='1,3,5', help='(default: 1,2,3,4,5)')
    add('--scale', choices=tuple(SCALES), help='whose constants generated images have (default: by their side)')
    add('--corrupt-at', choices=('stored', 'input'),
        help=f"corrupt images as stored, or cut to the model's input (default: stored up to {SMALL} pixels)")
    add('--baseline', metavar='FILE', help='results.json of another model on the same images, or alexnet (for '
                                           'ImageNet-C): adds mCE and relative mCE')
    add('--images', type=int, metavar='N', help='at most N known and N unknown images, evenly chosen (default: all)')
    add = corrupt.add_argument_group('Evaluation').add_argument
    add('--scores', type=words, default=['msp', 'mls'], metavar='A,B,...',
        help='that need no training images (default: msp,mls)')
    add('--bootstrap', type=int, default=0, metavar='N', help="resamples for intervals but AUROC's (default: 0, none)")
    add('--seed', type=int, default=0, metavar='N', help='of generated images and resamples (default: 0)')
    add('--output', metavar='DIR', help='(default: the folder corrupt beside the checkpoint)')
    corrupt.set_defaults(run=run_corrupt)


def _severities(text: str) -> tuple[int, ...]:
    parts = words(text)
    if not parts or any(part not in ('1', '2', '3', '4', '5') for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f'severities run from 1 to 5, each named once, as in 1,3,5; got {text!r}')
    return tuple(sorted(map(int, parts)))


def run_corrupt(args: argparse.Namespace) -> int:
    """Embed clean images, then every corruption and severity; print the table, write the files."""
    began = time.monotonic()
    with user_errors():
        _check(args)
        folder = _output(args)
        check_output(folder)
        plan = make_plan(args)
        reference = _reference(args, plan)
        clean = plan.clean_subject.embed(plan.images.known, 'known test images')
        others = None if plan.images.unknown is None else plan.clean_subject.embed(
            plan.images.unknown, 'unknown test images')
        # A broken image or weights that give NaN are the user's to mend as well.
        store = GroupStore(folder / _GROUPS, plan.depends_on())
        done = len(store.groups)
        _fill(args, plan, others, store)
    wanted = {name: store.groups[name] for name in plan.group_names}
    results, arrays = _results(args, plan, wanted, (clean, others), reference)
    cuts = {'known': plan.images.known, 'unknown': plan.images.unknown}
    results['manifest'] = manifest(args, plan.clean_subject, cuts, plan.images.source, time.monotonic() - began)
    results['manifest']['settings']['groups_reused'] = done
    _write(folder, plan, results, arrays)
    draw_corrupt(folder)
    print(f'\n{corruption_line(results)}\n\n{corruption_table(results)}')
    for key in ('no_mce', 'no_relative_mce'):
        if key in results['corruption']:
            print(f'note: {results["corruption"][key]}')
    print(folder / REPORT)
    return 0


def draw_corrupt(folder: Path) -> None:
    """Figures and page, from files."""
    draw_plain(folder, corruption_figures(read_results(folder)), render_corruption)


def _check(args: argparse.Namespace) -> None:
    check_names(args.scores)
    late = next((name for name in args.scores if needs_train([name])), None)
    if late is not None:
        raise ValueError(f'--scores: {late} is fit on training images, which are not read here; msp, mls, energy and '
                         'others of the logits alone can be had')
    check_positive(args, ('batch_size', 'workers', 'bootstrap', 'seed', 'img_size', 'images'))
    if args.official and (args.scale or args.corrupt_at):
        raise ValueError('--scale and --corrupt-at are for generated images; leave them out with --official')


def _output(args: argparse.Namespace) -> Path:
    if args.output:
        return Path(args.output)
    return Path(args.checkpoint).parent / 'corrupt' if args.checkpoint else Path('output') / f'corrupt-{args.model}'


def _fill(args: argparse.Namespace, plan: Plan, others: Embeddings | None, store: GroupStore) -> None:
    """Every group that the store lacks."""
    missing = [name for name in plan.group_names if name not in store.groups]
    try:
        for name, tell in watched(missing, len(plan.group_names)):
            corruption, severity = name.split('/')
            known, unknown = plan.pair(corruption, int(severity))
            title = f'{corruption}, severity {severity}'
            group, right = judge_corrupted(
                plan.subject.embed(known, title), None if unknown is None else plan.subject.embed(unknown, title),
                others, args.scores, args.bootstrap, args.seed)
            group = {'corruption': corruption, 'severity': int(severity),
                     'family': _FAMILY.get(official_name(corruption), 'extra'), **group}
            store.add(name, {'group': group, 'right': np.packbits(right).tobytes().hex(), 'count': len(right)})
            tell(f'error {group["error"]:.1%}')
    except KeyboardInterrupt as stop:
        stop.add_note(f'{len(store.groups)} of {len(plan.group_names)} groups are kept in {store.path}; the same '
                      'command goes on from there')
        raise


def _results(args: argparse.Namespace, plan: Plan, stored: dict[str, Any],
             clean: tuple[Embeddings, Embeddings | None], reference: dict[str, float] | None
             ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Everything of results.json but the manifest, and which images were classified rightly."""
    split = plan.images.split
    whole, right = judge_corrupted(*clean, None, args.scores, args.bootstrap, args.seed)
    groups: dict[str, Any] = {name: kept['group'] for name, kept in stored.items()}
    arrays = {f'right/{name}': np.unpackbits(np.frombuffer(bytes.fromhex(kept['right']), np.uint8),
                                             count=kept['count']).astype(bool) for name, kept in stored.items()}
    sizes = {len(row) for row in arrays.values()}
    if len(sizes) > 1:
        raise RuntimeError(f'corruptions have {min(sizes)} to {max(sizes)} images; they should show the same ones')
    found = summarize_corruptions(groups, whole['error'], ~np.stack(list(arrays.values())), reference)
    found |= {'official': plan.official is not None, 'source': plan.told, 'scale': plan.scale, 'at': plan.at,
              'seed': args.seed, 'complete': plan.complete, 'reference': args.baseline}
    arrays |= {'right/clean': right, 'known_index': clean[0].index.numpy(), 'known_label': clean[0].label.numpy()}
    return {'format': 1, 'command': 'corrupt', 'protocol': split.protocol, 'family': split.family, 'trial': split.trial,
            **identity(args, plan.subject), 'known_classes': list(split.known), 'unknown_classes': list(split.unknown),
            'n_known': whole['n_known'], 'n_unknown': whole['n_unknown'], 'closed_set': whole['closed_set'],
            'scores': whole['scores'], 'groups': groups, 'corruption': found,
            'skipped': plan.clean_subject.skipped}, arrays


def _reference(args: argparse.Namespace, plan: Plan) -> dict[str, float] | None:
    """Corruption to mean error of the baseline over the same severities, and 'clean'."""
    if not args.baseline:
        return None
    if args.baseline != 'alexnet':
        return _measured(Path(args.baseline), args, plan)
    if plan.official is None or plan.official.arrays or len(plan.images.split.known) != 1000:
        raise ValueError("--baseline alexnet: the published errors are for ImageNet-C's own files at 224 px and 1000 "
                         "classes; for other images give another model's results.json")
    if args.severities != SEVERITIES:
        raise ValueError('--baseline alexnet: the published errors are means over five severities; leave out '
                         '--severities')
    return alexnet_errors()


def _measured(path: Path, args: argparse.Namespace, plan: Plan) -> dict[str, float]:
    """The baseline's errors from the results of another run of this command on the same images."""
    if not path.exists():
        raise ValueError(f'--baseline: no file {path}; expected results.json of `openset corrupt`, or alexnet')
    other: Mapping[str, Any] = read_results(path if path.is_dir() else path.parent)
    part = other.get('corruption')
    if part is None:
        raise ValueError(f'--baseline: {path} is not of `openset corrupt`')
    for key, value in plan.compared().items():
        theirs = other['manifest']['list_sha256']['known'] if key == 'images' else part[key]
        if theirs != value:
            raise ValueError(f'--baseline: {path} was measured with other {key} ({theirs}, here {value}); run it again '
                             'with the same flags')
    found = {'clean': part['clean_error']}
    for name in plan.names:
        rows = [other['groups'].get(f'{name}/{severity}') for severity in args.severities]
        if None in rows:
            raise ValueError(f'--baseline: {path} lacks {name} at severity {args.severities[rows.index(None)]}; run it '
                             'again with the same --corruptions and --severities')
        found[name] = float(np.mean([row['error'] for row in rows]))
    return found


def _write(folder: Path, plan: Plan, results: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Each file whole or not at all; results.json last."""
    with atomic_path(folder / ARRAYS) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # names hold no keyword of it
    write_atomic(folder / FIGURES / _EXAMPLES, draw_examples(plan))
    write_atomic(folder / 'results.csv', corruption_csv(results))
    write_atomic(folder / 'results.md', corruption_markdown(results))
    write_atomic(folder / 'results.tex', corruption_latex(results))
    write_atomic(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + '\n')
