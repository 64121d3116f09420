"""Layers that draw no weights where they would have no values: torch takes longer over that than over drawing them."""

from __future__ import annotations

from torch import nn


class Conv2d(nn.Conv2d):
    """A convolution that may be built on the ``meta`` device in little time."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that may be built on the ``meta`` device in little time."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
