"""EvaluatedArchitectures: the architectures of a study's finished trials, to recognise duplicates."""

from __future__ import annotations

import math
from collections.abc import Generator

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas.study.attributes import architecture_params, recorded_architecture
from optuna_aznas.study.values import Description, describe


class _Node:
    """A place in the tree: some parameters have been suggested."""

    __slots__ = ("branches", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False  # whether an evaluated architecture has these parameters and no others
        self.branches: dict[str, _Branches] = {}  # by the parameter suggested next; usually there is only one


class _Branches:
    """The values that one parameter has had at one place in the tree."""

    __slots__ = ("by_value", "n_possible")

    def __init__(self) -> None:
        self.n_possible = 0.0  # number of values that it can have
        self.by_value: dict[str, _Node] = {}


class EvaluatedArchitectures:
    """The architectures of finished trials, so that none is proposed twice.

    A candidate cannot simply be compared with them parameter by parameter. It may have parameters that its network does
    not ask for (the width of a fifth layer, when there are four), and lack some that its network will ask for. The
    architectures are therefore kept as a tree: an objective that builds the same network from the same parameters asks
    for them in the same order, so each node is a parameter, each edge a value, and each path from the root an
    architecture. A candidate is looked up by walking down with its values. It is a duplicate if the walk ends at an
    evaluated architecture, whatever other parameters it has. Where the walk meets a parameter that the candidate lacks,
    the candidate is a duplicate only if each possible value leads to an evaluated architecture.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self._order: dict[str, int] = {}  # of names as they first came: not every storage keeps a trial's own order
        self._interrupted: set[frozenset[tuple[str, str]]] = set()

    def add(self, trial: FrozenTrial) -> None:
        """Add a finished trial's architecture.

        A trial that failed or was pruned before it recorded proxy scores may not have suggested all of its parameters,
        so that its path may end too early. Only a candidate with exactly the same parameters is its duplicate.
        """
        architecture = describe(architecture_params(trial), trial.distributions)
        if not architecture:
            return
        if trial.state != TrialState.COMPLETE and recorded_architecture(trial) is None:
            self._interrupted.add(frozenset(architecture.items()))
            return
        for name in architecture:
            self._order.setdefault(name, len(self._order))
        node = self._root
        for name in sorted(architecture, key=self._order.__getitem__):
            branches = node.branches.setdefault(name, _Branches())
            branches.n_possible = max(branches.n_possible, _cardinality(trial.distributions[name]))
            node = branches.by_value.setdefault(architecture[name], _Node())
        node.is_complete = True

    def __contains__(self, candidate: Description) -> bool:
        return _leads_to_evaluated(self._root, candidate) or frozenset(candidate.items()) in self._interrupted

    def has_more_left(self, start: Description, n: int) -> bool:
        """Whether more than ``n`` architectures with the parameters of ``start`` may not have been evaluated yet.

        A value that no evaluated architecture has at its place in the tree counts once, whatever may follow it.
        """
        left, nodes = 0.0, [self._root]
        while nodes and left <= n:
            node = nodes.pop()
            if node.is_complete:
                continue
            if not node.branches:  # nothing is known of what follows
                return True
            for name, branches in node.branches.items():
                values = [start[name]] if name in start else branches.by_value
                nodes += [branches.by_value[value] for value in values if value in branches.by_value]
                left += (1 if name in start else branches.n_possible) - sum(v in branches.by_value for v in values)
        return left > n


def _leads_to_evaluated(node: _Node, candidate: Description) -> bool:
    """Whether a candidate that has arrived at ``node`` can only become an evaluated architecture.

    The walk is as deep as the architecture has parameters, too deep for recursion: :func:`_walk` yields each place that
    it needs to know of, and is sent the answer.
    """
    walks, answer = [_walk(node, candidate)], None
    while walks:
        try:
            walks.append(_walk(walks[-1].send(answer), candidate))
            answer = None
        except StopIteration as finished:
            walks.pop()
            answer = finished.value
    return bool(answer)


def _walk(node: _Node, candidate: Description) -> Generator[_Node, bool | None, bool]:
    if node.is_complete:
        return True
    for name, branches in node.branches.items():
        if name in candidate:
            child = branches.by_value.get(candidate[name])
            if child is not None and (yield child):
                return True
        elif len(branches.by_value) >= branches.n_possible:
            for child in branches.by_value.values():
                if not (yield child):
                    break
            else:
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
