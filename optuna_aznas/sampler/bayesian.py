"""BayesianOptimisation: proposes candidates by expected improvement under the learned ranking, where a study trains.

One proposal has three steps. Candidates are drawn: children of the architectures with the highest posterior mean, and
random ones. Each gets proxy scores, from the user's ``candidate_scorer`` or, without one, estimated from those of the
study's trials. Then a Gaussian process with the rank score S as its prior mean
(:class:`~optuna_aznas.aggregation.LearnedAggregation`) is conditioned on the study's trained values, and the candidate
with the highest expected improvement is proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.special import ndtr

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas.aggregation import LearnedAggregation, Parameters
from optuna_aznas.aggregation.learned import complete_scores
from optuna_aznas.sampler.admission import Admission
from optuna_aznas.sampler.candidates import Candidate, CheckedScorer, Key
from optuna_aznas.sampler.conditional import ConditionalParameters
from optuna_aznas.sampler.strategy import Params, Space
from optuna_aznas.sampler.variation import Architecture, Variation
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.attributes import architecture_params, is_feasible
from optuna_aznas.study.encoding import Encoder, encode_hyperparameters, trained_values
from optuna_aznas.study.per_study import PerStudy
from optuna_aznas.study.values import same_distribution

_INITIAL_FRACTION = 0.25  # fraction of candidates, best rank score first, considered while little is trained
_FULL_AFTER = 20  # trained values from which all candidates are considered
_MIN_CONSIDERED = 20  # fewest candidates considered
_MAX_CONSIDERED = 2000  # most candidates considered, and most trials whose posterior mean is computed
_STARTUP_TOP = 20  # before n_startup_trainings, one of this many candidates with the highest rank scores is trained
_CORRELATION_SCORED = 0.5  # prior correlation of rank score and trained value, where candidates are scored
_CORRELATION_ESTIMATED = 0.85  # the same where their proxy scores are estimates, which lie closer to each other
_EXPLORATION = 0.05  # probability that a random considered candidate is trained, as the model may be wrong
_N_PARENTS = 20  # number of parents: the architectures with the highest posterior mean
_MAX_KEPT_SCORES = 20_000  # candidates whose proxy scores are kept
_DRAWS = 4  # draws for each candidate that is wanted, after which a small space counts as exhausted
_RECENT = 500  # newest trials from which the rules of conditional parameters are inferred
_RULES_GROWTH = 1.15  # the rules are inferred anew when the number of trials has grown by this factor

_Floats = npt.NDArray[np.float64]


class BayesianOptimisation:
    """A strategy: the candidate with the highest expected improvement of the trained value.

    Args:
        variation: Makes candidates.
        admission: Which candidates may be proposed.
        candidate_scorer: As in :class:`~optuna_aznas.AZNASSampler`.
        n_candidates: As in :class:`~optuna_aznas.AZNASSampler`.
        n_startup_trainings: As in :class:`~optuna_aznas.AZNASSampler`.

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
    ) -> None:
        check_callable("candidate_scorer", candidate_scorer)
        check_count("n_candidates", n_candidates)
        check_count("n_startup_trainings", n_startup_trainings)
        self._variation = variation
        self._admission = admission
        self._scorer = None if candidate_scorer is None else CheckedScorer(candidate_scorer)
        self._n_candidates = n_candidates
        self._n_startup_trainings = n_startup_trainings
        self._caches: PerStudy[_Cache] = PerStudy()

    def search_space(self, view: StudyView) -> Space:
        """Return all architecture parameters of the study."""
        return view.space

    def propose(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Iterator[Params]:
        """Yield the candidates of one draw that are no duplicates, the best first.

        Args:
            view: The study.
            space: What is to be chosen.
            fixed: Architecture parameters whose values the user has fixed.
        """
        cache = self._caches.get(view.study, self._new_cache)
        candidates = self._draw_candidates(view, space, fixed, cache)
        for i in self._ranked(view, candidates, cache) if candidates else ():
            if not view.is_duplicate(candidates[i].params):
                yield candidates[i].params

    def _new_cache(self, study: Study) -> _Cache:
        return _Cache(_CORRELATION_SCORED if self._scorer else _CORRELATION_ESTIMATED)

    def _draw_candidates(
        self, view: StudyView, space: Space, fixed: Mapping[str, Any], cache: _Cache
    ) -> list[Candidate]:
        """Return up to ``n_candidates`` new candidates, half of them children, with their proxy scores."""
        conditions = cache.conditional_parameters(view.history.trials)
        parents = cache.parents or [_architecture(trial, view.space) for trial in view.history.best(_N_PARENTS)]
        found: dict[Key, Candidate] = {}
        drawn: dict[Key, Candidate] = {}  # those of them that have not been scored yet
        for draw in range(_DRAWS * self._n_candidates):
            if len(found) + len(drawn) == self._n_candidates:
                found, drawn = found | self._with_scores(drawn, view.history.names, cache), {}
                if len(found) == self._n_candidates:
                    break
            extra = int(self._variation.rng.integers(2))
            child = {**self._variation.child(parents if draw % 2 else (), space, extra), **fixed}
            admitted = self._admission.admit(view, child, space, fixed)
            if admitted is None:
                continue
            params = admitted.params
            own = admitted.architecture
            present = own if self._admission.discovers else conditions.present(own)
            described = view.describe(own)
            key = frozenset((name, described[name]) for name in present)
            if key in found or key in drawn or view.holds(described):
                continue
            drawn[key] = Candidate(params, present, {}, key)
        return list((found | self._with_scores(drawn, view.history.names, cache)).values())

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
            key: candidate._replace(proxy_scores=of_candidate)
            for key, candidate in candidates.items()
            if (of_candidate := scores[key]) is not None
        }

    def _ranked(self, view: StudyView, candidates: list[Candidate], cache: _Cache) -> list[int]:
        """Return positions of candidates, the one to train first.

        S ranks the candidates among all scored trials. Only the best fraction by S is considered, which grows to all of
        them as trained values are added. These are ordered by expected improvement (Jones et al., 1998) under the
        learned ranking, or, with the small probability ``_EXPLORATION``, at random. Before ``n_startup_trainings`` the
        order is that of S, with the first places at random.
        """
        trials, n = view.history.trials, len(view.history)
        rng = self._variation.rng
        parameters = cache.encode(trials, candidates, view.space)
        table = self._table(view, candidates, parameters)
        s = view.history.aggregate(table)
        by_rank_score = np.argsort(-s[n:], kind="stable")
        values = np.full(len(table), np.nan)
        values[:n] = trained_values(trials, view.study.direction)
        trained = np.flatnonzero(~np.isnan(values))
        fraction = max(_INITIAL_FRACTION, len(trained) / _FULL_AFTER)
        size = min(max(int(fraction * len(candidates)), _MIN_CONSIDERED), _MAX_CONSIDERED)
        considered = by_rank_score[:size]
        at = np.concatenate([trained[-_MAX_CONSIDERED:], n + considered])
        hyperparameters = encode_hyperparameters(trials)
        if hyperparameters is not None:  # candidates have none yet
            empty = np.zeros((len(candidates), hyperparameters.shape[1]))
            hyperparameters = np.vstack([hyperparameters, empty])
        mean, std, best = cache.model.predict(table, values, parameters, hyperparameters, prior=s, at=at)
        cache.parents = _best_architectures(trials, candidates, view.space, at[np.argsort(-mean, kind="stable")])
        if len(trained) < self._n_startup_trainings:
            top = by_rank_score[:_STARTUP_TOP] if self._scorer else by_rank_score
            return [*map(int, rng.permutation(top)), *map(int, by_rank_score[_STARTUP_TOP:])]
        if rng.random() < _EXPLORATION:
            return [int(i) for i in rng.permutation(considered)]
        improvement = expected_improvement(mean[-len(considered) :], std[-len(considered) :], best)
        return [int(i) for i in considered[np.argsort(-improvement, kind="stable")]]

    def _table(self, view: StudyView, candidates: list[Candidate], parameters: Parameters) -> _Floats:
        """Return the proxy scores of all trials and, below them, of the candidates; estimates without a scorer."""
        n, names = len(view.history), view.history.names
        table = np.full((n + len(candidates), len(names)), -np.inf)
        table[:n] = view.history.proxy_scores
        if self._scorer is None:
            return complete_scores(table, np.arange(len(table)) < n, parameters)
        table[n:] = [[candidate.proxy_scores[name] for name in names] for candidate in candidates]
        return table


