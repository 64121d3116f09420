"""Measurement: a number of a network. Imports neither torch nor optuna."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A number of a network, from one or more runs.

    Attributes:
        median: The median of the runs.
        spread: Interquartile range of the runs, at least 0; 0 for what is counted.
        n: Number of runs.
        unit: Unit of ``median`` and ``spread``.

    Example:
        >>> print(Measurement(14.2, 0.4, 20, "ms"))
        14.2 ms (spread 0.4, 20 runs)
    """

    median: float
    spread: float = 0.0
    n: int = 1
    unit: str = ""

    @property
    def upper(self) -> float:
        """``median + spread``: what a limit is compared with, so that it has a margin."""
        return self.median + self.spread

    def __str__(self) -> str:
        value = f"{self.median:.4g} {self.unit}".rstrip()
        return f"{value} (spread {self.spread:.2g}, {self.n} runs)" if self.n > 1 else value


def as_measurement(number: Any, what: str, unit: str = "") -> Measurement:
    """Return a number as a measurement.

    Args:
        number: A measurement, or anything that ``float`` takes.
        what: What it is, for the message.
        unit: The unit of a number that is no measurement.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(number, Measurement):
        return number
    try:
        return Measurement(float(number), unit=unit)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} must be a number or a Measurement; got {number!r}.") from None
