"""The search spaces that the command line knows by name. Imports torch only when a network is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from optuna_aznas.spaces.autoformer import Size


class BuiltIn(NamedTuple):
    """A search space that the command line knows by name.

    Attributes:
        build: Suggests an architecture to a trial and builds its network, without weights, for an input shape.
        input_shape: The usual shape of one sample, without the batch dimension.
        within_budget: For a space whose multiply-accumulates have a closed form: takes the budget, in
            multiply-accumulates, and the input shape; returns a function for ``AZNASSampler(candidate_filter=...)``.
        first: Returns the parameters of a known network, for the first trial.
    """

    build: Callable[[Any, tuple[int, ...]], nn.Module]
    input_shape: tuple[int, ...]
    within_budget: Callable[[float, tuple[int, ...]], Callable[[Mapping[str, Any]], bool]] | None = None
    first: Callable[[], Mapping[str, Any]] | None = None


def _nas_bench_201(trial: Any, input_shape: tuple[int, ...]) -> nn.Module:
    from optuna_aznas.spaces import nas_bench_201

    return nas_bench_201.build(trial, device="meta")


def _mobilenet_v2(trial: Any, input_shape: tuple[int, ...]) -> nn.Module:
    from optuna_aznas.spaces import mobilenet_v2

    return mobilenet_v2.build(trial, device="meta")


def _mobilenet_v2_within(budget: float, input_shape: tuple[int, ...]) -> Callable[[Mapping[str, Any]], bool]:
    from optuna_aznas.spaces import mobilenet_v2

    return mobilenet_v2.within_budget(budget, image_size=input_shape[-1])


def _mobilenet_v2_first() -> Mapping[str, Any]:
    from optuna_aznas.spaces import mobilenet_v2

    return mobilenet_v2.MOBILENET_V2


def _autoformer(size: Size) -> BuiltIn:
    def build(trial: Any, input_shape: tuple[int, ...]) -> nn.Module:
        from optuna_aznas.spaces import autoformer

        return autoformer.build(trial, size=size, image_size=input_shape[-1], device="meta")

    return BuiltIn(build, (3, 224, 224))


#: The built-in search spaces by name.
BUILT_IN: dict[str, BuiltIn] = {
    "nas_bench_201": BuiltIn(_nas_bench_201, (3, 32, 32)),
    "mobilenet_v2": BuiltIn(
        _mobilenet_v2, (3, 224, 224), within_budget=_mobilenet_v2_within, first=_mobilenet_v2_first
    ),
    "autoformer_tiny": _autoformer("tiny"),
    "autoformer_small": _autoformer("small"),
    "autoformer_base": _autoformer("base"),
}
