"""A space of inverted bottlenecks: MobileNetV2 (Sandler et al., CVPR 2018) with free depths, widths and kernels.

Zen-NAS (Lin et al., ICCV 2021), ZiCo (Li et al., ICLR 2023) and AZ-NAS search such spaces under a budget of multiply-
accumulates, with a kernel of 3, 5 or 7 and an expansion of 1, 2, 4 or 6 for each stage. The ranges of depth and width
are this project's: around those of MobileNetV2, so that they cover budgets from 100 M to 1,000 M.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optuna_aznas.spaces._layers import BatchNorm2d, Conv2d

if TYPE_CHECKING:
    import optuna

KERNELS = (3, 5, 7)
EXPANSIONS = (1, 2, 4, 6)

WIDTH_STEP = 8  # widths are multiples of this


@dataclasses.dataclass(frozen=True)
class StageRange:
    """Ranges of a stage's depth and width.

    Attributes:
        stride: Stride of its first block.
        depth: Lowest and highest number of blocks.
        width: Lowest and highest number of channels.
    """

    stride: int
    depth: tuple[int, int]
    width: tuple[int, int]


#: The seven stages of MobileNetV2.
STAGES = (
    StageRange(stride=1, depth=(1, 2), width=(8, 32)),
    StageRange(stride=2, depth=(1, 4), width=(16, 48)),
    StageRange(stride=2, depth=(1, 5), width=(16, 64)),
    StageRange(stride=2, depth=(1, 6), width=(32, 128)),
    StageRange(stride=1, depth=(1, 6), width=(48, 160)),
    StageRange(stride=2, depth=(1, 6), width=(80, 256)),
    StageRange(stride=1, depth=(1, 3), width=(160, 400)),
)
STEM_WIDTH = (16, 48)
HEAD_WIDTH = (640, 1920)

#: MobileNetV2 itself, as parameters of the space: the trial to enqueue first.
MOBILENET_V2: dict[str, int] = {"stem_width": 32, "head_width": 1280}
for _i, (_expansion, _width, _depth) in enumerate(
    [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
):
    MOBILENET_V2 |= {f"depth_{_i}": _depth, f"width_{_i}": _width, f"kernel_{_i}": 3, f"expansion_{_i}": _expansion}


def build(trial: optuna.trial.BaseTrial, *, classes: int = 1000, device: torch.device | str | None = None) -> MobileNet:
    """Suggest a network of inverted bottlenecks and build it.

    Suggests ``stem_width``, ``head_width``, and for each of the seven stages ``i`` ``depth_i``, ``width_i``,
    ``kernel_i`` and ``expansion_i``: 30 parameters, some 10^21 architectures. :func:`within_budget` keeps a search
    below a number of multiply-accumulates.

    Args:
        trial: The trial.
        classes: Outputs of the classifier.
        device: Where the parameters are created; with ``"meta"`` building is faster, and the network has no weights.
            Scoring needs none.

    Returns:
        The network, for images (3, H, W) with H and W of at least 32; 224 on ImageNet.
    """
    width = WIDTH_STEP
    params = {"stem_width": trial.suggest_int("stem_width", *STEM_WIDTH, step=width)}
    for i, stage in enumerate(STAGES):
        params[f"depth_{i}"] = trial.suggest_int(f"depth_{i}", *stage.depth)
        params[f"width_{i}"] = trial.suggest_int(f"width_{i}", *stage.width, step=width)
        params[f"kernel_{i}"] = trial.suggest_categorical(f"kernel_{i}", KERNELS)
        params[f"expansion_{i}"] = trial.suggest_categorical(f"expansion_{i}", EXPANSIONS)
    params["head_width"] = trial.suggest_int("head_width", *HEAD_WIDTH, step=width * 8)
    return from_params(params, classes=classes, device=device)


def from_params(
    params: Mapping[str, Any], *, classes: int = 1000, device: torch.device | str | None = None
) -> MobileNet:
    """Build the network that a trial's ``params`` describe (see :func:`build`)."""
    stages = [
        Stage(params[f"depth_{i}"], params[f"width_{i}"], params[f"kernel_{i}"], params[f"expansion_{i}"], s.stride)
        for i, s in enumerate(STAGES)
    ]
    return MobileNet(params["stem_width"], stages, params["head_width"], classes=classes, device=device)


