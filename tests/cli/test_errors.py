"""A command ends with the right status and one line."""
from __future__ import annotations

import configparser
import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradmix_timm
from gradmix_timm.cli.errors import ConsoleParser, RunFailedError, UsageError, one_line, run_console, user_errors


def run(main, capsys, argv=()):
    status = run_console(main, list(argv))
    lines = capsys.readouterr().err.splitlines()
    return status, [line for line in lines if line.startswith('error: ')], lines


def raises(error):
    def main(argv):
        raise error
    return main


@pytest.mark.parametrize(('returned', 'status'), [(None, 0), (0, 0), (3, 3)])
def test_status_is_what_main_returns(returned, status, capsys):
    assert run(lambda argv: returned, capsys) == (status, [], [])


def test_main_gets_the_arguments():
    seen = []
    run_console(seen.extend, ['--a', '1'])
    assert seen == ['--a', '1']


def test_usage_error_is_2_and_one_line_without_traceback(capsys):
    status, errors, lines = run(raises(UsageError('no model named x')), capsys)
    assert (status, errors, lines) == (2, ['error: no model named x'], ['error: no model named x'])


@pytest.mark.parametrize('error', [
    ValueError('got 3,\nexpected 4'), TypeError('t'), FileNotFoundError(2, 'No such file or directory', 'a.txt'),
    KeyError('model'), ImportError('no datasets')])
def test_mendable_turns_set_up_errors_into_usage_errors(error, capsys):
    def main(argv):
        with user_errors():
            raise error
    status, errors, lines = run(main, capsys)
    assert status == 2
    assert lines == errors == [f'error: {one_line(error)}']


def test_mendable_keeps_the_cause_and_a_usage_error_as_it_is():
    with pytest.raises(UsageError) as caught, user_errors():
        raise ValueError('x')
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(UsageError, match='as it is') as caught, user_errors():
        raise UsageError('as it is')
    assert caught.value.__cause__ is None


def test_mendable_takes_further_types_and_leaves_the_rest():
    with pytest.raises(UsageError), user_errors(RuntimeError):
        raise RuntimeError('Invalid device string')
    with pytest.raises(RuntimeError), user_errors():
        raise RuntimeError('a bug')


def test_messages_of_system_errors_and_keys_read_as_sentences():
    assert one_line(FileNotFoundError(2, 'No such file or directory', 'a.txt')) == 'a.txt: No such file or directory'
    assert one_line(KeyError('model')) == "missing key 'model'"
    assert one_line(ValueError()) == 'ValueError'


def test_failed_run_is_1_with_its_traceback_above_the_line(capsys):
    status, errors, lines = run(raises(ValueError('loss is nan')), capsys)
    assert status == 1
    assert errors == ['error: ValueError: loss is nan'] == lines[-1:]
    assert lines[0].startswith('Traceback')


def test_exceptions_may_ask_for_status_2(capsys):
    class Mend(ValueError):
        exit_status = 2
    assert run(raises(Mend('bad image a.png')), capsys) == (2, ['error: bad image a.png'], ['error: bad image a.png'])


def test_interrupt_is_130_and_names_the_last_checkpoint(capsys):
    stop = KeyboardInterrupt()
    stop.add_note('last checkpoint: runs/a/last.pth.tar')
    line = 'error: interrupted; last checkpoint: runs/a/last.pth.tar'
    assert run(raises(stop), capsys) == (130, [line], [line])
    assert run(raises(KeyboardInterrupt()), capsys)[:2] == (130, ['error: interrupted'])


def test_system_exit_keeps_its_status(capsys):
    assert run(raises(SystemExit()), capsys) == (0, [], [])
    assert run(raises(SystemExit(2)), capsys)[0] == 2
    assert run(raises(SystemExit('no')), capsys) == (1, ['error: no'], ['error: no'])


@pytest.mark.parametrize(('argv', 'line'), [
    (['--mixpu', '0.8'], 'error: unrecognized arguments: --mixpu 0.8 (did you mean --mixup?)'),
    (['--mixpu=0.8'], 'error: unrecognized arguments: --mixpu=0.8 (did you mean --mixup?)'),
    (['--zzz'], 'error: unrecognized arguments: --zzz (see gradmix --help)'),
    (['--mixup', 'much'], "error: argument --mixup: invalid float value: 'much'"),
])
def test_parser_errors_are_one_line_and_2(argv, line, capsys):
    parser = ConsoleParser(prog='gradmix')
    parser.add_argument('--mixup', type=float)
    assert run(lambda argv: parser.parse_args(argv) and 0, capsys, argv) == (2, [line], [line])


