"""What the figures show of a study: its scored trials by number, and how many of them are drawn one by one."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import numpy.typing as npt
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import rankdata

from optuna_aznas.study.attributes import is_feasible
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.visualization._plotly import counted

_Floats = npt.NDArray[np.float64]

#: What becomes of a trial, in words; in the order in which it is drawn.
STATES = ("failed", "pruned", "not feasible", "complete")


@dataclasses.dataclass(frozen=True)
class ScoredTrials:
    """The scored trials of a study, by number.

    Attributes:
        names: The proxies.
        trials: The n trials.
        table: Their scores, shape (n, m); NaN was replaced by ``-inf``.
        scores: Their aggregated rank scores S, shape (n,).
        states: One of :data:`STATES` for each.
        without: How many trials have no scores, by what became of them.
    """

    names: tuple[str, ...]
    trials: list[FrozenTrial]
    table: _Floats
    scores: _Floats
    states: npt.NDArray[np.str_]
    without: Counter[str]

    @classmethod
    def of(cls, study: Study) -> ScoredTrials:
        """Read a study as it is now."""
        history = StudyHistory.of(study)
        order = np.argsort([trial.number for trial in history.trials], kind="stable").astype(int)
        trials = [history.trials[i] for i in order]
        every = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
        if not trials:
            optuna.logging.get_logger(__name__).warning("Study instance does not contain trials with proxy scores.")
        return cls(
            names=history.names,
            trials=trials,
            table=history.table[order] if trials else np.zeros((0, 0)),
            scores=history.scores()[order],
            states=np.array([_state(trial) for trial in trials], dtype=object),
            without=every - Counter(trial.state.name.lower() for trial in trials),
        )

    def __len__(self) -> int:
        return len(self.trials)

    def take(self, mask: npt.NDArray[np.bool_]) -> ScoredTrials:
        """Return some of the trials; S stays as it is among all."""
        return dataclasses.replace(
            self,
            trials=[trial for trial, taken in zip(self.trials, mask, strict=True) if taken],
            table=self.table[mask],
            scores=self.scores[mask],
            states=self.states[mask],
        )

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The trials' numbers, shape (n,)."""
        return np.array([trial.number for trial in self.trials], dtype=np.int64)

    @property
    def ranks(self) -> _Floats:
        """The ascending ranks under each proxy, shape (n, m): the best has n, ties share their average."""
        return rankdata(self.table, axis=0)

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Which trials a leaderboard would show: completed and feasible ones. Shape (n,)."""
        return self.states == "complete"

    def summary(self) -> list[str]:
        """Return remarks on how many trials there are, and how many of them are not shown for want of scores."""
        words = {"fail": "failed", "complete": "completed"}
        without = ", ".join(f"{count:,} {words.get(state, state)}" for state, count in sorted(self.without.items()))
        return [counted(len(self), "scored trials"), f"without scores: {without}" if without else ""]


def best_and_some(order_by: _Floats, limit: int) -> npt.NDArray[np.int64]:
    """Choose which of many points to draw one by one: the best, and evenly some of the others.

    Args:
        order_by: What ranks them, shape (n,), bigger is better.
        limit: How many to choose, at least 2; all, if there are no more.

    Returns:
        Positions, ascending by ``order_by``, so that the best are drawn last. Half are the best ones.
    """
    order = np.argsort(order_by, kind="stable")
    if len(order) <= limit:
        return order
    best = limit // 2
    others = order[: len(order) - best]
    evenly = np.linspace(0, len(others) - 1, limit - best).round().astype(int)
    return np.concatenate([others[evenly], order[len(order) - best :]])


def _state(trial: FrozenTrial) -> str:
    if not is_feasible(trial):
        return "not feasible"
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")
