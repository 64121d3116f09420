"""
Search and train in one study
=============================

The objective records the proxy scores of a network before it trains it. What is suggested before
:func:`~optuna_aznas.record` is the architecture, what is suggested after it are hyperparameters. One study optimises
both, and what it learns from the trained networks improves the ranking of the untrained ones.

The task is to recognise the handwritten digits of scikit-learn, 8 by 8 pixels each.
"""

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

import optuna_aznas as az

optuna.logging.set_verbosity(optuna.logging.WARNING)
torch.manual_seed(0)

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target)
x_train, y_train, x_valid, y_valid = x[:1000], y[:1000], x[1000:1400], y[1000:1400]


def build(trial):
    layers, channels = [], 1
    for i in range(trial.suggest_int("depth", 2, 4)):
        width = trial.suggest_int(f"width{i}", 8, 24, step=8)
        layers.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


# %%
# The objective asks the pruner twice: once before the training, where the proxy scores decide, and after each epoch,
# where the pruner given as ``training_pruner`` decides.

evaluator = az.ProxyEvaluator(input_shape=(1, 8, 8), seed=0)


def objective(trial):
    model = build(trial)
    az.record(trial, evaluator(model))
    if trial.should_prune():
        raise optuna.TrialPruned
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1.0, log=True), momentum=0.9)
    for epoch in range(3):
        model.train()
        for batch in torch.randperm(len(x_train)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_train[batch]), y_train[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(x_valid).argmax(1) == y_valid).float().mean().item()
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


study = optuna.create_study(
    direction="maximize",
    sampler=az.AZNASSampler(seed=0),
    pruner=az.AZNASPruner(training_pruner=optuna.pruners.MedianPruner()),
)
study.optimize(objective, n_trials=25)
print(f"accuracy {study.best_value:.1%} with {study.best_params}")

# %%
# How well did the ranking foresee the trainings? Each point is a trained network.

az.visualization.plot_rank_against_value(study)

# %%
# The leaderboard has the trained value beside the proxy scores. Once networks are trained, the trained value decides
# which one to take: ``study.best_trial``.

az.leaderboard(study, n=5)
