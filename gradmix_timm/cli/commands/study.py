"""``gradmix-study``: many trainings and their evaluations from one YAML file, resumable; tables from their files."""
from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradmix_timm.checkpoint import atomic_path, write_atomic
from gradmix_timm.choices import COMMA_LISTS, SWITCHES
from gradmix_timm.cli.errors import UsageError, user_errors
from gradmix_timm.cli.openset.corrupt import corruption_options
from gradmix_timm.cli.openset.from_flags import flag_errors, options_of, settings_of
from gradmix_timm.cli.openset.main import build_parser
from gradmix_timm.cli.openset.ood import unknown_options
from gradmix_timm.cli.openset.probe import probe_options
from gradmix_timm.cli.openset.shortcut import shortcut_options
from gradmix_timm.cli.training.args import build_config_parser, parse_args
from gradmix_timm.cli.training.args import build_parser as build_train_parser
from gradmix_timm.cli.training.interrupt import StoppedError
from gradmix_timm.data.shortcut import PREFIX
from gradmix_timm.evaluation.corruption import check_scores, open_files
from gradmix_timm.openset.judge import check_names
from gradmix_timm.openset.metrics import RANK_METRICS
from gradmix_timm.registry import nearest
from gradmix_timm.study import Study, draw_study, read_study, run_study, study_tables
from gradmix_timm.study.cells import as_flags, is_done

__all__ = ['run']

# Command to what reads the flags that are its own.
_OPTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    'ood': unknown_options, 'probe': probe_options, 'shortcut': shortcut_options}


def run(args: argparse.Namespace) -> int:
    """Run the missing cells, then print the tables.

    Raises:
        UsageError: An error that the user can fix; what to type is in the message.
    """
    with user_errors():
        if not 0 < args.level < 1:
            raise ValueError(f'--level {args.level:g}: expected a coverage between 0 and 1')
        _check_output(args)
        study = read_study(args.study)
        _check_scores(args, study)
    if args.list or not args.table:
        _check_flags(study)
    if args.list:
        for cell in study.cells:
            print(f'{"done" if is_done(study.output, cell) else "    "}  {cell.name}')
        return 0
    failed: dict[str, str] = {}
    if not args.table:
        # A scheduler's signal ends a study like Ctrl-C: running cells write a checkpoint.
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with user_errors():
                failed = run_study(study, args.engine, args.jobs, args.threads, args.keep_runs, args.engine_kwargs)
        finally:
            signal.signal(signal.SIGTERM, previous)
    for name in failed:  # the message was logged when the cell failed
        print(f'failed: {name}')
    if not args.table and not any(is_done(study.output, cell) for cell in study.cells):
        return 1 if failed else 0  # cells that other processes hold were named
    with user_errors():
        tables = study_tables(study, args.scores, args.metrics, args.level)
        print(tables, end='')
        if args.write:
            write_atomic(Path(args.write), tables)
        if args.plot:
            figure = draw_study(study, args.plot_metric, args.plot_score, args.level)
            with atomic_path(args.plot) as temporary:
                figure.savefig(temporary, dpi=150)
    return 1 if failed else 0


def _check_output(args: argparse.Namespace) -> None:
    """Names of metrics, of the engine's options and of the plot's file, before hours of training.

    Raises:
        ValueError: One that no table and no plot can have.
    """
    if args.engine_kwargs and args.engine == 'local':
        raise ValueError('--engine-kwargs is of another engine; add --engine submitit')
    for flag, names, known in (('--metrics', args.metrics, RANK_METRICS),
                               ('--plot-metric', [args.plot_metric], (*RANK_METRICS, 'top1'))):
        for name in names:
            if flag == '--metrics' and name == 'top1':
                raise ValueError('--metrics top1: the accuracy heads every table; name metrics of scores')
            if name not in known and not name.startswith('ccr_at_fpr_'):
                raise ValueError(f'{flag} {name}: {nearest(name, known)}')
    if args.plot:
        from matplotlib.backend_bases import FigureCanvasBase
        endings = FigureCanvasBase.get_supported_filetypes()
        if Path(args.plot).suffix.lstrip('.').lower() not in endings:
            raise ValueError(f'--plot {args.plot}: expected a file that ends in .{", .".join(endings)}')


