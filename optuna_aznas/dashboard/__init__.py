"""Publishes a search to optuna-dashboard: figures, a leaderboard, notes on the best trials.

It is stored in the study itself, so everyone who opens the study sees it. The extra ``dashboard`` installs
optuna-dashboard and plotly.
"""

from optuna_aznas.dashboard._callback import DashboardCallback
from optuna_aznas.dashboard._publish import publish

__all__ = ["DashboardCallback", "publish"]
