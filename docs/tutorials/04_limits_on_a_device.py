"""
Limits on a device
==================

A network that has to run on a device must not be too large or too slow. :class:`~optuna_aznas.Limits` states what is
allowed, and the sampler proposes only architectures that keep it, from the first trial on. Limits are checked before a
network is scored, so nothing is wasted on networks that are too large.
"""

import optuna
from torch import nn

import optuna_aznas as az

optuna.logging.set_verbosity(optuna.logging.WARNING)


def build(trial):
    channels, layers = 3, []
    for i in range(trial.suggest_int("depth", 2, 5)):
        width = trial.suggest_int(f"width{i}", 8, 64, step=8)
        stride = trial.suggest_categorical(f"stride{i}", [1, 2])
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


# %%
# At most 30,000 parameters and 3 million multiply-accumulates. Both are counted on a network without weights, which
# takes about a millisecond.

limits = az.Limits(build, (3, 32, 32), parameters=30e3, complexity=3e6)
evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), seed=0)
study = az.create_study(sampler=az.AZNASSampler(limits=limits, seed=0))
study.optimize(lambda trial: evaluator(build(trial)), n_trials=50)

# %%
# The numbers are stored with the trials. They are columns of the leaderboard, and axes of figures:

az.leaderboard(study, n=5)

# %%
# No trial is above the limit.

az.visualization.plot_complexity(study, proxy="parameters", budget=30e3)

# %%
# A latency is a limit like any other: ``az.Limits(build, (3, 32, 32), latency=2.0, device="cpu")``, in milliseconds. It
# is measured, with its spread, only for candidates that keep the other limits and that a model, learned from the trials
# so far, expects to keep this one. :doc:`/limits` has the details, and limits of your own. Measure a network yourself:

best = build(optuna.trial.FixedTrial(az.best_trials(study, 1)[0].params))
latency = az.measure.latency(best, (3, 32, 32), seconds=0.1)
print(f"{az.measure.parameters(best).median:,.0f} parameters, {latency}")
