"""The cell space of NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326): 15,625 architectures.

A network is a 3 x 3 stem, three stages of five equal cells with 16, 32 and 64 channels, a residual block with stride 2
between the stages, and a classifier. A cell is a directed acyclic graph of four nodes; each of its six edges carries
one of five operations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optuna_aznas.spaces._layers import BatchNorm2d, Conv2d

if TYPE_CHECKING:
    import optuna

#: The operations an edge may carry, by the benchmark's names.
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

#: The edges (from node, to node), in the order of the architecture string.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

#: The parameters that are suggested, one for each edge.
PARAMETERS = tuple(f"op_{i}_{j}" for i, j in EDGES)

_ARCH = re.compile(r"\|([^|~]+)~0\|\+\|([^|~]+)~0\|([^|~]+)~1\|\+\|([^|~]+)~0\|([^|~]+)~1\|([^|~]+)~2\|")


def build(
    trial: optuna.trial.BaseTrial,
    *,
    channels: int = 16,
    cells: int = 5,
    classes: int = 10,
    device: torch.device | str | None = None,
) -> Network:
    """Suggest a NAS-Bench-201 architecture and build its network.

    Suggests six categorical parameters ``op_0_1``, ``op_0_2``, ``op_1_2``, ``op_0_3``, ``op_1_3``, ``op_2_3``, named
    after the edge (from node, to node).

    Args:
        trial: The trial, or any object with ``suggest_categorical``.
        channels: Channels of the first stage; doubled at each of the two reductions.
        cells: Cells in each of the three stages.
        classes: Outputs of the classifier.
        device: As for :class:`Network`. With ``"meta"``, building is faster and the network has no weights, which
            scoring does not need.

    Returns:
        The network, with torch's default weights, for images (3, H, W) with H and W divisible by 4 (32 x 32 in the
        benchmark).
    """
    operations = [trial.suggest_categorical(name, OPERATIONS) for name in PARAMETERS]
    return Network(operations, channels=channels, cells=cells, classes=classes, device=device)


def to_arch(operations: Sequence[str]) -> str:
    """Return the benchmark's architecture string for six operations.

    Args:
        operations: One of :data:`OPERATIONS` for each of :data:`EDGES`.

    Raises:
        ValueError: There are not six, or one is unknown.

    Example:
        >>> to_arch(["skip_connect", "none", "none", "none", "none", "nor_conv_3x3"])
        '|skip_connect~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|'
    """
    operations = _checked(operations)
    parts = [f"{operation}~{i}|" for operation, (i, _) in zip(operations, EDGES, strict=True)]
    return "|" + parts[0] + "+|" + "".join(parts[1:3]) + "+|" + "".join(parts[3:])


def from_arch(arch: str) -> tuple[str, ...]:
    """Return the six operations of an architecture string, in the order of :data:`EDGES`.

    Raises:
        ValueError: The string is not of the benchmark's form, or names an unknown operation.
    """
    match = _ARCH.fullmatch(arch)
    if match is None:
        raise ValueError(
            f"arch must look like '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|' with operations from {OPERATIONS}; "
            f"got {arch!r}."
        )
    return _checked(match.groups())


def from_params(params: dict[str, str]) -> tuple[str, ...]:
    """Return the six operations that a trial's ``params`` hold (see :func:`build`)."""
    return _checked([params[name] for name in PARAMETERS])


def to_params(operations: Sequence[str]) -> dict[str, str]:
    """Return the parameters of a trial for six operations; the way to enqueue a known architecture."""
    return dict(zip(PARAMETERS, _checked(operations), strict=True))


def all_architectures() -> Iterator[tuple[str, ...]]:
    """Yield the operations of all 15,625 architectures."""
    return itertools.product(OPERATIONS, repeat=len(EDGES))


def _checked(operations: Sequence[str]) -> tuple[str, ...]:
    operations = tuple(operations)
    if len(operations) != len(EDGES) or any(operation not in OPERATIONS for operation in operations):
        raise ValueError(f"operations must be six of {OPERATIONS}; got {operations}.")
    return operations


class Network(nn.Module):
    """A NAS-Bench-201 network.

    Args:
        operations: One of :data:`OPERATIONS` for each of :data:`EDGES`.
        channels: Channels of the first stage.
        cells: Cells a stage.
        classes: Outputs of the classifier.
        device: Where the parameters are created; ``None`` is torch's default device. ``"meta"`` creates them without
            values, in less time; :class:`~optuna_aznas.ProxyEvaluator` draws its own anyway. To train such a network,
            build it again on a real device.

    Attributes:
        arch: The benchmark's architecture string.
    """

    def __init__(
        self,
        operations: Sequence[str],
        *,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("cells", cells), ("classes", classes)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")
        self.arch = to_arch(operations)
        self.stem = nn.Sequential(
            Conv2d(3, channels, 3, padding=1, bias=False, device=device),
            BatchNorm2d(channels, device=device),
        )
        blocks: list[nn.Module] = []
        for stage in range(3):
            if stage:
                blocks.append(ReductionBlock(channels, 2 * channels, device))
                channels *= 2
            blocks += [Cell(operations, channels, device) for _ in range(cells)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            BatchNorm2d(channels, device=device), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.classifier = nn.Linear(channels, classes, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, classes)."""
        return self.classifier(self.head(self.blocks(self.stem(x))))


class Cell(nn.Module):
    """Four nodes; node j sums what its edges make of the nodes before it; the last is the output."""

    def __init__(self, operations: Sequence[str], channels: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {
                f"{i}_{j}": _operation(operation, channels, device)
                for operation, (i, j) in zip(operations, EDGES, strict=True)
                if operation != "none"
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for j in (1, 2, 3):
            incoming = [self.edges[f"{i}_{j}"](nodes[i]) for i in range(j) if f"{i}_{j}" in self.edges]
            nodes.append(sum(incoming[1:], incoming[0]) if incoming else torch.zeros_like(x))
        return nodes[3]


class ReductionBlock(nn.Module):
    """Residual block with stride 2 between two stages."""

    def __init__(self, channels_in: int, channels_out: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            _relu_conv_norm(channels_in, channels_out, 3, device, stride=2),
            _relu_conv_norm(channels_out, channels_out, 3, device),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2),
            Conv2d(channels_in, channels_out, 1, bias=False, device=device),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convs(x)


def _operation(name: str, channels: int, device: torch.device | str | None) -> nn.Module:
    match name:
        case "nor_conv_3x3":
            return _relu_conv_norm(channels, channels, 3, device)
        case "nor_conv_1x1":
            return _relu_conv_norm(channels, channels, 1, device)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        case _:
            return nn.Identity()


def _relu_conv_norm(
    channels_in: int, channels_out: int, kernel: int, device: torch.device | str | None, stride: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.ReLU(),
        Conv2d(channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False, device=device),
        BatchNorm2d(channels_out, device=device),
    )
