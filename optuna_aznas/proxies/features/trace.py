"""One forward and one backward pass through a model, block by block.

At each block's output the autograd graph is cut: what follows is handed a detached copy. As soon as a block has run,
its vector-Jacobian product is taken, through that block alone, and its part of the graph is freed. So forward
and backward each pass once through every block, the products of different blocks cannot mix (whatever else consumes a
feature), and memory holds the activations of one block at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features import layout
from optuna_aznas.proxies.features.blocks import has_children, has_weight
from optuna_aznas.proxies.features.dataflow import Graph, gradient_nodes, node_of
from optuna_aznas.proxies.features.record import Recorder, Result, heaviest
from optuna_aznas.proxies.model.nested import replace_tensor, tensors_in
from optuna_aznas.proxies.model.weights import Substitute, substituted


@dataclasses.dataclass(frozen=True)
class BlockPass:
    """What one block did in the pass.

    Attributes:
        name: The block's name in the model. The first pass is the stem's: its name is that of the module
            that ended the stem, or ``"input of <first block>"``. ``"after <module>"`` is what that module's output was
            added to a shortcut for.
        module: The block; for the stem, what it precedes or is.
        feature: The block's output f_l, detached.
        cotangent: v, shaped as ``feature``, for the product; ``None`` for the stem or where none was asked for.
        gradient: ``J^T v``, shaped as the feature that the block started from; zeros where no gradient path exists.
        macs: Multiply-accumulates of the whole batch since the feature before.
        product: Takes another cotangent and returns its ``J^T v``; only while the pass is observed. ``None`` where
            ``gradient`` is.
        previous: The number of the pass whose feature the block started from, from 0; ``None`` for a stem.
        layers: The layers that made the feature, in order, where they are not just those of ``module``.
    """

    name: str
    module: nn.Module
    feature: Tensor
    cotangent: Tensor | None
    gradient: Tensor | None
    macs: float
    product: Callable[[Tensor], Tensor] | None = None
    previous: int | None = None
    layers: tuple[nn.Module, ...] = ()

    @property
    def channels_first(self) -> bool:
        """Whether dimension 1 of the feature holds its channels, as against the last."""
        return layout.channels_first(self.feature, self.layers or self.module.modules())


@dataclasses.dataclass(frozen=True)
class PassReport:
    """How a pass went.

    Attributes:
        macs: Multiply-accumulates of the whole pass; 0 where not counted.
        connected: Whether the blocks ran in their order, at least half of them on the output of another, and few on
            mixtures of several.
    """

    macs: float
    connected: bool


def run_blocks(
    model: nn.Module,
    state: Sequence[Substitute],
    inputs: Any,
    blocks: Mapping[str, nn.Module],
    *,
    observe: Callable[[BlockPass], None],
    draw_cotangent: Callable[[Tensor], Tensor] | None,
    count_macs: bool,
    split: Collection[str] = (),
) -> PassReport:
    """Run ``model`` once and report every block to ``observe``, in the order in which they ran.

    Args:
        model: The model, in the mode in which it should run.
        state: What to run it with in the place of its parameters and buffers.
        inputs: A tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        blocks: The primary blocks by name. Each call of a block is a feature.
        observe: Called once with each :class:`BlockPass`, the stem's first.
        draw_cotangent: Makes v for a feature; ``None`` saves the backward pass.
        count_macs: Whether to count multiply-accumulates.
        split: Names of blocks that are split at their residual sums, where they have several.

    Returns:
        How it went.

    Raises:
        ProxyEvaluationError: The forward failed, or a block or the model gave no tensor.
    """
    counter = MacCounter() if count_macs else None
    recorder = Recorder(lambda: counter.total if counter else 0.0, on=False) if split else None
    tracer = _Tracer(inputs, observe, draw_cotangent, counter, recorder)
    handles = []
    try:
        for name, module in blocks.items():
            splits = name in split
            handles.append(module.register_forward_pre_hook(tracer.before(name, splits), with_kwargs=True))
            handles.append(module.register_forward_hook(tracer.after(name, splits)))
            if splits and recorder is not None:
                inner = {f"{name}.{n}": m for n, m in module.named_modules() if n and 1 <= len(n.split(".")) <= 2}
                handles += recorder.watch(inner)
        with substituted(state), ExitStack() as modes:
            if counter is not None:
                modes.enter_context(counter)
            if recorder is not None:
                modes.enter_context(recorder)
            call_model(model, inputs, last=lambda: tracer.last)
    finally:
        for handle in handles:
            handle.remove()
    return PassReport(counter.total if counter else 0.0, tracer.is_connected(list(blocks)))


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

#: On a feature: the number of its pass.
_NUMBER = "_optuna_aznas_number"


class _Tracer:
    """The hooks of one pass and what they share."""

    def __init__(
        self,
        inputs: Any,
        observe: Callable[[BlockPass], None],
        draw_cotangent: Callable[[Tensor], Tensor] | None,
        counter: MacCounter | None,
        recorder: Recorder | None,
    ) -> None:
        self.observe = observe
        self.draw_cotangent = draw_cotangent
        self.counter = counter
        self.recorder = recorder
        self.raw_storages = {t.untyped_storage().data_ptr() for t in tensors_in(inputs)}
        self.last: tuple[str, torch.Size] | None = None  # the block that ran last, for messages
        self.leaf: Tensor | None = None  # the latest feature, cut off
        self.passes = 0
        self.source: dict[str, Tensor] = {}  # block -> the leaf it started from
        self.calls: dict[str, int] = {}
        self.ran: list[str] = []
        self.running: list[str] = []
        self.direct = 0  # blocks that were handed another's output as it was
        self.merged = 0  # blocks that were handed a mixture of several
        self.macs_before = 0.0
        self.looking_back = False  # blocks under a checkpoint run again while gradients are taken

    def is_connected(self, order: Sequence[str]) -> bool:
        first_runs = list(dict.fromkeys(self.ran))
        in_order = first_runs == [name for name in order if name in self.calls]
        return in_order and 2 * self.direct >= len(self.ran) - 1 and 4 * self.merged <= len(self.ran)

    def before(self, name: str, splits: bool = False) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.looking_back:
                return None
            if name in self.running:
                raise ProxyEvaluationError(
                    f"Block {name!r} ({type(module).__name__}) calls itself, so its Jacobian is not one block's. "
                    "Name other blocks with ProxyEvaluator(blocks=[...])."
                )
            self.running.append(name)
            self.calls[name] = self.calls.get(name, 0) + 1
            self.ran.append(name)
            given = _main_input((args, kwargs))
            if given is None:
                return None
            if self.leaf is None and self._has_stem_before(module, given):
                cut = self._cut(f"input of {name}", module, given, None)
                args, kwargs = replace_tensor((args, kwargs), given, cut)
                given = cut
            source = self._origin(given)
            if source is not None:
                self.source[name] = source
            if splits and self.recorder is not None:
                self.recorder.on = source is not None
            return args, kwargs

        return hook

    def after(self, name: str, splits: bool = False) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.looking_back:
                return None
            self.running.remove(name)
            feature = next((t for t in tensors_in(output) if t.is_floating_point()), None)
            if feature is None:
                returned = type(output).__name__
                raise ProxyEvaluationError(
                    f"Block {name!r} ({type(module).__name__}) returned {returned} without a "
                    "floating-point tensor. Choose other blocks with ProxyEvaluator(blocks=[...])."
                )
            source = self.source.pop(name, None)
            if splits and self.recorder is not None and self.recorder.on:
                self.recorder.on = False
                if source is not None:
                    source = self._report_inside(name, module, source, feature)
                self.recorder.clear()
            return replace_tensor(output, feature, self._cut(name + self._which_call(name), module, feature, source))

        return hook

    def _origin(self, given: Tensor) -> Tensor | None:
        """Return the latest feature that a block's input depends on."""
        leaf = getattr(given, _LEAF, None)
        if leaf is not None and (given._version == 0 or given.grad_fn is None):
            self.direct += 1
            return leaf
        if given.grad_fn is not None and self.passes > 1:
            leaves = [getattr(node, "variable", None) for node in gradient_nodes(given)]
            numbered = [leaf for leaf in leaves if hasattr(leaf, _NUMBER)]
            self.merged += len(numbered) > 1
            self.direct += leaf is not None and len(numbered) == 1  # changed in place, by itself
            if numbered:
                return max(numbered, key=lambda leaf: getattr(leaf, _NUMBER))
        # Not the model's own input: that begins a stream of its own.
        return None if given.untyped_storage().data_ptr() in self.raw_storages else self.leaf

    def _has_stem_before(self, module: nn.Module, given: Tensor) -> bool:
        """Whether the input of the first block is the stem's feature.

        Not where it is still the model's own input (then the block is the stem), nor where the block is a plain layer
        that only marks the end of one.
        """
        raw = given.untyped_storage().data_ptr() in self.raw_storages
        return given.is_floating_point() and not raw and (has_children(module) or has_weight(module))

    def _report_inside(self, name: str, module: nn.Module, source: Tensor, output: Tensor) -> Tensor:
        """Report the features at a block's residual sums, but for the last, and return what its end starts from."""
        assert self.recorder is not None
        begin = 0
        for k, result in enumerate(residual_sums(source, output, self.recorder), 1):
            call = heaviest(self.recorder.calls, begin, result.index)
            inner = call.name if call is not None else f"{name}, sum {k}"
            begin = result.index
            self._report(f"after {inner}{self._which_call(name)}", module, result.tensor, source, result.macs)
            source = result.tensor
        return source

    def _which_call(self, name: str) -> str:
        return f" (call {self.calls[name]})" if self.calls[name] > 1 else ""

    def _cut(self, name: str, module: nn.Module, feature: Tensor, source: Tensor | None) -> Tensor:
        """Report a feature and return what the rest of the network sees in its place."""
        self._report(name, module, feature, source, self.counter.total if self.counter is not None else 0.0)
        with torch._C.DisableTorchFunction():  # this is not the model's own work, and not to be counted
            leaf = feature.detach()
            if self.draw_cotangent is not None or self.recorder is not None:
                leaf.requires_grad_()
            self.leaf = leaf
            setattr(leaf, _NUMBER, self.passes - 1)
            # A copy, because what follows may work in place, and must not do so on a leaf.
            handed_on = leaf.clone()
        setattr(handed_on, _LEAF, leaf)
        return handed_on

    def _report(self, name: str, module: nn.Module, feature: Tensor, source: Tensor | None, macs: float) -> None:
        self.looking_back = True
        with torch._C.DisableTorchFunction(), _without_autocast(feature.device.type):
            cotangent = gradient = product = None
            if self.draw_cotangent is not None and source is not None:
                cotangent = self.draw_cotangent(feature)
                product = partial(vector_jacobian_product, feature, source)
                gradient = product(cotangent)
            macs, self.macs_before = macs - self.macs_before, macs
            previous = getattr(source, _NUMBER, None)
            self.observe(BlockPass(name, module, feature.detach(), cotangent, gradient, macs, product, previous))
        self.looking_back = False
        self.last = (name, feature.shape)
        setattr(feature, _NUMBER, self.passes)
        self.passes += 1


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Undo what the model may have turned on for itself."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _main_input(given: Any) -> Tensor | None:
    """Return the tensor that a block goes on from: a feature as it was handed on, else the first of real numbers."""
    tensors = list(tensors_in(given))
    for tensor in tensors:
        if hasattr(tensor, _LEAF):
            return tensor
    return next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0] if tensors else None)


