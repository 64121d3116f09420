"""Evolution: proposes children of the trials with the highest rank scores. Used where nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from optuna_aznas._arguments import check_count
from optuna_aznas.sampler.admission import LIKELY, Admission, Examined
from optuna_aznas.sampler.strategy import Params, Space
from optuna_aznas.sampler.variation import Variation
from optuna_aznas.sampler.view import StudyView

_TRIES = 100  # children, and then random candidates, that are drawn before a duplicate is proposed
_MORE_TRIES = 1000  # and after that, while no candidate has passed candidate_filter and limits
_WIDEN = 10  # after each of so many tries one more parameter mutates: close to the parents all may be duplicates


class Evolution:
    """A strategy: children of the ``population_size`` best trials by rank score.

    Args:
        variation: Makes children.
        admission: Which candidates may be proposed.
        population_size: As in :class:`~optuna_aznas.AZNASSampler`.
        n_startup_trials: As in :class:`~optuna_aznas.AZNASSampler`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, variation: Variation, admission: Admission, population_size: int, n_startup_trials: int) -> None:
        check_count("population_size", population_size)
        check_count("n_startup_trials", n_startup_trials)
        self._variation = variation
        self._admission = admission
        self._population_size = population_size
        self.n_startup_trials = n_startup_trials

    def search_space(self, view: StudyView) -> Space:
        """Return the space of a random member of the population; before evolution starts, of any scored trial."""
        trials = self._population(view) or view.history.trials
        return view.space_of(trials[int(self._variation.rng.integers(len(trials)))]) if trials else {}

    def propose(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Iterator[Params]:
        """Yield architectures without end; each is new and passes the admission if one was found that is and does.

        Args:
            view: The study.
            space: What is to be chosen.
            fixed: Architecture parameters whose values the user has fixed.
        """
        while True:
            yield self._propose_one(view, space, fixed)

    def _propose_one(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Params:
        """Return the first of some candidates that is new, passes, and probably keeps all constraints.

        In the order of preference: otherwise the likeliest one that is new and passes; a duplicate that passes; the one
        that exceeds its limits least; any.
        """
        likeliest: tuple[float, Params] | None = None
        duplicate: Params | None = None
        closest = _Closest()
        for drawn in self._draw(view, space, fixed, closest):
            candidate = {**drawn, **fixed}
            examined = self._admission.examine(view, candidate, space, fixed)
            if examined is None:
                continue
            closest.add(examined)
            if not examined.passes:
                if examined.space.keys() <= fixed.keys():
                    break  # every other candidate would be the same
            elif view.is_duplicate(examined.architecture):
                duplicate = duplicate or examined.params
            else:
                probability = self._admission.probability(view, examined)
                if probability >= LIKELY:
                    return examined.params
                likeliest = max(likeliest or (-1.0, {}), (probability, examined.params), key=lambda pair: pair[0])
        if likeliest is not None:
            return likeliest[1]
        if duplicate is not None:
            return duplicate
        if closest.examined is None:
            return candidate
        self._admission.warn_exceeded(closest.examined, fixed)
        return closest.examined.params

    def _draw(self, view: StudyView, space: Space, fixed: Mapping[str, Any], closest: _Closest) -> Iterator[Params]:
        """Yield candidates: ``_TRIES`` children, if there are parents, and as many random ones.

        If none of them has passed, more: random ones, and children of the one that exceeds its limits least.
        """
        parents = self._parents(view, space, fixed)
        if parents:
            for i in range(_TRIES):
                yield self._variation.child(parents, space, n_extra_mutations=i // _WIDEN)
        for _ in range(_TRIES):
            yield self._variation.random(space)
        for i in range(_MORE_TRIES):
            if closest.passes:
                return
            near = closest.examined if i % 2 else None
            yield self._variation.random(space) if near is None else self._variation.child([near], near.space)

    def _population(self, view: StudyView) -> list[FrozenTrial]:
        """Return the best trials, best first; none before there are ``n_startup_trials`` scored ones."""
        return view.history.best(self._population_size) if len(view.history) >= self.n_startup_trials else []

    def _parents(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> list[FrozenTrial]:
        """Return the members of the population that have all of ``space`` by the same distributions.

        Those that have no other parameters than these and the fixed ones are preferred: their children need nothing
        else. If there are none, the others are returned.
        """
        spaces = [(trial, view.space_of(trial)) for trial in self._population(view)]
        having_all = [(trial, own) for trial, own in spaces if space.items() <= own.items()]
        having_no_more = [trial for trial, own in having_all if own.keys() <= space.keys() | fixed.keys()]
        return having_no_more or [trial for trial, _ in having_all]


class _Closest:
    """The candidate that exceeds its limits least so far.

    Attributes:
        examined: That candidate; of those that ``candidate_filter`` rejects, the last. ``None`` before the first.
    """

    def __init__(self) -> None:
        self.examined: Examined | None = None

    @property
    def passes(self) -> bool:
        """Whether a candidate has passed."""
        return self.examined is not None and self.examined.passes

    def add(self, examined: Examined) -> None:
        """Add a candidate."""
        if self.examined is None or _miss(examined) <= _miss(self.examined):
            self.examined = examined


def _miss(examined: Examined) -> tuple[bool, float]:
    return not examined.is_accepted, examined.exceeded
