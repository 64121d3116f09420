"""AZNASSampler: Optuna's sampler protocol. The strategies are in evolution.py and bayesian.py."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_callable
from optuna_aznas._optuna import fixed_params, store_constraints
from optuna_aznas.sampler.admission import Admission, ArchitectureLimits, Examined
from optuna_aznas.sampler.bayesian import BayesianOptimisation
from optuna_aznas.sampler.candidates import CandidateFilter
from optuna_aznas.sampler.claims import first_unclaimed, first_unclaimed_value
from optuna_aznas.sampler.evolution import Evolution
from optuna_aznas.sampler.strategy import Params, Space, Strategy
from optuna_aznas.sampler.variation import Variation, sample_uniform
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.attributes import SCORES_KEY
from optuna_aznas.study.history import Aggregation
from optuna_aznas.study.per_study import PerStudy

_INDEPENDENT_TRIES = 100  # values of one parameter that are drawn before a duplicate is accepted


class AZNASSampler(BaseSampler):
    """Samples architectures by AZ-NAS's non-linear rank aggregation of zero-cost proxies over the whole study.

    It serves any study whose trials carry proxy scores: as objective values that are all maximised
    (:func:`~optuna_aznas.create_study`), or recorded with :func:`~optuna_aznas.record` beside other objectives. It has
    two strategies.

    **Evolution, where nothing is trained.** The first trials are random. Afterwards a parent is drawn from the best
    feasible trials by rank score S over all scored trials (the k-th best with a probability proportional to 1 / k), and
    one or more of its parameters are changed. The search space is that of the parent, trial by trial: parameters that
    the parent has are inherited, parameters that it lacks are sampled independently, so conditional spaces work.

    **Bayesian optimisation, where something is trained.** In a study with one objective, the trained value, whose
    trials record proxy scores, the next architecture and the next hyperparameters are those that together have the
    highest expected improvement under a model that learns from the trained values
    (:class:`~optuna_aznas.aggregation.LearnedAggregation`). Architectures are mutated, crossed and random ones. With
    ``candidate_scorer`` each candidate's proxy scores are computed; without it they are estimated from those of the
    study's trials. The hyperparameters are those that all trained trials have; others are sampled by TPE.

    Duplicates, architectures that the study already holds in a finished or running trial, are not proposed again if a
    bounded number of tries finds another. A finished one may be proposed with other hyperparameters. Workers claim what
    they propose, so that no two propose the same at once.

    The sampler has no state outside the study: everything is read from the study, so that it can be killed, restarted
    and run by many workers at once.

    Args:
        population_size: Evolution: number of best trials that parents are drawn from, at least 1.
        n_startup_trials: Evolution: number of scored trials before it starts, at least 1.
        n_mutations: Number of parameters that mutation changes: an integer of at least 1, or the smallest and the
            largest of a range, each equally likely.
        crossover_prob: Probability, 0 to 1, that a child mixes two parents before it is mutated.
        aggregation: Replaces the non-linear rank aggregation: a function from a table of proxy scores, shape (n, m), to
            rank scores, shape (n,), bigger is better. In evolution, from 1,000 scored trials on, it is called once for
            each 1% that the study has grown.
        constraints_func: As in Optuna's samplers: called with a finished trial, returns numbers that are at most 0
            where it is feasible. Infeasible trials are parents only while there are no feasible ones, and candidates
            that are probably infeasible, as a model learned from these numbers says, are not proposed.
        limits: :class:`~optuna_aznas.Limits` on parameters, latency and the like. Every architecture that is proposed
            keeps them, that of the first trial included, if a bounded number of draws finds one that does; otherwise
            the one that exceeds them least is proposed, with a warning.
        candidate_filter: Called with a candidate's parameters before it is proposed; if it returns ``False``, the
            candidate is dropped and another tried. It is given a value for every architecture parameter of the study,
            so that it need not know which of them the candidate has. A candidate for which it raises is left out, with
            a warning. Without ``limits`` it is not called for the trials before the first is scored, whose parameters
            are not known yet; ``limits=Limits(build)`` makes them known.
        candidate_scorer: Bayesian optimisation: a :class:`~optuna_aznas.CandidateScorer`, or another function that is
            called with a candidate's parameters, as ``candidate_filter`` is, and returns its proxy scores in any form
            that :func:`~optuna_aznas.record` takes. A candidate for which it raises is left out, with a warning. What
            it returns is kept while the process lives.
        n_candidates: Bayesian optimisation: number of new candidates for each trial, at least 1. With
            ``candidate_scorer`` this many networks are scored for each one that is trained.
        n_startup_trainings: Bayesian optimisation: number of trained trials before the model counts, at least 1. Until
            then candidates are chosen by S.
        hyperparameter_sampler: Samples the hyperparameters, which are suggested after :func:`~optuna_aznas.record`. By
            default Bayesian optimisation proposes them together with the architecture, and
            :class:`optuna.samplers.TPESampler` samples those that it does not cover: in evolution all of them.
        seed: Seed of the random numbers. Workers may share one: what the first trials draw depends on their number too.

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
        n_mutations: int | tuple[int, int] = 1,
        crossover_prob: float = 0.3,
        aggregation: Aggregation | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        limits: ArchitectureLimits | None = None,
        candidate_filter: CandidateFilter | None = None,
        candidate_scorer: Callable[[dict[str, Any]], Any] | None = None,
        n_candidates: int = 200,
        n_startup_trainings: int = 5,
        hyperparameter_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        check_callable("aggregation", aggregation)
        check_callable("constraints_func", constraints_func)
        check_callable("candidate_filter", candidate_filter)
        if hyperparameter_sampler is not None and not isinstance(hyperparameter_sampler, BaseSampler):
            raise ValueError(f"hyperparameter_sampler must be an Optuna sampler; got {hyperparameter_sampler!r}.")
        if limits is not None and not isinstance(getattr(limits, "maxima", None), Mapping):
            raise ValueError(f"limits must be an optuna_aznas.Limits; got {limits!r}.")
        self._aggregation = aggregation
        self._constraints_func = constraints_func
        self._variation = Variation(n_mutations, crossover_prob, seed)
        self._admission = Admission(candidate_filter, limits, self._variation)
        self._evolution = Evolution(self._variation, self._admission, population_size, n_startup_trials)
        self._bayesian = BayesianOptimisation(
            self._variation,
            self._admission,
            candidate_scorer,
            n_candidates,
            n_startup_trainings,
            with_hyperparameters=hyperparameter_sampler is None,
        )
        # By default it samples the hyperparameters that the posterior does not cover.
        self._hyperparameter_sampler = (
            TPESampler(seed=seed) if hyperparameter_sampler is None else hyperparameter_sampler
        )
        self._sessions: PerStudy[_Session] = PerStudy()
        self._lock = threading.RLock()

    def reseed_rng(self) -> None:
        self._variation.reseed()
        self._hyperparameter_sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        with self._lock:
            session = self._session(study)
            view = session.view
            view.update(trial)
            self._bayesian.prepare(view)
            self._warn_of_unscored(session)
            self._warn_if_nothing_is_scored(session)
            inferred = self._propose(study, trial, view)
            session.inferred[trial.number] = inferred
            if view.architecture_names:  # otherwise nothing was recorded, and every parameter may be the architecture's
                space = self._hyperparameter_sampler.infer_relative_search_space(study, trial)
                inferred.hyperparameters = {
                    n: d for n, d in space.items() if n not in view.architecture_names and n not in inferred.proposed
                }
            return {**inferred.hyperparameters, **inferred.proposed}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> Params:
        with self._lock:
            session = self._session(study)
            inferred = session.inferred.pop(trial.number, None)
            proposed, hyperparameters = _split(search_space, inferred)
            params: Params = {}
            if proposed and inferred is None:  # called by another sampler, for a trial that this one has not seen
                child = next(self._evolution.propose(session.view, proposed, {}))
                params = {name: child[name] for name in proposed}
            elif inferred is not None and inferred.proposal is not None:
                values = inferred.proposal.params | inferred.chosen
                params = {name: values[name] for name in proposed}
                if inferred.proposal.numbers:
                    self._admission.store(study, trial, inferred.proposal)
                    session.proposals[trial.number] = inferred.proposal
            if hyperparameters:
                params |= self._hyperparameter_sampler.sample_relative(study, trial, hyperparameters)
            return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if SCORES_KEY in trial.user_attrs:
            return self._hyperparameter_sampler.sample_independent(study, trial, param_name, param_distribution)
        with self._lock:
            view = self._session(study).view
            if param_name in view.hyperparameter_names:  # suggested before record, which names the architecture
                return self._hyperparameter_sampler.sample_independent(study, trial, param_name, param_distribution)
            rng = self._variation.rng_of(trial.number, param_name)
            tries = 1 if param_distribution.single() else _INDEPENDENT_TRIES
            values = (sample_uniform(param_distribution, rng) for _ in range(tries))
            return first_unclaimed_value(view, trial, param_name, param_distribution, values)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._hyperparameter_sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        with self._lock:
            session = self._session(study)
            session.n_finished += 1
            proposal = session.proposals.pop(trial.number, None)
        if self._constraints_func is not None or self._admission.discovers:
            store_constraints(lambda frozen: self._constraints(study, frozen, proposal), study, trial, state)
        self._hyperparameter_sampler.after_trial(study, trial, state, values)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _session(self, study: Study) -> _Session:
        return self._sessions.get(study, lambda whole: _Session(StudyView(whole, self._aggregation)))

    def _strategy(self, view: StudyView) -> Strategy:
        return self._bayesian if view.is_trained else self._evolution

    def _propose(self, study: Study, trial: FrozenTrial, view: StudyView) -> InferredSpace:
        """Return what is proposed for a trial: an architecture, and hyperparameters where the strategy chooses them."""
        strategy = self._strategy(view)
        space = strategy.search_space(view)
        if not space and not self._admission.discovers:
            return InferredSpace(None)
        self._admission.begin(trial)
        fixed = {
            name: value
            for name, value in fixed_params(study, trial).items()
            if name in space or (self._admission.discovers and name not in view.hyperparameter_names)
        }
        of_architecture = {name: d for name, d in space.items() if name not in view.hyperparameter_names}
        fixed_architecture = {name: value for name, value in fixed.items() if name not in view.hyperparameter_names}
        chosen: dict[frozenset[tuple[str, str]], Params] = {}

        def architectures() -> Iterator[Params]:
            for params in strategy.propose(view, space, fixed):
                how = {name: params[name] for name in space if name in params and name not in of_architecture}
                architecture = {name: value for name, value in params.items() if name not in view.hyperparameter_names}
                chosen[frozenset(view.describe(architecture).items())] = how
                yield architecture
            if strategy is not self._evolution:  # it found nothing
                yield from self._evolution.propose(view, of_architecture, fixed_architecture)

        admitted = self._admission.measured(view, architectures(), of_architecture, fixed_architecture)
        proposal = first_unclaimed(view, trial, admitted)
        if proposal is None:
            return InferredSpace(None)
        described = view.describe(proposal.params).items()  # with values for parameters that the proposal lacked
        how = next((chosen[key] for key in reversed(chosen) if key <= described), {})
        return InferredSpace(proposal, {name: space[name] for name in how}, how)

    def _constraints(self, study: Study, trial: FrozenTrial, proposal: Examined | None) -> tuple[float, ...]:
        """Return a trial's constraint values: the user's, and those of the limits."""
        own = () if self._constraints_func is None else self._constraints_func(trial)
        return (*own, *self._admission.constraints(study, trial, proposal))

    def _warn_of_unscored(self, session: _Session) -> None:
        """Warn, at the first look at a study, of trials that completed without proxy scores, as before a change of the
        sampler.
        """
        if session.has_looked:
            return
        session.has_looked = True
        history, study = session.view.history, session.view.study
        unscored = history.unscored
        if not unscored[TrialState.COMPLETE]:
            return
        n_unscored = unscored[TrialState.COMPLETE] + unscored[TrialState.PRUNED]
        n_scored = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in history.trials)
        warnings.warn(
            f"{n_unscored} of {n_unscored + n_scored} finished trials of study {study.study_name!r} have no proxy "
            "scores and are ignored; optuna_aznas.backfill(study, build, evaluator) scores them.",
            stacklevel=2,
        )

    def _warn_if_nothing_is_scored(self, session: _Session) -> None:
        view = session.view
        if session.has_warned or session.n_finished < self._evolution.n_startup_trials or len(view.history):
            return
        session.has_warned = True
        directions = [direction.name.lower() for direction in view.study.directions]
        warnings.warn(
            f"No finished trial of study {view.study.study_name!r} has proxy scores, so AZNASSampler samples at "
            f"random. The study's directions are {directions}. Either call optuna_aznas.record(trial, proxy_scores) in "
            "the objective, or return the proxy scores: two or more, each with a direction of its own, all of them "
            "'maximize' (optuna_aznas.create_study sets them).",
            stacklevel=2,
        )


