"""A trial becomes a model."""

from optuna_aznas.spaces.nas_bench_201 import nas_bench_201

__all__ = ["nas_bench_201"]
