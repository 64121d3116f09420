"""Maximises the expected improvement of the trained value over architectures and hyperparameters together.

Notation: a *point* is a configuration, an architecture (a row of the proposal's table) with hyperparameters (a position
in their space). The expected improvement is that of Jones et al. (1998), augmented as by Huang et al. (2006) for noisy
values, its logarithm computed as by Ament et al. (2023, arXiv:2310.20708).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from scipy.special import erfcx, ndtr

from optuna_aznas.aggregation import Parameters
from optuna_aznas.aggregation.posterior import Posterior
from optuna_aznas.sampler.candidates import Candidate, Key
from optuna_aznas.sampler.strategy import Params
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.attributes import architecture_params
from optuna_aznas.study.encoding import HyperparameterSpace

_N_INCUMBENTS = 10  # trained configurations with the highest posterior mean, whose hyperparameters are varied
_N_VARIED = 100  # variations of theirs, and as many random positions, in the first round
_POSITIONS = 8  # positions that each architecture is given in the first round
_ROUNDS = 4  # further rounds
_N_BEST = 10  # points that a further round varies
_CHILDREN = 48  # variations of each, half in the hyperparameters and half in the architecture
_LEAST_STD = 1e-12  # a smaller standard deviation counts as this, so that logarithms are finite
_N_SPREAD = 4  # random positions of which the farthest from all trained ones is taken before n_startup_trainings

_Floats = npt.NDArray[np.float64]
_Positions = npt.NDArray[np.intp]


class _Points(NamedTuple):
    """Configurations.

    Attributes:
        rows: The architectures: positions in the table, shape (k,).
        positions: The hyperparameters, shape (k, h).
    """

    rows: _Positions
    positions: _Floats


@dataclasses.dataclass(frozen=True)
class ProposalData:
    """What one proposal works on. Rows of arrays are trials, running trials, and candidates, in this order.

    Attributes:
        view: The study.
        hyperparameters: Those that all trained trials have.
        chooses_hyperparameters: Whether any of them are to be chosen.
        fixed: Parameters whose values the user has fixed.
        running: The running trials whose proxy scores and hyperparameters are known.
        candidates: New architectures.
        parameters: Architectures as numbers.
        table: Proxy scores.
        graph: Features of the networks' graphs; ``None`` where nothing is known of them.
        s: Rank scores.
        values: Trained values, NaN where there is none.
        trained: Positions of the trained trials.
        positions: Hyperparameters of trained and running trials.
    """

    view: StudyView
    hyperparameters: HyperparameterSpace
    chooses_hyperparameters: bool
    fixed: Mapping[str, Any]
    running: list[Candidate]
    candidates: list[Candidate]
    parameters: Parameters
    table: _Floats
    graph: _Floats | None
    s: _Floats
    values: _Floats
    trained: _Positions
    positions: _Floats

    @property
    def n_trials(self) -> int:
        return len(self.view.history)

    def params(self, row: int) -> Params:
        """Return the architecture of a row."""
        if row < self.n_trials:
            return architecture_params(self.view.history.trials[row])
        return [*self.running, *self.candidates][row - self.n_trials].params

    def pinned(self, positions: _Floats) -> _Floats:
        """Return positions with the values that the user has fixed."""
        return self.hyperparameters.with_values(positions, self.fixed)


def maximise(
    data: ProposalData, posterior: Posterior, new: _Positions, rng: np.random.Generator
) -> Iterator[tuple[int, _Floats]]:
    """Yield configurations by expected improvement, the best first; of each architecture the best one.

    Without hyperparameters all new architectures are compared. With them, each architecture, trained ones too, is
    combined with variations of the incumbents' hyperparameters and with random ones. Then the best points are varied
    for some rounds, in the hyperparameters or in the architecture.
    """

    def log_improvement(points: _Points) -> _Floats:
        columns = data.hyperparameters.columns(points.positions).values if data.chooses_hyperparameters else None
        mean, std = posterior.predict(points.rows, columns)
        std = np.maximum(std, _LEAST_STD)
        return log_expected_improvement(mean, std, posterior.best) + log_augmentation(std, posterior.noise_std)

    if not data.chooses_hyperparameters:
        points = _Points(new, np.zeros((len(new), len(data.hyperparameters))))
        gain = log_improvement(points)
    else:
        mean = posterior.mean(data.trained, data.hyperparameters.columns(data.positions[data.trained]).values)
        incumbents = data.trained[np.argsort(-mean, kind="stable")[:_N_INCUMBENTS]]
        architectures = np.concatenate([new, incumbents])
        points = _first_points(data, architectures, incumbents, rng)
        gain = log_improvement(points)
        for _ in range(_ROUNDS):
            best = np.argsort(-gain, kind="stable")[:_N_BEST]
            more = _varied(data, _Points(points.rows[best], points.positions[best]), architectures, rng)
            points = _Points(*(np.concatenate(pair) for pair in zip(points, more, strict=True)))
            gain = np.concatenate([gain, log_improvement(more)])
    return _best_of_each(data, points, gain)


def _first_points(
    data: ProposalData, architectures: _Positions, incumbents: _Positions, rng: np.random.Generator
) -> _Points:
    """Return each architecture with some positions: incumbents', variations of them, and random ones."""
    space, own = data.hyperparameters, data.positions[incumbents]
    varied = space.varied(own[rng.integers(len(own), size=_N_VARIED)], rng)
    pool = np.vstack([own, varied, space.random(_N_VARIED, rng)])
    rows = np.repeat(architectures, _POSITIONS)
    return _Points(rows, data.pinned(pool[rng.integers(len(pool), size=len(rows))]))


