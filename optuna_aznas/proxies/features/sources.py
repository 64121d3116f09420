"""Where the gradients of a forward pass can end: its floating-point inputs, and rows of tables such as embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.features.dataflow import Node, node_of
from optuna_aznas.proxies.features.record import Recorder, Result
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in

#: Functions that look up rows of a table, such as embeddings.
_LOOKUPS = {
    nn.functional.embedding,
    nn.functional.embedding_bag,
    torch.index_select,
    torch.embedding,
    Tensor.__getitem__,
}

#: Functions that turn whole numbers into floating-point ones.
_CASTS = {Tensor.float, Tensor.to, Tensor.type_as, Tensor.double, Tensor.type}


class SourceRecorder(Recorder):
    """A recorder that also finds the sources, where a gradient can end: floating-point inputs, and tensors that are
    looked up by, or cast from, inputs of whole numbers.
    """

    def __init__(self, macs: Callable[[], float]) -> None:
        super().__init__(macs, on=True)
        self.sources: dict[Node, bool] = {}  # in order; whether it was looked up in a table
        self._whole: dict[int, Tensor] = {}  # whole numbers that depend on the inputs, by id; kept so that ids last
        self._main: int | None = None
        self.kinds: set[type[nn.Module]] = set()  # classes of modules that are blocks
        self.layers_are_blocks = False  # whether no piece with branches tells blocks from other layers
        self.input: Tensor | None = None  # the model's input, where it has one, of floating point

    def as_sources(self, inputs: Any) -> Any:
        """Return the inputs with each floating-point tensor a source."""
        self._main = id(next(tensors_in(inputs)))
        given: list[Tensor] = []

        def source(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                tensor = self._source(tensor, looked_up=False)
            else:
                self._whole[id(tensor)] = tensor
            given.append(tensor)
            return tensor

        inputs = map_tensors(source, inputs)
        self.input = given[0] if len(given) == 1 and given[0].is_floating_point() else None
        return inputs

    @property
    def input_node(self) -> Node | None:
        """The node of the model's only input."""
        return None if self.input is None else self.input.grad_fn

    def result_of_input(self) -> Result:
        """Record the model's only input as a result, so that it can be a feature, and return that."""
        assert self.input is not None
        return self.results.setdefault(self.input_node, Result(self.input, 0, 0.0, ""))

    def _source(self, tensor: Tensor, *, looked_up: bool) -> Tensor:
        leaf = tensor.detach().requires_grad_()
        self.sources[node_of(leaf)] = looked_up
        return leaf.clone()  # as what follows may work in place

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Take note of what a function returned; if that is a source, return a leaf of the graph in its place."""
        out = super().note(func, args, kwargs, out)
        if not self._whole or not isinstance(out, Tensor) or out.grad_fn is not None or not torch.is_grad_enabled():
            return out
        given = [id(t) for t in tensors_in((args, kwargs)) if id(t) in self._whole]
        if given and out.is_floating_point():
            if func in _LOOKUPS or (func in _CASTS and given[0] == self._main):
                out = self._source(out, looked_up=func in _LOOKUPS)
                self._keep(out)
        elif given:
            self._whole[id(out)] = out
        return out
