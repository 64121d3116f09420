"""AZNASSampler through OptunaHub, on a search space of two dozen lines.

Run it in the folder that holds ``package/``; once the package is registered, ``optunahub.load_module`` needs no folder.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import optunahub
from torch import nn

import optuna_aznas as az

REGISTRY = Path(__file__).parents[2]


def build(trial: optuna.Trial) -> nn.Module:
    """Suggest a chain of convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for i in range(trial.suggest_int("depth", 2, 5)):
        width = trial.suggest_int(f"width{i}", 8, 32, step=8)
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    """Search, and print the best."""
    module = optunahub.load_local_module("samplers/az_nas", registry_root=str(REGISTRY))
    evaluator = az.ProxyEvaluator(input_shape=(3, 16, 16), seed=0)
    study = optuna.create_study(directions=["maximize"] * len(evaluator.proxies), sampler=module.AZNASSampler(seed=0))
    study.optimize(lambda trial: evaluator(build(trial)), n_trials=40)
    print(az.leaderboard(study, n=5))


if __name__ == "__main__":
    main()