def _varied(data: ProposalData, points: _Points, architectures: _Positions, rng: np.random.Generator) -> _Points:
    """Return variations of points: one half with other hyperparameters, the other with another architecture."""
    half = _CHILDREN // 2
    rows, positions = np.repeat(points.rows, half), np.repeat(points.positions, half, axis=0)
    others = architectures[rng.integers(len(architectures), size=len(rows))]
    return _Points(np.concatenate([rows, others]), np.vstack([data.hyperparameters.varied(positions, rng), positions]))


def _best_of_each(data: ProposalData, points: _Points, gain: _Floats) -> Iterator[tuple[int, _Floats]]:
    """Yield the best point of each architecture, best first, without configurations that were trained or run."""
    held: dict[bytes, list[int]] = {}  # rows of configurations that were trained or run, by their position
    if data.chooses_hyperparameters:
        for row in (*data.trained, *range(data.n_trials, data.n_trials + len(data.running))):
            held.setdefault(data.positions[row].tobytes(), []).append(int(row))
    key_of = functools.cache(functools.partial(_key, data))
    seen: set[Key] = set()
    for i in np.argsort(-gain, kind="stable"):
        key = key_of(int(points.rows[i]))
        if key not in seen and all(key_of(row) != key for row in held.get(points.positions[i].tobytes(), ())):
            seen.add(key)
            yield int(points.rows[i]), points.positions[i]


def _key(data: ProposalData, row: int) -> Key:
    """Return what identifies the architecture of a row."""
    if row >= data.n_trials:
        return [*data.running, *data.candidates][row - data.n_trials].key
    return frozenset(data.view.describe(architecture_params(data.view.history.trials[row])).items())


def spread(data: ProposalData, rng: np.random.Generator) -> _Floats:
    """Return the one of some random positions that is farthest from those of all trained and running trials."""
    drawn = data.pinned(data.hyperparameters.random(_N_SPREAD, rng))
    known = [*data.trained, *range(data.n_trials, data.n_trials + len(data.running))]
    if not known or not data.chooses_hyperparameters:
        return drawn[0]
    columns, others = (data.hyperparameters.columns(some).values for some in (drawn, data.positions[known]))
    return drawn[int(np.argmax(cdist(columns, others).min(axis=1)))]


def log_augmentation(std: _Floats, noise_std: float) -> _Floats:
    """Return the logarithm of 1 - noise_std / sqrt(std^2 + noise_std^2): how much another training would tell.

    The factor of the augmented expected improvement (Huang et al. 2006, Journal of Global Optimization 34): 1 without
    noise, and near 0 where the posterior's standard deviation is small beside the noise. Without it the best
    configuration so far is trained again and again, as it is expected to improve on itself by 0.4 of its deviation.

    Args:
        std: Posterior standard deviations, above 0, shape (n,).
        noise_std: Standard deviation of the noise.
    """
    total = np.hypot(std, noise_std)
    # With t the total and n the noise: 1 - n / t = std^2 / (t (t + n)), which does not cancel.
    return 2.0 * np.log(std) - np.log(total) - np.log(total + noise_std)


def log_expected_improvement(mean: _Floats, std: _Floats, best: float) -> _Floats:
    """Return the logarithm of the amount by which normal variables are expected to exceed ``best``.

    The expected improvement is that of Jones et al. (1998). Its logarithm is computed as by Ament et al. (2023,
    arXiv:2310.20708), so that it does not underflow far below ``best``.

    Args:
        mean: Their means, shape (n,).
        std: Their standard deviations, above 0, shape (n,).
        best: The value to exceed.
    """
    z = (mean - best) / std
    log_density = -0.5 * z * z - 0.5 * np.log(2.0 * np.pi)
    near = np.maximum(z, -1.0)
    at_hand = np.log(near * ndtr(near) + np.exp(-0.5 * near * near) / np.sqrt(2.0 * np.pi))
    # Below: log density(z) + log(1 - |z| sqrt(pi / 2) erfcx(|z| / sqrt(2))), whose last term goes to -2 log |z|.
    below, far = np.clip(z, -1e4, -1.0), np.minimum(z, -1e4)
    ratio = np.log1p(np.sqrt(np.pi / 2.0) * below * erfcx(-below / np.sqrt(2.0)))
    under = log_density + np.where(z > -1e4, ratio, -2.0 * np.log(-far))
    return np.log(std) + np.where(z > -1.0, at_hand, under)
