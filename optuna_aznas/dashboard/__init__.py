"""Publishes a search to optuna-dashboard: figures, a leaderboard, notes on the best trials.

What is published lies in the study itself, so whoever opens the study sees it. optuna-dashboard and plotly come with
the extra ``dashboard``.
"""

from optuna_aznas.dashboard._callback import DashboardCallback
from optuna_aznas.dashboard._publish import publish

__all__ = ["DashboardCallback", "publish"]
