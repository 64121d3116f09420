"""AZNASSampler: evolution and Bayesian optimisation over architectures. Imports optuna, never torch."""

from optuna_aznas.sampler.sampler import AZNASSampler

__all__ = ["AZNASSampler"]
