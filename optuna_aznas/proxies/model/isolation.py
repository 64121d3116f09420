"""Everything that scoring changes and puts back: modes, global settings, random states, hooks and substitutes.

All changes to a model or to the process are made by the context managers of this module, so that there is one place to
look at when something was not restored.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from optuna_aznas.proxies.errors import ProxyEvaluationError

#: Serialises evaluations: much of what is changed is global to the process.
_ONE_AT_A_TIME = threading.RLock()

_MISSING = object()


class Substitute(NamedTuple):
    """A value that replaces one entry of a dict while a model is scored, mostly a parameter or buffer.

    Attributes:
        store: The dict, such as a module's ``_parameters``.
        name: The key in it.
        tensor: The substitute.
    """

    store: dict[str, Any]
    name: str
    tensor: Any


@contextmanager
def substituted(substitutes: Sequence[Substitute]) -> Iterator[None]:
    """Run the body with substitutes in place of a model's parameters and buffers.

    This does what :func:`torch.func.functional_call` does, without looking up each tensor by its dotted name. That
    lookup would cost a small network a third of its forward pass.
    """
    originals = [Substitute(store, name, store.get(name, _MISSING)) for store, name, _ in substitutes]
    try:
        for store, name, tensor in substitutes:
            store[name] = tensor
        yield
    finally:
        for store, name, tensor in originals:
            if tensor is _MISSING:
                store.pop(name, None)
            else:
                store[name] = tensor


def bypassed(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Run the body with modules that return their first input unchanged."""
    return substituted([Substitute(module.__dict__, "forward", _first_argument) for module in modules])


def _first_argument(x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


@contextmanager
def removing_hooks() -> Iterator[list[Any]]:
    """Yield a list; the hooks whose handles the body adds to it are removed afterwards."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Turn autocast off where the model has turned it on for itself."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@contextmanager
def scoring_mode(modules: Iterable[nn.Module], *, training: bool, seed: int, device: torch.device) -> Iterator[None]:
    """Run the body with ``modules`` in train or eval mode and every global setting fixed; restore all of it afterwards.

    Parameters and buffers need no care here: scoring runs on substitutes
    (:func:`~optuna_aznas.proxies.model.weights.substitute_state`). Changed are the mode of each module; the global
    random states of torch, numpy and Python, which all start from ``seed`` (dropout draws from them); and the settings
    that change results: gradient mode, autocast and reduced precision of matrix products. Much of this is global to the
    process, so threads take turns.
    """
    on_gpu = device.type == "cuda"
    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.enter_context(_numpy_and_python_random_states())
        stack.enter_context(_modules_in_mode(modules, training))
        stack.enter_context(_attributes(_numeric_settings()))
        if on_gpu:
            stack.enter_context(_one_thread())
        stack.enter_context(_without_fused_attention())
        stack.enter_context(_without_garbage_collection())
        stack.enter_context(torch.random.fork_rng(devices=[device] if on_gpu else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # Otherwise a GPU's backward passes run in a thread of their own, and waking it for every block can take longer
        # than launching the block's kernels.
        stack.enter_context(torch.autograd.grad_mode.set_multithreading_enabled(False))
        stack.enter_context(_without_compilation())
        _seed_everything(seed, device)
        yield


def _seed_everything(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def _numpy_and_python_random_states() -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def _modules_in_mode(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """Set ``training``, not by ``.train()``: models override that to keep parts frozen."""
    before = [(module, module.training) for module in modules]
    try:
        for module, was_training in before:
            if was_training != training:  # setting an attribute of a module is slow
                module.training = training
        yield
    finally:
        for module, was_training in before:
            if module.training != was_training:
                module.training = was_training


@contextmanager
def _attributes(settings: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes, given as (owner, name, value)."""
    before = [(owner, name, getattr(owner, name), value) for owner, name, value in settings]
    try:
        for owner, name, _, value in before:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value, _ in before:
            setattr(owner, name, value)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Beside a GPU the CPU decomposes small matrices only, which is slower with more threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """The fused encoder layer is one operator, inside which nothing can be counted or observed."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A pass leaves no reference cycles, and searching for them takes a tenth of its time."""
    collecting = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if collecting:
            gc.enable()


def _without_compilation() -> AbstractContextManager[Any]:
    """Run the original code of what :func:`torch.compile` has wrapped: compiling takes longer than scoring, and
    compiled code hides its operators from the count.
    """
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # torch 2.6 and later
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _numeric_settings() -> list[tuple[Any, str, Any]]:
    """Return the global settings on which results depend: (owner, name, value while scoring).

    On a GPU convolutions run in TF32.
    """
    backends: Any = torch.backends
    settings: list[tuple[Any, str, Any]] = [
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
    ]
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later; must not be mixed with the older names
        settings += [
            (backends.cuda.matmul, "fp32_precision", "ieee"),
            (backends.cudnn.conv, "fp32_precision", "tf32"),
            (backends.mkldnn.matmul, "fp32_precision", "ieee"),
            (backends.mkldnn.conv, "fp32_precision", "ieee"),
        ]
    else:
        settings += [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", True)]
    return settings


def check_replaceable(modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules whose parameters cannot be replaced from outside.

    Raises:
        ProxyEvaluationError: One of them is a TorchScript module or ``DataParallel``.
    """
    for name, module in modules.items():
        where = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise ProxyEvaluationError(
                f"{where} is compiled by TorchScript, which fixes its weights. Score the module it was made from."
            )
        if isinstance(module, nn.DataParallel):
            raise ProxyEvaluationError(f"{where} spreads a model over devices. Score the model itself, its .module.")
