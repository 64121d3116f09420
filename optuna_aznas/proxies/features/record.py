"""A record of a forward pass: which tensor each autograd node returned, and which module was running.

The autograd graph knows operations, but no tensors and no modules. The recorder intercepts every function of torch
during the forward pass, and keeps each tensor returned under its node. Hooks on the modules keep a stack of running
calls. So a node found in the graph leads to its tensor, to the multiply-accumulates before it, and to the module that
was running.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.features.blocks import has_children, has_weight
from optuna_aznas.proxies.features.dataflow import Node
from optuna_aznas.proxies.model.isolation import Substitute
from optuna_aznas.proxies.model.nested import tensors_in

#: Key of the recorder's hook among those of a module.
_HOOK = "optuna_aznas"


@dataclasses.dataclass(frozen=True)
class Result:
    """A tensor that a function returned.

    Attributes:
        tensor: The tensor. An operation in place since then has given it another node.
        index: Its number in the order of execution, from 1.
        macs: Multiply-accumulates of the whole pass up to it.
        owner: The name of the module in whose forward it was computed.
    """

    tensor: Tensor
    index: int
    macs: float
    owner: str


@dataclasses.dataclass
class Call:
    """A call of a module.

    Attributes:
        name: The module's name in the model.
        module: The module.
        number: 1 for its first call.
        begin: The number of results before it.
        end: The number of results when it returned.
        node: The node of its first output tensor.
    """

    name: str
    module: nn.Module
    number: int
    begin: int
    end: int = sys.maxsize
    node: Node | None = None


class Recorder:
    """Keeps the tensors that functions return while ``on``, by their node in the autograd graph.

    Args:
        macs: Returns the multiply-accumulates so far.
        on: Whether to record from the start.
    """

    def __init__(self, macs: Callable[[], float], *, on: bool) -> None:
        self._macs = macs
        self._stack: list[Call] = []
        self._numbers: dict[str, int] = {}
        self.on = on
        self.count = 0
        self.results: dict[Node, Result] = {}
        self.calls: list[Call] = []

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Take note of what a function returned, and return what the model is to get in its place."""
        if self.on:
            if isinstance(out, Tensor):
                self._keep(out)
            elif isinstance(out, tuple | list):
                for item in out:
                    if isinstance(item, Tensor):
                        self._keep(item)
        return out

    def _keep(self, tensor: Tensor) -> None:
        node = tensor.grad_fn
        if node is not None:
            self.count += 1
            owner = self._stack[-1].name if self._stack else ""
            self.results[node] = Result(tensor, self.count, self._macs(), owner)

    def at(self, node: Node) -> Result | None:
        """Return a node's result; ``None`` if its tensor was overwritten since."""
        result = self.results.get(node)
        return result if result is not None and result.tensor.grad_fn is node else None

    def last_node(self) -> Node | None:
        """Return the node of the latest result whose tensor was not overwritten since."""
        valid = [node for node in self.results if self.at(node) is not None]
        return max(valid, key=lambda node: self.results[node].index, default=None)

    def ends_module(self, result: Result) -> bool:
        """Whether a module with children, other than the whole model, returned this result."""
        return result.tensor.grad_fn in self._ends

    @functools.cached_property
    def _ends(self) -> set[Node]:
        """The nodes of what modules with children returned in the pass."""
        return {call.node for call in self.calls if call.name and has_children(call.module)}

    def clear(self) -> None:
        """Drop what was recorded, to free its memory."""
        self.results.clear()
        self.calls.clear()

    def hooks(self, modules: Mapping[str, nn.Module]) -> list[Substitute]:
        """Return the hooks that record the calls of modules, to be put where torch keeps them.

        Registering so many one by one, and removing them, would take as long as running some of the layers.
        """
        return [
            hook
            for name, module in modules.items()
            for hook in (
                Substitute(module._forward_pre_hooks, _HOOK, self._before(name)),
                Substitute(module._forward_hooks, _HOOK, self._after),
            )
        ]

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            number = self._numbers[name] = self._numbers.get(name, 0) + 1
            call = Call(name, module, number, self.count)
            self._stack.append(call)
            if self.on:
                self.calls.append(call)

        return hook

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._stack.pop()
        call.end = self.count
        with torch._C.DisableTorchFunction():
            first = next(tensors_in(output), None)
            call.node = None if first is None else first.grad_fn


def heaviest(calls: Iterable[Call], begin: int, end: int) -> Call | None:
    """Return the call between two results whose module has the most parameters; of equal ones, the first begun."""
    inside = [call for call in calls if begin <= call.begin and call.end <= end and has_weight(call.module)]
    return max(inside, key=lambda call: sum(p.numel() for p in call.module.parameters()), default=None)
