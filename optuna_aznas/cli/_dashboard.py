"""``optuna-aznas dashboard``: publish a study, then start optuna-dashboard."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from optuna_aznas.cli._errors import CommandError
from optuna_aznas.cli._options import add_command, add_study_options, budget, count, port
from optuna_aznas.cli._output import Result

_EXAMPLES = """\
  optuna-aznas dashboard            all studies in aznas.db, on http://127.0.0.1:8080/
  optuna-aznas dashboard --storage sqlite:///nas.db --study-name nb201 --port 9000
  optuna-aznas dashboard --publish-only   where an optuna-dashboard is running already

Needs the extra 'dashboard': pip install 'optuna-aznas[dashboard]'. End the server with Ctrl-C."""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "dashboard",
        run,
        summary="publish figures, leaderboard and notes of a study, then start optuna-dashboard",
        examples=_EXAMPLES,
    )
    add_study_options(parser, "the study to publish (default: every one that has scored trials)")
    parser.add_argument("-n", type=count, default=10, metavar="N", help="rows of the leaderboard (default: 10)")
    parser.add_argument(
        "--budget", type=budget, metavar="MACS", help="draw a line at this number of multiply-accumulates, such as 450M"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8080, help="default: %(default)s")
    parser.add_argument("--publish-only", action="store_true", help="do not start a server")


def run(options: argparse.Namespace) -> Result:
    """Run the command."""
    import optuna

    from optuna_aznas import dashboard
    from optuna_aznas._optuna import study_id
    from optuna_aznas.cli._storage import load_study, open_storage
    from optuna_aznas.study import rank_scores

    storage = open_storage(options.storage, must_exist=True)
    address = f"http://{options.host}:{options.port}/dashboard"
    wanted = [options.study_name] if options.study_name else optuna.get_all_study_names(storage)
    for name in wanted:
        study = load_study(storage, options.storage, name)
        if options.study_name is None and not rank_scores(study):
            print(f"Study {name!r} has no scored trial and is left as it is.", file=sys.stderr)
            continue
        try:
            figures = dashboard.publish(study, n_best=options.n, budget=options.budget)
        except ImportError as error:
            raise CommandError(str(error)) from error
        print(
            f"Published study {name!r}: {len(figures)} figures and notes, at {address}/studies/{study_id(study)}",
            file=sys.stderr,
        )
    if options.publish_only:
        return Result()
    from optuna_dashboard import run_server

    print(f"Starting optuna-dashboard on {address} (end it with Ctrl-C)", file=sys.stderr)
    try:
        run_server(storage, host=options.host, port=options.port)
    except OSError as error:
        raise CommandError(
            f"optuna-dashboard cannot listen on {options.host}:{options.port}: {error.strerror or error}. "
            "Choose another port with --port."
        ) from error
    return Result()
