"""Rank backbones for your own data, with their own weights and without training.

    python examples/rank_backbones.py

The data are scikit-learn's digits. Each backbone is scored with its own weights (``init=None``), and the backbones are
ranked by their rank score. ``evaluator.map`` builds and scores them with several processes side by side. Those in this
example are small and random; replace them by pretrained backbones that you consider for fine-tuning. If the
transformers package is installed, three of its models are ranked, too.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import optuna_aznas as az

Backbones = dict[str, Callable[[], nn.Module]]  # functions that build them: processes build and score side by side


class Residual(nn.Module):
    """Two layers with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


def layer(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def own_backbones() -> Backbones:
    """Backbones in plain torch, for images (B, 3, 32, 32)."""
    return {
        "plain": lambda: nn.Sequential(layer(3, 16), layer(16, 16), layer(16, 32, 2), layer(32, 32), layer(32, 64, 2)),
        "bottleneck": lambda: nn.Sequential(layer(3, 16), layer(16, 4), layer(4, 32, 2), layer(32, 8), layer(8, 64, 2)),
        "residual": lambda: nn.Sequential(layer(3, 16), Residual(16), layer(16, 32, 2), Residual(32), layer(32, 64, 2)),
    }


def backbones_of_transformers() -> Backbones:
    """Backbones of the transformers package from small configurations; none where it is not installed."""
    try:
        import transformers
    except ImportError:
        return {}
    return {
        "ResNet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic")
        ),
        "ConvNeXt": lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, patch_size=2)
        ),
        "ResNet, narrow": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[2, 2], layer_type="basic")
        ),
    }


def load_batch() -> Tensor:
    """Return 32 digits as images (32, 3, 32, 32)."""
    images = torch.tensor(load_digits().images[:32], dtype=torch.float32) / 8 - 1
    return nn.functional.interpolate(images[:, None], size=32).expand(-1, 3, -1, -1)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a backbone whose random weights do not depend on the process and on what was built before."""
    torch.manual_seed(0)
    return build()


def main() -> None:
    """Print the backbones, best first."""
    evaluator = az.ProxyEvaluator(inputs=load_batch(), init=None, device="cpu")
    backbones = own_backbones() | backbones_of_transformers()
    builders = [functools.partial(seeded, build) for build in backbones.values()]
    scores = {}
    for name, score in zip(backbones, evaluator.map(builders, show_progress_bar=True), strict=True):
        if isinstance(score, BaseException):
            print(f"{name} is left out: {score}", file=sys.stderr)
        else:
            scores[name] = score
    ranks = az.aggregate([list(score) for score in scores.values()])
    print(f"{'backbone':16}{'S':>8}", *(f"{name:>18}" for name in evaluator.proxies), "  blocks")
    for rank, (name, score) in sorted(zip(ranks, scores.items(), strict=True), key=lambda pair: -pair[0]):
        print(f"{name:16}{rank:8.3f}", *(f"{value:18.4g}" for value in score), f"  {len(score.blocks)}")


if __name__ == "__main__":
    main()
