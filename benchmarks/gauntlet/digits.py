"""Three spaces of small networks for scikit-learn's digits, and the accuracies that training them gave.

    python -m benchmarks.gauntlet.digits --space cnn       # train its networks again, into digits.csv beside this file

They are spaces that no definition of a proxy was tried on before the networks had been trained: convolutional networks,
multi-layer perceptrons, and residual networks of mixed operations. The task: an 8 x 8 digit somewhere in an image of
12 x 12 pixels. Training draws another place for each image and epoch, so that larger networks do not just overfit.
"""

from __future__ import annotations

import argparse
import csv
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SPACES = ("cnn", "mlp", "mixed")
RESULTS = Path(__file__).with_name("digits.csv")
NETWORKS = {"cnn": 70, "mlp": 150, "mixed": 30}  # trained networks of each space
SEEDS = (0, 1)  # trainings of each network

SIDE = 12  # pixels
CLASSES = 10
_TRAINED_ON = 1000  # images; the other 797 are for testing
_EPOCHS = {"cnn": 12, "mlp": 20, "mixed": 30}
_BATCH = 64
_LEARNING_RATE = 2e-3  # Adam, annealed to 0 along a cosine

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def draw(space: str, generator: np.random.Generator) -> str:
    """Draw the key of a network at random."""

    def one(*options: str) -> str:
        return str(generator.choice(options))

    def several(least: int, most: int, *options: str) -> str:
        return "-".join(one(*options) for _ in range(generator.integers(least, most + 1)))

    common = ".".join([one("plain", "norm"), one("chain", "skip"), one(*_ACTIVATIONS)])
    if space == "cnn":
        stages = [several(1, 3, "1", "3", "5") for _ in range(2)]
        return ".".join([common, one("4", "8", "12", "16"), *stages])
    if space == "mlp":
        return ".".join([common, several(1, 5, "8", "16", "32", "64", "128", "256")])
    return ".".join([common, one("8", "16", "32"), several(1, 6, "conv3", "deep5", "point", "attend", "pool")])


def keys(space: str) -> tuple[str, ...]:
    """Return the networks of a space that were trained: a random sample that is always the same."""
    generator = np.random.default_rng([0, SPACES.index(space)])
    found: dict[str, None] = {}
    while len(found) < NETWORKS[space]:
        found[draw(space, generator)] = None
    return tuple(found)


def input_shape(space: str) -> tuple[int, ...]:
    """Return the shape of one sample."""
    return (SIDE * SIDE,) if space == "mlp" else (1, SIDE, SIDE)


def build(space: str, key: str, *, device: str | None = "meta") -> nn.Module:
    """Build the network of a key."""
    with torch.device(device or "cpu"):
        norm, skip, activation, *rest = key.split(".")
        options = (norm == "norm", skip == "skip", _ACTIVATIONS[activation])
        if space == "cnn":
            return _cnn(int(rest[0]), [_numbers(stage) for stage in rest[1:]], *options)
        if space == "mlp":
            return _mlp(_numbers(rest[0]), *options)
        return _mixed(int(rest[0]), rest[1].split("-"), *options)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("-")]


class _Unit(nn.Module):
    """An operation, normalisation and activation, with a shortcut where shapes allow one."""

    def __init__(self, operation: nn.Module, norm: nn.Module, activation: nn.Module, shortcut: bool) -> None:
        super().__init__()
        self.operation, self.norm, self.activation = operation, norm, activation
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.operation(x)))
        return x + y if self.shortcut else y


