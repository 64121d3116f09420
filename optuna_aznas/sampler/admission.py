"""Admission: which candidates may be proposed, by the user's candidate_filter and limits, and by what was learned.

A candidate passes three gates, each more expensive than the one before. It is *examined*: completed to a whole
architecture, and checked against ``candidate_filter`` and the cheap limits. Then its *feasibility* is estimated from
the study's trials. At last it is *measured*, when it is about to be proposed.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from optuna import TrialPruned
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial

from optuna_aznas._measurement import Measurement
from optuna_aznas._optuna import set_trial_user_attr
from optuna_aznas._warnings import WarnOnce
from optuna_aznas.sampler.candidates import CandidateFilter
from optuna_aznas.sampler.drawing import DrawingTrial
from optuna_aznas.sampler.feasibility import Feasibility, excess
from optuna_aznas.sampler.strategy import Params, Space
from optuna_aznas.sampler.variation import Variation, sample_uniform
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.numbers import number_attributes, recorded_numbers
from optuna_aznas.study.per_study import PerStudy

#: Probability of keeping all constraints from which a candidate is proposed without looking for a likelier one.
LIKELY = 0.75

_MOST_MEASURED = 20  # candidates measured for one trial before the one that exceeds its limits least is proposed
_MAX_KEPT = 20_000  # architectures whose examination is kept


class ArchitectureLimits(Protocol):
    """What is used of :class:`~optuna_aznas.Limits`, which this package does not import: it needs torch."""

    @property
    def maxima(self) -> dict[str, float]: ...

    @property
    def measured(self) -> tuple[str, ...]: ...

    def cheap_numbers(self, trial: BaseTrial) -> dict[str, Measurement]: ...

    def measured_numbers(self, trial: BaseTrial) -> dict[str, Measurement]: ...


@dataclasses.dataclass
class Examined:
    """A whole architecture and what is known of it.

    Attributes:
        params: A value for every parameter that architectures of the study have, as the user's functions are given.
        space: The distributions of those that it has itself, as far as that is known.
        numbers: Its numbers that have been measured so far.
        is_accepted: Whether ``candidate_filter`` accepts it.
        exceeded: By how much it exceeds limits, as the sum of ``log(number / limit)`` over those that it exceeds.
    """

    params: Params
    space: Space
    numbers: dict[str, Measurement] = dataclasses.field(default_factory=dict)
    is_accepted: bool = True
    exceeded: float = 0.0

    @property
    def architecture(self) -> Params:
        """Its own parameters."""
        return {name: self.params[name] for name in self.space}

    @property
    def distributions(self) -> Space:
        """As :attr:`space`, for what takes it as a parent."""
        return self.space

    @property
    def passes(self) -> bool:
        """Whether nothing that is known speaks against it."""
        return self.is_accepted and self.exceeded == 0.0


class Admission:
    """Decides which candidates may be proposed.

    Args:
        candidate_filter: As in :class:`~optuna_aznas.AZNASSampler`.
        limits: As in :class:`~optuna_aznas.AZNASSampler`.
        variation: Source of random numbers.
    """

    def __init__(
        self, candidate_filter: CandidateFilter | None, limits: ArchitectureLimits | None, variation: Variation
    ) -> None:
        self._filter = candidate_filter
        self._limits = limits
        self._maxima = {} if limits is None else limits.maxima
        self._measured_maxima = {} if limits is None else {name: self._maxima[name] for name in limits.measured}
        self._variation = variation
        self._rng = variation.rng
        self._feasibilities: PerStudy[Feasibility] = PerStudy()
        self._kept: dict[frozenset[tuple[str, str]], Examined] = {}
        self._warn_once = WarnOnce()

    @property
    def discovers(self) -> bool:
        """Whether architectures are known without any trial, because the limits have a function that builds them."""
        return self._limits is not None

    def begin(self, trial: FrozenTrial) -> None:
        """Draw from a source that depends on the trial, so that workers with one seed begin with different networks."""
        if self.discovers:
            self._rng = self._variation.rng_of(trial.number, "")

    def admit(self, view: StudyView, params: Params, space: Space, fixed: Mapping[str, Any]) -> Examined | None:
        """Return a candidate, examined, if it passes and probably keeps what has to be measured; else ``None``."""
        examined = self.examine(view, params, space, fixed)
        if examined is None or not examined.passes or self.probability(view, examined) < LIKELY:
            return None
        return examined

    def examine(self, view: StudyView, params: Params, space: Space, fixed: Mapping[str, Any]) -> Examined | None:
        """Complete a candidate and check what is cheap to check; ``None`` where it cannot be built.

        Args:
            view: The study.
            params: The candidate's parameters, with those that are fixed.
            space: Distributions of parameters that it has.
            fixed: Parameters whose values the user has fixed.
        """
        if self._limits is None and self._filter is None and not self._feasibility(view.study).has_learned(view):
            # A trained architecture that is proposed again lacks the parameters that its network never asked for.
            return Examined(params, {name: distribution for name, distribution in space.items() if name in params})
        known = {**view.architecture_space, **space}
        others = {name: distribution for name, distribution in known.items() if name not in params}
        if self._limits is None:
            return self._filtered(Examined({**params, **self._drawn(others)}, known))
        key = frozenset(view.describe(params).items())
        if key in self._kept:
            return self._kept[key]
        trial = DrawingTrial(params, fixed, self._draw)
        numbers = self._numbers(self._limits.cheap_numbers, trial)
        if numbers is None:
            return None
        params, own = {**self._drawn(others), **params, **trial.params}, dict(trial.distributions)
        examined = self._filtered(Examined(params, own, numbers))
        own_key = frozenset(view.describe(examined.architecture).items())
        if own_key in self._kept:  # the same network with other values of parameters that it has not: measured once
            examined.numbers = self._kept[own_key].numbers
        else:
            self._keep(own_key, examined)
        self._compare(examined)
        if not trial.drawn:  # else the same parameters would be completed in another way
            self._keep(key, examined)
        self._keep(frozenset(view.describe(params).items()), examined)  # as the strategies hand it back
        return examined

    def probability(self, view: StudyView, examined: Examined) -> float:
        """Return the probability that a candidate keeps what has not been measured yet."""
        feasibility = self._feasibility(view.study)
        own = examined.architecture if self.discovers else feasibility.present(examined.architecture)
        return feasibility.probability(view, own, examined.numbers)

    def measured(
        self, view: StudyView, proposals: Iterable[Params], space: Space, fixed: Mapping[str, Any]
    ) -> Iterator[Examined]:
        """Yield candidates that keep the measured limits too, best first.

        After some candidates that do not, the one that exceeds them least is yielded all the same.
        """
        closest: Examined | None = None
        n_measured = 0
        for params in proposals:
            examined = self.examine(view, params, space, fixed)
            if examined is None:  # the strategies give such a candidate only if there is no other
                yield Examined(params, {n: d for n, d in space.items() if n in params})
                continue
            was_good = examined.passes
            self._measure(view, examined, fixed)
            if examined.passes or not was_good:
                yield examined
                continue
            n_measured += 1
            closest = examined if closest is None or examined.exceeded < closest.exceeded else closest
            if n_measured == _MOST_MEASURED or examined.space.keys() <= fixed.keys():
                self.warn_exceeded(closest, fixed)
                yield closest
                closest, n_measured = None, 0

    def store(self, study: Study, trial: FrozenTrial, examined: Examined) -> None:
        """Store a proposed architecture's numbers on its trial."""
        for key, value in number_attributes(examined.numbers, self._maxima).items():
            set_trial_user_attr(study, trial, key, value)

    def constraints(self, study: Study, trial: FrozenTrial, proposed: Examined | None) -> Sequence[float]:
        """Return the limits of a trial that is about to finish as constraint values.

        Where its architecture is not the one that was proposed, what it is is measured and stored now.

        Args:
            study: The study.
            trial: The trial.
            proposed: What was proposed for it; ``None`` if that is not known.
        """
        if self._limits is None:
            return ()
        numbers = {name: number.measurement for name, number in recorded_numbers(trial).items()}
        differs = proposed is not None and any(trial.params.get(n) != v for n, v in proposed.architecture.items())
        if differs or any(name not in numbers for name in self._maxima):
            own = DrawingTrial({}, trial.params, self._draw)
            numbers = self._numbers(self._limits.cheap_numbers, own) or {}
            numbers |= self._numbers(self._limits.measured_numbers, own) or {}
            if own.drawn:  # it ended before it had suggested all of them
                return [1.0] * len(self._maxima)
            examined = Examined(own.params, dict(own.distributions), numbers)
            self.store(study, trial, examined)
            self._compare(examined)
            if (
                not examined.passes
            ):  # it was enqueued, or the objective suggests other parameters than the limits' build
                self.warn_exceeded(examined, own.params)
        return [_constraint(numbers.get(name), maximum) for name, maximum in self._maxima.items()]

    def warn_exceeded(self, examined: Examined, fixed: Mapping[str, Any]) -> None:
        """Warn that a candidate is proposed although it does not pass."""
        exceeded = [
            f"{name} is {examined.numbers[name]}, the limit {maximum:.4g}"
            for name, maximum in self._maxima.items()
            if name in examined.numbers and not examined.numbers[name].upper <= maximum
        ]
        what = "; ".join(exceeded) or "candidate_filter rejects it"
        if fixed and examined.space.keys() <= fixed.keys():
            message = "A trial whose parameters you have fixed or enqueued is run all the same"
        else:
            around = f" with {dict(fixed)}, which you have fixed or enqueued" if fixed else ""
            message = f"No candidate that is accepted was found{around}; the one that comes closest is proposed"
        warnings.warn(f"{message}: {what}. Its architecture: {examined.architecture}.", stacklevel=2)

    def _filtered(self, examined: Examined) -> Examined:
        """Ask the user's ``candidate_filter``."""
        if self._filter is not None:
            try:
                examined.is_accepted = bool(self._filter(dict(examined.params)))
            except Exception as error:
                examined.is_accepted = False
                self._warn_once(
                    f"filter {type(error).__name__}",
                    f"candidate_filter failed for {examined.params}: {type(error).__name__}: {error}. The candidate is "
                    "left out; further errors of this kind are not reported. Where it lacks a conditional parameter "
                    "that no trial has had, pass limits=optuna_aznas.Limits(build) to AZNASSampler.",
                )
        return examined

    def _measure(self, view: StudyView, examined: Examined, fixed: Mapping[str, Any]) -> None:
        """Measure what has not been measured of a candidate that is about to be proposed."""
        if self._limits is None or all(name in examined.numbers for name in self._limits.measured):
            return
        numbers = self._numbers(self._limits.measured_numbers, DrawingTrial(examined.params, fixed, self._draw))
        examined.numbers |= numbers or {name: Measurement(math.inf) for name in self._limits.measured}
        was_good = examined.passes
        self._compare(examined)
        if was_good and not examined.passes:
            upper = {name: examined.numbers[name].upper for name in self._limits.measured}
            self._feasibility(view.study).add(examined.architecture, examined.space, upper)

    def _numbers(self, measure: Any, trial: DrawingTrial) -> dict[str, Measurement] | None:
        """Return numbers of the architecture that is built from a trial; ``None``, with a warning, where that fails."""
        try:
            return measure(trial)
        except TrialPruned:  # raised by the user's space
            return None
        except Exception as error:
            self._warn_once(
                f"build {type(error).__name__}",
                f"A network could not be built or measured: {type(error).__name__}: {error}. Its parameters: "
                f"{trial.params}. The candidate is left out; further errors of this kind are not reported.",
            )
            return None

    def _compare(self, examined: Examined) -> None:
        excesses = (excess(number.upper, self._maxima[name]) for name, number in examined.numbers.items())
        examined.exceeded = sum(max(0.0, each) for each in excesses)

    def _draw(self, distribution: BaseDistribution) -> Any:
        return sample_uniform(distribution, self._rng)

    def _drawn(self, space: Space) -> Params:
        return {name: self._draw(distribution) for name, distribution in space.items()}

    def _keep(self, key: frozenset[tuple[str, str]], examined: Examined) -> None:
        while len(self._kept) >= _MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = examined

    def _feasibility(self, study: Study) -> Feasibility:
        return self._feasibilities.get(study, lambda _: Feasibility(self._measured_maxima))


def _constraint(number: Measurement | None, maximum: float) -> float:
    """Return a number as a constraint of Optuna's, at most 0 where the limit is kept."""
    if number is None or math.isnan(number.upper):
        return 1.0
    return min(number.upper / maximum - 1.0, 1e9)  # plain JSON has no infinity
