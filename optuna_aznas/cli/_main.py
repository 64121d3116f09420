"""Parses the command line and runs the command."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import optuna_aznas
from optuna_aznas._text import for_terminal
from optuna_aznas.cli import _dashboard, _score, _search, _top
from optuna_aznas.cli._errors import CommandError, failure_of_environment
from optuna_aznas.cli._output import Result

_DESCRIPTION = "Training-free architecture search for Optuna."

_EPILOG = """\
examples:
  search a built-in space, or your own (build(trial) returns a torch.nn.Module); run it again to continue
    optuna-aznas search nas_bench_201 --trials 300
    optuna-aznas search my_nets:build --input-shape 3,32,32
  print what was found
    optuna-aznas top --study-name nas_bench_201 --format csv > best.csv
  look at one model, block by block
    optuna-aznas score my_nets:model --input-shape 3,32,32
  open the searches in optuna-dashboard
    optuna-aznas dashboard

Each command has its own --help. Results go to standard output, progress and messages to standard error.
exit status: 0 success, 1 failure, 2 invalid arguments, 130 interrupted (Ctrl-C)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: Those of the command line; by default the process's own.
    """
    if sys.stderr is None:  # it is closed; print would write messages to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what an encoding such as ASCII cannot express
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:  # argparse has printed the help or the message
        return _write("", int(end.code or 0))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a user's module prints is no result
                result: Result = options.run(options)
        except CommandError as error:
            return _fail(options, str(error), error.status)
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130
        except Exception as error:
            reason = failure_of_environment(error)
            if reason is None:
                raise
            return _fail(options, f"{_subject(options)}{reason}", 1)
    return _write(result.text, result.status)


def _write(text: str, status: int) -> int:
    """Write to standard output and return the exit status, which becomes 1 if that fails."""
    if sys.stdout is None:
        if text:
            print("optuna-aznas: error: standard output is closed.", file=sys.stderr)
        return 1 if text else status
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as in `... | head`
        _discard_output()
    except OSError as error:
        _discard_output()
        print(f"optuna-aznas: error: standard output: {error.strerror or error}", file=sys.stderr)
        return 1
    return status


def _discard_output() -> None:
    """Point standard output to nowhere, so that Python does not try to write the rest again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(options: argparse.Namespace, message: str, status: int) -> int:
    if getattr(options, "storage", None) is not None:
        from optuna_aznas.storage import redact_url

        message = redact_url(message, options.storage)
    print(f"{options.prog}: error: {for_terminal(message)}", file=sys.stderr)
    return status


def _subject(options: argparse.Namespace) -> str:
    return f"storage {options.storage}: " if getattr(options, "storage", None) is not None else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optuna-aznas",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"optuna-aznas {optuna_aznas.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for command in (_search, _score, _top, _dashboard):
        command.add_to(commands)
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    print(f"optuna-aznas: warning: {for_terminal(message)}", file=sys.stderr)
