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

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.block_pass import PassReport, PassRequest, Reporter
from optuna_aznas.proxies.features.blocks import Inside, has_children, has_weight
from optuna_aznas.proxies.features.dataflow import gradient_nodes, is_product
from optuna_aznas.proxies.features.record import Recorder, heaviest
from optuna_aznas.proxies.features.trace import hand_on
from optuna_aznas.proxies.features.within import features_within
from optuna_aznas.proxies.model.isolation import without_autocast
from optuna_aznas.proxies.model.nested import replace_tensor, tensors_in

#: Attribute of a tensor that was handed on: the leaf that it is a copy of.
_LEAF = "_optuna_aznas_leaf"

#: Attribute of a feature: its index in the pass.
_INDEX = "_optuna_aznas_index"


def run_blocks(
    request: PassRequest, blocks: Mapping[str, nn.Module], inside: Mapping[str, Inside] = MappingProxyType({})
) -> PassReport:
    """Run a model once and report every block, in the order in which they ran.

    Args:
        request: The model, and what to report of it.
        blocks: The primary blocks by name. Each call of a block is a feature.
        inside: What of a block may be features of its own, by the block's name.

    Raises:
        ProxyEvaluationError: The forward failed, or a block or the model returned no tensor.
    """
    reporter = Reporter(request)
    recorder = Recorder(lambda: reporter.macs, on=False) if inside else None
    tracer = _Tracer(reporter, recorder, inside)
    watched: dict[str, nn.Module] = {}
    for name, within in inside.items():
        watched |= _watched(name, blocks[name], within.units)
    with reporter.running(recorder, watched) as handles:
        for name, module in blocks.items():
            handles.append(module.register_forward_pre_hook(_unseen(tracer.before(name)), with_kwargs=True))
            handles.append(module.register_forward_hook(_unseen(tracer.after(name))))
        reporter.call(request.inputs, last=lambda: tracer.last)
    return reporter.summary(connected=tracer.is_connected(list(blocks)))


def _watched(name: str, block: nn.Module, units: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules whose calls are recorded: two levels within a block, and two within each of its units."""
    watched = dict(units)
    for outer, module in ((name, block), *units.items()):
        watched |= {f"{outer}.{n}": m for n, m in module.named_modules() if n and n.count(".") < 2}
    return watched


def _unseen(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Let what a hook does neither be counted nor traced: it is not the model's own work."""

    def unseen(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return hook(*args)

    return unseen


class _Tracer:
    """The hooks of one pass and their common state."""

    def __init__(self, reporter: Reporter, recorder: Recorder | None, inside: Mapping[str, Inside]) -> None:
        self.reporter = reporter
        self.recorder = recorder
        self.inside = inside
        self.raw_storages = {t.untyped_storage().data_ptr() for t in tensors_in(reporter.request.inputs)}
        self.last: tuple[str, torch.Size] | None = None  # the block that ran last, for messages
        self.leaf: Tensor | None = None  # the latest feature, detached
        self.source: dict[str, Tensor] = {}  # block -> the leaf it started from
        self.calls: dict[str, int] = {}
        self.ran: list[str] = []
        self.running: list[str] = []
        self.latest: nn.Module | None = None  # the block that began last
        self.joints = 0  # blocks without those that repeat the block before them, or start from the model's input
        self.direct = 0  # joints whose input was the output of one block, but for plain operations
        self.merged = 0  # joints whose input was computed from the outputs of several
        self.looking_back = False  # blocks under a checkpoint run again while gradients are taken

    def is_connected(self, order: Sequence[str]) -> bool:
        """Whether the blocks ran in the given order, as :class:`PassReport` says.

        Blocks that repeat the one before them are not counted, as how often they do is the network's depth, and blocks
        of a space should be found in one way whatever its depth.
        """
        first_runs = list(dict.fromkeys(self.ran))
        in_order = first_runs == [name for name in order if name in self.calls]
        return in_order and 2 * self.direct >= self.joints and 3 * self.merged <= self.joints

    def before(self, name: str) -> Callable[..., Any]:
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
            source = self._origin(module, given)
            self.latest = module
            if source is not None:
                self.source[name] = source
            if name in self.inside and self.recorder is not None:
                self.recorder.on = source is not None
            return args, kwargs

        return hook

    def after(self, name: str) -> Callable[..., Any]:
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
            if name in self.inside and self.recorder is not None and self.recorder.on:
                self.recorder.on = False
                if source is not None:
                    source = self._report_inside(name, module, source, feature)
                self.recorder.clear()
            return replace_tensor(output, feature, self._cut(name + self._which_call(name), module, feature, source))

        return hook

    def _origin(self, module: nn.Module, given: Tensor) -> Tensor | None:
        """Return the latest feature that a block's input depends on, and count how the block is joined to others."""
        leaf = getattr(given, _LEAF, None)
        if leaf is not None and (given._version == 0 or given.grad_fn is None):
            if type(module) is not type(self.latest) or leaf is not self.leaf:
                self.joints += 1
                self.direct += 1
            return leaf
        nodes = gradient_nodes(given)
        variables = [getattr(node, "variable", None) for node in nodes]
        features = [variable for variable in variables if hasattr(variable, _INDEX)]
        if not features and given.untyped_storage().data_ptr() in self.raw_storages:
            return None  # the model's own input is no feature: a block that starts from it begins another branch
        self.joints += 1
        self.merged += len(features) > 1
        self.direct += len(features) == 1 and (leaf is not None or not any(map(is_product, nodes)))
        return max(features, key=lambda feature: getattr(feature, _INDEX), default=self.leaf)

    def _has_stem_before(self, module: nn.Module, given: Tensor) -> bool:
        """Whether the input of the first block is the stem's feature.

        It is not where it is still the model's own input: then the block itself is the stem. Nor is it where the block
        is a plain layer without weights, which only marks the end of a block.
        """
        raw = given.untyped_storage().data_ptr() in self.raw_storages
        return given.is_floating_point() and not raw and (has_children(module) or has_weight(module))

    def _report_inside(self, name: str, module: nn.Module, source: Tensor, output: Tensor) -> Tensor:
        """Report the features within a block, and return the last one reported."""
        assert self.recorder is not None
        begin = 0
        found = features_within(source, output, self.recorder, self.inside[name])
        for k, (result, unit) in enumerate(found, 1):
            if unit is not None:
                inner, of = unit.name, unit.module
            else:
                call = heaviest(self.recorder.calls, begin, result.index)
                inner, of = f"after {call.name}" if call is not None else f"after {name}, feature {k}", module
            begin = result.index
            self._report(inner + self._which_call(name), of, result.tensor, source, result.macs)
            source = result.tensor
        return source

    def _which_call(self, name: str) -> str:
        return f" (call {self.calls[name]})" if self.calls[name] > 1 else ""

    def _cut(self, name: str, module: nn.Module, feature: Tensor, source: Tensor | None) -> Tensor:
        """Report a feature and return the detached copy that the rest of the network receives."""
        index = self._report(name, module, feature, source, self.reporter.macs)
        leaf = feature.detach()
        leaf.requires_grad_()  # also where no products are taken: the graph tells what a block starts from
        self.leaf = leaf
        setattr(leaf, _INDEX, index)
        # A copy, because what follows may work in place, which autograd forbids on a leaf.
        handed_on = leaf.clone()
        setattr(handed_on, _LEAF, leaf)
        hand_on(feature, handed_on)
        return handed_on

    def _report(self, name: str, module: nn.Module, feature: Tensor, source: Tensor | None, macs: float) -> int:
        self.looking_back = True
        with without_autocast(feature.device.type):
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
