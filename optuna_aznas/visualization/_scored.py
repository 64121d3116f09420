"""ScoredTrials: the scored trials of a study as the figures show them, ordered by number, each with its state."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import numpy.typing as npt
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import rankdata

from optuna_aznas.aggregation import consensus_weights
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.visualization._plotly import counted

_Floats = npt.NDArray[np.float64]

#: States of a scored trial, in the order in which they are drawn.
STATES = ("failed", "pruned", "not feasible", "complete")

#: Optuna's states in words.
_WORDS = {
    TrialState.COMPLETE: "completed",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclasses.dataclass(frozen=True)
class ScoredTrials:
    """The scored trials of a study, by number.

    Attributes:
        names: Names of the m proxies.
        trials: The n trials.
        proxy_scores: Their proxy scores, shape (n, m), ``-inf`` for NaN.
        rank_scores: Their rank scores S, shape (n,).
        states: The state of each, one of :data:`STATES`, shape (n,).
        unscored: Number of trials without proxy scores, by state.
    """

    names: tuple[str, ...]
    trials: list[FrozenTrial]
    proxy_scores: _Floats
    rank_scores: _Floats
    states: npt.NDArray[np.str_]
    unscored: Counter[TrialState]

    @classmethod
    def of(cls, study: Study) -> ScoredTrials:
        """Read a study as it is now."""
        history = StudyHistory.of(study)
        if not len(history):
            optuna.logging.get_logger(__name__).warning("Study instance does not contain trials with proxy scores.")
        return cls(
            names=history.names,
            trials=history.trials,
            proxy_scores=history.proxy_scores,
            rank_scores=history.rank_scores(),
            states=np.array(
                [_state(trial, f) for trial, f in zip(history.trials, history.feasible, strict=True)], dtype=object
            ),
            unscored=history.unscored,
        )

    def __len__(self) -> int:
        return len(self.trials)

    def take(self, mask: npt.NDArray[np.bool_]) -> ScoredTrials:
        """Return the trials that ``mask`` selects. Their rank scores S stay those among all trials."""
        return dataclasses.replace(
            self,
            trials=[trial for trial, taken in zip(self.trials, mask, strict=True) if taken],
            proxy_scores=self.proxy_scores[mask],
            rank_scores=self.rank_scores[mask],
            states=self.states[mask],
        )

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The trials' numbers, shape (n,)."""
        return np.array([trial.number for trial in self.trials], dtype=np.int64)

    @property
    def ranks(self) -> _Floats:
        """The ascending ranks under each proxy, shape (n, m): the best has n, ties share their average."""
        return rankdata(self.proxy_scores, axis=0)

    @property
    def places(self) -> _Floats:
        """The places under each proxy, shape (n, m): the best has 1, ties share their average."""
        return len(self) + 1 - self.ranks

    @property
    def weights(self) -> _Floats:
        """The weights of the proxies in S, shape (m,). See :func:`~optuna_aznas.aggregation.consensus_weights`."""
        return consensus_weights(self.proxy_scores) if len(self) else np.ones(len(self.names))

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Whether each trial is completed and feasible, as on the leaderboard. Shape (n,)."""
        return self.states == "complete"

    def summary(self) -> list[str]:
        """Return remarks for a title: the number of scored trials, and the number of trials without proxy scores."""
        counts = ((self.unscored[state], word) for state, word in _WORDS.items())
        unscored = ", ".join(f"{count:,} {word}" for count, word in counts if count)
        return [counted(len(self), "scored trials"), f"without proxy scores: {unscored}" if unscored else ""]


def best_and_some(order_by: _Floats, limit: int) -> npt.NDArray[np.int64]:
    """Choose the points to draw: half of ``limit`` are the best points, the rest an even sample of the others.

    Args:
        order_by: The value to rank by, shape (n,), bigger is better.
        limit: Number of points to choose, at least 2. If there are no more, all are chosen.

    Returns:
        Positions in ascending order of ``order_by``, so that the best points are drawn last, on top of the others.
    """
    order = np.argsort(order_by, kind="stable")
    if len(order) <= limit:
        return order
    best = limit // 2
    others = order[: len(order) - best]
    evenly = np.linspace(0, len(others) - 1, limit - best).round().astype(int)
    return np.concatenate([others[evenly], order[len(order) - best :]])


def drawn_remark(n_drawn: int, n: int) -> str:
    """Return a remark for a title on the choice of :func:`best_and_some`; an empty string if all are drawn."""
    return f"{n_drawn:,} drawn: the best, and a sample of the others" if n_drawn < n else ""


def _state(trial: FrozenTrial, feasible: bool) -> str:
    if not feasible:
        return "not feasible"
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")