def _cnn(width: int, stages: Sequence[Sequence[int]], norm: bool, skip: bool, activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    before = 1
    for number, kernels in enumerate(stages):
        channels = width * (number + 1)
        for position, kernel in enumerate(kernels):
            stride = 2 if number and not position else 1
            conv = nn.Conv2d(before, channels, kernel, stride, kernel // 2)
            unit = nn.BatchNorm2d(channels) if norm else nn.Identity()
            layers.append(_Unit(conv, unit, activation(), skip and before == channels and stride == 1))
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


def _mlp(widths: Sequence[int], norm: bool, skip: bool, activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    before = SIDE * SIDE
    for width in widths:
        unit = nn.BatchNorm1d(width) if norm else nn.Identity()
        layers.append(_Unit(nn.Linear(before, width), unit, activation(), skip and before == width))
        before = width
    return nn.Sequential(*layers, nn.Linear(before, CLASSES))


class _Attention(nn.Module):
    """Self-attention over the positions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).mT for part in self.project(x).chunk(3, dim=1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


def _mixed(channels: int, operations: Sequence[str], norm: bool, skip: bool, activation: type[nn.Module]) -> nn.Module:
    def of(name: str) -> nn.Module:
        if name == "conv3":
            return nn.Conv2d(channels, channels, 3, padding=1)
        if name == "deep5":
            deep = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
            return nn.Sequential(deep, nn.Conv2d(channels, channels, 1))
        if name == "point":
            wide = nn.Conv2d(channels, 4 * channels, 1)
            return nn.Sequential(wide, activation(), nn.Conv2d(4 * channels, channels, 1))
        return _Attention(channels) if name == "attend" else nn.AvgPool2d(3, 1, 1)

    def unit(operation: nn.Module, shortcut: bool) -> nn.Module:
        return _Unit(operation, nn.BatchNorm2d(channels) if norm else nn.Identity(), activation(), shortcut)

    stem = unit(nn.Conv2d(1, channels, 3, 2, 1), False)
    blocks = [unit(of(name), skip) for name in operations]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


@functools.cache
def results(space: str) -> dict[str, tuple[float, ...]]:
    """Return the test accuracies (percent) of each trained network of a space, one for each training."""
    with RESULTS.open() as file:
        rows = [row for row in csv.reader(file) if row[0] == space]
    return {key: tuple(map(float, values)) for _, key, *values in rows}


def train(space: str, key: str, seed: int) -> float:
    """Train a network and return its test accuracy in percent."""
    images, labels = _digits()
    torch.manual_seed(seed)
    model = build(space, key, device=None)
    places = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), _LEARNING_RATE)
    steps = _EPOCHS[space] * -(-_TRAINED_ON // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shape = input_shape(space)
    for _ in range(_EPOCHS[space]):
        moved = _placed(images[:_TRAINED_ON], places).reshape(-1, *shape)
        for part in torch.randperm(_TRAINED_ON, generator=places).split(_BATCH):
            loss = nn.functional.cross_entropy(model(moved[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    tests = torch.Generator().manual_seed(0)
    with torch.no_grad():
        hits = [
            (model(_placed(images[_TRAINED_ON:], tests).reshape(-1, *shape)).argmax(1) == labels[_TRAINED_ON:])
            .double()
            .mean()
            for _ in range(4)  # each test image in four places
        ]
    return 100.0 * float(torch.stack(hits).mean())


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order], dtype=torch.float32) / 8.0 - 1.0
    return images, torch.tensor(data.target[order])


def _placed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return each 8 x 8 image at a random place in an empty image, (n, 12, 12)."""
    n, side = images.shape[:2]
    rows, columns = torch.randint(0, SIDE - side + 1, (2, n, 1), generator=generator)
    canvas = torch.full((n, SIDE, SIDE), -1.0)
    span = torch.arange(side)
    canvas[torch.arange(n)[:, None, None], (rows + span)[:, :, None], (columns + span)[:, None, :]] = images
    return canvas


def main() -> None:
    """Train the networks of a space and write their accuracies; goes on where an earlier run stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    there = set()
    if options.results.exists():
        with options.results.open() as file:
            there = {tuple(row[:2]) for row in csv.reader(file)}
    start = time.perf_counter()
    with options.results.open("a", buffering=1) as file:
        for key in keys(options.space):
            if (options.space, key) not in there:
                accuracies = [f"{train(options.space, key, seed):.2f}" for seed in SEEDS]
                csv.writer(file, lineterminator="\n").writerow([options.space, key, *accuracies])
    print(f"{options.space}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
