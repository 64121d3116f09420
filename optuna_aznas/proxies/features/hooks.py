"""One forward and one backward pass through a model whose blocks are known modules, by hooks on these.

The autograd graph is cut at each block's output: what follows receives a detached copy. As soon as a block has run, its
vector-Jacobian product is taken through that block alone, and its part of the graph is freed. So the forward and the
backward pass each run once through every block. The products of different blocks cannot mix, whatever else consumes a
feature, and memory holds the activations of one block at a time.

A block finds the feature that it started from by a mark on its input: a cut feature carries a reference to its detached
leaf, and each leaf carries its index. Where the input was computed from several features, the autograd graph leads to
their leaves, and the latest one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.block_pass import PassReport, PassRequest, Reporter
from optuna_aznas.proxies.features.blocks import has_children, has_weight
from optuna_aznas.proxies.features.dataflow import Graph, gradient_nodes, node_of
from optuna_aznas.proxies.features.record import Recorder, Result, heaviest
from optuna_aznas.proxies.model.forward import call_model
from optuna_aznas.proxies.model.isolation import without_autocast
from optuna_aznas.proxies.model.nested import replace_tensor, tensors_in

#: Attribute of a tensor that was handed on: the leaf that it is a copy of.
_LEAF = "_optuna_aznas_leaf"

#: Attribute of a feature: its index in the pass.
_INDEX = "_optuna_aznas_index"


def run_blocks(request: PassRequest, blocks: Mapping[str, nn.Module], split: Collection[str] = ()) -> PassReport:
    """Run a model once and report every block, in the order in which they ran.

    Args:
        request: The model, and what to report of it.
        blocks: The primary blocks by name. Each call of a block is a feature.
        split: Names of blocks that are split at their residual sums, where they have several.

    Raises:
        ProxyEvaluationError: The forward failed, or a block or the model returned no tensor.
    """
    reporter = Reporter(request)
    recorder = Recorder(lambda: reporter.macs, on=False) if split else None
    tracer = _Tracer(reporter, recorder)
    with reporter.running(recorder) as handles:
        for name, module in blocks.items():
            splits = name in split
            handles.append(module.register_forward_pre_hook(tracer.before(name, splits), with_kwargs=True))
            handles.append(module.register_forward_hook(tracer.after(name, splits)))
            if splits and recorder is not None:
                inner = {f"{name}.{n}": m for n, m in module.named_modules() if n and 1 <= len(n.split(".")) <= 2}
                recorder.watch(inner, handles)
        call_model(request.model, request.inputs, last=lambda: tracer.last)
    return reporter.summary(connected=tracer.is_connected(list(blocks)))


class _Tracer:
    """The hooks of one pass and their common state."""

    def __init__(self, reporter: Reporter, recorder: Recorder | None) -> None:
        self.reporter = reporter
        self.recorder = recorder
        self.raw_storages = {t.untyped_storage().data_ptr() for t in tensors_in(reporter.request.inputs)}
        self.last: tuple[str, torch.Size] | None = None  # the block that ran last, for messages
        self.leaf: Tensor | None = None  # the latest feature, detached
        self.source: dict[str, Tensor] = {}  # block -> the leaf it started from
        self.calls: dict[str, int] = {}
        self.ran: list[str] = []
        self.running: list[str] = []
        self.direct = 0  # blocks whose input was another block's output, unchanged
        self.merged = 0  # blocks whose input was computed from the outputs of several
        self.looking_back = False  # blocks under a checkpoint run again while gradients are taken

    def is_connected(self, order: Sequence[str]) -> bool:
        """Whether the blocks ran in the given order, as :class:`PassReport` says."""
        first_runs = list(dict.fromkeys(self.ran))
        in_order = first_runs == [name for name in order if name in self.calls]
        return in_order and 2 * self.direct >= len(self.ran) - 1 and 4 * self.merged <= len(self.ran)

    def before(self, name: str, splits: bool) -> Callable[..., Any]:
        """Return the hook that runs before a block and finds the feature that it starts from."""

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

    def after(self, name: str, splits: bool) -> Callable[..., Any]:
        """Return the hook that runs after a block, reports its output and cuts the graph there."""

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
        if given.grad_fn is not None and len(self.reporter.names) > 1:
            leaves = [getattr(node, "variable", None) for node in gradient_nodes(given)]
            features = [leaf for leaf in leaves if hasattr(leaf, _INDEX)]
            self.merged += len(features) > 1
            self.direct += leaf is not None and len(features) == 1  # changed in place, without another feature
            if features:
                return max(features, key=lambda leaf: getattr(leaf, _INDEX))
        # The model's own input is no feature: a block that starts from it begins another branch.
        return None if given.untyped_storage().data_ptr() in self.raw_storages else self.leaf

    def _has_stem_before(self, module: nn.Module, given: Tensor) -> bool:
        """Whether the input of the first block is the stem's feature.

        It is not where it is still the model's own input: then the block itself is the stem. Nor is it where the block
        is a plain layer without weights, which only marks the end of a block.
        """
        raw = given.untyped_storage().data_ptr() in self.raw_storages
        return given.is_floating_point() and not raw and (has_children(module) or has_weight(module))

    def _report_inside(self, name: str, module: nn.Module, source: Tensor, output: Tensor) -> Tensor:
        """Report the features at a block's residual sums, except the last, and return the last one reported."""
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
        """Report a feature and return the detached copy that the rest of the network receives."""
        index = self._report(name, module, feature, source, self.reporter.macs)
        with torch._C.DisableTorchFunction():  # this is not the model's own work, and not to be counted
            leaf = feature.detach()
            if self.reporter.request.draw_cotangent is not None or self.recorder is not None:
                leaf.requires_grad_()
            self.leaf = leaf
            setattr(leaf, _INDEX, index)
            # A copy, because what follows may work in place, which autograd forbids on a leaf.
            handed_on = leaf.clone()
        setattr(handed_on, _LEAF, leaf)
        return handed_on

    def _report(self, name: str, module: nn.Module, feature: Tensor, source: Tensor | None, macs: float) -> int:
        self.looking_back = True
        with torch._C.DisableTorchFunction(), without_autocast(feature.device.type):
            previous = getattr(source, _INDEX, None)
            index = self.reporter.report(name, module, feature, source, macs=macs, previous=previous)
        self.looking_back = False
        self.last = (name, feature.shape)
        setattr(feature, _INDEX, index)
        return index


def _main_input(given: Any) -> Tensor | None:
    """Return a block's main input: a feature if there is one, else the first floating-point tensor."""
    tensors = list(tensors_in(given))
    for tensor in tensors:
        if hasattr(tensor, _LEAF):
            return tensor
    return next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0] if tensors else None)


def residual_sums(source: Tensor, output: Tensor, recorder: Recorder) -> list[Result]:
    """Return the results at a block's residual sums, such as the one after attention; without the last sum.

    Where plain operations follow a sum, such as the normalisation in post-norm transformers, their result is returned.
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