class _Cache:
    """What is kept of one study from proposal to proposal, to save time.

    Args:
        prior_correlation: As in :class:`~optuna_aznas.aggregation.LearnedAggregation`.

    Attributes:
        model: The learned ranking; it keeps its hyperparameters.
        parents: The architectures with the highest posterior mean, best first; none before the first proposal.
        proxy_scores: Candidates' proxy scores, ``None`` where the scorer failed.
    """

    def __init__(self, prior_correlation: float) -> None:
        self.model = LearnedAggregation(exploring=True, prior_correlation=prior_correlation)
        self.parents: list[Architecture] = []
        self.proxy_scores: dict[Key, dict[str, float] | None] = {}
        self._space: Space = {}
        self._encoder = Encoder({})
        self._rows: dict[object, _Floats] = {}  # encoded architectures by trial number or candidate key
        self._conditions, self._conditions_from = ConditionalParameters([]), 0

    def keep(self, proxy_scores: Mapping[Key, dict[str, float] | None]) -> None:
        """Keep candidates' proxy scores; the oldest ones make room."""
        self.proxy_scores |= proxy_scores
        while len(self.proxy_scores) > _MAX_KEPT_SCORES:
            del self.proxy_scores[next(iter(self.proxy_scores))]

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
        params: dict[object, Mapping[str, Any]] = {trial.number: trial.params for trial in trials}
        params |= {candidate.key: candidate.present for candidate in candidates}
        missing = {key: values for key, values in params.items() if key not in self._rows}
        encoded = self._encoder(list(missing.values()))
        self._rows |= zip(missing, np.hstack(encoded), strict=True)
        rows = np.array([self._rows[key] for key in params])
        if len(self._rows) > 2 * len(params):
            self._rows = {key: self._rows[key] for key in params}
        return Parameters(*np.split(rows, [encoded.single.shape[1]], axis=1))


def expected_improvement(mean: _Floats, std: _Floats, best: float) -> _Floats:
    """Return by how much normal variables are expected to exceed ``best`` (Jones et al., 1998).

    Args:
        mean: Their means, shape (n,).
        std: Their standard deviations, shape (n,).
        best: The value to exceed. If it is not finite, nothing was learned, and the means are returned.
    """
    if not np.isfinite(best):
        return mean
    deviation = np.maximum(std, 1e-12)
    z = (mean - best) / deviation
    return (mean - best) * ndtr(z) + deviation * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)


def _best_architectures(
    trials: list[FrozenTrial],
    candidates: list[Candidate],
    space: Mapping[str, BaseDistribution],
    order: Sequence[int] | npt.NDArray[np.intp],
) -> list[Architecture]:
    """Return the first ``_N_PARENTS`` architectures in the given order that may be parents.

    Positions below ``len(trials)`` are trials, those above candidates. Infeasible trials are left out, unless all are.
    """
    some_feasible = any(is_feasible(trial) for trial in trials)
    best: list[Architecture] = []
    for i in order:
        if i >= len(trials):
            present = candidates[i - len(trials)].present
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
