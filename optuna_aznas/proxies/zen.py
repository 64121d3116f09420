"""The proxy zen_score: how much features change with the input. It runs two forward passes of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.model.forward import call_model
from optuna_aznas.proxies.model.isolation import removing_hooks, substituted
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in
from optuna_aznas.proxies.model.weights import layer_weights
from optuna_aznas.proxies.proxy import Proxy, Stage

#: Step along the second noise (Lin et al., 2021, section 4).
_ZEN_ALPHA = 0.01


def zen_score(context: ScoringContext) -> float:
    """Return ``log E|f(x) - f(x + a e)| + sum over batch normalisations of log sigma`` (Lin et al., ICCV 2021).

    f is the feature before global pooling and classifier (the last output with spatial dimensions, else the model's
    output); sigma^2 the variance of a batch normalisation's input, averaged over its channels; weights, x and e are
    drawn from N(0, 1), and a = 0.01.
    """
    generator = context.generator("zen")
    state = list(context.state)
    for i, old in layer_weights(context.model, context.state):
        normal = torch.randn(old.shape, generator=generator, device=old.device, dtype=old.dtype)
        state[i] = state[i]._replace(tensor=normal)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=tensor.dtype)

    x = map_tensors(lambda t: noise(t) if t.is_floating_point() else t, context.batch)
    moved = map_tensors(lambda t: t + _ZEN_ALPHA * noise(t) if t.is_floating_point() else t, x)
    with torch.no_grad(), substituted(state):
        first, log_scales = _feature(context.model, x)
        second, _ = _feature(context.model, moved)
    difference = (first - second).flatten(1).double().norm(dim=1).mean()
    return float(difference.log()) + sum(log_scales)


def _feature(model: nn.Module, inputs: Any) -> tuple[Tensor, list[float]]:
    """Return the last output with spatial dimensions, and log sigma of each batch normalisation's input."""
    log_scales: list[float] = []
    last: Tensor | None = None

    def scale(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].double()
        variance = x.var(dim=[d for d in range(x.ndim) if d != 1], unbiased=False).mean()
        log_scales.append(0.5 * float((variance + 1e-12).log()))

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal last
        if isinstance(output, Tensor) and output.ndim > 2 and max(output.shape[2:]) > 1:
            last = output

    with removing_hooks() as handles:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(scale))
            handles.append(module.register_forward_hook(keep))
        output = call_model(model, inputs)
    feature = last if last is not None else next(tensors_in(output))
    return feature.clone(), log_scales


PROXIES = (Proxy("zen_score", Stage.MODEL, function=zen_score),)
