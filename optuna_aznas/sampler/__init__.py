"""AZNASSampler: evolution and Bayesian optimisation over architectures. Imports optuna, never torch."""

from optuna_aznas.sampler.sampler import AZNASSampler
from optuna_aznas.sampler.scorer import CandidateScorer

__all__ = ["AZNASSampler", "CandidateScorer"]