def test_subparsers_speak_alike(capsys):
    parser = ConsoleParser(prog='gradmix')
    parser.add_subparsers(required=True, dest='command').add_parser('osr').add_argument('--score')
    assert run(lambda argv: parser.parse_args(argv) and 0, capsys, ['osr', '--score'])[1] == [
        'error: argument --score: expected one argument']
    assert run(lambda argv: parser.parse_args(argv) and 0, capsys, ['osr', '--images', '2'])[1] == [
        'error: unrecognized arguments: --images 2 (see gradmix COMMAND --help)']


@pytest.mark.parametrize(('word', 'hint'), [('osrr', ' (did you mean osr?)'), ('wholly', '')])
def test_an_unknown_command_or_choice_names_the_nearest(word, hint, capsys):
    parser = ConsoleParser(prog='gradmix')
    parser.add_argument('--kind', choices=('osr', 'ood'))
    commands = parser.add_subparsers(required=True, dest='command', metavar='COMMAND')
    for name in ('osr', 'probe'):
        commands.add_parser(name)
    for argv in ([word], ['--kind', word, 'osr']):
        (line,) = run(lambda argv: parser.parse_args(argv) and 0, capsys, argv)[1]
        assert line.startswith(f"error: argument {'--kind' if '--kind' in argv else 'COMMAND'}: invalid choice")
        assert line.endswith(f'){hint}')


class Rotten(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError(f'bad image: {index}.png')


def test_error_of_a_loader_worker_is_told_without_its_traceback(capsys, workers_end):
    def main(argv):
        with user_errors():
            next(iter(torch.utils.data.DataLoader(Rotten(), num_workers=1)))
    assert run(main, capsys)[1] == ['error: bad image: 0.png']


def test_closed_pipe_leaves_no_complaint():
    code = ('from gradmix_timm.cli.errors import run_console\n'
            'def main(argv):\n'
            '    for _ in range(20000): print("row")\n'
            'raise SystemExit(run_console(main))')
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, '-c', code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    assert process.communicate(timeout=60)[1] == b''
    assert process.returncode == 1


@pytest.mark.parametrize('coding', ['latin-1', 'ascii', 'utf-8'])
def test_a_character_that_the_terminal_lacks_ends_no_command(coding):
    code = ('from gradmix_timm.cli.errors import run_console\n'
            'raise SystemExit(run_console(lambda argv: print("0.5 \\u00b1 0.1 \\u2264 \\udcff.png")))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, check=False,
                          env={**os.environ, 'PYTHONIOENCODING': coding})
    assert (done.returncode, done.stderr) == (0, b'')
    assert done.stdout.startswith(b'0.5 ')


@pytest.mark.parametrize('number', ['ENOSPC', 'EDQUOT', 'EFBIG'])
def test_a_full_disk_is_one_line_without_a_traceback(number, capsys):
    error = OSError(getattr(errno, number), 'No room', 'results.json')
    line = 'error: results.json: No room: make room and run it again'
    assert run(raises(error), capsys) == (1, [line], [line])
    status, errors, lines = run(raises(RunFailedError('last.pth.tar could not be written')), capsys)
    assert (status, errors) == (1, lines)


def test_a_warning_is_one_line_and_comes_from_the_first_process():
    code = ('import warnings\n'
            'from gradmix_timm.cli.errors import run_console\n'
            'raise SystemExit(run_console(lambda argv: warnings.warn("two\\nlines", UserWarning)))')
    for rank, told in ((None, 'warning: two lines\n'), ('0', 'warning: two lines\n'), ('1', '')):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                              env={**os.environ, **({'RANK': rank} if rank else {})})
        assert done.stderr == told


def installed_commands():
    """Name to entry point of every command that the package installs."""
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / 'setup.cfg')
    lines = parser['options.entry_points']['console_scripts'].strip().splitlines()
    return dict(line.replace(' ', '').split('=') for line in lines)


@pytest.mark.parametrize('entry', [pytest.param(entry, id=name) for name, entry in installed_commands().items()])
def test_every_command_prints_its_version(entry, capsys, monkeypatch):
    module, _, function = entry.partition(':')
    monkeypatch.setattr(sys, 'argv', ['command', '--version'])
    try:
        status = getattr(importlib.import_module(module), function)()
    except SystemExit as stop:
        status = stop.code
    assert status == 0
    assert capsys.readouterr().out == f'gradmix-timm {gradmix_timm.__version__}\n'
