"""What a study says of its scored trials: best_trials, leaderboard, rank_scores."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_count
from optuna_aznas._measurement import Measurement
from optuna_aznas._text import cut, for_terminal, html_table, in_html, plain_number, text_table
from optuna_aznas.aggregation.consensus import describe_weights
from optuna_aznas.aggregation.rank import aggregate_with_weights
from optuna_aznas.study.attributes import architecture_key
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.study.numbers import recorded_numbers

_NOTHING = "(no scored trial yet)"


def rank_scores(study: Study) -> dict[int, float]:
    """Return the rank score S of each scored and feasible trial, by trial number.

    S is at most 0, and bigger is better. Ranks are taken over all scored trials of the study, whatever their state, so
    a trial's S changes as the study grows. See :func:`~optuna_aznas.aggregate`.
    """
    history = StudyHistory.of(study)
    scored = zip(history.trials, history.rank_scores(), history.feasible, strict=True)
    return {trial.number: float(s) for trial, s, feasible in scored if feasible}


def best_trials(study: Study, n: int = 10) -> list[FrozenTrial]:
    """Return the ``n`` trials with the highest rank score S, best first.

    Only completed trials that satisfy all constraints are returned; ranks are taken over all scored trials.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    check_count("n", n)
    history = StudyHistory.of(study)
    return [history.trials[i] for i in itertools.islice(_positions(history, history.rank_scores()), n)]


@dataclasses.dataclass(frozen=True)
class LeaderboardEntry:
    """One line of a leaderboard.

    Attributes:
        place: 1 for the best.
        number: The trial's number.
        rank_score: Its rank score S, at most 0.
        proxy_scores: Its proxy scores by proxy name.
        values: Its objective values by name, where they are not the proxy scores themselves: trained values, for
            example.
        params: Its parameters.
        numbers: What else was recorded of its network, such as its latency, by name
            (:func:`~optuna_aznas.record_numbers`), but for what is a proxy score already.
    """

    place: int
    number: int
    rank_score: float
    proxy_scores: dict[str, float]
    values: dict[str, float]
    params: dict[str, Any]
    numbers: dict[str, Measurement] = dataclasses.field(default_factory=dict)


class Leaderboard(tuple[LeaderboardEntry, ...]):
    """The best trials of a study, best first: a tuple of :class:`LeaderboardEntry` that prints as a table.

    The table shows the parameters that differ between the entries; a line below it has those that all share. In a
    terminal its lines are cut at the terminal's width.

    Attributes:
        weights: The weight of each proxy in S by name (:func:`~optuna_aznas.aggregation.consensus_weights`). A line
            below the table names those that are less than 1.
    """

    weights: dict[str, float]

    def __new__(cls, entries: Iterable[LeaderboardEntry] = (), weights: Mapping[str, float] | None = None) -> Self:
        board = super().__new__(cls, entries)
        board.weights = dict(weights or {})
        return board

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a flat dict for each entry, as ``pandas.DataFrame`` takes them.

        The keys are ``place``, ``number``, ``rank_score``, the proxies' names, the values' names prefixed ``value_``
        (``value`` where there is one value without a name of its own), and the parameters' names prefixed ``params_``.
        A proxy whose name could be one of the others is prefixed ``proxy_``, and so is one whose name begins with that.
        Recorded numbers, such as the latency, are prefixed ``number_``; missing ones are ``None``.
        """
        return [
            {
                "place": entry.place,
                "number": entry.number,
                "rank_score": entry.rank_score,
                **{_column(name): score for name, score in entry.proxy_scores.items()},
                **{_value_column(name): value for name, value in entry.values.items()},
                **{
                    f"number_{name}": entry.numbers[name].median if name in entry.numbers else None
                    for name in self.units
                },
                **{f"params_{name}": value for name, value in entry.params.items()},
            }
            for entry in self
        ]

    @property
    def units(self) -> dict[str, str]:
        """The units of the numbers that were recorded of one or more entries, by name."""
        return {name: number.unit for entry in reversed(self) for name, number in entry.numbers.items()}

    @property
    def shared_params(self) -> dict[str, Any]:
        """Parameters with the same value in all of two or more entries, in the order of the first entry."""
        if len(self) < 2:
            return {}
        return {
            name: value
            for name, value in self[0].params.items()
            if all(name in entry.params and entry.params[name] == value for entry in self[1:])
        }

    def medians(self, entry: LeaderboardEntry) -> list[float]:
        """Return an entry's numbers in the order of :attr:`units`, NaN for those that it lacks."""
        return [entry.numbers[name].median if name in entry.numbers else math.nan for name in self.units]

    def differing_params(self, entry: LeaderboardEntry) -> dict[str, Any]:
        """Return the parameters of an entry that are not shared by all entries."""
        shared = self.shared_params
        return {name: value for name, value in entry.params.items() if name not in shared}

    def __str__(self) -> str:
        if not self:
            return _NOTHING
        lines = [*text_table([self._header(), *self._rows()], left=[len(self._header()) - 1]), *self._remarks()]
        if sys.stdout.isatty():
            lines = [cut(line, shutil.get_terminal_size().columns) for line in lines]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{in_html(_NOTHING)}</p>"
        table = html_table(self._header(), self._rows(), left=[len(self._header()) - 1])
        return table + "".join(f"<p>{in_html(remark)}</p>" for remark in self._remarks())

    def _header(self) -> list[str]:
        units = (f"{name} ({unit})" if unit else name for name, unit in self.units.items())
        names = [*self[0].values, *self[0].proxy_scores, *units]
        return ["place", "trial", "S", *map(for_terminal, names), "params"]

    def _rows(self) -> list[list[str]]:
        return [
            [
                str(entry.place),
                str(entry.number),
                f"{entry.rank_score:.3f}",
                *map(plain_number, [*entry.values.values(), *entry.proxy_scores.values()]),
                *("none" if math.isnan(median) else plain_number(median) for median in self.medians(entry)),
                _listed(self.differing_params(entry)),
            ]
            for entry in self
        ]

    def _remarks(self) -> list[str]:
        """Return what is said below the table."""
        shared = _listed(self.shared_params)
        reduced = describe_weights([for_terminal(name) for name in self.weights], list(self.weights.values()))
        return [f"({remark})" for remark in (f"all: {shared}" if shared else "", reduced) if remark]


