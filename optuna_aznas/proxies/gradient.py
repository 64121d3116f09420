"""Proxies from the gradients of the layers' weights: gradient_norm, snip, grasp, synflow.

The first three share the loss's forward and backward pass; ``grasp`` adds a second backward pass through the first, and
``synflow`` runs a forward and a backward pass of its own on one sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.loss_pass import LossPass, total
from optuna_aznas.proxies.model.forward import call_model, differentiate
from optuna_aznas.proxies.model.isolation import Substitute, bypassed, substituted
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in
from optuna_aznas.proxies.model.weights import NORMS, with_gradients
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage


def gradient_norm(loss: LossPass) -> float:
    """Return the sum over layers of the norm of the loss's gradient (Abdelfattah et al., ICLR 2021)."""
    return total([g.norm() for g in loss.gradients])


def snip(loss: LossPass) -> float:
    """Return the sum over weights of ``|w * dL/dw|`` (Lee et al., ICLR 2019)."""
    return total([(w * g).abs().sum() for w, g in zip(loss.weights, loss.gradients, strict=True)])


def grasp(loss: LossPass) -> float:
    """Return ``- sum of w * (H g)``, H the loss's Hessian and g its gradient (GraSP, Wang et al., ICLR 2020).

    NaN where the gradient does not depend on the weights.
    """
    tracked = [g for g in loss.gradients if g.requires_grad]
    if not tracked:
        return math.nan
    energy = sum((g * g.detach()).sum() for g in tracked)
    assert isinstance(energy, Tensor)
    products = differentiate(energy, loss.weights, where=f"the gradient of {type(loss.context.model).__name__}")
    return -total([(w * hg).sum() for w, hg in zip(loss.weights, products, strict=True) if hg is not None])


def synflow(context: ScoringContext) -> float:
    """Return the sum over the weights of ``w * dR/dw``, R the sum of the output (Tanaka et al., NeurIPS 2020).

    Weights are replaced by their absolute values, biases by 0, the input by ones; normalisation layers are bypassed
    (Abdelfattah et al., ICLR 2021). Everything is in double precision, as R grows exponentially with the depth.
    """
    state, weights = with_gradients(context.model, context.state, lambda w: w.abs().double())
    in_double: dict[int, Tensor | None] = {}
    for i, (store, name, tensor) in enumerate(state):
        if tensor is not None and tensor.is_floating_point() and not tensor.requires_grad:
            value = torch.zeros_like(tensor, dtype=torch.float64) if name == "bias" else tensor.double()
            state[i] = Substitute(store, name, in_double.setdefault(id(tensor), value))
    ones = map_tensors(
        lambda t: torch.ones_like(t[:1], dtype=torch.float64) if t.is_floating_point() else t[:1], context.batch
    )
    norms = [module for module in context.model.modules() if isinstance(module, NORMS)]
    with bypassed(norms), substituted(state):
        output = next(tensors_in(call_model(context.model, ones)))
    found = differentiate(output.sum(), weights, where=type(context.model).__name__)
    return total([(w * g).sum() for w, g in zip(weights, found, strict=True) if g is not None])


PROXIES = (
    Proxy("gradient_norm", Stage.LOSS, function=gradient_norm),
    Proxy("snip", Stage.LOSS, function=snip),
    Proxy("grasp", Stage.LOSS, Needs.SECOND_DERIVATIVES, grasp),
    Proxy("synflow", Stage.MODEL, function=synflow),
)
