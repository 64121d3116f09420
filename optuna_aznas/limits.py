"""Limits: the numbers that a network must not exceed, and how they are measured."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from optuna import TrialPruned
from optuna.trial import BaseTrial
from torch import nn

from optuna_aznas import measure
from optuna_aznas._arguments import check_callable
from optuna_aznas._measurement import Measurement, as_measurement

__all__ = ["Limit", "Limits"]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit on a number of your own.

    Attributes:
        maximum: The greatest value that is allowed, above 0.
        measure: Called with a network, returns its number: a float or a :class:`~optuna_aznas.measure.Measurement`. Of
            the latter, median and spread together must not exceed the limit.
        unit: Unit of the number.
        cheap: Whether ``measure`` is cheap and needs no weights. It is then called before anything else is measured,
            with a network on the ``meta`` device. Otherwise it is called last, with a network that has weights, and
            only for candidates that probably keep the limit.

    Raises:
        ValueError: ``maximum`` is not above 0, or ``measure`` is not callable.

    Example:
        >>> layers = Limit(20, lambda network: len(list(network.modules())), cheap=True)
    """

    maximum: float
    measure: Callable[[Any], float | Measurement]
    unit: str = ""
    cheap: bool = False

    def __post_init__(self) -> None:
        if self.measure is None:
            raise ValueError("measure must be callable; got None.")
        check_callable("measure", self.measure)
        _check_maximum("maximum", self.maximum)


class Limits:
    """Numbers that no network of a search may exceed, for ``AZNASSampler(limits=...)``.

    The sampler checks a candidate before it is proposed, so before it is scored. It calls ``build`` with a trial of its
    own, which has the candidate's parameters. What is cheap comes first: parameters, multiply-accumulates and memory
    are counted on torch's ``meta`` device, without weights. What has to be measured, as latency, is measured last, for
    a candidate that is about to be proposed, and only if a model learned from the study's trials considers it likely
    that the limit is kept.

    As ``build`` says which parameters an architecture has, the first trial keeps the limits too, and conditional
    parameters are never guessed. ``Limits(build)`` without any limit serves a ``candidate_filter`` in the same way.

    What is measured is stored on the trial (:func:`~optuna_aznas.record_numbers`) and becomes its constraints, as
    ``number / limit - 1``: a trial whose parameters you have fixed yourself may exceed a limit, and is then infeasible.

    Args:
        build: A function that takes a trial and returns a network: the one that the objective calls.
        input_shape: Shape of one sample, without the batch dimension; all but ``parameters`` need it.
        device: Where latency is measured, and peak memory.
        batch_size: Samples in the batch for latency and peak memory.
        **limits: The greatest values that are allowed: ``parameters``; ``complexity``, in multiply-accumulates;
            ``peak_memory``, in bytes; ``latency``, in milliseconds (:mod:`optuna_aznas.measure`); or a :class:`Limit`
            under any name.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import optuna_aznas as az
        >>> build = az.spaces.nas_bench_201.build
        >>> limits = Limits(build, (3, 32, 32), parameters=1e6, complexity=100e6)
        >>> study = az.create_study(sampler=az.AZNASSampler(limits=limits, seed=0))
        >>> params = study.ask().relative_params
        >>> limits.measure(az.spaces.nas_bench_201.Network(list(params.values())))["parameters"].median <= 1e6
        True
    """

    def __init__(
        self,
        build: Callable[[BaseTrial], Any],
        input_shape: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 1,
        **limits: float | Limit,
    ) -> None:
        if build is None:
            raise ValueError("build must be callable; got None.")
        check_callable("build", build)
        try:
            kind = torch.device(device).type
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device must be a device such as 'cpu' or 'cuda'; got {device!r}.") from error
        # By name, in the order in which they are measured.
        measures: dict[str, Callable[[Any], Measurement]] = {
            "parameters": measure.parameters,
            "complexity": functools.partial(measure.multiply_accumulates, input_shape=input_shape),
            "peak_memory": functools.partial(
                measure.peak_memory, input_shape=input_shape, device=device, batch_size=batch_size
            ),
            "latency": functools.partial(
                measure.latency, input_shape=input_shape, device=device, batch_size=batch_size
            ),
        }
        found: dict[str, Limit] = {}
        for name, limit in limits.items():
            if isinstance(limit, Limit):
                found[name] = limit
                continue
            if name not in measures:
                raise ValueError(
                    f"There is no limit {name!r}; there is {', '.join(measures)}. Limit a number of your own with "
                    f"{name}=Limit({limit!r}, measure)."
                )
            _check_maximum(name, limit)
            if name != "parameters" and input_shape is None:
                raise ValueError(f"input_shape is needed to measure {name}: one sample, such as (3, 32, 32).")
            cheap = name in ("parameters", "complexity") or (name == "peak_memory" and kind != "cuda")
            found[name] = Limit(float(limit), measures[name], cheap=cheap)
        order = list(measures)
        places = {name: order.index(name) if name in order else len(order) for name in found}
        self._build = build
        self._limits = dict(sorted(found.items(), key=lambda item: (not item[1].cheap, places[item[0]])))
        self._on_meta = True  # until a network turns out not to be built there

    @property
    def maxima(self) -> dict[str, float]:
        """The limits by name."""
        return {name: limit.maximum for name, limit in self._limits.items()}

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of those that are not cheap."""
        return tuple(name for name, limit in self._limits.items() if not limit.cheap)

    def measure(self, network: nn.Module) -> dict[str, Measurement]:
        """Measure all numbers of a network, for example of the one that you have chosen.

        Args:
            network: A network with weights.

        Returns:
            Name -> number.
        """
        return self._measure(network, self._limits)

    def cheap_numbers(self, trial: BaseTrial) -> dict[str, Measurement]:
        """Build the network of a trial, if possible on the ``meta`` device, and return its cheap numbers.

        Those that would follow one that exceeds its limit are left out.

        Raises:
            Exception: What ``build`` or a function of your own raises.
        """
        cheap = [name for name, limit in self._limits.items() if limit.cheap]
        with measure.undisturbed_random_states():
            network = self._built_without_weights(trial)
            numbers: dict[str, Measurement] = {}
            for name in cheap:
                numbers |= self._measure(network, [name])
                if numbers[name].upper > self._limits[name].maximum:
                    break
            return numbers

    def measured_numbers(self, trial: BaseTrial) -> dict[str, Measurement]:
        """Build the network of a trial and return the numbers that are not cheap.

        Raises:
            Exception: What ``build`` or a function of your own raises.
        """
        with measure.undisturbed_random_states():
            return self._measure(self._build(trial), self.measured)

    def _built_without_weights(self, trial: BaseTrial) -> Any:
        if self._on_meta:
            try:
                with torch.device("meta"):
                    return self._build(trial)
            except TrialPruned:
                raise
            except Exception:
                network = self._build(trial)  # raises the same error, unless the device was its cause
                self._on_meta = False
                return network
        return self._build(trial)

    def _measure(self, network: Any, names: Iterable[str]) -> dict[str, Measurement]:
        numbers = {}
        for name in names:
            limit = self._limits[name]
            numbers[name] = as_measurement(limit.measure(network), f"The number {name!r} of a network", limit.unit)
        return numbers


def _check_maximum(name: str, maximum: object) -> None:
    if isinstance(maximum, bool) or not isinstance(maximum, int | float) or not 0 < maximum < math.inf:
        raise ValueError(f"{name} must be a number above 0; got {maximum!r}.")
