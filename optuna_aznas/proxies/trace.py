"""One forward and one backward pass through a model, block by block.

At each block's output the autograd graph is cut: what follows is handed a detached copy. As soon as a block has run,
its vector-Jacobian product is taken, through that block alone, and its part of the graph is freed. So forward
and backward each pass once through every block, the products of different blocks cannot mix (whatever else consumes a
feature), and memory holds the activations of one block at a time.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from optuna_aznas.proxies.blocks import has_children, has_weight
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.weights import Substitute, substituted


@dataclasses.dataclass(frozen=True)
class BlockPass:
    """What one block did in the pass.

    Attributes:
        name: The block's name in the model. The first pass is the stem's: its name is that of the module
            that ended the stem, or ``"input of <first block>"``.
        module: The block; for the stem, what it precedes or is.
        feature: The block's output f_l, detached.
        cotangent: v, shaped as ``feature``, for the product; ``None`` for the stem or where none was asked for.
        gradient: ``J^T v``, shaped as the feature that the block started from; zeros where no gradient path exists.
        macs: Multiply-accumulates of the whole batch since the feature before.
        product: Takes another cotangent and returns its ``J^T v``; only while the pass is observed. ``None`` where
            ``gradient`` is.
    """

    name: str
    module: nn.Module
    feature: Tensor
    cotangent: Tensor | None
    gradient: Tensor | None
    macs: float
    product: Callable[[Tensor], Tensor] | None = None


def run_blocks(
    model: nn.Module,
    state: Sequence[Substitute],
    inputs: Any,
    blocks: Mapping[str, nn.Module],
    *,
    observe: Callable[[BlockPass], None],
    draw_cotangent: Callable[[Tensor], Tensor] | None,
    count_macs: bool,
) -> float:
    """Run ``model`` once and report every block to ``observe``, in the order in which they ran.

    Args:
        model: The model, in the mode in which it should run.
        state: What to run it with in the place of its parameters and buffers.
        inputs: A tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        blocks: The primary blocks by name.
        observe: Called once with each :class:`BlockPass`, the stem's first.
        draw_cotangent: Makes v for a feature; ``None`` saves the backward pass.
        count_macs: Whether to count multiply-accumulates.

    Returns:
        Multiply-accumulates of the whole pass (0 if not counted).

    Raises:
        ProxyEvaluationError: The forward failed, a block or the model gave no tensor, or a block ran twice.
    """
    tracer = _Tracer(inputs, observe, draw_cotangent, _MacCounter() if count_macs else None)
    handles = []
    try:
        for name, module in blocks.items():
            handles.append(module.register_forward_pre_hook(tracer.before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(tracer.after(name)))
        with substituted(state):
            call_model(model, inputs, tracer.counter, last=lambda: tracer.last)
    finally:
        for handle in handles:
            handle.remove()
    return tracer.counter.total if tracer.counter else 0.0


def call_model(
    model: nn.Module,
    inputs: Any,
    mode: AbstractContextManager[Any] | None = None,
    *,
    last: Callable[[], tuple[str, torch.Size] | None] = lambda: None,
) -> Any:
    """Return what the model makes of a batch.

    Args:
        model: The model.
        inputs: A tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        mode: What to run it in.
        last: Names the block that ran last and the shape of its output, for the message.

    Raises:
        ProxyEvaluationError: The forward failed, or gave no tensor.
    """
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}
    try:
        with mode or nullcontext():
            output = model(*args, **kwargs)
    except ProxyEvaluationError:
        raise
    except Exception as error:
        raise _explain(error, model, inputs, last()) from error
    if next(tensors_in(output), None) is None:
        raise ProxyEvaluationError(
            f"{type(model).__name__}.forward returned {type(output).__name__} without a tensor in it. "
            "It must return its output tensor (or a tuple, list, mapping or dataclass that holds one)."
        )
    return output


#: On a tensor that was handed on: the leaf that it is a copy of.
_LEAF = "_optuna_aznas_leaf"


class _Tracer:
    """The hooks of one pass and what they share."""

    def __init__(
        self,
        inputs: Any,
        observe: Callable[[BlockPass], None],
        draw_cotangent: Callable[[Tensor], Tensor] | None,
        counter: _MacCounter | None,
    ) -> None:
        self.observe = observe
        self.draw_cotangent = draw_cotangent
        self.counter = counter
        self.raw_storages = {t.untyped_storage().data_ptr() for t in tensors_in(inputs)}
        self.last: tuple[str, torch.Size] | None = None  # the block that ran last, for messages
        self.leaf: Tensor | None = None  # the latest feature, cut off
        self.source: dict[str, Tensor] = {}  # block -> the leaf it started from
        self.ran: set[str] = set()
        self.macs_before = 0.0

    def before(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if name in self.ran:
                raise ProxyEvaluationError(
                    f"Block {name!r} ({type(module).__name__}) ran twice in one forward pass, so its Jacobian is not "
                    "one block's. Name blocks that run once with ProxyEvaluator(blocks=[...])."
                )
            self.ran.add(name)
            given = next(tensors_in((args, kwargs)), None)
            if given is None:
                return None
            if self.leaf is None and self._has_stem_before(module, given):
                cut = self._cut(f"input of {name}", module, given)
                args, kwargs = _replace((args, kwargs), given, cut)
                given = cut
            source = getattr(given, _LEAF, self.leaf)
            if source is not None:
                self.source[name] = source
            return args, kwargs

        return hook

    def after(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            feature = next(tensors_in(output), None)
            if feature is None or not feature.is_floating_point():
                raise ProxyEvaluationError(
                    f"Block {name!r} ({type(module).__name__}) returned {type(output).__name__} without a "
                    "floating-point tensor. Choose other blocks with ProxyEvaluator(blocks=[...])."
                )
            return _replace(output, feature, self._cut(name, module, feature))

        return hook

    def _has_stem_before(self, module: nn.Module, given: Tensor) -> bool:
        """Whether the input of the first block is the stem's feature.

        Not where it is still the model's own input (then the block is the stem), nor where the block is a plain layer
        that only marks the end of one.
        """
        raw = given.untyped_storage().data_ptr() in self.raw_storages
        return given.is_floating_point() and not raw and (has_children(module) or has_weight(module))

    def _cut(self, name: str, module: nn.Module, feature: Tensor) -> Tensor:
        """Report a feature and return what the rest of the network sees in its place."""
        source = self.source.pop(name, None)
        macs = 0.0
        if self.counter is not None:
            macs = self.counter.total - self.macs_before
            self.macs_before = self.counter.total
        with torch._C.DisableTorchFunction():  # what follows is not the model's own work, and not to be counted
            cotangent = gradient = product = None
            leaf = feature.detach()
            if self.draw_cotangent is not None and source is not None:
                cotangent = self.draw_cotangent(feature)
                product = partial(_product, feature, source)
                gradient = product(cotangent)
            self.observe(BlockPass(name, module, leaf, cotangent, gradient, macs, product))
            self.last = (name, feature.shape)
            if self.draw_cotangent is not None:
                leaf.requires_grad_()
            self.leaf = leaf
            # A copy, because what follows may work in place, and must not do so on a leaf.
            handed_on = leaf.clone()
        setattr(handed_on, _LEAF, leaf)
        return handed_on


def _product(feature: Tensor, source: Tensor, cotangent: Tensor) -> Tensor:
    """The vector-Jacobian product of a block, zeros where no gradient path leads from ``feature`` to ``source``."""
    if not feature.requires_grad:  # say, a cell in which every operation is "none"
        return torch.zeros_like(source)
    # Retained: where blocks branch, they share a piece of graph. It dies with the tensors in any case.
    (gradient,) = torch.autograd.grad(feature, source, cotangent, allow_unused=True, retain_graph=True)
    return torch.zeros_like(source) if gradient is None else gradient


class _MacCounter(TorchFunctionMode):
    """Counts multiply-accumulates.

    :class:`torch.utils.flop_counter.FlopCounterMode` sees every operator, at a cost that more than doubles a small
    network's forward pass. Here layers are counted as they are called, what is known to multiply no matrices
    passes, and only the rest is looked at operator by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layers = 0
        self._operators = _OperatorCounter()

    @property
    def total(self) -> float:
        return self._layers + self._operators.total

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WITHOUT_PRODUCTS:
            return func(*args, **kwargs)
        if func in _LAYERS and len(args) > 1 and args[1].ndim > 1:
            out = func(*args, **kwargs)
            self._layers += out.numel() * args[1].shape[1:].numel()  # each output is a row of the weight times inputs
            return out
        with self._operators:
            return func(*args, **kwargs)


