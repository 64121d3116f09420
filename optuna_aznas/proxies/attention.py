"""The proxy attention: whether the heads of a transformer look around, and at different places.

It watches the forward pass over the features. It is not among the defaults: what it adds to the ranking of transformers
is in the documentation.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.features.block_pass import BlockPass
from optuna_aznas.proxies.proxy import Proxy, Stage

_SOFTMAX = {
    torch.ops.aten._softmax,
    *([torch.ops.aten._safe_softmax] if hasattr(torch.ops.aten, "_safe_softmax") else []),
}


class AttentionObserver(TorchDispatchMode):
    """Watches the attention maps of a forward pass.

    With A_h (N x M, rows sum to 1) the map of head h = 1..H, ``-sum p log p`` the entropy of a row, and all means over
    the batch's samples and the rows:

        spread = mean over h of entropy(A_h) / log M
        difference = (entropy(mean over h of A_h) - mean over h of entropy(A_h)) / log H

    Spread is 1 where every head looks everywhere alike and 0 where each looks at one token; difference, the heads'
    Jensen-Shannon divergence, is 0 where all heads do the same and 1 where they look at disjoint places. Both lie
    between 0 and 1. A layer's score is their product, the proxy ``attention`` the sum over the layers: heads that look
    around, each in another way. With one head it is 0, as it is in a model without attention.

    Maps are recognised by their softmax: over the last of four dimensions (B, H, N, M), or of three (B * H, N, M) as in
    :class:`torch.nn.MultiheadAttention`. Fused kernels hide it, so the pass runs on the unfused one
    (``SDPBackend.MATH``).

    Args:
        batch_size: Samples in the batch, B.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch_size = batch_size
        self._layers: list[Tensor] = []

    def surround(self) -> AbstractContextManager[Any]:
        """Return a context manager under which attention is computed by separate operators, and this mode sees them."""
        stack = ExitStack()
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(self)
        return stack

    def __call__(self, block: BlockPass) -> None:
        """Ignore the block."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in _SOFTMAX and args[1] in (-1, out.ndim - 1):
            if out.ndim == 3 and out.shape[0] % self._batch_size == 0:
                self._observe(out.view(self._batch_size, -1, *out.shape[1:]))
            elif out.ndim == 4:
                self._observe(out)
        return out

    def _observe(self, maps: Tensor) -> None:
        _, heads, rows, columns = maps.shape
        if heads < 2 or rows < 2 or columns < 2:
            return
        own = mixed = torch.zeros((), device=maps.device)
        for sample in maps.detach():  # one by one, as long sequences have large maps
            own = own + _entropy(sample)
            mixed = mixed + _entropy(sample.mean(dim=0))
        own, mixed = own / len(maps), mixed / len(maps)
        self._layers.append((own / math.log(columns)) * ((mixed - own) / math.log(heads)))

    def score(self) -> float:
        """Return the sum over the layers seen, 0 or more."""
        return float(torch.stack(self._layers).sum()) if self._layers else 0.0


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p.double()).sum(dim=-1).mean()


def _observer(context: ScoringContext) -> AttentionObserver:
    return AttentionObserver(context.samples)


PROXIES = (Proxy("attention", Stage.FEATURES, observer=_observer),)
