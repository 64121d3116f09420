"""Refine a network by hand: diagnose it block by block, change the blocks with findings, diagnose it again.

    python examples/refine_by_hand.py

The first network has a bottleneck that loses expressivity, a large kernel that makes gradients vanish, and no
shortcuts. The second network mends these: it has as many blocks and costs no more.
"""

from __future__ import annotations

from torch import Tensor, nn

import optuna_aznas as az


def layer(channels_in: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two layers with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(layer(channels, channels), layer(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def network(*blocks: nn.Module, channels: int) -> nn.Sequential:
    """A classifier for ten classes around the given blocks."""
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    """Print the diagnosis of both networks and what has changed."""
    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), seed=0, device="cpu")

    plain = network(
        layer(3, 32),
        layer(32, 32, kernel=7),
        layer(32, 6),
        layer(6, 64, stride=2),
        layer(64, 64),
        layer(64, 64),
        channels=64,
    )
    before = az.diagnose(plain, evaluator)
    print(before)

    refined = network(
        layer(3, 32),
        layer(32, 32),  # a smaller kernel keeps the gradients, and saves the cost of the later blocks
        Residual(32),  # instead of the bottleneck
        layer(32, 64, stride=2),
        Residual(64),
        Residual(64),
        channels=64,
    )
    after = az.diagnose(refined, evaluator)
    print()
    print(after)

    print()
    for name, was, now in zip(before.scores.names, before.scores, after.scores, strict=True):
        print(f"{name:18} {was:12.5g} -> {now:12.5g}")
    findings = [sum(len(block.findings) for block in diagnosis.blocks) for diagnosis in (before, after)]
    print(f"findings           {findings[0]:12d} -> {findings[1]:12d}")


if __name__ == "__main__":
    main()
