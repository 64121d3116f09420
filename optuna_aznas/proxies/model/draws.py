"""The random numbers that a model draws while it runs, such as those of dropout.

torch has one global generator for all threads. Where no other thread is alive, it is seeded while a model is scored and
restored afterwards. Where others are, they draw from it too, at any moment. So it is left alone, and the random
functions of torch that the model calls draw from a generator of our own. The scores are the same either way.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_aznas.proxies.model.nested import tensors_in


class DrawsInCheckpointError(BaseException):
    """The model draws inside :func:`torch.utils.checkpoint.checkpoint`, which repeats draws by the global state.

    No ``Exception``, as it must get past whatever handles the errors of a model.
    """


#: Generators of the model that is being scored, by the type of their device; ``None``: it draws from torch's own.
_own: dict[str, torch.Generator] | None = None


@contextmanager
def seeded_draws(seed: int, device: torch.device, *, shared: bool = False) -> Iterator[None]:
    """Run the body with a seed for what a model draws; torch's global random state is as before afterwards.

    Args:
        seed: The seed.
        device: Where the model runs.
        shared: Seed torch's global generator even if other threads are alive. They may change what the model draws
            then, and their own draws are rewound.
    """
    global _own
    if shared or threading.active_count() == 1:
        before, _own = _own, None
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.default_generator.manual_seed(seed)
                if device.type == "cuda":
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(seed)
                yield
        finally:
            _own = before
    else:
        places = {"cpu": torch.device("cpu"), device.type: device}
        before, _own = _own, {kind: torch.Generator(place).manual_seed(seed) for kind, place in places.items()}
        try:
            yield
        finally:
            _own = before


@contextmanager
def seeded_numpy_and_python_draws(seed: int) -> Iterator[None]:
    """Run the body with a seed for what a model draws by numpy's and Python's global generators.

    Their states are as before afterwards. What other threads draw meanwhile is neither seeded nor rewound.
    """
    if threading.active_count() == 1:
        numpy_state, python_state = np.random.get_state(), random.getstate()
        try:
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
        return
    thread = threading.get_ident()
    own = {np.random: np.random.RandomState(seed % 2**32), random: random.Random(seed)}
    before = [(module, name, getattr(module, name)) for module, names in _GLOBAL.items() for name in names]
    try:
        for module, name, shared in before:
            method = getattr(own[module], _GLOBAL[module][name])
            setattr(module, name, _by_thread(thread, method, shared))
        yield
    finally:
        for module, name, shared in before:
            setattr(module, name, shared)


#: Functions that draw from a global generator: module -> name -> method of a generator of one's own.
_GLOBAL: dict[Any, dict[str, str]] = {
    np.random: {name: name for name in np.random.__all__ if hasattr(np.random.RandomState, name)}
    | {"ranf": "random_sample", "sample": "random_sample"},
    random: {name: name for name in random.__all__ if hasattr(random.Random, name)},
}


def _by_thread(thread: int, own: Callable[..., Any], shared: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is ``own`` in one thread, and ``shared`` in the others."""

    def draw(*args: Any, **kwargs: Any) -> Any:
        return (own if threading.get_ident() == thread else shared)(*args, **kwargs)

    return draw


def own_draws() -> AbstractContextManager[Any]:
    """Return a context manager under which a model draws from the generators that :func:`seeded_draws` made."""
    return nullcontext() if _own is None else _OwnDraws(_own)


class _OwnDraws(TorchFunctionMode):
    """Finds the random functions among all functions of torch; the operators in them draw from generators of our own.

    Only in these functions are operators intercepted, as that costs more than a small network's pass.
    """

    def __init__(self, generators: dict[str, torch.Generator]) -> None:
        super().__init__()
        self._operators = _OwnGenerators(generators)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in RANDOM:
            return func(*args, **(kwargs or {}))
        with self._operators:
            return func(*args, **(kwargs or {}))


class _OwnGenerators(TorchDispatchMode):
    """Gives a generator to every operator that draws."""

    def __init__(self, generators: dict[str, torch.Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = generators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _draws(func) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if _under_checkpoint():
            raise DrawsInCheckpointError
        device = kwargs.get("device")
        first = next(tensors_in(args), None)
        kind = first.device.type if device is None and first is not None else torch.device(device or "cpu").type
        generator = self._generators.get(kind)
        if generator is None:
            return func(*args, **kwargs)
        if _with_generator(func) is not None:
            func = _with_generator(func)
            return func(*args, **kwargs, generator=generator)
        own = torch.default_generator if kind == "cpu" else torch.cuda.default_generators[generator.device.index or 0]
        state = own.get_state()  # the operator takes no generator: lend it the state of ours for this moment
        try:
            own.set_state(generator.get_state())
            return func(*args, **kwargs)
        finally:
            generator.set_state(own.get_state())
            own.set_state(state)


def _draws(operator: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in operator.tags or _takes_generator(operator)


def _takes_generator(operator: Any) -> bool:
    return any(argument.name == "generator" for argument in operator._schema.arguments)


def _with_generator(operator: Any) -> Any:
    """Return the overload of an operator that takes a generator; ``None`` if there is none."""
    if _takes_generator(operator):
        return operator
    packet, name = operator._overloadpacket, operator._overloadname
    wanted = "generator" if name == "default" else f"{name}_generator"
    return getattr(packet, wanted) if wanted in packet.overloads() else None


def _under_checkpoint() -> bool:
    """Whether what is computed now will be computed again in the backward pass."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


#: Functions and methods of torch that draw, or call others that do.
RANDOM = {
    getattr(owner, name)
    for owner, names in {
        nn.functional: """
            alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout fractional_max_pool2d
            fractional_max_pool2d_with_indices fractional_max_pool3d fractional_max_pool3d_with_indices gumbel_softmax
            multi_head_attention_forward rrelu rrelu_ scaled_dot_product_attention
        """,
        torch: """
            _sample_dirichlet _standard_gamma alpha_dropout alpha_dropout_ bernoulli binomial dropout dropout_
            feature_alpha_dropout feature_alpha_dropout_ feature_dropout feature_dropout_ gru lstm miopen_rnn
            multinomial native_dropout normal poisson rand rand_like randint randint_like randn randn_like randperm
            rnn_relu rnn_tanh rrelu rrelu_
        """,
        Tensor: """
            bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal_ random_ uniform_
        """,
        nn.init: """
            kaiming_normal_ kaiming_uniform_ normal_ orthogonal_ sparse_ trunc_normal_ uniform_ xavier_normal_
            xavier_uniform_
        """,
    }.items()
    for name in names.split()
    if hasattr(owner, name)
}
