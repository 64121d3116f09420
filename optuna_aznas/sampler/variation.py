"""Variation: makes children, by selecting parents, crossover and mutation on Optuna's distributions."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_aznas._optuna import contains
from optuna_aznas.study.values import canonical, index_of, nearest, same_distribution

_STEP = 0.15  # standard deviation of a numerical mutation, as a fraction of the range on the distribution's own scale


class Parent(Protocol):
    """What a parent has: a trial, or an :class:`Architecture`."""

    @property
    def params(self) -> dict[str, Any]: ...

    @property
    def distributions(self) -> dict[str, BaseDistribution]: ...


class Architecture(NamedTuple):
    """An architecture that can be a parent.

    Attributes:
        params: Its parameters.
        distributions: Their distributions.
    """

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


class Variation:
    """Makes random and child architectures.

    Args:
        n_mutations: As in :class:`~optuna_aznas.AZNASSampler`.
        crossover_prob: As in :class:`~optuna_aznas.AZNASSampler`.
        seed: Seed of the random numbers.

    Attributes:
        rng: Source of the random numbers, for the strategies' own draws too.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, n_mutations: int | tuple[int, int], crossover_prob: float, seed: int | None) -> None:
        counts = (n_mutations, n_mutations) if isinstance(n_mutations, int) else n_mutations
        if (
            isinstance(n_mutations, bool)
            or not isinstance(counts, tuple | list)
            or len(counts) != 2
            or not all(isinstance(count, int) for count in counts)
            or not 1 <= counts[0] <= counts[1]
        ):
            raise ValueError(
                "n_mutations must be an integer of at least 1, or a pair of them in ascending order; "
                f"got {n_mutations!r}."
            )
        if not isinstance(crossover_prob, int | float) or not 0.0 <= crossover_prob <= 1.0:
            raise ValueError(f"crossover_prob must be a probability between 0 and 1; got {crossover_prob!r}.")
        self._fewest, self._most = counts
        self._crossover_prob = crossover_prob
        self._seed(seed)

    def reseed(self) -> None:
        """Draw from a new, unpredictable source from now on."""
        self._seed(None)

    def _seed(self, seed: int | None) -> None:
        source = np.random.SeedSequence(seed)
        self.rng = np.random.default_rng(source)
        self._entropy: Any = source.entropy

    def rng_of(self, number: int, name: str) -> np.random.Generator:
        """Return a source for one parameter of one trial: equal seeds do not draw equal values in two trials."""
        return np.random.default_rng([self._entropy, number, zlib.crc32(name.encode())])

    def random(self, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Return values for all of ``space``, drawn uniformly on each distribution's own scale."""
        return {name: sample_uniform(distribution, self.rng) for name, distribution in space.items()}

    def child(
        self, parents: Sequence[Parent], space: Mapping[str, BaseDistribution], n_extra_mutations: int = 0
    ) -> dict[str, Any]:
        """Return values for all of ``space``: a mutated copy of one parent or of a mix of two.

        Args:
            parents: Parents, the best first; the k-th is drawn with a probability proportional to 1 / k. Without any,
                the values are random.
            space: The child's parameters. What a parent lacks is drawn uniformly.
            n_extra_mutations: Parameters that change beyond ``n_mutations``.
        """
        if not parents:
            return self.random(space)
        mother = self._select(parents)
        child = {name: inherit(mother.params.get(name), d, self.rng) for name, d in space.items()}
        if self._crossover_prob and self.rng.random() < self._crossover_prob:
            father = self._select(parents)
            child = cross(child, father.params, space, father.distributions, self.rng)
        names = [name for name, distribution in space.items() if not distribution.single()]
        count = min(int(self.rng.integers(self._fewest, self._most + 1)) + n_extra_mutations, len(names))
        for i in self.rng.choice(len(names), count, replace=False) if names else ():
            child[names[i]] = mutate(child[names[i]], space[names[i]], self.rng)
        return child

    def _select(self, parents: Sequence[Parent]) -> Parent:
        place = np.searchsorted(_cumulative_probabilities(len(parents)), self.rng.random(), side="right")
        return parents[int(place)]


def sample_uniform(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw a value uniformly on the distribution's own scale."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    return _from_unit(distribution, float(rng.random()))


def inherit(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Return a parent's value, or a random one where the distribution does not, or no longer, contain it."""
    if isinstance(distribution, CategoricalDistribution):
        try:
            return distribution.choices[index_of(distribution, value)]
        except ValueError:
            return sample_uniform(distribution, rng)
    return canonical(value, distribution) if contains(distribution, value) else sample_uniform(distribution, rng)


def mutate(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Return a value near ``value`` and different from it (but for a distribution with a single value).

    Categorical: one of the other choices, uniformly. Int and float: a normal step on the distribution's own scale,
    reflected at its bounds; log and step are respected.
    """
    if distribution.single():
        return value
    if isinstance(distribution, CategoricalDistribution):
        i = int(rng.integers(len(distribution.choices) - 1))
        return distribution.choices[i + (i >= index_of(distribution, value))]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    value = canonical(value, distribution)
    unit = _to_unit(distribution, value)
    for _ in range(8):
        moved = (unit + _STEP * float(rng.standard_normal())) % 2.0  # reflected: 1.2 becomes 0.8, -0.2 becomes 0.2
        mutated = _from_unit(distribution, min(moved, 2.0 - moved))
        if mutated != value:
            return mutated
    # The grid is coarser than the steps drawn: take a neighbouring value.
    step = distribution.step or 0.0
    neighbours = [nearest(distribution, neighbour) for neighbour in (value - step, value + step)]
    others = [neighbour for neighbour in neighbours if neighbour != value]
    return others[int(rng.integers(len(others)))] if others else value


def cross(
    mother: Mapping[str, Any],
    father: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    father_space: Mapping[str, BaseDistribution],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return a child that has each parameter of the mother from either parent, each equally likely. A parameter that
    the father lacks, or has by another distribution, is the mother's.
    """
    child = dict(mother)
    for name, distribution in space.items():
        if name in father and same_distribution(father_space.get(name), distribution) and rng.random() < 0.5:
            child[name] = canonical(father[name], distribution)
    return child


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Return the bounds of the scale on which steps are taken. They lie half a step beyond those of a grid, so that all
    of its values are equally likely.
    """
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        half = 0.5 if distribution.log else distribution.step / 2
    else:
        half = (distribution.step or 0.0) / 2
    low, high = low - half, high + half
    return (float(np.log(low)), float(np.log(high))) if distribution.log else (low, high)


def _to_unit(distribution: BaseDistribution, value: Any) -> float:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    scaled = float(np.log(value)) if distribution.log else float(value)
    return (scaled - low) / (high - low)


def _from_unit(distribution: BaseDistribution, unit: float) -> Any:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    value = low + unit * (high - low)
    if distribution.log:
        value = float(np.exp(value))
    return nearest(distribution, value)


@functools.lru_cache(maxsize=8)
def _cumulative_probabilities(n: int) -> npt.NDArray[np.float64]:
    """Return the cumulative probabilities of the places 1 to ``n``, each proportional to 1 / place."""
    total = np.cumsum(1.0 / np.arange(1, n + 1))
    return total / total[-1]
