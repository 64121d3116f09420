"""Scores on a trial, and what a study says of its scored trials."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_count
from optuna_aznas.pruner import AZNASPruner
from optuna_aznas.sampler import AZNASSampler
from optuna_aznas.study.attributes import is_feasible, record
from optuna_aznas.study.history import StudyHistory

__all__ = ["Leaderboard", "LeaderboardEntry", "best_trials", "create_study", "leaderboard", "rank_scores", "record"]

#: The default proxies' names; those of ``optuna_aznas.proxies.DEFAULT``, repeated here because reading them there
#: imports torch.
DEFAULT_PROXIES = ("expressivity", "progressivity", "trainability", "complexity")


def create_study(
    *,
    storage: str | optuna.storages.BaseStorage | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    study_name: str | None = None,
    proxies: Sequence[str] = DEFAULT_PROXIES,
    load_if_exists: bool = False,
    seed: int | None = None,
) -> Study:
    """Create a study whose objectives are zero-cost proxies: :func:`optuna.create_study` with the rest filled in.

    Each proxy is an objective to maximise, named after it, and the sampler is an :class:`~optuna_aznas.AZNASSampler`.

    Args:
        storage: As in :func:`optuna.create_study`.
        sampler: Replaces the default sampler.
        pruner: Replaces the default pruner, :class:`~optuna_aznas.AZNASPruner`.
        study_name: As in :func:`optuna.create_study`.
        proxies: Names of the proxies that the objective returns, in that order.
        load_if_exists: As in :func:`optuna.create_study`: continue the study of that name.
        seed: Seed of the default sampler.

    Raises:
        ValueError: ``proxies`` has fewer than two or repeated names; or the study that exists has other directions or
            metric names. In that case the study is left as it was.

    Example:
        >>> study = create_study(study_name="demo")
        >>> study.metric_names
        ['expressivity', 'progressivity', 'trainability', 'complexity']
    """
    names = [proxies] if isinstance(proxies, str) else list(proxies)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"proxies must be two or more different names, one for each objective; got {names}.")
    study = optuna.create_study(
        storage=storage,
        sampler=AZNASSampler(seed=seed) if sampler is None else sampler,
        pruner=AZNASPruner() if pruner is None else pruner,
        study_name=study_name,
        directions=["maximize"] * len(names),
        load_if_exists=load_if_exists,
    )
    if study.directions != [StudyDirection.MAXIMIZE] * len(names):
        raise ValueError(
            f"Study {study.study_name!r} exists with directions {[d.name.lower() for d in study.directions]}; "
            f"{len(names)} proxies need as many objectives, all of them maximised. Choose another study_name, "
            "or open the study with optuna.load_study and record the scores."
        )
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)
    elif study.metric_names != names:
        raise ValueError(
            f"Study {study.study_name!r} exists with metric names {study.metric_names}, not {names}. "
            "Choose another study_name, or pass those names as proxies."
        )
    return study


def rank_scores(study: Study) -> dict[int, float]:
    """Return the aggregated rank score S of each scored and feasible trial, by trial number.

    Ranks are taken over all scored trials of the study, whatever their state. At most 0, bigger is better; a trial's S
    changes as the study grows. See :func:`~optuna_aznas.aggregate`.
    """
    history = StudyHistory.of(study)
    scored = zip(history.trials, history.scores(), strict=True)
    return {trial.number: float(s) for trial, s in scored if is_feasible(trial)}


def best_trials(study: Study, n: int = 10) -> list[FrozenTrial]:
    """Return the ``n`` best trials by aggregated rank, best first.

    Only completed trials that satisfy all constraints are returned; ranks are taken over all scored ones.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    check_count("n", n)
    history = StudyHistory.of(study)
    return [history.trials[i] for i in _top(history, n)]


@dataclasses.dataclass(frozen=True)
class LeaderboardEntry:
    """One line of a leaderboard.

    Attributes:
        place: 1 for the best.
        number: The trial's number.
        score: Its aggregated rank score S, at most 0.
        proxies: Its scores by proxy name.
        values: Its objective values.
        params: Its parameters.
    """

    place: int
    number: int
    score: float
    proxies: dict[str, float]
    values: tuple[float, ...]
    params: dict[str, Any]


class Leaderboard(tuple[LeaderboardEntry, ...]):
    """The best trials of a study, best first: a tuple of :class:`LeaderboardEntry` that prints as a table."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a flat dict for each entry, as ``pandas.DataFrame`` takes them; parameters are prefixed
        ``params_``.
        """
        return [
            {
                "place": entry.place,
                "number": entry.number,
                "score": entry.score,
                **entry.proxies,
                **{f"params_{name}": value for name, value in entry.params.items()},
            }
            for entry in self
        ]

    def __str__(self) -> str:
        if not self:
            return "(no scored trial yet)"
        rows = [["place", "trial", "S", *self[0].proxies, "params"]]
        for entry in self:
            proxies = [f"{value:.4g}" for value in entry.proxies.values()]
            params = ", ".join(f"{name}={value}" for name, value in entry.params.items())
            rows.append([str(entry.place), str(entry.number), f"{entry.score:.3f}", *proxies, params])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        last = len(widths) - 1
        return "\n".join(
            "  ".join(
                cell if i == last else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def leaderboard(study: Study, n: int = 10) -> Leaderboard:
    """Return the ``n`` best trials by aggregated rank with their scores, for printing or as data.

    The same trials as :func:`best_trials`, in the same order.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    check_count("n", n)
    history = StudyHistory.of(study)
    scores, table = history.scores(), history.table
    return Leaderboard(
        LeaderboardEntry(
            place=place,
            number=history.trials[i].number,
            score=float(scores[i]),
            proxies=dict(zip(history.names, map(float, table[i]), strict=True)),
            values=tuple(history.trials[i].values),
            params=dict(history.trials[i].params),
        )
        for place, i in enumerate(_top(history, n), start=1)
    )


def _top(history: StudyHistory, n: int) -> list[int]:
    """Return positions in ``history.trials`` of the ``n`` completed and feasible trials with the highest S, best
    first; ties by age.
    """
    order = np.lexsort((np.array([trial.number for trial in history.trials]), -history.scores()))
    presentable = (int(i) for i in order if _is_presentable(history.trials[i]))
    return list(itertools.islice(presentable, n))


def _is_presentable(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and is_feasible(trial)
