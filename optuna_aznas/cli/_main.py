"""Parses the command line and runs the command."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import optuna_aznas
from optuna_aznas.cli import _dashboard, _score, _search, _top
from optuna_aznas.cli._errors import CommandError

_DESCRIPTION = "Training-free architecture search for Optuna."

_EPILOG = """\
examples:
  search a built-in space (run it again to go on), or your own: build(trial) returns a torch.nn.Module
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
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # argparse has printed the message
        return int(end.code or 0)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return int(options.run(options) or 0)
        except CommandError as error:
            print(f"{options.prog}: error: {_without_password(str(error), options)}", file=sys.stderr)
            return error.status
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader has closed the pipe, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _without_password(message: str, options: argparse.Namespace) -> str:
    if getattr(options, "storage", None) is None:
        return message
    from optuna_aznas.storage import redact_url

    return redact_url(message, options.storage)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optuna-aznas",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"optuna-aznas {optuna_aznas.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True, parser_class=_CommandParser)
    for command in (_search, _score, _top, _dashboard):
        command.add_to(commands)
    return parser


class _CommandParser(argparse.ArgumentParser):
    """A parser that computes the end of its help only when the help is shown, as that may take long."""

    def format_help(self) -> str:
        details = self.get_default("details")
        if details is not None:
            self.epilog = f"{details()}\n\n{self.epilog}"
            self.set_defaults(details=None)
        return super().format_help()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    print(f"optuna-aznas: warning: {message}", file=sys.stderr)
