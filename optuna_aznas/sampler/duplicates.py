"""Which architectures a study already holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas.study.attributes import ARCHITECTURE_KEY, architecture_names

#: An architecture as text: parameter name -> value. Categorical choices need not be hashable.
Description = dict[str, str]


def describe(params: Mapping[str, Any]) -> Description:
    """Return parameters in a form that can be compared, hashed and stored."""
    return {name: repr(value) for name, value in params.items()}


class _Node:
    """What is known after some parameters have been suggested."""

    __slots__ = ("ends", "next")

    def __init__(self) -> None:
        self.ends = False  # whether an architecture has these parameters and no more
        self.next: dict[str, _Branches] = {}  # by the parameter that was suggested next: one, as a rule


class _Branches:
    """The values that a parameter has had at one place."""

    __slots__ = ("by_value", "possible")

    def __init__(self) -> None:
        self.possible = 0.0  # values that it can have
        self.by_value: dict[str, _Node] = {}


class KnownArchitectures:
    """The architectures of finished trials, so that none is proposed twice.

    A candidate may have parameters that its network will not ask for: the width of a fifth layer, when there are four.
    And it may lack some that it will ask for. An objective that builds the same network from the same parameters asks
    for them one after the other, each time in the same order. So a candidate that agrees with all of a finished
    architecture's parameters *is* that architecture, whatever else it holds; and where a parameter is missing, nothing
    new can come of it once all of its values are known. The architectures are kept as a tree of parameter names and
    values, and a candidate is looked up by walking down.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self._order: dict[str, int] = {}  # of names, as they first came: not every storage keeps a trial's own
        self._partial: set[frozenset[tuple[str, str]]] = set()

    def add(self, trial: FrozenTrial) -> None:
        """Add a finished trial's architecture.

        One that failed or was pruned may have stopped half-way through its suggestions; only a candidate with the very
        same parameters is taken to be the same.
        """
        architecture = describe({name: trial.params[name] for name in architecture_names(trial)})
        if not architecture:
            return
        if trial.state != TrialState.COMPLETE and ARCHITECTURE_KEY not in trial.user_attrs:
            self._partial.add(frozenset(architecture.items()))
            return
        for name in architecture:
            self._order.setdefault(name, len(self._order))
        node = self._root
        for name in sorted(architecture, key=self._order.__getitem__):
            branches = node.next.setdefault(name, _Branches())
            branches.possible = max(branches.possible, _cardinality(trial.distributions[name]))
            node = branches.by_value.setdefault(architecture[name], _Node())
        node.ends = True

    def __contains__(self, candidate: Description) -> bool:
        return _all_known(self._root, candidate) or frozenset(candidate.items()) in self._partial


def _all_known(node: _Node, candidate: Description) -> bool:
    """Whether every architecture that has a candidate's parameters is known, from ``node`` on."""
    if node.ends:
        return True
    for name, branches in node.next.items():
        if name in candidate:
            below = branches.by_value.get(candidate[name])
            if below is not None and _all_known(below, candidate):
                return True
        elif len(branches.by_value) < branches.possible:
            continue
        elif all(_all_known(below, candidate) for below in branches.by_value.values()):
            return True
    return False


def _cardinality(distribution: BaseDistribution) -> float:
    """Return how many values a distribution has."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.single():
        return 1
    if distribution.step is None:
        return math.inf
    return round((distribution.high - distribution.low) / distribution.step) + 1
