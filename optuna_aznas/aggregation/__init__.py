"""Numbers become ranks. Imports numpy and scipy, neither torch nor optuna."""

from optuna_aznas.aggregation.history import RankHistory
from optuna_aznas.aggregation.rank import aggregate

__all__ = ["RankHistory", "aggregate"]
