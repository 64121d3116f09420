"""A study and its scored trials: what a trial stores, its history, its ranking. Imports optuna, never torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_aznas.study.attributes import record as record
    from optuna_aznas.study.create import create_study as create_study
    from optuna_aznas.study.importance import ProxyImportance as ProxyImportance
    from optuna_aznas.study.importance import proxy_importance as proxy_importance
    from optuna_aznas.study.ranking import Leaderboard as Leaderboard
    from optuna_aznas.study.ranking import LeaderboardEntry as LeaderboardEntry
    from optuna_aznas.study.ranking import best_trials as best_trials
    from optuna_aznas.study.ranking import leaderboard as leaderboard
    from optuna_aznas.study.ranking import rank_scores as rank_scores

_HOME = {
    "Leaderboard": "ranking",
    "LeaderboardEntry": "ranking",
    "ProxyImportance": "importance",
    "best_trials": "ranking",
    "create_study": "create",
    "leaderboard": "ranking",
    "proxy_importance": "importance",
    "rank_scores": "ranking",
    "record": "attributes",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # Each is loaded on first use, which avoids a cycle: create_study imports the sampler, which imports this package.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
