"""
Continue a study that you already have
======================================

A study that was begun with another sampler goes on with :class:`~optuna_aznas.AZNASSampler`.
:func:`~optuna_aznas.backfill` scores the architectures of its finished trials, so that they count from the start.
Nothing is trained again, and no trial is changed.
"""

import math

import optuna
from torch import nn

import optuna_aznas as az

optuna.logging.set_verbosity(optuna.logging.WARNING)


def build(trial):
    layers, channels = [], 3
    for i in range(trial.suggest_int("depth", 2, 4)):
        width = trial.suggest_int(f"width{i}", 8, 32, step=8)
        layers.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def train(model, lr):
    """Stands in for a training, so that the page builds in seconds: big networks and a moderate rate are best."""
    parameters = sum(p.numel() for p in model.parameters())
    return 0.5 + 0.1 * math.log10(parameters) - 0.05 * (math.log10(lr) + 2) ** 2


# %%
# The study as it was: thirty trials by Optuna's TPE.


def old_objective(trial):
    return train(build(trial), trial.suggest_float("lr", 1e-4, 1.0, log=True))


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(old_objective, n_trials=30)
print(f"best value after {len(study.trials)} trials: {study.best_value:.4f}")

# %%
# Score them. ``build`` is called with each trial's parameters; what it asks for is the architecture. The call can be
# interrupted and repeated: what is scored stays scored.

evaluator = az.ProxyEvaluator(input_shape=(3, 16, 16), seed=0)
n_scored = az.backfill(study, build, evaluator, n_workers=1, show_progress_bar=False)
print(f"{n_scored} trials scored")

# %%
# Go on with the new sampler. The objective records the proxy scores now.


def objective(trial):
    model = build(trial)
    az.record(trial, evaluator(model))
    return train(model, trial.suggest_float("lr", 1e-4, 1.0, log=True))


study.sampler = az.AZNASSampler(seed=0)
study.optimize(objective, n_trials=15)
print(f"best value after {len(study.trials)} trials: {study.best_value:.4f}")

# %%
# The old trials and the new ones are ranked together:

az.leaderboard(study, n=5)