def macs(params: Mapping[str, Any], *, image_size: int = 224, classes: int = 1000) -> int:
    """Return the multiply-accumulates of one image, in closed form.

    Args:
        params: A trial's ``params`` (see :func:`build`).
        image_size: Height and width of the image.
        classes: Outputs of the classifier.

    Example:
        >>> round(macs(MOBILENET_V2) / 1e6)  # the paper has 300 M
        301
    """
    size = -(-image_size // 2)
    channels = params["stem_width"]
    total = size * size * 27 * channels
    for i, stage in enumerate(STAGES):
        width, kernel, expansion = (params[f"{name}_{i}"] for name in ("width", "kernel", "expansion"))
        for block in range(params[f"depth_{i}"]):
            hidden = channels * expansion
            if expansion > 1:
                total += size * size * channels * hidden
            if block == 0:
                size = -(-size // stage.stride)
            total += size * size * hidden * (kernel * kernel + width)
            channels = width
    return total + size * size * channels * params["head_width"] + params["head_width"] * classes


def within_budget(
    max_macs: float, *, image_size: int = 224, classes: int = 1000
) -> Callable[[Mapping[str, Any]], bool]:
    """Return a function that tells whether a network is within a budget, for ``AZNASSampler(candidate_filter=...)``.

    The filter does not apply to the first trial of a study. Enqueue a network that is within the budget, such as
    :data:`MOBILENET_V2` (301 M at 224 x 224).

    Args:
        max_macs: Most multiply-accumulates of one image.
        image_size: Height and width of the image.
        classes: Outputs of the classifier.

    Raises:
        ValueError: Not even the smallest network of the space is within the budget.
    """
    smallest = {"stem_width": STEM_WIDTH[0], "head_width": HEAD_WIDTH[0]}
    for i, stage in enumerate(STAGES):
        smallest |= {f"depth_{i}": stage.depth[0], f"width_{i}": stage.width[0]}
        smallest |= {f"kernel_{i}": KERNELS[0], f"expansion_{i}": EXPANSIONS[0]}
    least = macs(smallest, image_size=image_size, classes=classes)
    if max_macs < least:
        raise ValueError(f"max_macs must be at least {least:,}, the smallest network's; got {max_macs:,.0f}.")
    return lambda params: macs(params, image_size=image_size, classes=classes) <= max_macs


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: ``depth`` blocks of one width, the first with ``stride``."""

    depth: int
    width: int
    kernel: int
    expansion: int
    stride: int


class MobileNet(nn.Module):
    """A network of inverted bottlenecks.

    Args:
        stem_width: Channels of the first convolution, which has stride 2.
        stages: The stages, one after the other.
        head_width: Channels of the last convolution.
        classes: Outputs of the classifier.
        device: Where the parameters are created; ``None`` is torch's default device.

    Raises:
        ValueError: A width or depth is below 1.
    """

    def __init__(
        self,
        stem_width: int,
        stages: Sequence[Stage],
        head_width: int,
        *,
        classes: int = 1000,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"stem_width": stem_width, "head_width": head_width, "classes": classes}
        for i, stage in enumerate(stages):
            sizes |= {f"stages[{i}].{name}": value for name, value in dataclasses.asdict(stage).items()}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")
        self.stem = _conv(3, stem_width, 3, device, stride=2)
        channels, blocks = stem_width, []
        for stage in stages:
            for i in range(stage.depth):
                stride = stage.stride if i == 0 else 1
                blocks.append(InvertedBottleneck(channels, stage.width, stage.kernel, stage.expansion, stride, device))
                channels = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, head_width, 1, device)
        self.classifier = nn.Linear(head_width, classes, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, classes)."""
        return self.classifier(self.head(self.blocks(self.stem(x))).mean(dim=(2, 3)))


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel by itself, project; around it a residual connection where shapes allow."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        expansion: int,
        stride: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.layers = nn.Sequential(
            *([_conv(channels_in, hidden, 1, device)] if expansion > 1 else []),
            _conv(hidden, hidden, kernel, device, stride=stride, groups=hidden),
            _conv(hidden, channels_out, 1, device)[:2],  # the projection stays linear
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def _conv(
    channels_in: int,
    channels_out: int,
    kernel: int,
    device: torch.device | str | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
            device=device,
        ),
        BatchNorm2d(channels_out, device=device),
        nn.ReLU6(),
    )
