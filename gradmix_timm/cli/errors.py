"""Exit status of commands (0, 1, 2 or 128 + a signal's number) and their single ``error:`` line with the remedy.

2: an error the user can fix. 1: a run that failed. 130: Ctrl-C. 143, 138: a training run after SIGTERM,
SIGUSR1; 143: a study after SIGTERM, too.
"""
from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from gradmix_timm import __version__

__all__ = ['ConsoleParser', 'RunFailedError', 'UsageError', 'run_console', 'shortened', 'user_errors']

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_FIXABLE: tuple[type[Exception], ...] = (ValueError, TypeError, OSError, KeyError, ImportError)
# No space to write: a full disk, a quota, a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UsageError(ValueError):
    """An error the user can fix; the message says what was got, what was expected and what to type.

    A ValueError, so that callers of a command's ``main`` from Python can catch it as one.
    """

    exit_status = USAGE
    silent = False


class RunFailedError(RuntimeError):
    """A run that failed for a reason which its message explains: exit status 1, without a traceback."""


@contextmanager
def user_errors(*also: type[Exception], renamed: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turns the errors of set-up code into :class:`UsageError`; the original is kept as its cause.

    For code that reads the user's input (flags, files, names). Never around a training or evaluation loop: there a
    ValueError is a failed run.

    Args:
        *also: Exception types to turn besides ValueError, TypeError, OSError, KeyError and ImportError.
        renamed: Flags that messages advise, and what the command calls them.

    Raises:
        UsageError: In place of such an error, with its message in one line.

    Example:
        >>> with user_errors():
        ...     raise ValueError('no such thing')
        Traceback (most recent call last):
        gradmix_timm.cli.errors.UsageError: no such thing
    """
    try:
        yield
    except UsageError:
        raise
    except _FIXABLE + also as error:
        words = one_line(error)
        for flag, own in (renamed or {}).items():
            words = words.replace(flag, own)
        raise UsageError(words) from error


def one_line(error: BaseException) -> str:
    """An exception's message in one line, without the wrapping of system calls, dicts and loader workers."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return f'missing key {error.args[0]!r}'
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f'{error.filename}: {error.strerror}'
    text = str(error).strip()
    if text.startswith('Caught ') and 'Original Traceback' in text:
        # A DataLoader worker hands its whole traceback over as the message; the error itself is the last line.
        text = text.splitlines()[-1].split(': ', 1)[-1]
    return ' '.join(text.split()) or type(error).__name__


def shortened(error: BaseException) -> str:
    """An exception's message in one line cut to 200 characters: PyTorch lists every missing weight."""
    text = one_line(error)
    return text if len(text) <= 200 else f'{text[:200]} ...'


class ConsoleParser(argparse.ArgumentParser):
    """argparse whose errors are one ``error:`` line, an unknown flag, command or choice with the nearest known one.

    An empty word, to which a shell expands an unset variable, is refused for every flag.

    Args:
        takes_empty: Names in the namespace of flags that accept an empty word, as --dataset for class folders.
    """

    def __init__(self, *args: Any, takes_empty: Collection[str] = ('dataset',), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.add_help:  # beside --help, and as little a flag with a value
            self.add_argument('--version', action='version', dest='help', version=f'gradmix-timm {__version__}',
                              help='show the version and exit')
        self.takes_empty = frozenset(takes_empty)
        # Lists of negative numbers are values too: `--layers -2,-1`.
        self._negative_number_matcher = re.compile(r'^-\d+(,-?\d+)*$|^-\d*\.\d+$')

    def _get_values(self, action: argparse.Action, arg_strings: Any) -> Any:
        empty_means = action.dest in self.takes_empty
        whole_line = action.nargs in (argparse.PARSER, argparse.REMAINDER)  # of a command, whose parser looks itself
        if not whole_line and any(not word.strip() and not (empty_means and word == '') for word in arg_strings):
            raise argparse.ArgumentError(action, 'got an empty word (an unset variable?); give a value or leave it out')
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            close = difflib.get_close_matches(str(value), map(str, action.choices or ()), n=1, cutoff=0.6)
            error.message += f' (did you mean {close[0]}?)' if close else ''
            raise

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with status 2."""
        stray = message.removeprefix('unrecognized arguments: ')
        if stray != message:
            flag = next((word for word in stray.split() if word.startswith('-')), stray).split('=')[0]
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.6)
            command = ' COMMAND' if self._subparsers is not None else ''
            message += f' (did you mean {close[0]}?)' if close else f' (see {self.prog}{command} --help)'
        # Several processes read the same flags; only one prints the error.
        self.exit(USAGE, f'error: {message}\n' if os.environ.get('RANK', '0') == '0' else None)


def run_console(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main`` and end as a command should.

    Args:
        main: Takes the arguments without the program's name (None: ``sys.argv``), returns a status or None.
        argv: The arguments.

    Returns:
        0; what ``main`` returned; 2 for :class:`UsageError`, a parser's error, or an exception with
        ``exit_status = 2``; 130 for an interrupt, or its ``exit_status``, with the exception's notes (the last
        checkpoint) in the line; 1 for anything else, a traceback above the line unless the message is sufficient. An
        exception whose ``silent`` is true ends the command without a line: another process has printed it.
    """
    if hasattr(sys.stdout, 'reconfigure'):  # a character that the terminal lacks must not fail the command
        sys.stdout.reconfigure(errors='replace')
    warnings.formatwarning = _warning_line
    if os.environ.get('RANK', '0') != '0':
        warnings.simplefilter('ignore')
    try:
        status = main(argv) or OK
        sys.stdout.flush()
        return status
    except SystemExit as stop:
        return _leave(stop)
    except KeyboardInterrupt as stop:
        return _say(getattr(stop, 'exit_status', INTERRUPTED), (str(stop) or 'interrupted') + _notes(stop), stop)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has ended; without this the interpreter reports it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Status and line of an exception; a traceback unless the message is sufficient."""
    if getattr(error, 'exit_status', FAILED) == USAGE:
        return _say(USAGE, one_line(error) + _notes(error), error)
    if isinstance(error, RunFailedError):
        return _say(FAILED, one_line(error) + _notes(error), error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return _say(FAILED, f'{one_line(error)}: make room and run it again{_notes(error)}', error)
    if not getattr(error, 'silent', False):
        traceback.print_exception(error)
    return _say(FAILED, f'{type(error).__name__}: {one_line(error)}{_notes(error)}', error)


def _warning_line(message: Warning | str, category: type[Warning], filename: str, lineno: int,
                  line: str | None = None) -> str:
    """A warning in one line, without its position in the source code."""
    return f'warning: {" ".join(str(message).split())}\n'


def _notes(error: BaseException) -> str:
    return ''.join(f'; {note}' for note in getattr(error, '__notes__', []))


def _leave(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or OK
    return _say(FAILED, str(stop.code).removeprefix('error: '))


def _say(status: int, message: str, error: BaseException | None = None) -> int:
    if not getattr(error, 'silent', False):
        print(f'error: {message}', file=sys.stderr)
    return status
