"""BayesianOptimisation: proposes architecture and hyperparameters by expected improvement, where a study trains.

One proposal has four steps. Candidate architectures are drawn: children of those with the highest posterior mean, and
random ones. Each gets proxy scores, from the user's ``candidate_scorer`` or, without one, estimated from those of the
study's trials. Then a Gaussian process over architecture and hyperparameters, with the rank score S as its prior mean
(:class:`~optuna_aznas.aggregation.LearnedAggregation`), is conditioned on the study's trained values. Last, the
expected improvement is maximised over architecture and hyperparameters together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas.aggregation import LearnedAggregation, Parameters
from optuna_aznas.aggregation.estimation import complete_scores
from optuna_aznas.aggregation.networks import Networks
from optuna_aznas.aggregation.posterior import Posterior
from optuna_aznas.sampler.acquisition import ProposalData, maximise, spread
from optuna_aznas.sampler.admission import Admission
from optuna_aznas.sampler.candidates import Candidate, CandidateScores, CheckedScorer, Key
from optuna_aznas.sampler.conditional import ConditionalParameters
from optuna_aznas.sampler.strategy import Params, Space
from optuna_aznas.sampler.variation import Architecture, Variation, sample_uniform
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.attributes import architecture_params, is_feasible, recorded_scores
from optuna_aznas.study.encoding import Encoder, HyperparameterSpace, hyperparameter_space, trained_values
from optuna_aznas.study.graph import graph_columns, recorded_graph
from optuna_aznas.study.per_study import PerStudy
from optuna_aznas.study.values import Description, same_distribution

_MAX_TRIALS = 2000  # most trials whose posterior mean is computed
_STARTUP_TOP = 20  # before n_startup_trainings, one of this many candidates with the highest rank scores is trained
_PRIOR_CORRELATION = 0.5  # prior mean of the slope of trained values on the rank score
_SHARED_CORRELATION = 0.35  # the same where no more parameters are the architecture's than hyperparameters
_N_PARENTS = 20  # number of parents: the architectures with the highest posterior mean
_MAX_KEPT_SCORES = 20_000  # candidates whose proxy scores are kept
_DRAWS = 4  # most draws for each candidate that is wanted
_MISSES = 50  # draws in a row of architectures drawn before, after which a small space counts as exhausted
_RECENT = 500  # newest trials from which the rules of conditional parameters are inferred
_RULES_GROWTH = 1.15  # the rules are inferred anew when the number of trials has grown by this factor

_Floats = npt.NDArray[np.float64]
_Positions = npt.NDArray[np.intp]


class BayesianOptimisation:
    """A strategy: the configuration with the highest expected improvement of the trained value.

    Args:
        variation: Makes candidates.
        admission: Which candidates may be proposed.
        candidate_scorer: As in :class:`~optuna_aznas.AZNASSampler`.
        n_candidates: As in :class:`~optuna_aznas.AZNASSampler`.
        n_startup_trainings: As in :class:`~optuna_aznas.AZNASSampler`.
        with_hyperparameters: Whether hyperparameters are proposed, too.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        variation: Variation,
        admission: Admission,
        candidate_scorer: Callable[[dict[str, Any]], Any] | None,
        n_candidates: int,
        n_startup_trainings: int,
        with_hyperparameters: bool,
    ) -> None:
        check_callable("candidate_scorer", candidate_scorer)
        check_count("n_candidates", n_candidates)
        check_count("n_startup_trainings", n_startup_trainings)
        self._variation = variation
        self._admission = admission
        self._scorer = None if candidate_scorer is None else CheckedScorer(candidate_scorer)
        self._n_candidates = n_candidates
        self._n_startup_trainings = n_startup_trainings
        self._with_hyperparameters = with_hyperparameters
        self._caches: PerStudy[_Cache] = PerStudy()

    def prepare(self, view: StudyView) -> None:
        """Ask the scorer for the architectures' parameters where no trial has recorded yet, so that the first trials
        are chosen by their scores, too.
        """
        cache = self._caches.get(view.study, lambda study: _Cache())
        if self._scorer is None or cache.is_prepared or not view.has_one_objective:
            return
        cache.is_prepared = True
        if not view.has_scores:
            rng = self._variation.rng_of(0, "search_space")
            view.expect(self._scorer.search_space(lambda distribution: sample_uniform(distribution, rng)))

    def search_space(self, view: StudyView) -> Space:
        """Return all architecture parameters of the study, and the hyperparameters that all trained trials have."""
        if not self._with_hyperparameters:
            return view.space
        return view.space | _hyperparameters(view, trained_values(view.history.trials, view.study.direction))

    def propose(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Iterator[Params]:
        """Yield configurations of one draw, the best first; of each architecture the best one.

        Where no hyperparameters are to be chosen, architectures that the study holds are left out.

        Args:
            view: The study.
            space: What is to be chosen.
            fixed: Parameters whose values the user has fixed.
        """
        cache = self._caches.get(view.study, lambda study: _Cache())
        data = self._read(view, space, fixed, cache)
        for row, position in self._ranked(data, cache):
            params = data.params(row)
            if data.chooses_hyperparameters or not view.is_duplicate(params):
                chosen = params | data.hyperparameters.params(position)
                yield chosen

    def _read(self, view: StudyView, space: Space, fixed: Mapping[str, Any], cache: _Cache) -> ProposalData:
        """Return all that one proposal works on."""
        trials = view.history.trials
        places = trained_values(trials, view.study.direction)
        hyperparameters = HyperparameterSpace(_hyperparameters(view, places))
        chooses_hyperparameters = any(name in space for name in hyperparameters.space)
        is_taken = view.is_pending if chooses_hyperparameters else view.holds
        candidates = self._draw_candidates(view, fixed, cache, is_taken)
        running = _running(view, hyperparameters)
        parameters = cache.encode(trials, [*running, *candidates], view.space)
        table = self._table(view, running, candidates, parameters)
        graph = _completed_graph(cache.graph(trials, [*running, *candidates]), parameters)
        values = np.full(len(table), np.nan)
        values[: len(trials)] = places
        trained = np.flatnonzero(~np.isnan(values))
        positions = np.zeros((len(table), len(hyperparameters)))
        known = [trials[i].params for i in trained] + [candidate.params for candidate in running]
        rows = np.concatenate([trained, len(trials) + np.arange(len(running))])
        positions[rows] = hyperparameters.positions(known)
        return ProposalData(
            view=view,
            hyperparameters=hyperparameters,
            chooses_hyperparameters=chooses_hyperparameters,
            fixed=fixed,
            running=running,
            candidates=candidates,
            parameters=parameters,
            table=table,
            graph=graph,
            s=view.history.aggregate(table),
            values=values,
            trained=trained,
            positions=positions,
        )

    def _draw_candidates(
        self, view: StudyView, fixed: Mapping[str, Any], cache: _Cache, is_taken: Callable[[Description], bool]
    ) -> list[Candidate]:
        """Return up to ``n_candidates`` architectures that are not taken, half of them children, with proxy scores."""
        space = view.space
        of_architecture = {name: value for name, value in fixed.items() if name not in view.hyperparameter_names}
        conditions = cache.conditional_parameters(view.history.trials)
        parents = cache.parents or [_architecture(trial, space) for trial in view.history.best(_N_PARENTS)]
        found: dict[Key, Candidate] = {}
        drawn: dict[Key, Candidate] = {}  # those of them that have not been scored yet
        seen: set[Key] = set()
        misses = 0
        for draw in range(_DRAWS * self._n_candidates):
            if misses == _MISSES:
                break
            if len(found) + len(drawn) == self._n_candidates:
                found, drawn = found | self._with_scores(drawn, view.proxies, cache), {}
                if len(found) == self._n_candidates:
                    break
            extra = int(self._variation.rng.integers(2))
            child = {**self._variation.child(parents if draw % 2 else (), space, extra), **of_architecture}
            admitted = self._admission.admit(view, child, space, of_architecture)
            if admitted is None:
                continue
            own = admitted.architecture
            present = own if self._admission.discovers else conditions.present(own)
            described = view.describe(own)
            key = frozenset((name, described[name]) for name in present)
            misses = misses + 1 if key in seen else 0
            if key not in seen and not is_taken(described):
                drawn[key] = Candidate(admitted.params, present, {}, key)
            seen.add(key)
        return list((found | self._with_scores(drawn, view.proxies, cache)).values())

    def _with_scores(
        self, candidates: dict[Key, Candidate], names: tuple[str, ...], cache: _Cache
    ) -> dict[Key, Candidate]:
        """Return candidates with their proxy scores, all scored at once; without those where the scorer failed."""
        if self._scorer is None:
            return candidates
        missing = {key: candidate.params for key, candidate in candidates.items() if key not in cache.proxy_scores}
        new = dict(zip(missing, self._scorer(list(missing.values()), names), strict=True)) if missing else {}
        scores = {key: new[key] if key in new else cache.proxy_scores[key] for key in candidates}
        cache.keep(new)
        return {
            key: candidate._replace(proxy_scores=of_candidate.proxy_scores, graph=of_candidate.graph)
            for key, candidate in candidates.items()
            if (of_candidate := scores[key]) is not None
        }

    def _table(
        self, view: StudyView, running: list[Candidate], candidates: list[Candidate], parameters: Parameters
    ) -> _Floats:
        """Return the proxy scores of all trials, running ones and candidates; candidates' are estimates without a
        scorer.
        """
        known = [*running, *(candidates if self._scorer else ())]
        names = view.proxies or tuple(name for candidate in known[:1] for name in candidate.proxy_scores)
        scores = [[candidate.proxy_scores[name] for name in names] for candidate in known]
        n = len(view.history) + len(known)
        table = np.full((len(view.history) + len(running) + len(candidates), len(names)), -np.inf)
        if len(view.history):
            table[: len(view.history)] = view.history.proxy_scores
        table[len(view.history) : n] = np.array(scores).reshape(len(known), len(names))
        return complete_scores(table, np.arange(len(table)) < n, parameters)

    def _ranked(self, data: ProposalData, cache: _Cache) -> Iterator[tuple[int, _Floats]]:
        """Yield configurations, a row of the table and a position each, the one to train first.

        Before ``n_startup_trainings`` the order is that of S, with the first places at random.
        """
        how = data.hyperparameters.columns(data.positions)
        model = cache.model(mostly_architecture=len(data.view.space) > len(data.hyperparameters))
        posterior = model.condition(Networks(data.table, data.values, data.parameters, how, data.s, data.graph))
        cache.parents = _best_architectures(data, posterior)
        first = data.n_trials + len(data.running)
        new = np.arange(first, first + len(data.candidates))
        if len(data.trained) < self._n_startup_trainings or not np.isfinite(posterior.best):
            by_rank_score = new[np.argsort(-data.s[new], kind="stable")]
            top = by_rank_score[: _STARTUP_TOP if self._scorer else None]
            order = [*self._variation.rng.permutation(top), *by_rank_score[len(top) :]]
            for row in order or data.trained:
                yield int(row), spread(data, self._variation.rng)
            return
        if data.running:
            rows = data.n_trials + np.arange(len(data.running))
            posterior.assume_mean(rows, data.hyperparameters.columns(data.positions[rows]).values)
        yield from maximise(data, posterior, new, self._variation.rng)


def _completed_graph(columns: _Floats | None, parameters: Parameters) -> _Floats | None:
    """Return features of graphs with estimates in the rows that are not known, without those that are all equal.

    ``None`` where nothing is known of the graphs, or all that are known are equal.
    """
    if columns is None:
        return None
    is_known = ~np.isnan(columns[:, 0])
    varied = columns[:, np.ptp(columns[is_known], axis=0) > 0.0] if is_known.any() else columns[:, :0]
    return complete_scores(varied, is_known, parameters) if varied.shape[1] else None


def _hyperparameters(view: StudyView, values: _Floats) -> Space:
    """Return the hyperparameters that all trained trials have, those that are not NaN in ``values``."""
    trained = [view.history.trials[i] for i in np.flatnonzero(~np.isnan(values))]
    return {n: d for n, d in hyperparameter_space(trained).items() if n in view.hyperparameter_names}


def _running(view: StudyView, hyperparameters: HyperparameterSpace) -> list[Candidate]:
    """Return the running trials whose proxy scores and hyperparameters are known."""
    found = []
    for trial in view.running:
        scores = recorded_scores(trial) or {}
        if set(scores) == set(view.proxies) and all(name in trial.params for name in hyperparameters.space):
            present = architecture_params(trial)
            key = frozenset(view.describe(present).items())
            found.append(Candidate(dict(trial.params), present, scores, key, recorded_graph(trial)))
    return found


class _Cache:
    """What is kept of one study from proposal to proposal, to save time.

    Attributes:
        parents: The architectures with the highest posterior mean, best first; none before the first proposal.
        proxy_scores: Candidates' proxy scores, ``None`` where the scorer failed.
        is_prepared: Whether the scorer was asked for the architectures' parameters, if need be.
    """

    def __init__(self) -> None:
        self._models: dict[bool, LearnedAggregation] = {}
        self.parents: list[Architecture] = []
        self.proxy_scores: dict[Key, CandidateScores | None] = {}
        self.is_prepared = False
        self._space: Space = {}
        self._encoder = Encoder({})
        self._rows: dict[object, _Floats] = {}  # encoded architectures by trial number or candidate key
        self._graph_names: list[str] = []  # features of graphs that have occurred, sorted
        self._graph_rows: dict[int, _Floats] = {}  # their values by trial number
        self._conditions, self._conditions_from = ConditionalParameters([]), 0

    def model(self, *, mostly_architecture: bool) -> LearnedAggregation:
        """Return the learned ranking; it keeps its kernel's hyperparameters.

        Where most parameters are the architecture's, it expects large linear effects of them and of the proxy scores.
        Among many hyperparameters such effects would explain what the hyperparameters did.
        """
        if mostly_architecture not in self._models:
            rho = _PRIOR_CORRELATION if mostly_architecture else _SHARED_CORRELATION
            self._models[mostly_architecture] = LearnedAggregation(exploring=mostly_architecture, prior_correlation=rho)
        return self._models[mostly_architecture]

    def keep(self, proxy_scores: Mapping[Key, CandidateScores | None]) -> None:
        """Keep candidates' proxy scores; the oldest ones make room."""
        self.proxy_scores |= proxy_scores
        while len(self.proxy_scores) > _MAX_KEPT_SCORES:
            del self.proxy_scores[next(iter(self.proxy_scores))]

    def graph(self, trials: list[FrozenTrial], others: list[Candidate]) -> _Floats | None:
        """Return the features of the graphs of trials and, below them, of others as columns; each trial is read once.

        Rows of NaN where a graph is not known; ``None`` where nothing is known of any.
        """
        graphs = {trial.number: recorded_graph(trial) for trial in trials if trial.number not in self._graph_rows}
        of_others = [candidate.graph for candidate in others]
        new = {name for graph in [*graphs.values(), *of_others] for name in graph} - set(self._graph_names)
        if new:
            self._graph_names = sorted([*self._graph_names, *new])
            graphs = {trial.number: recorded_graph(trial) for trial in trials}
        rows = graph_columns(list(graphs.values()), self._graph_names)
        below = graph_columns(of_others, self._graph_names)
        if rows is None or below is None:
            self._graph_rows |= dict.fromkeys(graphs, np.zeros(0))  # read anew once there is a name
            return None
        self._graph_rows |= zip(graphs, rows, strict=True)
        return np.vstack([*(self._graph_rows[trial.number] for trial in trials), below])

    def conditional_parameters(self, trials: list[FrozenTrial]) -> ConditionalParameters:
        """Return the rules of conditional parameters, inferred from recent trials."""
        if len(trials) >= _RULES_GROWTH * self._conditions_from:
            self._conditions = ConditionalParameters([architecture_params(trial) for trial in trials[-_RECENT:]])
            self._conditions_from = len(trials)
        return self._conditions

    def encode(self, trials: list[FrozenTrial], candidates: list[Candidate], space: Space) -> Parameters:
        """Return the architectures of trials and, below them, of candidates as numbers; each is encoded once."""
        if space != self._space:
            self._space, self._encoder, self._rows = dict(space), Encoder(space), {}
        keys: list[object] = [*(trial.number for trial in trials), *(candidate.key for candidate in candidates)]
        params = [*(trial.params for trial in trials), *(candidate.present for candidate in candidates)]
        missing = {key: values for key, values in zip(keys, params, strict=True) if key not in self._rows}
        encoded = self._encoder(list(missing.values()))
        self._rows |= zip(missing, np.hstack(encoded[:2]), strict=True)
        rows = np.array([self._rows[key] for key in keys])
        if len(self._rows) > 2 * len(keys):
            self._rows = {key: self._rows[key] for key in keys}
        single, pooled = np.split(rows, [encoded.single.shape[1]], axis=1)
        return encoded._replace(single=single, pooled=pooled)


def _best_architectures(data: ProposalData, posterior: Posterior) -> list[Architecture]:
    """Return the ``_N_PARENTS`` architectures with the highest posterior mean that may be parents, best first.

    They are compared as if trained as the best one was. Infeasible trials are left out, unless all are.
    """
    trials, space = data.view.history.trials, data.view.space
    first = data.n_trials + len(data.running)
    at = np.concatenate([data.trained[-_MAX_TRIALS:], np.arange(first, len(data.table))])
    mean = posterior.mean(at)
    some_feasible = any(is_feasible(trial) for trial in trials)
    best: list[Architecture] = []
    for i in at[np.argsort(-mean, kind="stable")]:
        if i >= first:
            present = data.candidates[i - first].present
            best.append(Architecture(present, {name: space[name] for name in present if name in space}))
        elif is_feasible(trials[i]) or not some_feasible:
            best.append(_architecture(trials[i], space))
        if len(best) == _N_PARENTS:
            break
    return best


def _architecture(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> Architecture:
    """Return a trial's architecture; the distributions are those of the space where they are equal."""
    params = architecture_params(trial)
    own = {name: trial.distributions[name] for name in params}
    return Architecture(params, {n: space[n] if same_distribution(space.get(n), d) else d for n, d in own.items()})
