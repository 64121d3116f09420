"""Workers that start at the same moment: ``python -m tests.services.together FOLDER NUMBER TASK ARGUMENTS``.

Each imports what it needs, says that it is ready, and begins when the file ``go`` appears.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def start(folder, tasks):
    """Start a worker for each task, a list of its name and arguments; return exit statuses and standard errors."""
    folder.mkdir(exist_ok=True)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__, str(folder), str(number), json.dumps(task)],
            cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number, task in enumerate(tasks)
    ]  # fmt: skip
    while len(list(folder.glob("ready-*"))) < len(workers) and all(worker.poll() is None for worker in workers):
        time.sleep(0.01)
    (folder / "go").touch()
    ended = [worker.communicate(timeout=240)[1] for worker in workers]
    return [(worker.returncode, errors) for worker, errors in zip(workers, ended, strict=True)]


def create(url):
    """Open the storage and a study that may be there, as examples/worker.py does, and score a few architectures."""
    study = _open(url, "together")
    study.optimize(_score, n_trials=3)


def take(url, trials):
    """Run trials of a study that has enqueued ones."""
    _open(url, "enqueued").optimize(_score, n_trials=trials)


def crowd(url, rounds, folder, n_workers, sides, n_trials):
    """Score architectures of a small space, each worker with the same seed; the workers begin each round together."""
    import optuna

    import optuna_aznas as az
    from optuna_aznas.cli._storage import open_storage

    def objective(trial):
        params = [trial.suggest_int(f"p{i}", 1, side) for i, side in enumerate(sides)]
        az.record(trial, {"a": float(sum(params)), "b": float(params[0] - params[-1])})
        return trial.suggest_float("lr", 0.0, 1.0)

    for name in rounds:
        Path(folder, f"{name}-{os.getpid()}").touch()
        while len(list(Path(folder).glob(f"{name}-*"))) < n_workers:
            time.sleep(0.001)
        study = optuna.create_study(
            study_name=name, storage=open_storage(url, must_exist=False), direction="maximize", load_if_exists=True,
            sampler=az.AZNASSampler(seed=0, hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0)),
        )  # fmt: skip
        study.optimize(objective, n_trials=n_trials)


def _open(url, name):
    import optuna_aznas as az
    from optuna_aznas.cli._storage import open_storage

    storage = open_storage(url, must_exist=False)
    return az.create_study(study_name=name, storage=storage, proxies=["a", "b"], load_if_exists=True)


def _score(trial):
    x, y = (trial.suggest_int(name, 0, 99) for name in "xy")
    return x + y, x - y


def search(*arguments):
    """Run the command ``search``."""
    from optuna_aznas import cli

    return cli.main(["search", *arguments])


def prepare_search():
    """Import what takes long, and give a cheap space a first network."""
    import torch

    import optuna_aznas.cli._run_search  # noqa: F401
    from optuna_aznas.spaces import BUILT_IN

    torch.set_num_threads(1)
    BUILT_IN["nas_bench_201"] = BUILT_IN["nas_bench_201"]._replace(first=lambda: {"op_0_1": "nor_conv_3x3"})


def main(folder, number, task):
    import optuna_aznas.study.ranking  # noqa: F401
    from optuna_aznas.cli._storage import open_storage

    name, *arguments = json.loads(task)
    if name == "search":
        prepare_search()
    open_storage("sqlite://", must_exist=False)  # imports the drivers
    Path(folder, f"ready-{number}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.001)
    return {"create": create, "take": take, "crowd": crowd, "search": search}[name](*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
