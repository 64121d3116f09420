"""Which architecture to train next: expected improvement under the learned ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from scipy.special import ndtr

from optuna_aznas.aggregation import LearnedAggregation, Parameters
from optuna_aznas.aggregation.learned import complete_scores
from optuna_aznas.sampler.candidates import Architecture, Candidate, CandidateScorer, Key
from optuna_aznas.sampler.conditional import Presence
from optuna_aznas.sampler.duplicates import describe
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.attributes import architecture_names, is_feasible
from optuna_aznas.study.encoding import Encoder, hyperparameters, results

#: One is chosen for training among the best by S of all candidates: at first from a quarter of them, from so many
#: trainings on from all. At least, and at most so many are considered.
_FIRST_SHARE, _ALL_AFTER, _FEWEST, _MOST = 0.25, 20, 20, 2000

#: While too few trainings are there to learn from, one of so many best by S is trained.
_START_TOP = 20

#: How far the aggregation is trusted where it has the candidates' own scores, and where it has estimates, which are
#: closer to each other.
_TRUST, _TRUST_ESTIMATES = 0.5, 0.85

#: The chance that a random one of them is trained after that: the model may be wrong.
_EXPLORATION = 0.05

#: Parents of candidates: so many of the best by what is expected of them.
_PARENTS = 20

#: Candidates whose scores are kept, at most.
_KEPT = 20_000

#: Draws for each candidate that is wanted, before a small space is taken to be known to the last.
_DRAWS = 4

_Floats = npt.NDArray[np.float64]


class LearnedSearch:
    """Proposes architectures to train in one study. What it keeps is a cache: scores of candidates.

    Args:
        scorer: Scores candidates; without one, their scores are estimated from those of trials.
        n_candidates: New candidates for each trial.
        n_startup_trainings: Trainings before what was learned counts.
    """

    def __init__(self, scorer: CandidateScorer | None, n_candidates: int, n_startup_trainings: int) -> None:
        self._scorer = scorer
        self._n_candidates = n_candidates
        self._n_startup_trainings = n_startup_trainings
        self._model = LearnedAggregation(exploring=True, correlation=_TRUST if scorer else _TRUST_ESTIMATES)
        self._scored: dict[Key, dict[str, float] | None] = {}  # of candidates; None where score failed
        self._order: list[Architecture] = []  # parents, the best first
        self._space: dict[str, BaseDistribution] = {}
        self._encoder = Encoder({})
        self._rows: dict[object, _Floats] = {}  # of the encoder, by trial number or candidate
        self._presence, self._presence_of = Presence([]), 0

    def propose(
        self,
        view: StudyView,
        space: dict[str, BaseDistribution],
        fixed: dict[str, Any],
        child: Callable[[Sequence[Architecture]], dict[str, Any]],
        accept: Callable[[dict[str, Any]], bool],
        rng: np.random.Generator,
    ) -> Iterator[dict[str, Any]]:
        """Yield architectures that the study does not hold, the one to train first.

        Args:
            view: The study.
            space: What is to be chosen, for all architectures alike.
            fixed: Parameters that are given.
            child: Draws values for ``space`` from parents; from none, uniformly.
            accept: Whether an architecture may be proposed.
            rng: Source of the random numbers.
        """
        trials = view.history.trials
        if len(trials) >= 1.15 * self._presence_of:
            self._presence = Presence([_architecture(trial) for trial in trials[-500:]])
            self._presence_of = len(trials)
        candidates = self._look(view, fixed, child, accept, rng)
        for i in self._ranked(view, candidates, rng) if candidates else ():
            if not view.holds(candidates[i].params):
                yield {name: candidates[i].params[name] for name in space}

    def _look(
        self,
        view: StudyView,
        fixed: dict[str, Any],
        child: Callable[[Sequence[Architecture]], dict[str, Any]],
        accept: Callable[[dict[str, Any]], bool],
        rng: np.random.Generator,
    ) -> list[Candidate]:
        """Return candidates; with scores, if there is somebody to compute them."""
        found: dict[Key, Candidate] = {}
        parents = self._order or [Architecture(_architecture(t), t.distributions) for t in view.history.best(_PARENTS)]
        for draw in range(_DRAWS * self._n_candidates):
            if len(found) == self._n_candidates:
                break
            params = {**child(parents if draw % 2 else ()), **fixed}
            asked = self._presence.present(params)
            key = _key(asked)
            if key in found or view.holds(params) or not accept(dict(params)):
                continue
            scores = self._scores(key, params, view.history.names)
            if scores is not None:
                found[key] = Candidate(params, asked, scores, key)
        return list(found.values())

    def _scores(self, key: Key, params: dict[str, Any], names: tuple[str, ...]) -> dict[str, float] | None:
        """Return a candidate's scores, computed once; empty where nobody computes them, ``None`` where that failed."""
        if self._scorer is None:
            return {}
        if key not in self._scored:
            while len(self._scored) >= _KEPT:
                del self._scored[next(iter(self._scored))]  # the oldest
            self._scored[key] = self._scorer(params, names)
        return self._scored[key]

    def _ranked(self, view: StudyView, candidates: list[Candidate], rng: np.random.Generator) -> list[int]:
        """Return positions of candidates, the one to train first."""
        history = view.history
        trials, n = history.trials, len(history.trials)
        table = np.full((n + len(candidates), len(history.names)), -np.inf)
        table[:n] = history.table
        parameters = self._encode(trials, candidates, view.space)
        if self._scorer is None:
            table = complete_scores(table, np.arange(len(table)) < n, parameters)
        else:
            table[n:] = [[candidate.scores[name] for name in history.names] for candidate in candidates]
        s = history.aggregate(table)
        own = np.argsort(-s[n:], kind="stable")
        outcome = np.full(len(table), np.nan)
        outcome[:n] = results(trials, view.study.direction)
        training = hyperparameters(trials)
        if training is not None:
            training = np.vstack([training, np.zeros((len(candidates), training.shape[1]))])
        trained = np.flatnonzero(~np.isnan(outcome))
        share = max(_FIRST_SHARE, len(trained) / _ALL_AFTER)
        chosen = own[: min(max(int(share * len(own)), _FEWEST), _MOST)]
        at = np.concatenate([trained[-_MOST:], n + chosen])
        mean, std, best = self._model.predict(table, outcome, parameters, training, prior=s, at=at)
        self._remember_parents(trials, candidates, at, mean)
        if len(trained) < self._n_startup_trainings:
            few = own[:_START_TOP] if self._scorer else own
            return [*map(int, rng.permutation(few)), *map(int, own[_START_TOP:])]
        if rng.random() < _EXPLORATION:
            return [int(i) for i in rng.permutation(chosen)]
        mean, std = mean[-len(chosen) :], std[-len(chosen) :]
        return [int(i) for i in chosen[np.argsort(-expected_improvement(mean, std, best), kind="stable")]]

    def _encode(
        self, trials: list[FrozenTrial], candidates: list[Candidate], space: dict[str, BaseDistribution]
    ) -> Parameters:
        if space != self._space:
            self._space, self._encoder, self._rows = dict(space), Encoder(space), {}
        keys: list[object] = [trial.number for trial in trials]
        keys += [candidate.key for candidate in candidates]
        everything = [trial.params for trial in trials] + [candidate.asked for candidate in candidates]
        named = {key: params for key, params in zip(keys, everything, strict=True) if key not in self._rows}
        encoded = self._encoder(list(named.values()))
        self._rows |= zip(named, np.hstack(encoded), strict=True)
        rows = np.array([self._rows[key] for key in keys])
        if len(self._rows) > 2 * len(keys):
            self._rows = {key: self._rows[key] for key in keys}
        return Parameters(*np.split(rows, [encoded.single.shape[1]], axis=1))

    def _remember_parents(
        self, trials: list[FrozenTrial], candidates: list[Candidate], at: npt.NDArray[np.intp], mean: _Floats
    ) -> None:
        """Keep those of whom most is expected as parents of the next candidates."""
        anyone = any(is_feasible(trial) for trial in trials)
        self._order = []
        space = self._space
        for i in at[np.argsort(-mean, kind="stable")]:
            if i >= len(trials):
                asked = candidates[i - len(trials)].asked
                self._order.append(Architecture(asked, {name: space[name] for name in asked if name in space}))
            elif is_feasible(trials[i]) or not anyone:
                self._order.append(Architecture(_architecture(trials[i]), trials[i].distributions))
            if len(self._order) == _PARENTS:
                break


def expected_improvement(mean: _Floats, std: _Floats, best: float) -> _Floats:
    """Return by how much results are expected to exceed ``best`` (Jones et al., 1998)."""
    if not np.isfinite(best):
        return mean
    deviation = np.maximum(std, 1e-12)
    z = (mean - best) / deviation
    return (mean - best) * ndtr(z) + deviation * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)


def _architecture(trial: FrozenTrial) -> dict[str, Any]:
    return {name: trial.params[name] for name in architecture_names(trial)}


def _key(params: dict[str, Any]) -> Key:
    return frozenset(describe(params).items())
