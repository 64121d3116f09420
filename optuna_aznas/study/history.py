"""The scored trials of a study, read from its storage bit by bit, and their aggregated ranks."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas.aggregation import BestShare, Leaders, RankHistory, aggregate
from optuna_aznas.study.attributes import SCORES_KEY, is_feasible, recorded_scores, values_are_scores
from optuna_aznas.study.reader import TrialReader

#: A function from an (n, m) table of scores to S, shape (n,), bigger is better.
Aggregation = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


class StudyHistory:
    """The finished trials of one study that carry scores.

    It is a cache and holds no truth of its own: everything comes from the study, and a new one built at any moment ends
    up the same (but for the order of rows).

    A trial's scores are those that :func:`~optuna_aznas.record` put on it; else, in a study with several objectives
    that are all maximised and in which no trial has recorded scores, its values. Failed and pruned trials count when
    their scores were recorded.

    Args:
        aggregation: Replaces the non-linear rank aggregation. It is called on the whole table, so what it costs grows
            with the study; from 1,000 trials on it is called only when a thousandth more has come.
    """

    def __init__(self, aggregation: Aggregation | None = None) -> None:
        self._aggregation = aggregation
        self._lock = threading.Lock()
        self._reader = TrialReader()
        self._value_names: tuple[str, ...] | None = None  # asked of the storage once
        self._recorded = False  # whether scores come from record rather than from objective values
        self._odd: set[frozenset[str]] = set()  # sets of proxies that were warned of
        self._clear()

    @classmethod
    def of(cls, study: Study) -> StudyHistory:
        """Return the history of a study as it is now."""
        history = cls()
        history.update(study)
        return history

    def _clear(self) -> None:
        self.names: tuple[str, ...] = ()
        self.trials: list[FrozenTrial] = []
        self._ranks = RankHistory()
        self._leaders = Leaders(self._ranks)
        self._best_share = BestShare(self._ranks)
        self._scores = np.zeros(0)

    def __len__(self) -> int:
        return len(self.trials)

    def update(self, study: Study, own: FrozenTrial | None = None) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Read what is new in ``study``; return trials newly finished, scored or not, and all that wait or run.

        Args:
            study: The study, the same each time.
            own: The caller's own running trial, which need not be read.
        """
        with self._lock:
            finished, unfinished = self._reader.read(study, own)
            if not self._recorded and any(recorded_scores(trial) is not None for trial in finished):
                # From here on objective values are objectives; what was read of them before is no score.
                self._recorded = True
                self._clear()
                self._add(study, [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()])
            else:
                self._add(study, finished)
            return finished, unfinished

    def scores(self) -> npt.NDArray[np.float64]:
        """S of every scored trial, in the order of :attr:`trials`."""
        return self._ranks.scores() if self._aggregation is None else self.aggregate(self._ranks.table)

    def best(self, n: int) -> list[FrozenTrial]:
        """Return the ``n`` trials with the highest S, best first, ties by age: feasible ones, if there are any."""
        if self._aggregation is None:
            ranked = self._leaders.best(n)
        else:
            if len(self) - len(self._scores) > len(self) // 1000:
                self._scores = self.aggregate(self._ranks.table)
            feasible = [i for i in range(len(self._scores)) if is_feasible(self.trials[i])]
            ranked = [(i, float(self._scores[i])) for i in feasible or range(len(self._scores))]
        ranked.sort(key=lambda row: (-row[1], self.trials[row[0]].number))
        return [self.trials[i] for i, _ in ranked[:n]]

    def is_among_best(self, scores: Mapping[str, float], share: float) -> bool | None:
        """Whether a further network would be within the best ``share`` of all, itself included.

        ``None`` if ``scores`` are not of this study's proxies.
        """
        if set(scores) != set(self.names):
            return None
        row = [scores[name] for name in self.names]
        if self._aggregation is None:
            return self._best_share.includes(row, share)
        s = self.aggregate(np.vstack([self._ranks.table, row]))
        return float(np.mean(s >= s[-1])) <= share

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """The scores, shape (trials, proxies), NaN replaced by ``-inf``."""
        return self._ranks.table

    def aggregate(self, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return S of other networks, by a table of scores (n, m) in the order of :attr:`names`."""
        if self._aggregation is None:
            return aggregate(table)
        scores = np.asarray(self._aggregation(table), dtype=np.float64)
        if scores.shape != (len(table),):
            raise ValueError(
                f"aggregation must return one score for each of {len(table)} networks; got shape {scores.shape}."
            )
        return scores

    def _add(self, study: Study, finished: list[FrozenTrial]) -> None:
        rows = []
        if finished and self._value_names is None:
            self._value_names = _value_names(study)
        for trial in finished:
            scores = recorded_scores(trial)
            if scores is None and SCORES_KEY in trial.user_attrs:
                self._warn_unreadable(trial)
            if not self._recorded and self._value_names and trial.state == TrialState.COMPLETE:
                scores = dict(zip(self._value_names, trial.values, strict=True))
            if scores is None:
                continue
            if not self.names:
                self.names = tuple(scores)
            if set(scores) != set(self.names):
                self._warn_odd(trial, scores)
                continue
            rows.append([scores[name] for name in self.names])
            self.trials.append(trial)
        if rows:
            self._ranks.extend(rows)
            self._leaders.add([is_feasible(trial) for trial in self.trials[-len(rows) :]])

    def _warn_unreadable(self, trial: FrozenTrial) -> None:
        warnings.warn(
            f"Trial {trial.number} has {trial.user_attrs[SCORES_KEY]!r} as its user attribute {SCORES_KEY!r}, which is "
            "no mapping from proxy names to numbers; it is left out of the ranking. Put scores on a trial with "
            "optuna_aznas.record.",
            stacklevel=2,
        )

    def _warn_odd(self, trial: FrozenTrial, scores: Mapping[str, float]) -> None:
        if frozenset(scores) in self._odd:
            return
        self._odd.add(frozenset(scores))
        warnings.warn(
            f"Trial {trial.number} scored {sorted(scores)}, the study's trials before it {sorted(self.names)}; it is "
            "left out of the ranking, and so are others like it. Use one set of proxies in a study.",
            stacklevel=2,
        )


def _value_names(study: Study) -> tuple[str, ...]:
    """Names of the objectives, or none where their values cannot be scores."""
    directions = study.directions
    if not values_are_scores(directions):
        return ()
    return tuple(study.metric_names or (f"value_{i}" for i in range(len(directions))))
