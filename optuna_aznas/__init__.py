"""Training-free architecture search for Optuna: zero-cost proxies, rank aggregation, a sampler and a pruner.

The public names live here; each is loaded when it is first used, so importing this package imports neither torch nor
optuna.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_aznas import dashboard as dashboard
    from optuna_aznas import spaces as spaces
    from optuna_aznas import visualization as visualization
    from optuna_aznas.aggregation import aggregate as aggregate
    from optuna_aznas.proxies import ProxyEvaluationError as ProxyEvaluationError
    from optuna_aznas.proxies import ProxyEvaluator as ProxyEvaluator
    from optuna_aznas.proxies import ProxyScores as ProxyScores
    from optuna_aznas.proxies import diagnose as diagnose
    from optuna_aznas.pruner import AZNASPruner as AZNASPruner
    from optuna_aznas.pruner import should_prune as should_prune
    from optuna_aznas.sampler import AZNASSampler as AZNASSampler
    from optuna_aznas.storage import open_storage as open_storage
    from optuna_aznas.study import best_trials as best_trials
    from optuna_aznas.study import create_study as create_study
    from optuna_aznas.study import leaderboard as leaderboard
    from optuna_aznas.study import rank_scores as rank_scores
    from optuna_aznas.study import record as record
    from optuna_aznas.study.importance import ProxyImportance as ProxyImportance
    from optuna_aznas.study.importance import proxy_importance as proxy_importance

__version__ = "0.1.0"

_HOME = {
    "AZNASPruner": "pruner",
    "AZNASSampler": "sampler",
    "ProxyEvaluationError": "proxies",
    "ProxyEvaluator": "proxies",
    "ProxyImportance": "study",
    "ProxyScores": "proxies",
    "aggregate": "aggregation",
    "best_trials": "study",
    "create_study": "study",
    "diagnose": "proxies",
    "leaderboard": "study",
    "open_storage": "storage",
    "proxy_importance": "study",
    "rank_scores": "study",
    "record": "study",
    "should_prune": "pruner",
}

_MODULES = ("dashboard", "spaces", "visualization")

__all__ = [*sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
