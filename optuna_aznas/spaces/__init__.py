"""A trial becomes a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from optuna_aznas.spaces.autoformer import autoformer
from optuna_aznas.spaces.mobilenet_v2 import mobilenet_v2
from optuna_aznas.spaces.nas_bench_201 import nas_bench_201

__all__ = ["BUILT_IN", "BuiltIn", "autoformer", "mobilenet_v2", "nas_bench_201"]


class BuiltIn(NamedTuple):
    """A search space that the command line knows by name.

    Attributes:
        build: Suggests an architecture to a trial and builds its network for scoring, without weights where it can.
        input_shape: Shape of one sample, without the batch dimension.
    """

    build: Callable[[Any], nn.Module]
    input_shape: tuple[int, ...]


#: The built-in search spaces by name.
BUILT_IN: dict[str, BuiltIn] = {
    "nas_bench_201": BuiltIn(functools.partial(nas_bench_201, device="meta"), (3, 32, 32)),
    "mobilenet_v2": BuiltIn(functools.partial(mobilenet_v2, device="meta"), (3, 224, 224)),
    "autoformer_tiny": BuiltIn(functools.partial(autoformer, size="tiny", device="meta"), (3, 224, 224)),
    "autoformer_small": BuiltIn(functools.partial(autoformer, size="small", device="meta"), (3, 224, 224)),
    "autoformer_base": BuiltIn(functools.partial(autoformer, size="base", device="meta"), (3, 224, 224)),
}
