"""The scored trials of a study, read from its storage bit by bit, and their aggregated ranks."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._records import is_feasible, recorded_scores, values_are_scores
from optuna_aznas.aggregation import RankHistory, aggregate

#: A function from an (n, m) table of scores to S, shape (n,), bigger is better.
Aggregation = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


class StudyHistory:
    """The finished trials of one study that carry scores.

    It is a cache and holds no truth of its own: everything comes from the study, and a new one built at any moment ends
    up the same (but for the order of rows). A finished trial never changes, so each is read once.

    A trial's scores are those that :func:`~optuna_aznas.record` put on it; else, in a study with several objectives
    that are all maximised and in which no trial has recorded scores, its values. Failed and pruned trials count when
    their scores were recorded.

    Args:
        aggregation: Replaces the incremental non-linear rank aggregation.
    """

    def __init__(self, aggregation: Aggregation | None = None) -> None:
        self._aggregation = aggregation
        self._lock = threading.Lock()
        self._seen = 0  # trials with a smaller number are finished and read, except for those in _unfinished
        self._unfinished: set[int] = set()
        self._value_names: tuple[str, ...] | None = None  # asked of the storage once
        self._recorded = False  # whether scores come from record rather than from objective values
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
        self._scores: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.trials)

    def update(self, study: Study) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Read what is new in ``study``; return trials newly finished, scored or not, and all that wait or run."""
        with self._lock:
            trials = study.get_trials(deepcopy=False)
            if trials and trials[-1].number != len(trials) - 1:
                # Not the whole study: Hyperband shows samplers the trials of one bracket.
                news = [t for t in trials if t.number >= self._seen or t.number in self._unfinished]
            else:
                news = [trials[number] for number in sorted(self._unfinished)] + trials[self._seen :]
            self._seen = trials[-1].number + 1 if trials else 0
            finished = [trial for trial in news if trial.state.is_finished()]
            unfinished = [trial for trial in news if not trial.state.is_finished()]
            self._unfinished = {trial.number for trial in unfinished}
            if not self._recorded and any(recorded_scores(trial) is not None for trial in finished):
                # From here on objective values are objectives; what was read of them before is no score.
                self._recorded = True
                self._clear()
                self._add(study, [trial for trial in trials if trial.state.is_finished()])
            else:
                self._add(study, finished)
            return finished, unfinished

    def scores(self) -> npt.NDArray[np.float64]:
        """S of every scored trial, in the order of :attr:`trials`."""
        if self._scores is None:
            self._scores = self._ranks.scores() if self._aggregation is None else self._aggregate(self._ranks.table)
        return self._scores

    def share_at_least(self, scores: Mapping[str, float]) -> float | None:
        """Share of networks with an S at least as high as that of a further one, if it were added; itself counts.

        1 for the worst. ``None`` if ``scores`` are not of this study's proxies.
        """
        if set(scores) != set(self.names):
            return None
        table = np.vstack([self._ranks.table, [scores[name] for name in self.names]])
        s = self._aggregate(table)
        return float(np.mean(s >= s[-1]))

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """The scores, shape (trials, proxies), NaN replaced by ``-inf``."""
        return self._ranks.table

    def _aggregate(self, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scores = np.asarray((self._aggregation or aggregate)(table), dtype=np.float64)
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
            if self._recorded:
                scores = recorded_scores(trial)
            elif self._value_names and trial.state == TrialState.COMPLETE:
                scores = dict(zip(self._value_names, trial.values, strict=True))
            else:
                scores = None
            if scores is None:
                continue
            if not self.names:
                self.names = tuple(scores)
            if set(scores) != set(self.names):
                warnings.warn(
                    f"Trial {trial.number} scored {sorted(scores)}, the study's trials before it {sorted(self.names)}; "
                    "it is left out of the ranking. Use one set of proxies in a study.",
                    stacklevel=2,
                )
                continue
            rows.append([scores[name] for name in self.names])
            self.trials.append(trial)
        if rows:
            self._ranks.extend(rows)
            self._scores = None


def _value_names(study: Study) -> tuple[str, ...]:
    """Names of the objectives, or none where their values cannot be scores."""
    directions = study.directions
    if not values_are_scores(directions):
        return ()
    return tuple(study.metric_names or (f"value_{i}" for i in range(len(directions))))


def top(history: StudyHistory, n: int, *, keep: Callable[[FrozenTrial], bool] = is_feasible) -> list[int]:
    """Return positions in ``history.trials`` of the ``n`` trials with the highest S among those to ``keep``, best
    first; ties by age.
    """
    order = np.lexsort((np.array([trial.number for trial in history.trials]), -history.scores()))
    chosen = (int(i) for i in order if keep(history.trials[i]))
    return list(itertools.islice(chosen, n))
