"""AZNASSampler: an evolution over the whole study, steered by the aggregated ranks of its trials."""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.samplers._base import _process_constraints_after_trial
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas.sampler.bayesian import LearnedSearch
from optuna_aznas.sampler.candidates import Architecture, CandidateScorer, Score
from optuna_aznas.sampler.variation import cross, inherit, mutate, sample_uniform
from optuna_aznas.sampler.view import StudyView, fixed_params
from optuna_aznas.study.attributes import SCORES_KEY
from optuna_aznas.study.history import Aggregation
from optuna_aznas.study.reader import whole_study

#: Candidates that are looked at, each of evolution and of uniform sampling, before a repeated architecture is accepted.
_TRIES = 100

#: After so many tries, one more parameter is changed: the parents' neighbourhood may be known to the last.
_WIDEN = 10

#: Proposals of which it is checked that no other worker makes the same at the same moment.
_CLAIMS = 10

_Params = dict[str, Any]
_Parent = TypeVar("_Parent", FrozenTrial, Architecture, FrozenTrial | Architecture)
_Space = dict[str, BaseDistribution]


class AZNASSampler(BaseSampler):
    """Evolutionary sampler steered by AZ-NAS's non-linear rank aggregation over the whole study.

    Works in any study whose trials carry proxy scores: as objective values that are all maximised
    (:func:`~optuna_aznas.create_study`), or recorded with :func:`~optuna_aznas.record` beside other objectives.

    The first trials are random. Afterwards a parent is drawn from the best feasible trials by aggregated rank S over
    all scored trials (the k-th best with a probability proportional to 1 / k), and one or more of its parameters are
    changed. The search space is that of the parent, trial by trial: what the parent has is inherited, what it lacks is
    sampled independently, so conditional spaces work. An architecture that the study already holds, finished or
    running, is not proposed again while a bounded number of tries finds another; nor do two workers propose the same at
    the same moment.

    **Where the study trains.** In a study with one objective, what a training gives, whose trials record scores, the
    next architecture is the one of which most is expected, by expected improvement under a model that learns from the
    trainings (:class:`~optuna_aznas.aggregation.LearnedAggregation`), among mutated, crossed and random candidates. Of
    these only the best quarter by S are considered. With ``score`` candidates are scored before one is trained; without
    it their scores are estimated from those of the study's trials.

    The sampler keeps no truth of its own: everything is read from the study, so that it can be killed, restarted and
    run by many workers at once.

    Args:
        population_size: How many of the best trials parents are drawn from, at least 1.
        n_startup_trials: Random trials before evolution starts, at least 1; counted in scored trials. In a study that
            trains, ``n_startup_trainings`` takes its place.
        mutation: How many parameters of the parent change: a number, or the smallest and the largest of a range, each
            equally likely.
        crossover: Probability, 0 to 1, that a child mixes two parents before it is mutated.
        aggregation: Replaces the non-linear rank aggregation: a function from a score table (n, m) to n scores, bigger
            is better.
        constraints_func: Optuna's own convention: called on a finished trial, returns numbers that are at most 0 where
            it is feasible. Infeasible trials are no parents while there are feasible ones.
        accept: Called with a candidate's parameters before it is proposed; a candidate for which it returns ``False``
            is dropped and another tried. It cannot see the trials before the first is scored, whose parameters nobody
            knows yet, nor parameters that no parent has.
        score: For a study that trains (one objective, recorded scores). Called with a candidate's parameters, returns
            its scores as :func:`~optuna_aznas.record` takes them. So that it need not know which parameters a candidate
            asks for, it is given a value for every architecture parameter of the study. A candidate for which it raises
            is left out, with a warning. Results are kept while the process lives.
        n_candidates: New candidates that are looked at for each trial of such a study, at least 1. With ``score`` this
            many networks are scored for each that is trained.
        n_startup_trainings: Trained trials of such a study before what was learned from them counts, at least 1.
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
        population_size: int = 5,
        n_startup_trials: int = 30,
        mutation: int | tuple[int, int] = 1,
        crossover: float = 0.3,
        aggregation: Aggregation | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        accept: Callable[[dict[str, Any]], bool] | None = None,
        score: Score | None = None,
        n_candidates: int = 200,
        n_startup_trainings: int = 5,
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
        check_callable("score", score)
        check_count("n_candidates", n_candidates)
        check_count("n_startup_trainings", n_startup_trainings)
        if hyperparameter_sampler is not None and not isinstance(hyperparameter_sampler, BaseSampler):
            raise ValueError(f"hyperparameter_sampler must be an Optuna sampler; got {hyperparameter_sampler!r}.")
        self._population_size = population_size
        self._n_startup_trials = n_startup_trials
        self._mutation = (counts[0], counts[1])
        self._crossover = crossover
        self._aggregation = aggregation
        self._constraints_func = constraints_func
        self._accept = accept
        self._scorer = None if score is None else CandidateScorer(score)
        self._n_candidates = n_candidates
        self._n_startup_trainings = n_startup_trainings
        self._random_sampler = RandomSampler(seed=seed)
        self._hyperparameter_sampler = (
            self._random_sampler if hyperparameter_sampler is None else hyperparameter_sampler
        )
        self._rng = np.random.default_rng(seed)
        self._views: weakref.WeakKeyDictionary[Study, StudyView] = weakref.WeakKeyDictionary()
        self._searches: weakref.WeakKeyDictionary[Study, LearnedSearch] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._random_sampler.reseed_rng()
        self._hyperparameter_sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> _Space:
        with self._lock:
            view = self._view(study)
            view.update(trial)
            self._warn_if_nothing_is_scored(view)
            space = view.space if view.is_trained else view.draw_space(self._rng)
            view.spaces[trial.number] = space
            known = view.architecture_names
            if not known:  # nothing was recorded: every parameter may be the architecture's
                return dict(space)
            hyperparameters = self._hyperparameter_sampler.infer_relative_search_space(study, trial)
            return {**{name: d for name, d in hyperparameters.items() if name not in known}, **space}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: _Space) -> _Params:
        with self._lock:
            view = self._view(study)
            inferred = view.spaces.pop(trial.number, None)
            names = search_space if inferred is None else inferred
            space = {name: search_space[name] for name in names if name in search_space}
            params: _Params = {}
            if space and inferred is None:
                params = self._candidate(view, space, {})
            elif space:
                params = self._claim(view, trial, space, fixed_params(study, trial, inferred or {}))
            if hyperparameters := {name: d for name, d in search_space.items() if name not in space}:
                params |= self._hyperparameter_sampler.sample_relative(study, trial, hyperparameters)
            return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if SCORES_KEY in trial.user_attrs:
            return self._hyperparameter_sampler.sample_independent(study, trial, param_name, param_distribution)
        with self._lock:
            view = self._view(study)
            for _ in range(_TRIES):  # it may complete an architecture that the study holds
                value = self._random_sampler.sample_independent(study, trial, param_name, param_distribution)
                if not view.completes_known(trial, param_name, value):
                    break
            return value

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._hyperparameter_sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if self._constraints_func is not None:
            _process_constraints_after_trial(self._constraints_func, study, trial, state)
        with self._lock:
            self._view(study).n_told += 1
        self._hyperparameter_sampler.after_trial(study, trial, state, values)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_views"], state["_searches"], state["_lock"]  # caches, rebuilt from the study
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._views = weakref.WeakKeyDictionary()
        self._searches = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def _view(self, study: Study) -> StudyView:
        study = whole_study(study)
        if study not in self._views:
            self._views[study] = StudyView(study, self._aggregation, self._n_startup_trials, self._population_size)
        return self._views[study]

    def _claim(self, view: StudyView, trial: FrozenTrial, space: _Space, fixed: _Params) -> _Params:
        """Return values for ``space`` that no other worker is proposing at this moment.

        A candidate is written into the study first, and the study is read again afterwards. Of two workers that write
        the same, the second to write sees the other's, and draws anew.
        """
        candidate: _Params = {}
        for candidate in itertools.islice(self._candidates(view, space, fixed), _CLAIMS):
            if view.claim(trial, {**candidate, **fixed}):
                break
        return candidate

    def _candidates(self, view: StudyView, space: _Space, fixed: _Params) -> Iterator[_Params]:
        """Yield values for ``space``, the best first, without end."""
        if view.is_trained:
            yield from self._search(view).propose(
                view,
                space,
                fixed,
                lambda parents: self._child(parents, space, extra=int(self._rng.integers(2))),
                self._accept or (lambda _: True),
                self._rng,
            )
        while True:
            yield self._candidate(view, space, fixed)

    def _candidate(self, view: StudyView, space: _Space, fixed: _Params) -> _Params:
        """Return values for the whole of ``space``, if possible new and acceptable ones.

        Args:
            view: The study.
            space: What is to be chosen.
            fixed: The architecture's parameters that are given.
        """
        parents = view.parents(space, fixed)
        fallback: _Params | None = None
        for i in range(0 if parents else _TRIES, 2 * _TRIES):
            candidate = self._child(parents, space, extra=i // _WIDEN) if i < _TRIES else self._random(space)
            architecture = {**candidate, **fixed}
            if self._accept is None or self._accept(dict(architecture)):
                if not view.holds(architecture):
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

    def _search(self, view: StudyView) -> LearnedSearch:
        if view.study not in self._searches:
            self._searches[view.study] = LearnedSearch(self._scorer, self._n_candidates, self._n_startup_trainings)
        return self._searches[view.study]

    def _random(self, space: _Space) -> _Params:
        return {name: sample_uniform(distribution, self._rng) for name, distribution in space.items()}

    def _child(self, parents: Sequence[FrozenTrial | Architecture], space: _Space, extra: int) -> _Params:
        if not parents:
            return self._random(space)
        mother = self._draw_parent(parents)
        child = {name: inherit(mother.params.get(name), d, self._rng) for name, d in space.items()}
        if self._crossover and self._rng.random() < self._crossover:
            father = self._draw_parent(parents)
            child = cross(child, father.params, space, father.distributions, self._rng)
        names = [name for name, distribution in space.items() if not distribution.single()]
        low, high = self._mutation
        count = min(int(self._rng.integers(low, high + 1)) + extra, len(names))
        for i in self._rng.choice(len(names), count, replace=False) if names else ():
            child[names[i]] = mutate(child[names[i]], space[names[i]], self._rng)
        return child

    def _draw_parent(self, parents: Sequence[_Parent]) -> _Parent:
        """Draw one of some trials, ordered from the best; the k-th with a probability proportional to 1 / k."""
        return parents[int(np.searchsorted(_cumulative(len(parents)), self._rng.random(), side="right"))]

    def _warn_if_nothing_is_scored(self, view: StudyView) -> None:
        if view.warned or view.n_told < self._n_startup_trials or len(view.history):
            return
        view.warned = True
        directions = [direction.name.lower() for direction in view.study.directions]
        warnings.warn(
            f"No finished trial of study {view.study.study_name!r} has proxy scores, so AZNASSampler samples at "
            f"random. The study's directions are {directions}. Either call optuna_aznas.record(trial, scores) in the "
            "objective, or return the scores: two or more, each with a direction of its own, all of them 'maximize' "
            "(optuna_aznas.create_study sets them).",
            stacklevel=2,
        )


@functools.lru_cache(maxsize=8)
def _cumulative(n: int) -> npt.NDArray[np.float64]:
    """Return the cumulative probabilities of the places 1 to ``n``, each proportional to its inverse."""
    total = np.cumsum(1.0 / np.arange(1, n + 1))
    return total / total[-1]