@dataclasses.dataclass
class InferredSpace:
    """What infer_relative_search_space leaves for sample_relative of the same trial.

    Attributes:
        proposal: The proposed architecture; ``None`` where nothing is known of the space.
        own_hyperparameters: The space of the hyperparameters that the strategy chose.
        chosen: Their values.
        hyperparameters: The space of the hyperparameter sampler.
    """

    proposal: Examined | None
    own_hyperparameters: Space = dataclasses.field(default_factory=dict)
    chosen: Params = dataclasses.field(default_factory=dict)
    hyperparameters: Space = dataclasses.field(default_factory=dict)

    @property
    def proposed(self) -> Space:
        """The parameters of the proposed architecture, and the hyperparameters that were chosen with it."""
        return self.own_hyperparameters | ({} if self.proposal is None else self.proposal.space)


@dataclasses.dataclass
class _Session:
    """What the sampler keeps of one study while the process lives.

    Attributes:
        view: What was read of the study.
        inferred: By trial number, for trials between infer_relative_search_space and sample_relative.
        proposals: By trial number, architectures with limits that were proposed, until their trials finish.
        n_finished: Trials that finished in this process.
        has_looked: Whether the user was told of trials that completed without proxy scores, if there were any.
        has_warned: Whether the user was told that no trial has proxy scores.
    """

    view: StudyView
    inferred: dict[int, InferredSpace] = dataclasses.field(default_factory=dict)
    proposals: dict[int, Examined] = dataclasses.field(default_factory=dict)
    n_finished: int = 0
    has_looked: bool = False
    has_warned: bool = False


def _split(search_space: Space, inferred: InferredSpace | None) -> tuple[Space, Space]:
    """Return the strategy's and the hyperparameter sampler's part of the space that Optuna asks to sample.

    It may lack parameters of the inferred space, such as those that a ``PartialFixedSampler`` has fixed. A space that
    was not inferred here is all the strategy's.
    """
    if inferred is None:
        return search_space, {}
    proposed = {n: search_space[n] for n in inferred.proposed if n in search_space}
    return proposed, {n: d for n, d in search_space.items() if n not in proposed}
