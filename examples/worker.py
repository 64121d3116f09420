"""One of many workers on a study: start as many as there are cores, GPUs or machines, each with the same storage.

    python examples/worker.py sqlite:///nas.db                                    # one machine
    python examples/worker.py journal:nas.log                                     # one machine, or a shared folder
    python examples/worker.py postgresql+psycopg://user:password@host/database    # many machines
    python examples/worker.py redis://host:6379                                   # many machines
    python examples/worker.py grpc://host:13000                                   # a gRPC proxy in front of a database

Any of them may be killed at any time and replaced by another: their state is in the study.
"""

from __future__ import annotations

import argparse

import torch

import optuna_aznas as az


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage")
    parser.add_argument("--study", default="nb201")
    parser.add_argument("--trials", type=int, default=100, help="number of networks that this worker scores")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the workers run in parallel; more threads would compete for the cores
    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), seed=0)  # the same seed everywhere: scores are compared
    storage = az.open_storage(arguments.storage)
    study = az.create_study(study_name=arguments.study, storage=storage, load_if_exists=True)
    study.optimize(lambda trial: evaluator(az.spaces.nas_bench_201.build(trial)), n_trials=arguments.trials)
    print(az.leaderboard(study, n=5))


if __name__ == "__main__":
    main()
