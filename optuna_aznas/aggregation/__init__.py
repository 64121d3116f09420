"""From proxy scores to ranks. Imports numpy and scipy, scikit-learn on first use; neither torch nor optuna."""

from optuna_aznas.aggregation.consensus import consensus_weights
from optuna_aznas.aggregation.importance import ProxyImportance
from optuna_aznas.aggregation.learned import LearnedAggregation
from optuna_aznas.aggregation.networks import Parameters
from optuna_aznas.aggregation.posterior import Prediction
from optuna_aznas.aggregation.rank import aggregate, aggregate_aznas

__all__ = [
    "LearnedAggregation",
    "Parameters",
    "Prediction",
    "ProxyImportance",
    "aggregate",
    "aggregate_aznas",
    "consensus_weights",
]
