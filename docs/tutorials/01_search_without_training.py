"""
Search without training
=======================

An objective builds a network from the trial's suggestions and returns its proxy scores. The sampler ranks all scored
networks of the study and proposes the next one. Nothing is trained.

The search space here is a small chain of convolutions, so that the page builds in seconds.
"""

import optuna
from torch import nn

import optuna_aznas as az

optuna.logging.set_verbosity(optuna.logging.WARNING)


def block(c_in, c_out, kernel, stride):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


def build(trial):
    channels = trial.suggest_int("width0", 8, 32, step=8)
    layers = [block(3, channels, 3, 1)]
    for i in range(1, 5):
        width = trial.suggest_int(f"width{i}", 8, 32, step=8)
        kernel = trial.suggest_categorical(f"kernel{i}", [1, 3, 5])
        layers.append(block(channels, width, kernel, 2 if i == 2 else 1))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


# %%
# The evaluator scores a network with six proxies from one forward and one backward pass. It returns a tuple of floats,
# and the model is as it was before.

evaluator = az.ProxyEvaluator(input_shape=(3, 16, 16), seed=0)
study = az.create_study(sampler=az.AZNASSampler(seed=0))
study.optimize(lambda trial: evaluator(build(trial)), n_trials=80)

# %%
# The leaderboard orders the networks by the rank score S. It is 0 for a network that is the best under every proxy, and
# lower the worse a network ranks under any of them.

az.leaderboard(study, n=5)

# %%
# Does the search still get better, and which network should be taken? The star is the network with the highest S.

az.visualization.plot_rank_history(study)

# %%
# A network costs something, too. The line shows the highest S that each number of multiply-accumulates can buy.

az.visualization.plot_complexity(study)

# %%
# Build the network that was found, with fresh weights, and train it as you train any other.

best = az.best_trials(study, 1)[0]
model = build(optuna.trial.FixedTrial(best.params))
print(model)
