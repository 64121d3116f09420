"""Measures a network on a device: latency, peak memory, parameters, multiply-accumulates.

Each function measures a copy of the network, in eval mode and without gradients, and leaves the network and the random
states as they were. A network on the ``meta`` device, which has no weights, is measured with random ones.
"""

from __future__ import annotations

import contextlib
import copy
import random
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from optuna_aznas._measurement import Measurement
from optuna_aznas.proxies.model.counting import MacCounter
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in

__all__ = ["Measurement", "latency", "multiply_accumulates", "parameters", "peak_memory"]

_FEWEST_RUNS = 5  # a network so slow that fewer runs take the time asked for is run so often all the same
_WEIGHT_STD = 0.02  # standard deviation of the weights that a network without weights gets


def latency(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    device: str | torch.device = "cpu",
    batch_size: int = 1,
    threads: int = 1,
    seconds: float = 0.2,
) -> Measurement:
    """Return how long a forward pass of a network takes, in milliseconds.

    The runs are timed by :class:`torch.utils.benchmark.Timer`, which warms up first and waits for a GPU to finish.
    ``spread`` is what the runs of this one measurement differ by. A machine that is busy, or slows down when it gets
    hot, differs by more from one measurement to the next: measure on a quiet machine with its clock fixed, and measure
    the network that you choose again.

    Args:
        model: The network.
        input_shape: Shape of one sample, without the batch dimension.
        inputs: A batch instead: a tensor, a tuple of positional arguments, or a dict of keyword arguments. Exactly one
            of ``input_shape`` and ``inputs`` must be given.
        device: Where the network runs.
        batch_size: Samples in the batch of noise.
        threads: Threads of a CPU that the network may use.
        seconds: Time to measure for, above 0. A network is run at least 5 times.

    Raises:
        ValueError: Not exactly one of ``input_shape`` and ``inputs`` is given.

    Example:
        >>> latency(nn.Linear(8, 8), (8,), seconds=0.01).unit
        'ms'
    """
    with _prepared(model, input_shape, inputs, device, batch_size) as call:
        # The timer itself waits for CUDA to finish; other accelerators are waited for here.
        finish = getattr(getattr(torch, torch.device(device).type, None), "synchronize", None)
        statement = "call()" if finish is None else "call(); finish()"
        timer = Timer(statement, globals={"call": call, "finish": finish}, num_threads=threads)
        times = timer.blocked_autorange(min_run_time=seconds).times
        while len(times) < _FEWEST_RUNS:
            times.append(timer.timeit(1).mean)
    return _summary([1000.0 * time for time in times], "ms")


def peak_memory(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    device: str | torch.device = "cpu",
    batch_size: int = 1,
) -> Measurement:
    """Return the most memory that a network and its tensors occupy during a forward pass, in bytes.

    It consists of parameters, buffers, the batch, and the tensors that exist at the same time. On a GPU it is what
    torch's allocator has handed out. Elsewhere the tensors' sizes are added up, and nothing is computed.

    Args:
        model: The network.
        input_shape: As in :func:`latency`.
        inputs: As in :func:`latency`.
        device: Where the network runs.
        batch_size: Samples in the batch of noise.

    Raises:
        ValueError: As in :func:`latency`.

    Example:
        >>> peak_memory(nn.Linear(8, 8), (8,)).median  # 72 parameters, 8 inputs and 8 outputs of 4 bytes
        352.0
    """
    target = torch.device(device)
    if target.type == "cuda":
        torch.cuda.synchronize(target)
        before = torch.cuda.memory_allocated(target)
        with _prepared(model, input_shape, inputs, target, batch_size) as call:
            torch.cuda.reset_peak_memory_stats(target)
            call()
            torch.cuda.synchronize(target)
            return Measurement(float(torch.cuda.max_memory_allocated(target) - before), unit="bytes")
    return Measurement(float(_counted(model, input_shape, inputs, batch_size, _MemoryCounter()).peak), unit="bytes")


def parameters(model: nn.Module) -> Measurement:
    """Return the number of a network's parameters.

    Example:
        >>> print(parameters(nn.Linear(8, 8)))
        72
    """
    return Measurement(float(sum(parameter.numel() for parameter in model.parameters())))


def multiply_accumulates(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, inputs: Any = None
) -> Measurement:
    """Return the multiply-accumulates of one sample, as the proxy ``complexity`` counts them.

    Args:
        model: The network.
        input_shape: As in :func:`latency`.
        inputs: As in :func:`latency`; the number is that of a sample of the batch.

    Raises:
        ValueError: As in :func:`latency`.

    Example:
        >>> multiply_accumulates(nn.Linear(8, 8), (8,)).median
        64.0
    """
    samples = 1 if inputs is None else len(next(tensors_in(inputs)))
    return Measurement(_counted(model, input_shape, inputs, 1, MacCounter()).total / samples)


