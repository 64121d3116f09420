"""Many models at a time: what ProxyEvaluator.map does with worker processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from optuna_aznas import _workers
from optuna_aznas._arguments import check_n_workers
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.scores import ProxyScores

if TYPE_CHECKING:
    from optuna_aznas.proxies.evaluator import ProxyEvaluator

_GPU_MEMORY = 2**31  # bytes of free memory for each worker on a GPU


def _default_n_workers(device: torch.device) -> int:
    """Return how many workers this machine has room for."""
    n_workers = _workers.default_n_workers()
    if device.type == "cuda":
        n_workers = min(n_workers, torch.cuda.mem_get_info(device)[0] // _GPU_MEMORY)
    return max(1, n_workers)


def outcomes_of(
    function: Callable[[Any], Any],
    arguments: Iterable[Any],
    *,
    n_workers: int | None,
    device: torch.device,
    show_progress_bar: bool,
) -> Iterator[Any]:
    """Return an iterator over what a function returns for each argument, in order, or the exception that it raises.

    The other arguments, and what is raised, are those of :meth:`ProxyEvaluator.map
    <optuna_aznas.ProxyEvaluator.map>`.
    """
    check_n_workers(n_workers)
    if n_workers is None:
        n_workers = _default_n_workers(device)
    return _outcomes(function, arguments, n_workers, show_progress_bar)


def _outcomes(
    function: Callable[[Any], Any], arguments: Iterable[Any], n_workers: int, show_progress_bar: bool
) -> Iterator[Any]:
    outcomes: Generator[Any, None, None]
    if n_workers <= 1:
        outcomes = (_workers.attempt(function, argument) for argument in arguments)
    else:
        outcomes = _workers.call_each(function, arguments, n_workers=n_workers, n_ahead=2 * n_workers)
    total = len(arguments) if isinstance(arguments, Sized) else None
    bar = tqdm(total=total, unit="net", disable=not show_progress_bar, dynamic_ncols=True)
    with contextlib.closing(outcomes), bar:
        try:
            for number, outcome in enumerate(outcomes):
                bar.update()
                yield _explained(number, outcome)
        except _workers.NotSentError as error:
            raise TypeError(
                f"what the workers need could not be sent to them: {error}. The evaluator with its inputs and blocks, "
                "and a function that builds models, must be picklable; n_workers=1 works without other processes."
            ) from error


class Scoring:
    """Builds and scores a model: what the workers of ProxyEvaluator.map do."""

    def __init__(self, evaluator: ProxyEvaluator) -> None:
        self._evaluator = evaluator

    def __call__(self, model: nn.Module | Callable[[], nn.Module]) -> ProxyScores:
        """Return the proxy scores of a model, or of that which a function builds."""
        if not isinstance(model, nn.Module) and callable(model):
            model = model()
        return self._evaluator(model)


def _explained(number: int, outcome: Any) -> Any:
    """Return an outcome; an error of the worker processes is put in the words of models."""
    if isinstance(outcome, _workers.WorkerDiedError):
        return ProxyEvaluationError(
            f"model {number} could not be scored: {outcome}. The other models are scored by another process. If memory "
            "ran out, use fewer n_workers; n_workers=1 scores in this process."
        )
    if isinstance(outcome, _workers.NotSentError):
        return ProxyEvaluationError(
            f"model {number} could not be sent to a worker process: {outcome}. Give map a function that builds the "
            "model from plain values, or score in this process with n_workers=1."
        )
    return outcome
