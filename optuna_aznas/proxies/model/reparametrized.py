"""Weights that are computed from other tensors: parametrizations, weight and spectral normalisation, pruning.

:mod:`torch.nn.utils.parametrize` moves a module's ``weight`` to ``module.parametrizations.weight.original``; the older
hooks of :mod:`torch.nn.utils` move it to ``weight_orig`` or ``weight_v``. These are what is drawn anew. What belongs to
them, such as the vectors of the power iteration, is computed as for a fresh layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from optuna_aznas.proxies.errors import ProxyEvaluationError

_POWER_ITERATIONS = 15  # as in a fresh layer of torch

#: Takes a drawn weight and a generator, and returns the values of other tensors.
_Rule = Callable[[Tensor, torch.Generator], list[Tensor]]


class Reparametrized:
    """The tensors from which weights are computed: those that are drawn, and those that follow from the draw."""

    def __init__(self) -> None:
        self._owners: dict[int, tuple[nn.Module, str]] = {}  # by the id of the module that holds a drawn tensor
        self._rules: list[tuple[Tensor, list[Tensor], _Rule]] = []  # the drawn tensor, and what follows from it
        self._following: set[int] = set()

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor follows from a drawn one."""
        return id(tensor) in self._following

    def owner(self, module: nn.Module, name: str) -> tuple[nn.Module, str]:
        """Return the layer that a module's tensor is part of, and the name of what it stands for there."""
        return self._owners.get(id(module), (module, name))

    def find(self, prefix: str, module: nn.Module) -> None:
        """Look for computed weights of a layer.

        Raises:
            ProxyEvaluationError: A weight is computed in a way that is not known.
        """
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) and f"{hook.name}_g" in module._parameters:
                v, g = module._parameters[f"{hook.name}_v"], module._parameters[f"{hook.name}_g"]
                self._add(v, [g], _norms(hook.dim))
            elif isinstance(hook, SpectralNorm) and f"{hook.name}_u" in module._buffers:
                vectors = [module._buffers.get(f"{hook.name}_{letter}") for letter in "uv"]
                self._add(module._parameters[f"{hook.name}_orig"], vectors, _power(hook.reshape_weight_to_matrix))
        if module._modules and parametrize.is_parametrized(module):
            parametrized: Any = module.parametrizations
            for name, chain in parametrized.items():
                self._owners[id(chain)] = (module, name)
                self._find_in(f"{prefix}.{name}" if prefix else name, chain)

    def _find_in(self, name: str, chain: Any) -> None:
        kinds = [type(step) for step in chain]
        if kinds[0] is parametrizations._WeightNorm and len(chain._parameters) == 2:
            self._add(chain.original1, [chain.original0], _norms(chain[0].dim))
            return
        if list(chain._parameters) != ["original"]:
            raise ProxyEvaluationError(
                f"{name!r} is computed from {len(chain._parameters)} tensors by {kinds[0].__name__}, so it cannot be "
                "drawn anew. Remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations), or score "
                "the model's own weights with init=None."
            )
        for step in chain:
            if isinstance(step, parametrizations._SpectralNorm) and "_u" in step._buffers:
                self._add(chain.original, [step._u, step._v], _power(step._reshape_weight_to_matrix))
            elif isinstance(step, parametrizations._Orthogonal):
                base = step._buffers.get("base")
                if base is not None:
                    self._add(chain.original, [base, chain.original], _trivialised(base.shape))
                elif step.orthogonal_map is parametrizations._OrthMaps.householder:
                    self._add(chain.original, [chain.original], _householder(step.right_inverse))

    def _add(self, drawn: Tensor | None, following: list[Tensor | None], rule: _Rule) -> None:
        assert drawn is not None
        tensors = [tensor for tensor in following if tensor is not None]
        self._rules.append((drawn, tensors, rule))
        self._following.update(id(tensor) for tensor in tensors if tensor is not drawn)

    def values(self, drawn: Mapping[int, Tensor | None], generator: torch.Generator) -> dict[int, Tensor | None]:
        """Return what follows from the draws, by the identity of what it replaces."""
        found: dict[int, Tensor | None] = {}
        for tensor, following, rule in self._rules:
            weight = found.get(id(tensor), drawn[id(tensor)])
            assert weight is not None
            with torch.no_grad():
                values = rule(weight, generator)
            found |= {id(old): new for old, new in zip(following, values, strict=False)}
        return found


def weight_place(module: nn.Module) -> tuple[dict[str, Any], str]:
    """Return the dict and the key in it that hold a layer's weight, or else what it is computed from."""
    if parametrize.is_parametrized(module, "weight"):
        parametrized: Any = module.parametrizations
        store = parametrized["weight"]._parameters
        return store, "original" if "original" in store else "original1"
    names = ("weight", "weight_orig", "weight_v")
    return module._parameters, next((name for name in names if module._parameters.get(name) is not None), "weight")


def _norms(dim: int | None) -> _Rule:
    """Weight normalisation: the norms of the drawn weight, so that the weight is what was drawn."""
    return lambda weight, _: [torch.norm_except_dim(weight, 2, -1 if dim is None else dim)]


def _householder(decomposed: Callable[[Tensor], Tensor]) -> _Rule:
    """An orthogonal weight as reflections: those of the drawn weight's QR decomposition."""
    return lambda weight, _: [decomposed(weight)]


def _power(as_matrix: Callable[[Tensor], Tensor]) -> _Rule:
    """Spectral normalisation: estimates of the first left and right singular vector by the power method."""

    def rule(weight: Tensor, generator: torch.Generator) -> list[Tensor]:
        matrix = as_matrix(weight)
        v = torch.randn(matrix.shape[1], generator=generator, device=matrix.device, dtype=matrix.dtype)
        for _ in range(_POWER_ITERATIONS):
            u = nn.functional.normalize(matrix @ v, dim=0)
            v = nn.functional.normalize(matrix.mT @ u, dim=0)
        return [u, v]

    return rule


def _trivialised(shape: torch.Size) -> _Rule:
    """An orthogonal weight as a base times a map of the parameter: a random base, and the parameter of the identity."""

    def rule(weight: Tensor, generator: torch.Generator) -> list[Tensor]:
        normal = torch.randn(shape, generator=generator, device=weight.device, dtype=weight.dtype)
        negative_identity = torch.zeros_like(weight)
        negative_identity.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
        return [torch.linalg.qr(normal).Q, negative_identity]

    return rule
