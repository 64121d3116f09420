"""The sampler: evolution over the whole study, steered by aggregated ranks. Imports optuna, never torch."""

from optuna_aznas.sampler.sampler import AZNASSampler

__all__ = ["AZNASSampler"]