def leaderboard(study: Study, n: int = 10) -> Leaderboard:
    """Return the ``n`` architectures with the highest rank score S, with their proxy scores, for printing or as data.

    The trials are those of :func:`best_trials`, in the same order, but an architecture that several trials have is
    listed once, with the first of them.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    check_count("n", n)
    history = StudyHistory.of(study)
    s, w = aggregate_with_weights(history.proxy_scores) if len(history) else (np.zeros(0), np.zeros(0))
    weights = dict(zip(history.names, w.tolist(), strict=True))
    shown = list(itertools.islice(_architectures(history, s), n))
    names = _value_names(study)
    if all(list(history.trials[i].values) == history.proxy_scores[i].tolist() for i in shown):
        names = []  # the values are the proxy scores
    entries = (
        LeaderboardEntry(
            place=place,
            number=history.trials[i].number,
            rank_score=float(s[i]),
            proxy_scores=dict(zip(history.names, map(float, history.proxy_scores[i]), strict=True)),
            values=dict(zip(names, history.trials[i].values, strict=True)) if names else {},
            params=dict(history.trials[i].params),
            numbers={
                name: number.measurement
                for name, number in recorded_numbers(history.trials[i]).items()
                if name not in history.names
            },
        )
        for place, i in enumerate(shown, start=1)
    )
    return Leaderboard(entries, weights)


def _column(proxy: str) -> str:
    """Return the name of a proxy's column, different from all other columns'."""
    taken = proxy in ("place", "number", "rank_score", "value") or proxy.startswith(
        ("params_", "proxy_", "value_", "number_")
    )
    return f"proxy_{proxy}" if taken else proxy


def _value_column(name: str) -> str:
    return name if name == "value" else f"value_{name}"


def _value_names(study: Study) -> list[str]:
    """Return the names of a study's objective values."""
    if study.metric_names is not None:
        return study.metric_names
    n = len(study.directions)
    return ["value"] if n == 1 else [str(i) for i in range(n)]


def _listed(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{for_terminal(name)}={for_terminal(value)}" for name, value in params.items())


def _positions(history: StudyHistory, s: npt.NDArray[np.float64]) -> Iterator[int]:
    """Yield positions in ``history.trials`` of the completed and feasible trials, highest S first; ties by number."""
    order = np.lexsort((np.array([trial.number for trial in history.trials]), -s))
    return (int(i) for i in order if history.trials[i].state == TrialState.COMPLETE and history.feasible[i])


def _architectures(history: StudyHistory, s: npt.NDArray[np.float64]) -> Iterator[int]:
    """Yield the positions of :func:`_positions` without those whose architecture came before."""
    seen: set[frozenset[tuple[str, str]]] = set()
    for i in _positions(history, s):
        architecture = architecture_key(history.trials[i])
        if not architecture or architecture not in seen:  # without parameters nothing is known of it
            seen.add(architecture)
            yield i
