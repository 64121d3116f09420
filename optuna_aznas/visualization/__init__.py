"""Figures of a search or a model: each function takes a study and returns a plotly figure, as in Optuna.

Plotly is imported when the first figure is drawn. The extra ``visualization`` (or ``dashboard``) installs it.
"""

from optuna_aznas.visualization._block_profile import plot_block_profile
from optuna_aznas.visualization._complexity import plot_complexity
from optuna_aznas.visualization._parallel_coordinate import plot_parallel_coordinate
from optuna_aznas.visualization._plotly import is_available
from optuna_aznas.visualization._proxy_importance import plot_proxy_importance
from optuna_aznas.visualization._proxy_pairs import plot_proxy_pairs
from optuna_aznas.visualization._rank_against_value import plot_rank_against_value
from optuna_aznas.visualization._rank_history import plot_rank_history

__all__ = [
    "is_available",
    "plot_block_profile",
    "plot_complexity",
    "plot_parallel_coordinate",
    "plot_proxy_importance",
    "plot_proxy_pairs",
    "plot_rank_against_value",
    "plot_rank_history",
]
