"""A detector that is built from a specification, one row a layer, as those of the YOLO family are."""

from __future__ import annotations

import torch
from torch import nn

#: Rows of a detector: the layers that it reads from (-1 is the row before), the repeats, the kind, and its channels.
SPECIFICATION = (
    (-1, 1, "conv", 16),
    (-1, 1, "conv", 32),
    (-1, 1, "residuals", 32),
    (-1, 1, "conv", 64),
    (-1, 2, "residuals", 64),
    (-1, 1, "conv", 128),
    (-1, 2, "residuals", 128),
    (-1, 1, "upsample", None),
    ((-1, 4), 1, "concat", None),
    (-1, 1, "residuals", 64),
    (-1, 1, "conv", 64),
    ((-1, 6), 1, "concat", None),
    (-1, 1, "residuals", 128),
    ((9, 12), 1, "detect", None),
)


def conv(c_in, c_out, kernel=1, stride=1):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.SiLU()
    )


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = conv(channels, channels // 2), conv(channels // 2, channels, 3)

    def forward(self, x):
        return x + self.second(self.first(x))


class Concat(nn.Module):
    def forward(self, inputs):
        return torch.cat(inputs, 1)


class Detect(nn.Module):
    """Boxes and classes at each scale: a list of maps in training, one tensor of all boxes and the list otherwise."""

    def __init__(self, channels, n_classes):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(c, 4 + n_classes, 1) for c in channels)

    def forward(self, inputs):
        maps = [head(x) for head, x in zip(self.heads, inputs, strict=True)]
        return maps if self.training else (torch.cat([m.flatten(2) for m in maps], 2), maps)


class Detector(nn.Module):
    """A detector of a specification.

    Args:
        specification: Rows as in :data:`SPECIFICATION`.
        depth: Factor of the repeats.
        width: Factor of the channels, which become multiples of 8.
        n_classes: Number of classes.
    """

    def __init__(self, specification=SPECIFICATION, *, depth=1.0, width=1.0, n_classes=4):
        super().__init__()
        self.sources = [source for source, *_ in specification]
        self.layers, channels = nn.ModuleList(), []
        for source, repeats, kind, size in specification:
            c_in = [channels[s] if channels else 3 for s in ([source] if isinstance(source, int) else source)]
            c_out = max(8, round(size * width / 8) * 8) if size else sum(c_in)
            repeats = max(1, round(repeats * depth))
            self.layers.append(_layer(kind, c_in, c_out, repeats, n_classes))
            channels.append(c_out)

    def forward(self, x):
        outputs = []
        for source, layer in zip(self.sources, self.layers, strict=True):
            if isinstance(source, int):
                x = layer(outputs[source] if outputs else x)
            else:
                x = layer([outputs[s] for s in source])
            outputs.append(x)
        return x


def _layer(kind, c_in, c_out, repeats, n_classes):
    if kind == "conv":
        return conv(c_in[0], c_out, 3, 2)
    if kind == "residuals":
        return nn.Sequential(conv(c_in[0], c_out), *(Residual(c_out) for _ in range(repeats)))
    if kind == "upsample":
        return nn.Upsample(scale_factor=2)
    return Concat() if kind == "concat" else Detect(c_in, n_classes)
