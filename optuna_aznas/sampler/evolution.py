"""Evolution: proposes children of the trials with the highest rank scores. Used where nothing is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from optuna_aznas._arguments import check_count
from optuna_aznas.sampler.candidates import CandidateFilter
from optuna_aznas.sampler.strategy import Params, Space
from optuna_aznas.sampler.variation import Variation
from optuna_aznas.sampler.view import StudyView

_TRIES = 100  # children, and then random candidates, that are drawn before a duplicate is proposed
_WIDEN = 10  # after each of so many tries one more parameter mutates: close to the parents all may be duplicates


class Evolution:
    """A strategy: children of the ``population_size`` best trials by rank score.

    Args:
        variation: Makes children.
        candidate_filter: As in :class:`~optuna_aznas.AZNASSampler`.
        population_size: As in :class:`~optuna_aznas.AZNASSampler`.
        n_startup_trials: As in :class:`~optuna_aznas.AZNASSampler`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, variation: Variation, candidate_filter: CandidateFilter, population_size: int, n_startup_trials: int
    ) -> None:
        check_count("population_size", population_size)
        check_count("n_startup_trials", n_startup_trials)
        self._variation = variation
        self._candidate_filter = candidate_filter
        self._population_size = population_size
        self.n_startup_trials = n_startup_trials

    def search_space(self, view: StudyView) -> Space:
        """Return the space of a random member of the population; before evolution starts, of any scored trial."""
        trials = self._population(view) or view.history.trials
        return view.space_of(trials[int(self._variation.rng.integers(len(trials)))]) if trials else {}

    def propose(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Iterator[Params]:
        """Yield candidates without end; each is new and passes ``candidate_filter`` if one was found that is and does.

        Args:
            view: The study.
            space: What is to be chosen.
            fixed: Architecture parameters whose values the user has fixed.
        """
        while True:
            yield self._propose_one(view, space, fixed)

    def _propose_one(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Params:
        duplicate: Params | None = None
        for candidate in self._draw(self._parents(view, space, fixed), space):
            architecture = {**candidate, **fixed}
            if self._candidate_filter(dict(architecture)):
                if not view.is_duplicate(architecture):
                    return candidate
                duplicate = duplicate or candidate
        if duplicate is None:
            warnings.warn(
                f"candidate_filter rejected all of {_TRIES} random candidates; the last one is proposed all the same. "
                "Check candidate_filter, or let it accept more.",
                stacklevel=2,
            )
            return candidate
        return duplicate

    def _draw(self, parents: list[FrozenTrial], space: Space) -> Iterator[Params]:
        """Yield ``_TRIES`` children, if there are parents, and as many random candidates."""
        if parents:
            for i in range(_TRIES):
                yield self._variation.child(parents, space, n_extra_mutations=i // _WIDEN)
        for _ in range(_TRIES):
            yield self._variation.random(space)

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
