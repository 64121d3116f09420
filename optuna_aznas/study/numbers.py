"""Numbers of a network beside its proxy scores, such as its latency: how a trial stores them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import BaseTrial, FrozenTrial

from optuna_aznas._measurement import Measurement, as_measurement
from optuna_aznas._text import for_json

#: Prefix of the user attributes that hold a trial's numbers, one attribute for each.
NUMBER_PREFIX = "aznas:number:"


@dataclasses.dataclass(frozen=True)
class RecordedNumber:
    """A number as a trial stores it.

    Attributes:
        measurement: The number.
        limit: What the sampler does not let it exceed; ``None`` where it has no limit.
    """

    measurement: Measurement
    limit: float | None = None


def record_numbers(trial: BaseTrial, numbers: Mapping[str, Measurement | float]) -> None:
    """Store numbers of a network, such as its latency, on a trial.

    They are columns of :func:`~optuna_aznas.leaderboard` and of the study's note, and can be an axis of
    :func:`~optuna_aznas.visualization.plot_complexity`. What :class:`~optuna_aznas.Limits` measures is stored by the
    sampler.

    Args:
        trial: The running trial.
        numbers: By name. A number of the same name is replaced.

    Raises:
        ValueError: A name is not a non-empty string, or a number is not a number.

    Example:
        >>> import optuna
        >>> trial = optuna.create_study().ask()
        >>> record_numbers(trial, {"latency": Measurement(14.2, 0.4, 20, "ms"), "watts": 5})
    """
    for key, value in number_attributes(numbers, {}).items():
        trial.set_user_attr(key, value)


def number_attributes(
    numbers: Mapping[str, Measurement | float], limits: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the user attributes that store numbers, with the limits that the sampler enforces; plain JSON."""
    attributes = {}
    for name, number in numbers.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"numbers must have names as keys; got {name!r}.")
        fields = dataclasses.asdict(as_measurement(number, f"numbers[{name!r}]"))
        if limits.get(name) is not None:
            fields["limit"] = limits[name]
        attributes[f"{NUMBER_PREFIX}{name}"] = {key: for_json(value) for key, value in fields.items()}
    return attributes


def recorded_numbers(trial: FrozenTrial) -> dict[str, RecordedNumber]:
    """Return the numbers that are stored on a trial by name, without those that cannot be read."""
    found = {}
    for key, value in trial.user_attrs.items():
        if not key.startswith(NUMBER_PREFIX) or not isinstance(value, Mapping):
            continue
        try:
            measurement = Measurement(
                float(value["median"]),
                float(value.get("spread", 0.0)),
                int(value.get("n", 1)),
                str(value.get("unit", "")),
            )
            limit = None if value.get("limit") is None else float(value["limit"])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if not math.isnan(measurement.median):
            found[key.removeprefix(NUMBER_PREFIX)] = RecordedNumber(measurement, limit)
    return found
