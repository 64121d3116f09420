"""StudyHistory: the scored trials of a study, read from its storage as they finish, and their rank scores."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._optuna import retried_numbers
from optuna_aznas.aggregation import aggregate
from optuna_aznas.study.attributes import is_feasible, recorded_scores, unreadable, values_are_scores
from optuna_aznas.study.late import LateAttributes
from optuna_aznas.study.reader import TrialReader
from optuna_aznas.study.scoring import Yardstick

_Floats = npt.NDArray[np.float64]

#: A function from a table of proxy scores, shape (n, m), to rank scores S, shape (n,), bigger is better.
Aggregation = Callable[[_Floats], _Floats]

_ALWAYS_RANKED = 1000  # up to this many scored trials, StudyHistory.best ranks all of them whenever one is added
_TOLERATED_GROWTH = 0.01  # beyond that it ranks them again once the table has grown by this fraction


class StudyHistory:
    """The finished trials of one study that carry proxy scores.

    It is a cache: everything in it comes from the study, and a new one holds the same, except for the order of rows.

    A trial's proxy scores are those that :func:`~optuna_aznas.record` or :func:`~optuna_aznas.backfill` stored. In a
    study with several objectives, all maximised, in which no trial has such proxy scores, they are its objective
    values. Failed and pruned trials count if they recorded proxy scores. Of a dead trial and its retries (Optuna's
    ``RetryFailedTrialCallback``) only the last that has finished counts. A trial that cannot be read is left out, with
    one warning, and so is one that was scored with other settings (:mod:`~optuna_aznas.study.scoring`).

    Args:
        aggregation: Replaces :func:`~optuna_aznas.aggregate`. It is called on the whole table.

    Attributes:
        names: Names of the proxies, the columns of :attr:`proxy_scores`.
        trials: The n scored trials, in the order in which they were read. In a history that has just been built by
            :meth:`of` this is the order of their numbers.
        feasible: Whether each of them satisfies its constraints, a list of n.
    """

    def __init__(self, aggregation: Aggregation | None = None) -> None:
        self._aggregation = aggregation
        self._lock = threading.Lock()
        self._reader = TrialReader()
        self._late = LateAttributes()
        self._value_names: tuple[str, ...] | None = None  # of the objectives; read from the storage once
        self._uses_recorded = False  # whether proxy scores are recorded ones rather than objective values
        self._unfinished: list[FrozenTrial] = []
        self._reported_names: set[frozenset[str]] = set()  # sets of other proxies that were warned of
        self._yardstick = Yardstick()
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
        self.feasible: list[bool] = []
        self._numbers: list[int] = []  # of the trials
        self._table = _GrowingTable()
        self._n_unscored: Counter[TrialState] = Counter()  # of finished trials
        self._some_feasible = False
        self._order: list[int] = []  # positions of the trials that best() may return, best first
        self._n_ordered = 0  # scored trials when _order was made
        self._retried: set[int] = set()  # numbers of trials that others have repeated

    def __len__(self) -> int:
        return len(self.trials)

    def update(self, study: Study, own: FrozenTrial | None = None) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Read what is new in ``study``; return the newly finished trials, scored or not, and all that wait or run.

        Trials that finished earlier and were scored since (:func:`~optuna_aznas.backfill`) are returned once more.

        Args:
            study: The study, the same each time.
            own: The caller's own running trial, which is then not read from the storage.
        """
        with self._lock:
            finished, self._unfinished = self._reader.read(study, own)
            finished, earlier = self._late.update(study, finished)
            is_first = not self._uses_recorded and any(recorded_scores(t) is not None for t in finished + earlier)
            if self._yardstick.settle(study, finished + earlier) or is_first or earlier:
                # From the first recorded proxy scores on, objective values are no longer taken for them.
                self._uses_recorded |= is_first
                self._clear()
                # What other workers have finished since that reading comes with the next one, and must not come twice.
                trials = [t for t in study.get_trials(deepcopy=False) if self._reader.has_returned(t)]
                self._add(study, [self._late.add_to(trial) for trial in trials])
            else:
                self._add(study, finished)
            return finished + earlier, self._unfinished

    @property
    def proxy_scores(self) -> _Floats:
        """The trials' proxy scores, shape (n, m), ``-inf`` for NaN; a read-only view. Without trials (0, 0)."""
        return self._table.view()

    def rank_scores(self) -> _Floats:
        """Return the rank score S of every scored trial, shape (n,), in the order of :attr:`trials`."""
        return self.aggregate(self.proxy_scores) if len(self) else np.zeros(0)

    @property
    def unfinished(self) -> list[FrozenTrial]:
        """The trials that waited or ran at the last update, the caller's own among them."""
        return self._unfinished

    @property
    def unscored(self) -> Counter[TrialState]:
        """The number of trials without proxy scores by state, waiting and running trials included."""
        return self._n_unscored + Counter(trial.state for trial in self._unfinished)

    def best(self, n: int) -> list[FrozenTrial]:
        """Return the ``n`` trials with the highest S, best first, ties by number: only feasible ones, if there are any.

        Ranking a table of 10,000 takes about 5 ms. Up to 1,000 trials all are therefore ranked whenever one has been
        added; in a larger study once it has grown by 1%, and trials that are newer than that are not returned.
        """
        tolerated = int(_TOLERATED_GROWTH * len(self)) if len(self) > _ALWAYS_RANKED else 0
        if len(self) - self._n_ordered > tolerated:
            rows = np.flatnonzero(self.feasible) if self._some_feasible else np.arange(len(self))
            numbers = np.array(self._numbers, dtype=int)
            self._order = rows[np.lexsort((numbers[rows], -self.rank_scores()[rows]))].tolist()
            self._n_ordered = len(self)
        return [self.trials[i] for i in self._order[:n]]

    def measures(self, trial: FrozenTrial) -> bool:
        """Whether a trial was scored with the study's settings, as far as both are known."""
        with self._lock:
            return self._yardstick.measures(trial)

    def aggregate(self, table: _Floats) -> _Floats:
        """Return S, shape (n,), of networks by their proxy scores, shape (n, m), in the order of :attr:`names`."""
        if self._aggregation is None:
            return aggregate(table)
        s = np.asarray(self._aggregation(table), dtype=np.float64)
        if s.shape != (len(table),):
            raise ValueError(
                f"aggregation must return one score for each of {len(table)} networks; got shape {s.shape}."
            )
        return s

    def _add(self, study: Study, finished: list[FrozenTrial]) -> None:
        if finished and self._value_names is None:
            self._value_names = _value_names(study)
        rows = []
        for trial in finished:
            scores = self._proxy_scores_of(trial) if self._yardstick.measures(trial) else None
            if scores is None:
                self._n_unscored[trial.state] += 1
                continue
            self._retried.update(retried_numbers(trial))
            rows.append([scores[name] for name in self.names])
            self.trials.append(trial)
            self._numbers.append(trial.number)
            self.feasible.append(is_feasible(trial))
        if rows:
            self._yardstick.see_blocks(self.trials[-len(rows) :])
            self._table.extend(np.array(rows, dtype=np.float64))
            if not self._some_feasible and any(self.feasible[-len(rows) :]):
                self._some_feasible, self._n_ordered = True, 0
        if rows and self._retried:
            self._drop_retried()

    def _drop_retried(self) -> None:
        """Remove the failed trials that other scored trials have repeated."""
        keep = [not (t.state == TrialState.FAIL and t.number in self._retried) for t in self.trials]
        if all(keep):
            return
        self.trials = [trial for trial, kept in zip(self.trials, keep, strict=True) if kept]
        self.feasible = [feasible for feasible, kept in zip(self.feasible, keep, strict=True) if kept]
        self._numbers = [trial.number for trial in self.trials]
        rows, self._table = self.proxy_scores[keep], _GrowingTable()
        self._table.extend(rows)
        self._some_feasible = any(self.feasible)
        self._order, self._n_ordered = [], 0

    def _proxy_scores_of(self, trial: FrozenTrial) -> dict[str, float] | None:
        """Return a finished trial's proxy scores; ``None``, with a warning if need be, where it has none that count."""
        problem = unreadable(trial)
        if problem:
            warnings.warn(
                f"Trial {trial.number} has {problem}; it is left out of the ranking. Put proxy scores on a trial with "
                "optuna_aznas.record.",
                stacklevel=2,
            )
            return None
        scores = recorded_scores(trial)
        if not self._uses_recorded and self._value_names and trial.state == TrialState.COMPLETE:
            scores = dict(zip(self._value_names, trial.values, strict=True))
        if scores is None:
            return None
        if not self.names:
            self.names = tuple(scores)
        if set(scores) != set(self.names):
            self._warn_other_names(trial, scores)
            return None
        return scores

    def _warn_other_names(self, trial: FrozenTrial, scores: Mapping[str, float]) -> None:
        if frozenset(scores) in self._reported_names:
            return
        self._reported_names.add(frozenset(scores))
        warnings.warn(
            f"Trial {trial.number} has proxy scores {sorted(scores)}, the study's trials before it "
            f"{sorted(self.names)}; it is left out of the ranking, and so are others like it. Use one set of proxies "
            "in a study.",
            stacklevel=2,
        )


class _GrowingTable:
    """A table that grows at its end. Its capacity doubles, so that adding a row does not copy the table each time."""

    def __init__(self) -> None:
        self._rows: _Floats = np.empty((0, 0))
        self._n = 0

    def extend(self, rows: _Floats) -> None:
        n = self._n + len(rows)
        if n > len(self._rows):
            larger = np.empty((max(n, 2 * len(self._rows), 64), rows.shape[1]))
            if self._n:
                larger[: self._n] = self._rows[: self._n]
            self._rows = larger
        self._rows[self._n : n] = np.where(np.isnan(rows), -np.inf, rows)
        self._n = n

    def view(self) -> _Floats:
        view = self._rows[: self._n]
        view.flags.writeable = False
        return view


def _value_names(study: Study) -> tuple[str, ...]:
    """Return the names of the objectives; none where their values cannot be proxy scores."""
    directions = study.directions
    if not values_are_scores(directions):
        return ()
    return tuple(study.metric_names or (f"value_{i}" for i in range(len(directions))))
