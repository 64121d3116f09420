"""Numbers become ranks. Imports numpy and scipy, neither torch nor optuna."""

from optuna_aznas.aggregation.history import RankHistory
from optuna_aznas.aggregation.leaders import BestShare, Leaders
from optuna_aznas.aggregation.rank import aggregate

__all__ = ["BestShare", "Leaders", "RankHistory", "aggregate"]
