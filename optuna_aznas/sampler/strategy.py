"""Strategy: the interface of evolution and Bayesian optimisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from optuna.distributions import BaseDistribution

from optuna_aznas.sampler.view import StudyView

#: Parameter name -> value.
Params = dict[str, Any]

#: Parameter name -> distribution.
Space = dict[str, BaseDistribution]


class Strategy(Protocol):
    """A way to choose the next architecture. It keeps no state that cannot be rebuilt from the study."""

    def search_space(self, view: StudyView) -> Space:
        """Return the parameters of the next architecture, as far as they are chosen together."""

    def propose(self, view: StudyView, space: Space, fixed: Mapping[str, Any]) -> Iterator[Params]:
        """Yield values for all of ``space``, the best proposal first.

        Args:
            view: The study.
            space: What is to be chosen.
            fixed: Architecture parameters whose values the user has fixed.
        """
