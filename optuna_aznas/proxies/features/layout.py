"""Which dimension of a feature holds its channels."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

_OVER_CHANNELS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def channels_first(feature: Tensor, modules: Iterable[nn.Module]) -> bool:
    """Whether dimension 1 holds a feature's channels, as against the last.

    Channels come first in images and volumes (B, C, H, W[, D]), and in (B, C, L) after 1-D convolutions. They come last
    in tokens (B, N, C), vectors (B, C), and images (B, H, W, C) of networks that apply linear layers to them.

    The shape alone cannot tell these apart, so the layers that computed the feature decide. A convolution or batch
    normalisation whose number of channels is the size of dimension 1 speaks for first. Where it is the size of the last
    dimension instead, the output was permuted, and it speaks for last, unless the dimension before has that size, too,
    as in a square image. A linear layer, embedding or layer normalisation whose number of features is the size of the
    last dimension speaks for last. The latest such layer counts; with four dimensions or more any layer that speaks for
    first decides. Where no layer fits, channels come first with four dimensions or more, and last otherwise.

    Args:
        feature: The feature, batch first.
        modules: The modules that computed it, in order.
    """
    if feature.ndim <= 2:
        return False
    first = last = 0
    for i, module in enumerate(modules, 1):
        if isinstance(module, _OVER_CHANNELS):
            channels = _channels(module)
            if channels == feature.shape[1]:
                first = i
                if feature.ndim > 3:
                    return True
            elif channels == feature.shape[-1] != feature.shape[-2]:
                last = i
        elif _features(module) == feature.shape[-1]:
            last = i
    return first >= last if first or last else feature.ndim > 3


def _channels(module: nn.Module) -> int | None:
    for name in ("out_channels", "num_features", "num_channels"):
        if hasattr(module, name):
            return getattr(module, name)
    return None


def _features(module: nn.Module) -> int | None:
    """Return the size of the last dimension of a layer's output."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and shape:
        return shape[-1]
    weight = module._parameters.get("weight")
    return weight.shape[0] if weight is not None and weight.ndim == 1 else None  # a normalisation of its own making
