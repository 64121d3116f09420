"""A model and a search space of one's own, for the command line:

optuna-aznas score my_nets:model --input-shape 3,32,32
optuna-aznas search my_nets:build --input-shape 3,32,32 --trials 100
"""

from __future__ import annotations

import optuna
from torch import nn


def block(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Module:
    """Return a convolution with batch normalisation and activation."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def build(trial: optuna.trial.BaseTrial) -> nn.Module:
    """Suggest an architecture for images (3, H, W): one to three stages, each with its own width, kernel and depth."""
    channels = trial.suggest_int("stem", 8, 32, step=8)
    layers = [block(3, channels, 3, 1)]
    for stage in range(trial.suggest_int("stages", 1, 3)):  # the later parameters depend on it: a conditional space
        width = trial.suggest_int(f"width{stage}", 8, 64, step=8)
        kernel = trial.suggest_categorical(f"kernel{stage}", [1, 3, 5])
        for i in range(trial.suggest_int(f"depth{stage}", 1, 3)):
            layers.append(block(channels, width, kernel, 2 if i == 0 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def model() -> nn.Module:
    """Return one network, with a bottleneck that loses expressivity."""
    layers = [block(3, 32, 3, 1), block(32, 32, 3, 1), block(32, 4, 3, 1), block(4, 64, 3, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
