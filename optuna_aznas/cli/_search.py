"""``optuna-aznas search``: search a space without training."""

from __future__ import annotations

import argparse
from typing import Any

from optuna_aznas.cli._options import (
    add_command,
    add_evaluator_options,
    add_output_options,
    add_study_options,
    budget,
    count,
    limit,
    names,
    seconds,
    seed,
)
from optuna_aznas.cli._output import Result
from optuna_aznas.spaces.built_in import BUILT_IN

_EXAMPLES = """\
  optuna-aznas search nas_bench_201 --trials 300
  optuna-aznas search nas_bench_201 --workers 4 --storage journal:nas.log
  optuna-aznas search nas_bench_201 --timeout 15m --budget 60M --study-name small
  optuna-aznas search my_nets:build --input-shape 3,32,32 --limit parameters=2M --limit latency=15ms
  optuna-aznas search my_nets:build --input-shape 3,32,32 --storage journal:nas.log
  optuna-aznas search my_nets:build --input-shape 3,32,32 --format json > best.json

A space of your own is a function that takes an Optuna trial and returns a torch.nn.Module:

  # my_nets.py
  def build(trial):
      width = trial.suggest_int("width", 8, 64, step=8)
      ...
      return torch.nn.Sequential(...)

The same command continues the study. Several commands may run on one storage at the same time, on this machine or
others. After Ctrl-C, the best networks so far are printed; nothing is lost."""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "search", run, summary="search for the best networks of a space, without training", examples=_EXAMPLES
    )
    parser.epilog = f"{_built_in()}\n\n{parser.epilog}"
    parser.add_argument("space", help="a built-in space, or module:function")
    add_study_options(parser, "the study (default: the name of the space)")
    parser.add_argument(
        "--trials", type=count, metavar="N", help="number of networks to score now (default: 300, or until --timeout)"
    )
    parser.add_argument("--timeout", type=seconds, metavar="TIME", help="time to search: seconds, or 15m, 2h")
    parser.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="processes that search side by side, one thread each (default: 1, this one)",
    )
    parser.add_argument(
        "--budget", type=budget, metavar="MACS", help="most multiply-accumulates that a network may have, such as 450M"
    )
    parser.add_argument(
        "--limit",
        type=limit,
        action="append",
        metavar="NAME=VALUE",
        help="most that a network may have of parameters, complexity (as --budget), peak_memory or latency, such as "
        "parameters=2M or latency=15ms; several may be given. Latency is that of one sample on --device",
    )
    parser.add_argument(
        "--proxies",
        type=names,
        metavar="NAME,...",
        help="proxies to rank by (default: six that one forward and backward pass gives)",
    )
    add_evaluator_options(parser)
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of the sampler")
    add_output_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> Result:
    """Run the command."""
    from optuna_aznas.cli._run_search import search

    return search(options)


def _built_in() -> str:
    shapes = "\n".join(f"  {name:16} input shape {','.join(map(str, s.input_shape))}" for name, s in BUILT_IN.items())
    return f"built-in spaces:\n{shapes}"
