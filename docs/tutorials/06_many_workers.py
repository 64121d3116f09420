"""
Many workers
============

Three ways to use all cores or several machines, from the simplest on. The numbers of workers here are small, so that
the page builds anywhere.
"""

import pathlib

import optuna
from torch import nn

import optuna_aznas as az

optuna.logging.set_verbosity(optuna.logging.WARNING)


def block(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


def network(width, depth):
    layers = [block(width, width) for _ in range(depth)]
    return nn.Sequential(block(3, width), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


evaluator = az.ProxyEvaluator(input_shape=(3, 16, 16), seed=0)

# %%
# **Score a list.** ``evaluator.map`` scores models with several processes and yields the scores in order. A model that
# cannot be scored gives its error in its place, and the others go on.

models = [network(width, depth) for width in (8, 16, 24) for depth in (2, 4)]
for model, scores in zip(models, evaluator.map(models, n_workers=2), strict=True):
    print(f"{sum(p.numel() for p in model.parameters()):7,} parameters: expressivity {scores.expressivity:.2f}")

# %%
# **Search from the shell.** One command starts the processes, shows one progress bar, and ends them together:
#
# .. code-block:: shell
#
#    optuna-aznas search nas_bench_201 --workers 4 --trials 1000 --storage sqlite:///nas.db
#
# **Search from scripts of your own.** Every worker reads all it needs from the study and keeps nothing of its own.
# Start the same script as often as you like, on as many machines as reach the storage, and kill any of them whenever
# you like. :func:`~optuna_aznas.open_storage` opens a storage for this: workers may start at once on an empty database,
# and a restart of the database is waited for.


def objective(trial):
    return evaluator(network(trial.suggest_int("width", 8, 64, step=8), trial.suggest_int("depth", 1, 8)))


storage = az.open_storage("journal:workers.log")
study = az.create_study(study_name="workers", storage=storage, load_if_exists=True, sampler=az.AZNASSampler())
study.optimize(objective, n_trials=10)
az.leaderboard(study, n=3)

# %%
# :doc:`/many_machines` has the storages to choose from and what each is for.

pathlib.Path("workers.log").unlink()  # of this page only
