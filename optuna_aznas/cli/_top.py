"""``optuna-aznas top``: the leaderboard of a study."""

from __future__ import annotations

import argparse
from typing import Any

from optuna_aznas.cli._options import add_command, add_output_options, add_study_options
from optuna_aznas.cli._output import Result, leaderboard_text

_EXAMPLES = """\
  optuna-aznas top                  the ten best of the only study in aznas.db
  optuna-aznas top --storage sqlite:///nas.db --study-name nb201 -n 3
  optuna-aznas top --format csv > best.csv
  optuna-aznas top --format json | python -m json.tool"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "top", run, summary="print the best networks of a study by rank score", examples=_EXAMPLES
    )
    add_study_options(parser, "the study (default: the only one that the storage has)")
    add_output_options(parser)


def run(options: argparse.Namespace) -> Result:
    """Run the command."""
    from optuna_aznas.cli._storage import load_study, open_storage

    storage = open_storage(options.storage, must_exist=True)
    study = load_study(storage, options.storage, options.study_name)
    return Result(leaderboard_text(study, options.n, options.format))
