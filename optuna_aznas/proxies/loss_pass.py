"""The passes to a loss, shared by all proxies that need one.

The loss is the cross-entropy with labels that are drawn: proxies see no data unless ``ProxyEvaluator(inputs=...)``
holds some. The forward pass runs once. Its backward pass, and both passes on a second batch, run when a proxy asks for
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.block_pass import Observer
from optuna_aznas.proxies.model.forward import call_model, differentiate
from optuna_aznas.proxies.model.isolation import substituted
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in
from optuna_aznas.proxies.model.weights import with_gradients
from optuna_aznas.proxies.proxy import Needs


class LossPass:
    """Runs a model forward to its class scores, under all observers; everything else follows on request.

    Args:
        context: The model, and what it is run on.
        needs: What the named proxies need.
        observers: Observers of the forward pass, by the proxy's name.

    Attributes:
        weights: The layers' weights, tied ones once.
        input_gradients: For each floating-point input the gradient (B, ...) of the sum of all outputs, ``None`` where
            the output does not depend on it; empty unless needed.

    Raises:
        ProxyEvaluationError: The forward failed, or the model's output has no gradient.
    """

    def __init__(self, context: ScoringContext, needs: Needs, observers: Mapping[str, Observer]) -> None:
        self.context = context
        self.observers = observers
        self._twice = Needs.SECOND_DERIVATIVES in needs
        self._labels = context.generator("labels")
        self._state, self.weights = with_gradients(context.model, context.state)
        inputs = context.batch
        if Needs.INPUT_GRADIENTS in needs:
            inputs = map_tensors(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, inputs)
        with ExitStack() as stack:
            if self._twice:  # fused kernels of attention have no second derivative
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            for observer in observers.values():
                stack.enter_context(observer.surround())
            self._logits = self._forward(inputs)
        self.input_gradients: Sequence[Tensor | None] = ()
        leaves = [t for t in tensors_in(inputs) if t.requires_grad] if Needs.INPUT_GRADIENTS in needs else []
        if leaves:
            # Before the weights' gradients, which free the graph.
            name = type(context.model).__name__
            self.input_gradients = differentiate(self._logits.sum(), leaves, where=name, retain_graph=True)

    @cached_property
    def gradients(self) -> list[Tensor]:
        """Gradients of the loss with respect to :attr:`weights`; with their graph if second derivatives are needed."""
        return self._backward(self._logits, create_graph=self._twice)

    @cached_property
    def second_gradients(self) -> list[Tensor]:
        """The same gradients on a second batch, with other labels."""
        _ = self.gradients  # the first batch draws its labels first
        return self._backward(self._forward(self.context.second_batch()), create_graph=False)

    def _forward(self, inputs: Any) -> Tensor:
        """Return the model's output as rows of class scores, (n, classes)."""
        with substituted(self._state):
            output = call_model(self.context.model, inputs)
        logits = next(tensors_in(output))
        if not logits.is_floating_point() or not logits.requires_grad:
            raise ProxyEvaluationError(
                f"The output of {type(self.context.model).__name__} ({logits.dtype}, shape {tuple(logits.shape)}) has "
                "no gradient with respect to its weights, and proxies of the loss need one. Does its forward detach "
                "the output, or run under no_grad?"
            )
        if logits.ndim > 3:
            logits = logits.movedim(1, -1)
        return logits.reshape(-1, logits.shape[-1])

    def _backward(self, logits: Tensor, *, create_graph: bool) -> list[Tensor]:
        n, classes = logits.shape
        if classes == 1:
            signs = torch.randint(0, 2, (n, 1), generator=self._labels, device=logits.device).to(logits.dtype)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, signs)
        else:
            labels = torch.randint(0, classes, (n,), generator=self._labels, device=logits.device)
            loss = nn.functional.cross_entropy(logits, labels)
        where = type(self.context.model).__name__
        found = differentiate(loss, self.weights, where=where, create_graph=create_graph)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]


def total(parts: Sequence[Tensor]) -> float:
    """Return the sum of numbers on a device, in double precision; 0 where there are none."""
    values = [part.detach().double() for part in parts]
    return float(torch.stack(values).sum()) if values else 0.0
