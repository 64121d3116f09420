"""DrawingTrial: a trial outside of any study, by which the sampler learns what an objective would suggest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from optuna_aznas._optuna import contains
from optuna_aznas.study.values import canonical


class DrawingTrial(FixedTrial):
    """A trial that has some parameters and draws those that it lacks.

    A function that builds a network from it suggests a whole architecture, conditional parameters included: afterwards
    ``params`` and ``distributions`` hold what was suggested, and nothing else.

    Args:
        params: Values to take, where the suggested distribution contains them.
        fixed: Values to take in any case, as Optuna takes those that were enqueued.
        draw: Draws a value of a distribution.
    """

    def __init__(
        self, params: Mapping[str, Any], fixed: Mapping[str, Any], draw: Callable[[BaseDistribution], Any]
    ) -> None:
        self._given, self._fixed, self._draw = params, fixed, draw
        self._chosen: dict[str, Any] = {}
        self.drawn: set[str] = set()
        super().__init__(self._chosen)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self._choose(name, FloatDistribution(low, high, step=step, log=log))
        return super().suggest_float(name, low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self._choose(name, IntDistribution(low, high, step=step, log=log))
        return super().suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self._choose(name, CategoricalDistribution(choices))
        return super().suggest_categorical(name, choices)

    def _choose(self, name: str, distribution: BaseDistribution) -> None:
        """Choose the value of a parameter when it is suggested first."""
        if name in self._chosen:
            return
        if name in self._fixed:
            self._chosen[name] = self._fixed[name]
        elif name in self._given and contains(distribution, self._given[name]):
            self._chosen[name] = canonical(self._given[name], distribution)
        else:
            self._chosen[name] = self._draw(distribution)
            self.drawn.add(name)
