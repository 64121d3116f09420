"""Search a space of your own and publish the search to optuna-dashboard while it runs.

python examples/watch_in_dashboard.py
optuna-dashboard sqlite:///watch.db        # in another terminal, at any time
"""

from __future__ import annotations

import argparse

import optuna
from my_nets import build

import optuna_aznas as az


def main() -> None:
    """Search, and publish every 25 trials and at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="sqlite:///watch.db")
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), seed=0)
    study = az.create_study(study_name="my_nets", storage=options.storage, load_if_exists=True)
    study.optimize(
        lambda trial: evaluator(build(trial)),
        n_trials=options.trials,
        callbacks=[az.dashboard.DashboardCallback(every=25)],
    )
    az.dashboard.publish(study)
    print(az.leaderboard(study, n=5))
    print(f"\nLook at it:  optuna-dashboard {options.storage}")


if __name__ == "__main__":
    main()
