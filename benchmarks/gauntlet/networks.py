"""Networks of the spaces that the package has no space for: NAS-Bench-Macro, and multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from optuna_aznas.spaces._layers import BatchNorm2d, Conv2d

#: NAS-Bench-Macro: (kernel size, expansion) of each inverted residual block by the digit in the key; 0 is an identity.
MACRO_BLOCKS = {"1": (3, 3), "2": (5, 6)}
MACRO_STAGES = (2, 3, 3)  # layers of each stage
MACRO_STEM = 32  # channels behind the stem
MACRO_HEAD = 1280  # channels before the classifier


def macro(key: str, *, classes: int = 10, device: str | None = "meta") -> nn.Module:
    """Build a NAS-Bench-Macro network for images (3, 32, 32).

    The first layer of each stage has stride 2 and doubles the channels. An identity is a 1 x 1 convolution there, and
    no module elsewhere.

    Args:
        key: Eight digits, one for each layer: 0 identity, 1 inverted residual 3 x 3 with expansion 3, 2 inverted
            residual 5 x 5 with expansion 6.
        classes: Outputs of the classifier.
        device: Where the parameters are created.
    """
    if len(key) != sum(MACRO_STAGES) or set(key) - set("012"):
        raise ValueError(f"key must be {sum(MACRO_STAGES)} digits 0, 1 or 2; got {key!r}.")
    layers: list[nn.Module] = []
    channels, digits = MACRO_STEM, iter(key)
    for length in MACRO_STAGES:
        for position in range(length):
            stride, wider = (2, 2 * channels) if position == 0 else (1, channels)
            digit = next(digits)
            if digit != "0":
                layers.append(InvertedResidual(channels, wider, *MACRO_BLOCKS[digit], stride, device))
            elif stride == 2:
                layers.append(nn.Sequential(*_conv(channels, wider, 1, 2, device=device)))
            channels = wider
    return nn.Sequential(
        nn.Sequential(*_conv(3, MACRO_STEM, 3, device=device), nn.ReLU()),
        nn.Sequential(*layers),
        nn.Sequential(*_conv(channels, MACRO_HEAD, 1, device=device), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(MACRO_HEAD, classes, device=device)),
    )


class InvertedResidual(nn.Module):
    """Inverted residual block of MobileNetV2, with a shortcut where the stride is 1."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, expansion: int, stride: int, device: str | None = None
    ) -> None:
        super().__init__()
        inner = expansion * channels_in
        self.shortcut = stride == 1
        self.layers = nn.Sequential(
            *_conv(channels_in, inner, 1, device=device),
            nn.ReLU(),
            *_conv(inner, inner, kernel, stride, groups=inner, device=device),
            nn.ReLU(),
            *_conv(inner, channels_out, 1, device=device),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _conv(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, device: str | None = None
) -> tuple[nn.Module, nn.Module]:
    return (
        Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False, device=device),
        BatchNorm2d(channels_out, device=device),
    )


def mlp(
    features: int, outputs: int, widths: Sequence[int], activations: Sequence[str], *, device: str | None = "meta"
) -> nn.Module:
    """Build a multi-layer perceptron.

    Its first module is an identity, so that the input is a feature: a network of one layer has a single one otherwise.

    Args:
        features: Inputs.
        outputs: Outputs.
        widths: Width of each hidden layer.
        activations: ``"relu"`` or ``"tanh"`` for each hidden layer.
        device: Where the parameters are created.
    """
    layers: list[nn.Module] = [nn.Identity()]
    for width, activation in zip(widths, activations, strict=True):
        layers += [nn.Linear(features, width, device=device), nn.Tanh() if activation == "tanh" else nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, outputs, device=device))
