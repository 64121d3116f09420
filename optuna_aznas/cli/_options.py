"""Options that several commands share, and functions that read their values."""

from __future__ import annotations

import argparse
import math
from typing import Any

DEFAULT_STORAGE = "sqlite:///aznas.db"

_STORAGE_HELP = (
    "storage of the study: a database URL (sqlite:///FILE, postgresql+psycopg://...), journal:FILE, redis://HOST:PORT "
    f"or grpc://HOST:PORT (default: {DEFAULT_STORAGE})"
)

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_command(commands: Any, name: str, run: Any, *, summary: str, examples: str) -> argparse.ArgumentParser:
    """Add a command with its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, prog=f"optuna-aznas {name}")
    return parser


def add_study_options(parser: argparse.ArgumentParser, study_help: str) -> None:
    """Add the options that name a study."""
    parser.add_argument("--storage", metavar="URL", default=DEFAULT_STORAGE, help=_STORAGE_HELP)
    parser.add_argument("--study-name", metavar="NAME", help=study_help)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a leaderboard."""
    parser.add_argument("-n", type=count, default=10, metavar="N", help="number of networks to print (default: 10)")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")


def add_evaluator_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the evaluator."""
    parser.add_argument(
        "--input-shape", type=shape, metavar="C,H,W", help="shape of one sample without the batch, such as 3,32,32"
    )
    parser.add_argument("--batch-size", type=count, metavar="N", help="samples in the batch of noise (default: 8)")
    parser.add_argument("--evaluator-seed", type=seed, metavar="N", help="seed of weights and noise (default: 0)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto, which is a GPU if there is one)"
    )


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def seed(text: str) -> int:
    """Read a seed, a whole number from 0 to 2**32 - 1."""
    return _whole(text, 0, 2**32 - 1)


def port(text: str) -> int:
    """Read the number of a port, from 1 to 65535."""
    return _whole(text, 1, 65535)


def _whole(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
    return value


def seconds(text: str) -> float:
    """Read a time above 0 in seconds, or with a unit: 90, 90s, 15m, 2h."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a time above 0 such as 90, 15m or 2h, not {text!r}")
    return value


def budget(text: str) -> float:
    """Read a number of multiply-accumulates: 450M, 1.2G, 4.5e8."""
    stripped = text.strip().lower()
    unit = stripped[-1:] if stripped[-1:].isalpha() else ""
    try:
        value = float(stripped.removesuffix(unit)) * _UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a number above 0 such as 450M or 1.2G, not {text!r}")
    return value


#: Units that a limit's value may have, with their factors, by the limit's name.
_LIMIT_UNITS = {
    "parameters": _UNITS,
    "complexity": _UNITS,
    "peak_memory": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "latency": {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3},
}


def limit(text: str) -> tuple[str, float]:
    """Read a limit: parameters=2M, complexity=450M, peak_memory=100MB, latency=15ms."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip().lower()
    if not equals or name not in _LIMIT_UNITS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(_LIMIT_UNITS)} with a value, not {text!r}")
    number = value.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = value.removeprefix(number)
    try:
        maximum = float(number) * _LIMIT_UNITS[name][unit]
    except (ValueError, KeyError):
        maximum = math.nan
    if not (math.isfinite(maximum) and maximum > 0):
        raise argparse.ArgumentTypeError(
            f"must be a number above 0, such as parameters=2M, latency=15ms or peak_memory=100MB, not {text!r}"
        )
    return name, maximum


def shape(text: str) -> tuple[int, ...]:
    """Read a shape: 3,32,32 or 3x32x32."""
    try:
        sizes = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be positive whole numbers such as 3,32,32, not {text!r}")
    return sizes


def names(text: str) -> tuple[str, ...]:
    """Read a list of names, separated by commas."""
    listed = tuple(name.strip() for name in text.split(",") if name.strip())
    if not listed:
        raise argparse.ArgumentTypeError(f"must be names separated by commas, not {text!r}")
    return listed