class _OperatorCounter(TorchDispatchMode):
    """Counts multiply-accumulates of every operator with the formulas of :mod:`torch.utils.flop_counter`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) / 2  # a multiply and an add are one
        return out


#: Functions whose first two arguments are the input and a weight of shape (outputs, ...).
_LAYERS = {nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d}

#: Frequent functions and tensor methods without a product of matrices. Leaving one out costs time, nothing else.
_WITHOUT_PRODUCTS = {
    getattr(owner, name)
    for owner, names in {
        nn.functional: """
            adaptive_avg_pool1d adaptive_avg_pool2d avg_pool1d avg_pool2d batch_norm celu dropout dropout2d elu gelu
            group_norm hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu max_pool1d max_pool2d mish pad
            pixel_shuffle pixel_unshuffle relu relu6 rms_norm selu sigmoid silu softmax softplus tanh
        """,
        torch: """
            add cat chunk div exp flatten mean mul ones_like permute relu relu_ reshape sigmoid softmax split sqrt stack
            sub sum tanh transpose unsqueeze zeros_like
        """,
        Tensor: """
            __getitem__ __len__ __radd__ __rmul__ __rsub__ add add_ chunk clamp clone contiguous detach dim div div_ exp
            expand flatten float mean mul mul_ permute relu relu_ reshape sigmoid size softmax split sqrt squeeze sub
            sub_ sum tanh to transpose type_as unsqueeze view
        """,
    }.items()
    for name in names.split()
    if hasattr(owner, name)
} | {getattr(Tensor, name).__get__ for name in ("device", "dtype", "is_cuda", "ndim", "requires_grad", "shape")}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, tuple, list, mapping or dataclass, depth first."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return ``value`` with ``function`` applied to the tensors of :func:`tensors_in`, containers copied on the way."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        mapped: Any = copy.copy(value) if isinstance(value, MutableMapping) else dict(value)
        for key, item in value.items():
            mapped[key] = map_tensors(function, item)
        return mapped
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{n: map_tensors(function, getattr(value, n)) for n in names})
    return value


def _replace(value: Any, old: Tensor, new: Tensor) -> Any:
    return map_tensors(lambda tensor: new if tensor is old else tensor, value)


def _explain(
    error: Exception, model: nn.Module, inputs: Any, last: tuple[str, torch.Size] | None
) -> ProxyEvaluationError:
    """Say in which module a forward pass failed, on what shape, and what to do."""
    names = {id(module): name for name, module in model.named_modules()}
    where, shapes = "", ""
    traceback = error.__traceback__
    while traceback is not None:  # the innermost frame that belongs to one of the model's modules wins
        local = traceback.tb_frame.f_locals
        name = names.get(id(local.get("self")))
        if name is not None:
            where = f"{name!r} ({type(local['self']).__name__})" if name else f"{type(model).__name__}.forward itself"
            given = [tuple(t.shape) for t in tensors_in([v for k, v in local.items() if k in ("args", "input", "x")])]
            shapes = f" on input of shape {given[0]}" if given else shapes
        traceback = traceback.tb_next
    given_shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
    message = f"The forward pass of {type(model).__name__} failed in {where or 'the model'}{shapes}: "
    message += f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} "
    message += f"The model was given input of shape {given_shapes}"
    if last is not None:
        message += f"; the last block that ran, {last[0]!r}, gave {tuple(last[1])}"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        remedy = "Use a smaller batch_size, or another device."
    elif "more than 1 value per channel" in str(error):
        remedy = (
            "Batch normalisation needs more than one value per channel: use batch_size of 2 or more, "
            "or a larger input_shape."
        )
    else:
        remedy = "Check input_shape, or pass a real batch with inputs=."
    return ProxyEvaluationError(f"{message}. {remedy}")