def residual_sums(source: Tensor, output: Tensor, recorder: Recorder) -> list[Result]:
    """Return what a block computes at its residual sums, such as after attention; without the last sum.

    Where plain operations follow a sum, such as the normalisation in post-norm transformers, their result is taken.
    """
    if output.grad_fn is None or not source.requires_grad:
        return []
    start = node_of(source)
    pieces = Graph(output.grad_fn, {start}).chain()
    found = []
    for i, piece in enumerate(pieces):
        if not piece.residual:
            continue
        result = recorder.at(piece.end)
        for following in pieces[i + 1 :]:
            if following.products or following.branches:
                break
            later = recorder.at(following.end)
            if later is not None and (result is None or later.tensor.shape == result.tensor.shape):
                result = later
        found.append(result)
    return [result for result in found[:-1] if result is not None and result.tensor.shape == output.shape]


def vector_jacobian_product(feature: Tensor, source: Tensor, cotangent: Tensor) -> Tensor:
    """The vector-Jacobian product of a block, zeros where no gradient path leads from ``feature`` to ``source``."""
    if not feature.requires_grad:  # say, a cell in which every operation is "none"
        return torch.zeros_like(source)
    # Retained: where blocks branch, they share a piece of graph. It dies with the tensors in any case.
    (gradient,) = torch.autograd.grad(feature, source, cotangent, allow_unused=True, retain_graph=True)
    return torch.zeros_like(source) if gradient is None else gradient


