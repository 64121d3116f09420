"""AZNASSampler: an evolution over the whole study, steered by the aggregated ranks of its trials."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.samplers._base import _process_constraints_after_trial
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas._history import Aggregation, StudyHistory, top
from optuna_aznas._records import ARCHITECTURE_KEY, SCORES_KEY, architecture_names
from optuna_aznas.sampler._variation import cross, mutate, sample_uniform

#: Candidates that are looked at, each of evolution and of uniform sampling, before a repeated architecture is accepted.
_TRIES = 100

_Params = dict[str, Any]
_Space = dict[str, BaseDistribution]
_Key = tuple[tuple[str, str], ...]


class AZNASSampler(BaseSampler):
    """Evolutionary sampler steered by AZ-NAS's non-linear rank aggregation over the whole study.

    Works in any study whose trials carry proxy scores: as objective values that are all maximised
    (:func:`~optuna_aznas.create_study`), or recorded with :func:`~optuna_aznas.record` beside other objectives.

    The first trials are random. Afterwards a parent is drawn from the best feasible trials by aggregated rank S over
    all scored trials, and one or two of its parameters are changed. The search space is that of the parent, trial by
    trial: what the parent has is inherited, what it lacks is sampled independently, so conditional spaces work. An
    architecture that the study already holds, finished or running, is not proposed again while a bounded number of
    tries finds another.

    The sampler keeps no truth of its own: everything is read from the study, so that it can be killed, restarted and
    run by many workers at once.

    Args:
        population_size: How many of the best trials parents are drawn from, at least 1.
        n_startup_trials: Random trials before evolution starts, at least 1; counted in scored trials.
        mutation: How many parameters of the parent change: a number, or the smallest and the largest of a range, each
            equally likely.
        crossover: Probability, 0 to 1, that a child mixes two parents before it is mutated.
        aggregation: Replaces the non-linear rank aggregation: a function from a score table (n, m) to n scores, bigger
            is better.
        constraints_func: Optuna's own convention: called on a finished trial, returns numbers that are at most 0 where
            it is feasible. Infeasible trials are no parents while there are feasible ones.
        accept: Called with a candidate's parameters before it is proposed; a candidate for which it returns ``False``
            is dropped and another tried. It cannot see the very first trials, whose parameters nobody knows yet.
        hyperparameter_sampler: Suggests what is no part of the architecture: parameters suggested after
            :func:`~optuna_aznas.record`. :class:`optuna.samplers.RandomSampler` by default.
        seed: Seed of the random numbers.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import optuna
        >>> def objective(trial):
        ...     x, y = trial.suggest_int("x", 0, 9), trial.suggest_int("y", 0, 9)
        ...     return x, -abs(y - 5)
        >>> study = optuna.create_study(directions=["maximize"] * 2, sampler=AZNASSampler(seed=0))
        >>> study.optimize(objective, n_trials=50)
        >>> len({tuple(trial.params.values()) for trial in study.trials})
        50
    """

    def __init__(
        self,
        *,
        population_size: int = 10,
        n_startup_trials: int = 20,
        mutation: int | tuple[int, int] = (1, 2),
        crossover: float = 0.5,
        aggregation: Aggregation | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        accept: Callable[[dict[str, Any]], bool] | None = None,
        hyperparameter_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        check_count("population_size", population_size)
        check_count("n_startup_trials", n_startup_trials)
        counts = (mutation, mutation) if isinstance(mutation, int) else mutation
        if (
            isinstance(mutation, bool)
            or not isinstance(counts, tuple | list)
            or len(counts) != 2
            or not all(isinstance(count, int) for count in counts)
            or not 1 <= counts[0] <= counts[1]
        ):
            raise ValueError(
                f"mutation must be an integer of at least 1, or a pair of them in ascending order; got {mutation!r}."
            )
        if not isinstance(crossover, int | float) or not 0.0 <= crossover <= 1.0:
            raise ValueError(f"crossover must be a probability between 0 and 1; got {crossover!r}.")
        check_callable("aggregation", aggregation)
        check_callable("constraints_func", constraints_func)
        check_callable("accept", accept)
        if hyperparameter_sampler is not None and not isinstance(hyperparameter_sampler, BaseSampler):
            raise ValueError(f"hyperparameter_sampler must be an Optuna sampler; got {hyperparameter_sampler!r}.")
        self._population_size = population_size
        self._n_startup_trials = n_startup_trials
        self._mutation = (counts[0], counts[1])
        self._crossover = crossover
        self._aggregation = aggregation
        self._constraints_func = constraints_func
        self._accept = accept
        self._random_sampler = RandomSampler(seed=seed)
        self._hyperparameter_sampler = (
            self._random_sampler if hyperparameter_sampler is None else hyperparameter_sampler
        )
        self._rng = np.random.default_rng(seed)
        self._views: weakref.WeakKeyDictionary[Study, _StudyView] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._random_sampler.reseed_rng()
        self._hyperparameter_sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> _Space:
        with self._lock:
            view = self._view(study)
            view.update(study)
            space = view.draw_template(self._rng)
            view.architecture_spaces[trial.number] = space
            known = view.architecture_names
            if not known:  # nothing was recorded: every parameter may be the architecture's
                return space
            hyperparameters = self._hyperparameter_sampler.infer_relative_search_space(study, trial)
            return {**{name: d for name, d in hyperparameters.items() if name not in known}, **space}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: _Space) -> _Params:
        with self._lock:
            view = self._view(study)
            space = view.architecture_spaces.pop(trial.number, search_space)
            space = {name: search_space[name] for name in space if name in search_space}
            hyperparameters = {name: d for name, d in search_space.items() if name not in space}
            params = self._propose(view, space) if space else {}
            if hyperparameters:
                params |= self._hyperparameter_sampler.sample_relative(study, trial, hyperparameters)
            return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._hyperparameter_sampler if SCORES_KEY in trial.user_attrs else self._random_sampler
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._hyperparameter_sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if self._constraints_func is not None:
            _process_constraints_after_trial(self._constraints_func, study, trial, state)
        self._hyperparameter_sampler.after_trial(study, trial, state, values)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_views"], state["_lock"]  # caches, rebuilt from the study
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._views = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def _view(self, study: Study) -> _StudyView:
        if study not in self._views:
            self._views[study] = _StudyView(self._aggregation, self._n_startup_trials, self._population_size)
        return self._views[study]

    def _propose(self, view: _StudyView, space: _Space) -> _Params:
        """Return values for the whole of ``space``, if possible new and acceptable ones."""
        fallback: _Params | None = None
        parents = [p for p in view.population() if space.items() <= p.distributions.items()]
        for _ in range(_TRIES if parents else 0):
            candidate = self._child(parents, space)
            if self._acceptable(candidate):
                if not view.holds(candidate):
                    return candidate
                fallback = candidate
        for _ in range(_TRIES):
            candidate = {name: sample_uniform(distribution, self._rng) for name, distribution in space.items()}
            if self._acceptable(candidate):
                if not view.holds(candidate):
                    return candidate
                fallback = fallback or candidate
        if fallback is None:
            warnings.warn(
                f"accept rejected all of {_TRIES} random candidates; the last one is proposed all the same. "
                "Check accept, or widen what it lets pass.",
                stacklevel=2,
            )
            return candidate
        return fallback

    def _child(self, parents: list[FrozenTrial], space: _Space) -> _Params:
        mother = parents[int(self._rng.integers(len(parents)))]
        child = {name: mother.params[name] for name in space}
        if self._crossover and self._rng.random() < self._crossover:
            father = parents[int(self._rng.integers(len(parents)))]
            child = cross(child, father.params, space, father.distributions, self._rng)
        names = [name for name, distribution in space.items() if not distribution.single()]
        low, high = self._mutation
        count = min(int(self._rng.integers(low, high + 1)), len(names))
        for i in self._rng.choice(len(names), count, replace=False) if names else ():
            child[names[i]] = mutate(child[names[i]], space[names[i]], self._rng)
        return child

    def _acceptable(self, candidate: _Params) -> bool:
        return self._accept is None or bool(self._accept(dict(candidate)))


class _StudyView:
    """What the sampler has read of one study: a cache, rebuilt from the study at any time."""

    def __init__(self, aggregation: Aggregation | None, n_startup_trials: int, population_size: int) -> None:
        self._n_startup_trials = n_startup_trials
        self._population_size = population_size
        self._history = StudyHistory(aggregation)
        self._population: list[FrozenTrial] | None = None
        self._running: set[_Key] = set()
        self._finished: set[_Key] = set()
        self.architecture_names: set[str] = set()  # of all trials that recorded scores
        self.architecture_spaces: dict[int, _Space] = {}  # of trials between infer_ and sample_relative

    def update(self, study: Study) -> None:
        finished, unfinished = self._history.update(study)
        if finished:
            self._population = None
        self._running = {_key(architecture_of(trial)) for trial in unfinished}
        for trial in finished:
            architecture = architecture_of(trial)
            self._finished.add(_key(architecture))
            if ARCHITECTURE_KEY in trial.user_attrs:
                self.architecture_names.update(architecture)

    def population(self) -> list[FrozenTrial]:
        """Return the trials that parents are drawn from, best first; none before evolution starts."""
        if self._population is None:
            best: list[int] = []
            if len(self._history) >= self._n_startup_trials:
                n = self._population_size
                best = top(self._history, n) or top(self._history, n, keep=lambda _: True)
            self._population = [self._history.trials[i] for i in best]
        return self._population

    def draw_template(self, rng: np.random.Generator) -> _Space:
        """Return the architecture's distributions of a random parent; before evolution starts, of any scored trial."""
        trials = self.population() or self._history.trials
        if not trials:
            return {}
        template = trials[int(rng.integers(len(trials)))]
        return {name: template.distributions[name] for name in architecture_names(template)}

    def holds(self, candidate: Mapping[str, Any]) -> bool:
        key = _key(candidate)
        return key in self._finished or key in self._running


def architecture_of(trial: FrozenTrial) -> _Params:
    """Return the architecture's parameters of a trial."""
    return {name: trial.params[name] for name in architecture_names(trial)}


def _key(params: Mapping[str, Any]) -> _Key:
    return tuple(sorted((name, repr(value)) for name, value in params.items()))  # choices need not be hashable
