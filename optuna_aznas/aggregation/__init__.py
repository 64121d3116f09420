"""Numbers become ranks. Imports numpy and scipy, scikit-learn on first use; neither torch nor optuna."""

from optuna_aznas.aggregation.importance import ProxyImportance
from optuna_aznas.aggregation.leaders import BestShare, Leaders
from optuna_aznas.aggregation.learned import LearnedAggregation, Parameters, Prediction
from optuna_aznas.aggregation.rank import aggregate
from optuna_aznas.aggregation.rank_history import RankHistory

__all__ = [
    "BestShare",
    "Leaders",
    "LearnedAggregation",
    "Parameters",
    "Prediction",
    "ProxyImportance",
    "RankHistory",
    "aggregate",
]
