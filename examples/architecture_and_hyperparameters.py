"""Search an architecture and its learning rate in one study: a small network for scikit-learn's digits.

    python examples/architecture_and_hyperparameters.py

Each trial's network is scored untrained. Three of four are pruned before they are trained. Hyperband stops the training
of those that fall behind.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import optuna_aznas as az

EPOCHS = 9


def load_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images (n, 1, 8, 8) and labels (n,) for training (400), validation (600) and test (797)."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target)
    train, rest = train_test_split(range(len(labels)), train_size=400, random_state=0, stratify=labels)
    valid, test = train_test_split(rest, train_size=600, random_state=0, stratify=labels[rest])
    return (images[train], labels[train]), (images[valid], labels[valid]), (images[test], labels[test])


class Layer(nn.Sequential):
    """Convolution, normalisation, activation; with a shortcut if ``shortcut`` is set and the width does not change."""

    def __init__(self, channels_in: int, channels: int, kernel: int, activation: str, shortcut: bool) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[activation](),
        )
        self.shortcut = shortcut and channels == channels_in

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x if self.shortcut else super().forward(x)


def build(trial: optuna.Trial) -> nn.Module:
    """Build the network that a trial suggests."""
    activation = trial.suggest_categorical("activation", ("relu", "tanh", "gelu"))
    shortcut = trial.suggest_categorical("shortcut", (True, False))
    depth = trial.suggest_int("depth", 2, 5)
    pool_after = trial.suggest_int("pool_after", 0, 3)
    layers: list[nn.Module] = []
    channels = 1
    for i in range(depth):
        width = trial.suggest_int(f"width{i}", 4, 24, step=4)
        kernel = trial.suggest_categorical(f"kernel{i}", (1, 3, 5))
        layers.append(Layer(channels, width, kernel, activation, shortcut))
        channels = width
        if i == pool_after:
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def train(model: nn.Module, lr: float, images: Tensor, labels: Tensor, seed: int) -> Iterator[int]:
    """Train for up to :data:`EPOCHS` epochs; yield after each."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(labels), generator=order).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        yield epoch


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified correctly."""
    model.eval()
    return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    train_data, valid_data, test_data = load_data()
    evaluator = az.ProxyEvaluator(inputs=train_data[0][:64])

    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(trial.number)
        model = build(trial)
        az.record(trial, evaluator(model))  # what was suggested so far is the architecture
        if trial.should_prune():
            raise optuna.TrialPruned
        lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)  # from here on: hyperparameters
        for epoch in train(model, lr, *train_data, seed=trial.number):
            trial.report(accuracy(model, *valid_data), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("test accuracy", accuracy(model, *test_data))
        return accuracy(model, *valid_data)

    study = optuna.create_study(
        direction="maximize",
        sampler=az.AZNASSampler(seed=0),
        pruner=az.AZNASPruner(keep_fraction=0.25, training_pruner=optuna.pruners.HyperbandPruner(1, EPOCHS)),
    )
    study.optimize(objective, n_trials=arguments.trials, show_progress_bar=True)
    trained = sum(bool(trial.intermediate_values) for trial in study.trials)
    print(f"{len(study.trials)} architectures scored, {trained} trained.")
    best = study.best_trial
    print(f"Best: trial {best.number}, accuracy {best.value:.3f}, on test data {best.user_attrs['test accuracy']:.3f}")
    print(best.params)


if __name__ == "__main__":
    main()
