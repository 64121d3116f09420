"""The proxy from activation bits: naswot. It watches the loss's forward pass."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.features.block_pass import BlockPass
from optuna_aznas.proxies.proxy import Proxy, Stage


class ActivationObserver(TorchFunctionMode):
    """Counts in which units' activations two samples agree, for NASWOT (Mellor et al., ICML 2021).

    A sample's code has a bit for each unit of each activation function: whether its input is positive. K_ij is the
    number of bits in which samples i and j agree; the score is log |det K|.

    Args:
        batch_size: Samples in the batch.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self._kernel: Tensor | None = None
        self._batch_size = batch_size

    def surround(self) -> AbstractContextManager[Any]:
        """Return this mode, which intercepts activation functions."""
        return self

    def __call__(self, block: BlockPass) -> None:
        """Ignore the block."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ACTIVATIONS and args and args[0].shape[:1] == (self._batch_size,):
            codes = (args[0].detach() > 0).flatten(1).float()
            alike = codes @ codes.T + (1 - codes) @ (1 - codes).T
            self._kernel = alike.double() if self._kernel is None else self._kernel + alike
        return func(*args, **(kwargs or {}))

    def score(self) -> float:
        """Return the log-determinant: -inf where two samples have the same code, NaN without any activation."""
        return math.nan if self._kernel is None else float(torch.linalg.slogdet(self._kernel).logabsdet)


def _observer(context: ScoringContext) -> ActivationObserver:
    return ActivationObserver(context.samples)


_ACTIVATIONS = {
    getattr(owner, name)
    for owner, names in {
        nn.functional: "relu relu_ relu6 leaky_relu prelu elu selu celu gelu silu mish hardswish hardtanh softplus",
        torch: "relu relu_",
        Tensor: "relu relu_",
    }.items()
    for name in names.split()
    if hasattr(owner, name)
}

PROXIES = (Proxy("naswot", Stage.LOSS, observer=_observer),)
