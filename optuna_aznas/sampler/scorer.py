"""CandidateScorer: computes the proxy scores of a sampler's candidates."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial

from optuna_aznas._arguments import check_n_workers
from optuna_aznas.sampler.drawing import DrawingTrial

_DRAWS = 20  # networks that are built to see which parameters there are


class _Evaluator(Protocol):
    """What is used of a :class:`~optuna_aznas.ProxyEvaluator`, which this package does not import."""

    def __call__(self, model: Any) -> Any: ...

    def map(self, models: Iterable[Any], *, n_workers: int | None = None) -> Iterator[Any]: ...


class CandidateScorer:
    """Builds and scores candidates, for ``AZNASSampler(candidate_scorer=...)``.

    The sampler hands over all candidates of a trial at once, and they are scored by several processes side by side.

    Args:
        build: A function that takes a trial and returns a model: the one that the objective calls.
        evaluator: The :class:`~optuna_aznas.ProxyEvaluator` of the objective; the scores are compared.
        n_workers: As in :meth:`ProxyEvaluator.map() <optuna_aznas.ProxyEvaluator.map>`.

    Raises:
        ValueError: ``build`` is not callable, ``evaluator`` no evaluator, or ``n_workers`` out of range.

    Example:
        >>> import optuna_aznas as az
        >>> build = az.spaces.nas_bench_201.build
        >>> scorer = CandidateScorer(build, az.ProxyEvaluator((3, 32, 32), device="cpu"), n_workers=1)
        >>> sampler = az.AZNASSampler(candidate_scorer=scorer)
    """

    def __init__(
        self, build: Callable[[BaseTrial], Any], evaluator: _Evaluator, *, n_workers: int | None = None
    ) -> None:
        if not callable(build):
            raise ValueError(f"build must be callable; got {build!r}.")
        if not callable(evaluator) or not callable(getattr(evaluator, "map", None)):
            raise ValueError(f"evaluator must be a ProxyEvaluator; got {evaluator!r}.")
        check_n_workers(n_workers)
        self._build = build
        self._evaluator = evaluator
        self._n_workers = n_workers

    def __call__(self, params: Mapping[str, Any]) -> Any:
        """Return the proxy scores of the network that has these parameters.

        Args:
            params: Values of all parameters that ``build`` suggests.

        Raises:
            Exception: What ``build`` or the evaluator raises.
        """
        return self._evaluator(_build(self._build, params))

    def search_space(self, draw: Callable[[BaseDistribution], Any]) -> dict[str, BaseDistribution]:
        """Return the parameters that ``build`` suggests, with their distributions, before any trial has suggested them.

        Networks are built from some random draws, on the ``meta`` device if possible. A parameter that none of these
        suggests is missing; so is one of a network that cannot be built, which the objective will find out.

        Args:
            draw: Draws a value of a distribution.
        """
        from optuna_aznas.limits import Limits

        limits, space = Limits(self._build), dict[str, BaseDistribution]()
        for _ in range(_DRAWS):
            trial = DrawingTrial({}, {}, draw)
            with contextlib.suppress(Exception):
                limits.cheap_numbers(trial)
                space |= trial.distributions
        return space

    def score_many(self, params: Iterable[Mapping[str, Any]]) -> list[Any]:
        """Return proxy scores for each of several networks, or the exception with which it failed, in order.

        Args:
            params: Parameters of each network, as for a call.
        """
        builders = (functools.partial(_build, self._build, dict(each)) for each in params)
        return list(self._evaluator.map(builders, n_workers=self._n_workers))


def _build(build: Callable[[BaseTrial], Any], params: Mapping[str, Any]) -> Any:
    return build(FixedTrial(dict(params)))
