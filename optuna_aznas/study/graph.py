"""Features of networks' own graphs: as a trial stores them, and as columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

#: User attribute: feature of the network's own graph -> number; those that are 0 are left out.
GRAPH_KEY = "aznas:graph"


def graph_attributes(proxy_scores: Any) -> dict[str, Any]:
    """Return the user attribute that holds the features of a network's graph, where there are any."""
    features = graph_of(proxy_scores)
    return {GRAPH_KEY: {name: value for name, value in features.items() if value}} if features else {}


def graph_of(proxy_scores: Any) -> dict[str, float]:
    """Return the features of a network's graph by name; empty where its proxy scores hold none."""
    return _features(getattr(proxy_scores, "graph", None))


def recorded_graph(trial: FrozenTrial) -> dict[str, float]:
    """Return the features of a network's graph that :func:`record` stored on a trial; empty if there are none."""
    return _features(trial.user_attrs.get(GRAPH_KEY))


def _features(given: Any) -> dict[str, float]:
    """Return finite numbers by name; empty for anything else."""
    if not isinstance(given, Mapping):
        return {}
    features = {str(name): float(value) for name, value in given.items() if isinstance(value, int | float)}
    return features if all(map(math.isfinite, features.values())) else {}


def graph_columns(
    graphs: Sequence[Mapping[str, float]], names: Sequence[str] | None = None
) -> npt.NDArray[np.float64] | None:
    """Return features of graphs as columns, one for each name, a row of NaN for each empty mapping.

    A feature that a graph does not name is 0 there. ``None`` where there are no names.

    Args:
        graphs: The features of each graph by name.
        names: The columns, in this order; by default those that occur, sorted.
    """
    names = sorted({name for graph in graphs for name in graph}) if names is None else names
    if not names:
        return None
    absent = [math.nan] * len(names)
    rows = [[graph.get(name, 0.0) for name in names] if graph else absent for graph in graphs]
    return np.array(rows).reshape(len(rows), len(names))