def _check_scores(args: argparse.Namespace, study: Study) -> None:
    """Names of scores, before hours of training.

    Raises:
        ValueError: No such score, and no module of an evaluation that could define it.
    """
    if any('device_modules' in flags for cell in study.cells for flags in cell.evaluate.values()):
        return
    for flag, names in (('--scores', args.scores), ('--plot-score', [args.plot_score])):
        try:
            check_names(names)
        except ValueError as error:
            raise ValueError(f'{flag}: {error}') from error


def _check_flags(study: Study) -> None:
    """Read flags as their commands will, so that a mistake shows before the first training.

    Of the missing cells those that together have every two levels that meet are read: three that contradict each other
    can still fail later.

    Raises:
        UsageError: A flag that a command does not have, or a value that it does not take.
    """
    _check_starts(study)
    config, training, evaluation = build_config_parser(), build_train_parser(), build_parser()
    valued = {action.dest for action in training._actions if action.nargs != 0} - set(SWITCHES)
    single = {action.dest for action in training._actions if action.nargs is None} - set(COMMA_LISTS)
    seen: set[tuple[tuple[str, str], ...]] = set()
    for cell in study.cells:
        pairs: set[tuple[tuple[str, str], ...]] = {*itertools.combinations(cell.levels.items(), 2)}
        pairs = pairs or {tuple(cell.levels.items())}
        if pairs <= seen or is_done(study.output, cell):
            continue
        if not seen:  # the same for all cells
            for command, flags in cell.evaluate.items():
                words = [command, '--checkpoint', 'last.pth.tar', *as_flags(flags)]
                _check_evaluation(_read(evaluation.parse_args, words, study, f'evaluate.{command}'), study)
        seen |= pairs
        where = f'train.py in cell {cell.name}'
        for key, value in cell.train.items():
            if isinstance(value, bool) and key in valued:
                raise UsageError(f'{study.source}: {where}: {key}: {str(value).lower()}; expected a value. YAML reads '
                                 'off, no, on and yes as false and true: quote such a word')
            if isinstance(value, list) and key in single:
                raise UsageError(f'{study.source}: {where}: {key}: {value}; expected one value')
        flags, _ = _read(lambda words: parse_args(config, training, words), as_flags(cell.train), study, where)
        off = [key for key, value in cell.train.items() if value is False]
        on = next((key for key in off if getattr(flags, key, None) is True), None)
        if on is not None:
            raise UsageError(f'{study.source}: {where}: {on}: false, and the file of config: has it on, which no flag '
                             f'switches off; take {on} out of that file')


def _check_evaluation(flags: argparse.Namespace, study: Study) -> None:
    """Values that a command would refuse only once the training is done."""
    where = f'{study.source}: evaluate.{flags.command}'
    try:
        with flag_errors(flags):
            settings = settings_of(flags)
            options_of(flags)
            if flags.command == 'corrupt':
                check_scores(settings)
                open_files(corruption_options(flags))
            elif flags.command in _OPTIONS:
                _OPTIONS[flags.command](flags)
    except UsageError as error:
        raise UsageError(f'{where}: {error}') from error
    plain = next((cell for cell in study.cells if not str(cell.train.get('dataset', '')).startswith(PREFIX)), None)
    if flags.command == 'shortcut' and plain is not None and 'config' not in plain.train:
        raise UsageError(f'{where}: cell {plain.name} trains without a shortcut; expected dataset: {PREFIX}NAME')


def _check_starts(study: Study) -> None:
    """A table compares trainings of one kind.

    Raises:
        UsageError: Of the levels of the first axis, which a table compares, some start from pretrained weights.
    """
    first = next(iter(study.axes))
    starts: dict[tuple[str, ...], set[bool]] = {}
    for cell in study.cells:
        others = tuple(level for axis, level in cell.levels.items() if axis != first)
        starts.setdefault(others, set()).add(bool(cell.train.get('pretrained')))
    if any(len(kinds) > 1 for kinds in starts.values()):
        raise UsageError(f'{study.source}: axes.{first}: some levels set pretrained, whose weights may have seen the '
                         'unknown classes, and a table compares the levels of the first axis; put another axis first')


def _read(parse: Callable[[list[str]], Any], words: list[str], study: Study, where: str) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(words)
    except SystemExit as stop:
        text = said.getvalue().strip().removeprefix('error: ')
        raise UsageError(f'{study.source}: {where}: {text}') from stop


def _interrupt(number: int, _: Any) -> None:
    raise StoppedError(number)
