"""Search spaces. Each module has a ``build`` that suggests an architecture to a trial and returns its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from optuna_aznas.spaces import autoformer, mobilenet_v2, nas_bench_201

__all__ = ["BUILT_IN", "BuiltIn", "autoformer", "mobilenet_v2", "nas_bench_201"]


class BuiltIn(NamedTuple):
    """A search space that the command line knows by name.

    Attributes:
        build: Suggests an architecture to a trial and builds its network, without weights, for an input shape.
        input_shape: The usual shape of one sample, without the batch dimension.
        within_budget: Where multiply-accumulates are known in closed form: takes the most that are allowed and the
            input shape, and returns the test for ``AZNASSampler(candidate_filter=...)``.
        first: Parameters of a known network, for the first trial.
    """

    build: Callable[[Any, tuple[int, ...]], nn.Module]
    input_shape: tuple[int, ...]
    within_budget: Callable[[float, tuple[int, ...]], Callable[[Mapping[str, Any]], bool]] | None = None
    first: Mapping[str, Any] | None = None


def _autoformer(size: autoformer.Size) -> BuiltIn:
    def build(trial: Any, input_shape: tuple[int, ...]) -> nn.Module:
        return autoformer.build(trial, size=size, image_size=input_shape[-1], device="meta")

    return BuiltIn(build, (3, 224, 224))


#: The built-in search spaces by name.
BUILT_IN: dict[str, BuiltIn] = {
    "nas_bench_201": BuiltIn(lambda trial, _: nas_bench_201.build(trial, device="meta"), (3, 32, 32)),
    "mobilenet_v2": BuiltIn(
        lambda trial, _: mobilenet_v2.build(trial, device="meta"),
        (3, 224, 224),
        within_budget=lambda max_macs, input_shape: mobilenet_v2.within_budget(max_macs, image_size=input_shape[-1]),
        first=mobilenet_v2.MOBILENET_V2,
    ),
    "autoformer_tiny": _autoformer("tiny"),
    "autoformer_small": _autoformer("small"),
    "autoformer_base": _autoformer("base"),
}