def _summary(values: Sequence[float], unit: str) -> Measurement:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Measurement(float(median), float(high - low), len(values), unit)


def _counted(model: nn.Module, input_shape: Sequence[int] | None, inputs: Any, batch_size: int, counter: Any) -> Any:
    """Run a network under a counter: only shapes are worked out, unless the network looks at values."""
    again = copy.deepcopy(counter)
    try:
        prepared = _prepared(model, input_shape, inputs, "cpu", batch_size, counter, empty=True)
        with prepared as call, _ShapesOnly(), counter:
            call()
        return counter
    except Exception:
        with _prepared(model, input_shape, inputs, "cpu", batch_size, again) as call, again:
            call()
        return again


@contextlib.contextmanager
def _prepared(
    model: nn.Module,
    input_shape: Sequence[int] | None,
    inputs: Any,
    device: str | torch.device,
    batch_size: int,
    counter: Any = None,
    *,
    empty: bool = False,
) -> Iterator[Any]:
    """Run the body with a function that runs a copy of the network on a batch.

    With ``empty`` its weights have any values.
    """
    if (input_shape is None) == (inputs is None):
        raise ValueError(
            "Exactly one of input_shape and inputs must be given: the shape of one sample, such as (3, 32, 32), or a "
            "batch."
        )
    # In inference mode a counter of operators does not see what composite ones, such as attention, consist of.
    without_gradients = torch.inference_mode() if counter is None else torch.no_grad()
    with undisturbed_random_states(torch.device(device)), without_gradients:
        generator = torch.Generator().manual_seed(0)
        network = _copy(model, device, generator, empty=empty).eval()
        if inputs is None:
            assert input_shape is not None
            floating = (t.dtype for t in network.state_dict().values() if t.is_floating_point())
            inputs = torch.empty((batch_size, *input_shape), dtype=next(floating, torch.float32)).normal_(
                generator=generator
            )
        batch = map_tensors(lambda tensor: tensor.detach().to(device), inputs)
        if isinstance(counter, _MemoryCounter):
            counter.hold([*network.parameters(), *network.buffers(), *tensors_in(batch)])
        if isinstance(batch, dict):
            yield lambda: network(**batch)
        elif isinstance(batch, tuple):
            yield lambda: network(*batch)
        else:
            yield lambda: network(batch)


def _copy(model: nn.Module, device: str | torch.device, generator: torch.Generator, *, empty: bool) -> nn.Module:
    """Return a copy of a network on a device. Its weights are drawn where it has none.

    With ``empty``, memory is only set aside for them, which takes no time.
    """

    def moved(tensor: Tensor) -> Tensor:
        if empty and tensor.is_floating_point():
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if not tensor.is_meta:
            return tensor.detach().to(device, copy=True)
        drawn = torch.zeros(tensor.shape, dtype=tensor.dtype)
        if tensor.is_floating_point():
            drawn.normal_(std=_WEIGHT_STD, generator=generator).abs_()  # a variance must not be negative
        return drawn.to(device)

    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        copied = moved(tensor)
        memo[id(tensor)] = nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied
    return copy.deepcopy(model, memo)


class _ShapesOnly(TorchFunctionMode):
    """Lets layers return tensors of the right shape and any values: what is counted depends on shapes only."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.batch_norm:
            return torch.empty_like(args[0])
        if func is nn.functional.linear:
            return args[0].new_empty((*args[0].shape[:-1], len(args[1])))
        if func is torch.conv2d and len(args) == 7 and args[0].ndim == 4 and not isinstance(args[4], str):
            x, weight, _, stride, padding, dilation, _ = args
            sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
            return x.new_empty(
                (len(x), len(weight), *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))
            )
        return func(*args, **kwargs)


class _MemoryCounter(TorchDispatchMode):
    """Adds up the sizes of the tensors that exist while it is entered.

    Attributes:
        peak: The greatest sum so far, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._present = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen.add(storage)
                weakref.finalize(storage, self._release, storage.nbytes())
                self._present += storage.nbytes()
        self.peak = max(self.peak, self._present)

    def _release(self, size: int) -> None:
        self._present -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.hold(list(tensors_in(out)))
        return out


@contextlib.contextmanager
def undisturbed_random_states(device: torch.device | None = None) -> Iterator[None]:
    """Restore the random states of torch, numpy and Python afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    on_gpu = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