class MacCounter(TorchFunctionMode):
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
        if func in _RECURRENT:
            out = func(*args, **kwargs)
            weights = next(arg for arg in args if isinstance(arg, tuple | list) and len(arg) > 2)
            self._layers += args[0].shape[:-1].numel() * sum(w.numel() for w in weights if w.ndim == 2)
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
        formula = flop_registry.get(func._overloadpacket) or _ATTENTION.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) / 2  # a multiply and an add are one
        return out


def _attention_flops(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any = None, **kwargs: Any
) -> float:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


#: Operators that torch's registry lacks: attention on a CPU.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}

#: Recurrent layers: each step and sample meets each weight of each layer once.
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}

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
    return ProxyEvaluationError(f"{message}. {_remedy(error, inputs)}")


def _remedy(error: Exception, inputs: Any) -> str:
    said = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "Use a smaller batch_size, or another device."
    if "more than 1 value per channel" in said:
        return (
            "Batch normalisation needs more than one value per channel: use batch_size of 2 or more, "
            "or a larger input_shape."
        )
    if type(error).__name__ == "CheckpointError":
        return "It computes activations anew in the backward pass: turn checkpointing off while it is scored."
    if "modified by an inplace operation" in said:
        return (
            "It overwrites a tensor that its gradient needs, so it could not be trained either: write that operation "
            "out of place, such as x = x + y for x += y."
        )
    types = {t.dtype for t in tensors_in(inputs)}
    if "indices" in said and all(dtype.is_floating_point for dtype in types):
        return "It looks up whole numbers, such as token ids: pass a batch of them with inputs=."
    if "dtype" in said or "type" in said:
        whole = sorted(str(dtype) for dtype in types if not dtype.is_floating_point)
        if whole:
            return (
                f"inputs holds {', '.join(whole)}: give the model what it computes with, such as inputs=batch.float()."
            )
        return (
            "Scoring runs in single precision, half precision included: let the model take its type from its input or "
            "parameters, instead of naming one."
        )
    return "Check input_shape, or pass a real batch with inputs=."
