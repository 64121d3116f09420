"""A trial becomes a model."""

from optuna_aznas.spaces.autoformer import autoformer
from optuna_aznas.spaces.mobilenet_v2 import mobilenet_v2
from optuna_aznas.spaces.nas_bench_201 import nas_bench_201

__all__ = ["autoformer", "mobilenet_v2", "nas_bench_201"]
