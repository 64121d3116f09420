"""Everything that scoring changes and puts back: modes, global settings, random states, hooks and substitutes.

All changes to a model or to the process are made by the context managers of this module, so that there is one place to
look at when something was not restored.
"""

from __future__ import annotations

import gc
import operator
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.model.draws import seeded_draws, seeded_numpy_and_python_draws
from optuna_aznas.proxies.model.interrupts import HeldSignals, call_held_handlers

#: Serialises evaluations: much of what is changed is global to the process.
_ONE_AT_A_TIME = threading.RLock()

_POLL = 0.05  # seconds between two looks at the signals that came, while waiting for another thread's evaluation
_FORK_WAIT = 60.0  # most seconds that a fork waits for the evaluation of another thread

_MISSING = object()

#: Where torch keeps its quantized layers.
_QUANTIZED = tuple(
    f"{package}.{name}quantized" for package in ("torch.ao.nn", "torch.nn") for name in ("", "intrinsic.")
)

#: Attributes of a module that hold what is registered with it: parameters, buffers, modules, hooks.
_REGISTRIES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))
_all_registries = operator.itemgetter(*_REGISTRIES)


class Substitute(NamedTuple):
    """A value that replaces one entry of a dict while a model is scored, mostly a parameter or buffer.

    Attributes:
        store: The dict, such as a module's ``_parameters``.
        name: The key in it.
        tensor: The substitute.
    """

    store: dict[Any, Any]
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
def scoring_mode(
    modules: Iterable[nn.Module], *, training: bool, seed: int, device: torch.device, shared_draws: bool = False
) -> Iterator[None]:
    """Run the body with ``modules`` in train or eval mode and every global setting fixed; restore all of it afterwards.

    The values of parameters and buffers need no care here: scoring runs on substitutes
    (:func:`~optuna_aznas.proxies.model.weights.substitute_state`). Changed are the mode of each module; the global
    random states of torch, numpy and Python, or generators in their place (:mod:`~optuna_aznas.proxies.model.draws`),
    which all start from ``seed`` (dropout draws from them); and the settings that change results: gradient mode,
    autocast and reduced precision of matrix products. What the model's forward registers with its modules is removed
    again. Much of this is global to the process, so threads take turns. Signals are held back wherever something is
    changed or restored (:class:`HeldSignals`).

    Args:
        modules: All modules of the model.
        training: Their mode.
        seed: The seed of what the model draws.
        device: Where the model runs.
        shared_draws: As ``shared`` of :func:`~optuna_aznas.proxies.model.draws.seeded_draws`.
    """
    modules = list(modules)
    on_gpu = device.type == "cuda"
    with HeldSignals(), _turn(), ExitStack() as stack:
        stack.enter_context(_registered(modules))
        stack.enter_context(_modules_in_mode(modules, training))
        stack.enter_context(_attributes(_numeric_settings()))
        if on_gpu:
            stack.enter_context(_one_thread())
        stack.enter_context(_without_fused_attention())
        stack.enter_context(_without_garbage_collection())
        stack.enter_context(seeded_draws(seed, device, shared=shared_draws))
        stack.enter_context(seeded_numpy_and_python_draws(seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # Otherwise a GPU's backward passes run in a thread of their own, and waking it for every block can take longer
        # than launching the block's kernels.
        stack.enter_context(torch.autograd.grad_mode.set_multithreading_enabled(False))
        stack.enter_context(_default_dtype(_precision_of(modules)))
        stack.enter_context(_without_compilation())
        yield


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other thread scores, and run the body while none does."""
    lock = _ONE_AT_A_TIME  # a child process gets another
    while not lock.acquire(timeout=_POLL):
        call_held_handlers()
    try:
        yield
    finally:
        lock.release()


#: Whether the fork that is going on has waited for its turn.
_fork_has_turn = threading.local()


def _before_fork() -> None:
    """Wait for the evaluation of another thread: a child would keep the settings of its middle."""
    _fork_has_turn.value = _ONE_AT_A_TIME.acquire(timeout=_FORK_WAIT)


def _after_fork_in_parent() -> None:
    if getattr(_fork_has_turn, "value", False):
        _ONE_AT_A_TIME.release()


def _after_fork_in_child() -> None:
    """Renew the lock: a thread that holds it does not exist in the child."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@contextmanager
def _registered(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore what is registered with modules, and their attributes that are tensors.

    A forward may fill a parameter or buffer that was ``None``, add a module or hook, or keep a tensor, as
    :mod:`torch.nn.utils.prune` and the older ``weight_norm`` do with each forward's ``weight``.
    """
    before = [(module.__dict__, module.__dict__.copy()) for module in modules]
    registries = [registry for _, attributes in before for registry in _registries(attributes)]
    entries = sum(map(len, registries))
    filled = [(registry, _copy(registry)) for registry in registries if registry]
    try:
        yield
    finally:
        for now, attributes in before:
            if len(now) == len(attributes) and all(map(operator.is_, now.values(), attributes.values())):
                continue
            for name, value in list(now.items()):
                was = attributes.get(name, _MISSING)
                if value is not was and (name in _REGISTRIES or isinstance(value, Tensor) or isinstance(was, Tensor)):
                    if was is _MISSING:
                        del now[name]
                    else:
                        now[name] = was
            for name, value in attributes.items():
                if name not in now and (name in _REGISTRIES or isinstance(value, Tensor)):
                    now[name] = value
        if sum(map(len, registries)) != entries or not all(_same(registry, copy) for registry, copy in filled):
            contents = {id(registry): copy for registry, copy in filled}
            for registry in registries:
                kept = contents.get(id(registry), ())
                if not _same(registry, kept):
                    registry.clear()
                    registry.update(kept)


def _registries(attributes: dict[str, Any]) -> Iterable[Any]:
    """Return what holds a module's parameters, buffers, modules and hooks, given its attributes."""
    try:
        return _all_registries(attributes)
    except KeyError:  # a module made by an older version of torch lacks some
        return [attributes[name] for name in _REGISTRIES if attributes.get(name) is not None]


def _copy(registry: dict[Any, Any] | set[Any]) -> dict[Any, Any] | set[Any]:
    return dict(registry) if isinstance(registry, dict) else set(registry)


def _same(registry: Any, was: Any) -> bool:
    """Whether a registry holds the same objects as its copy in the same order."""
    if len(registry) != len(was):
        return False
    if isinstance(registry, set):
        return bool(registry == was)
    return not registry or (
        all(map(operator.eq, registry, was)) and all(map(operator.is_, registry.values(), was.values()))
    )


def _precision_of(modules: Iterable[nn.Module]) -> torch.dtype:
    """Return the precision of a model's first tensor with one, half precision as single."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.is_floating_point():
                return torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return torch.float32


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have the model's precision, whatever the caller's default is."""
    default = torch.get_default_dtype()
    try:
        if default != dtype:
            torch.set_default_dtype(dtype)
        yield
    finally:
        if default != dtype:
            torch.set_default_dtype(default)


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
        ProxyEvaluationError: One of them is a TorchScript module, quantized, or ``DataParallel``.
    """
    reasons = {kind: _why_irreplaceable(kind) for kind in {type(module) for module in modules.values()}}
    for name, module in modules.items():
        reason = reasons[type(module)]
        if reason is not None:
            where = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
            raise ProxyEvaluationError(f"{where} {reason}")


def _why_irreplaceable(kind: type[nn.Module]) -> str | None:
    """Return why the parameters of a class of modules cannot be replaced; ``None`` if they can."""
    if issubclass(kind, torch.jit.ScriptModule):
        return "is compiled by TorchScript, which fixes its weights. Score the module it was made from."
    if any(base.__module__.startswith(_QUANTIZED) for base in kind.__mro__):
        return (
            "is quantized: its weights are packed integers, which can neither be drawn anew nor differentiated. Score "
            "the model as it was before quantization."
        )
    if issubclass(kind, nn.DataParallel):
        return "spreads a model over devices. Score the model itself, its .module."
    return None
