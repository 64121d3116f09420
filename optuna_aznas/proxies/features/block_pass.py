"""What one pass over a model's features reports, to whom, and what the two ways of running it share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from optuna_aznas.proxies.features import layout
from optuna_aznas.proxies.features.operators import OperatorGraph
from optuna_aznas.proxies.features.record import Recorder
from optuna_aznas.proxies.features.trace import OperatorTrace
from optuna_aznas.proxies.model.counting import MacCounter
from optuna_aznas.proxies.model.forward import call_model, differentiate
from optuna_aznas.proxies.model.isolation import Substitute, removing_hooks, substituted


@dataclasses.dataclass(frozen=True)
class BlockPass:
    """What one block did in the pass.

    Attributes:
        name: The block's name in the model. The first entry is the stem's: the name of the module that ended the stem,
            or ``"input of <first block>"``. ``"after <module>"`` names the residual sum of that module's output and a
            shortcut.
        module: The block; for the stem, the module that ends it or follows it.
        feature: The block's output f_l, detached.
        cotangent: v, shaped as ``feature``; ``None`` for a stem, or where no products are taken.
        gradient: ``J^T v``, shaped as the feature that the block started from; zeros where no gradient path exists.
        macs: Multiply-accumulates of the whole batch since the feature before.
        product: Takes another cotangent and returns its ``J^T v``; usable only while the observer is called. ``None``
            where ``gradient`` is.
        previous: The index of the pass whose feature the block started from, from 0; ``None`` for a stem.
        layers: The layers that computed the feature, in order, where they are not just those of ``module``.
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


class Observer(Protocol):
    """Watches a pass and computes one proxy from it.

    An observer that looks at blocks does so in :meth:`__call__`; one that intercepts operators returns a torch mode
    from :meth:`surround`.
    """

    def surround(self) -> AbstractContextManager[Any]:
        """Return a context manager that surrounds the model's forward pass."""

    def __call__(self, block: BlockPass) -> None:
        """Take note of a block; called for the stem and each block in the order of execution."""

    def score(self) -> float:
        """Return the proxy's score after the pass."""


@dataclasses.dataclass(frozen=True)
class PassRequest:
    """A model to run once, and what to report of it.

    Attributes:
        model: The model, in the mode in which it should run.
        state: Substitutes for its parameters and buffers.
        inputs: A tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        observe: Each of these is called once with each :class:`BlockPass`, the stem's first.
        draw_cotangent: Returns v for a feature; ``None`` saves the backward pass.
        count_macs: Whether to count multiply-accumulates.
        trace: Whether to record the graph of operators.
    """

    model: nn.Module
    state: Sequence[Substitute]
    inputs: Any
    observe: Sequence[Callable[[BlockPass], None]]
    draw_cotangent: Callable[[Tensor], Tensor] | None
    count_macs: bool
    trace: bool = False


@dataclasses.dataclass(frozen=True)
class PassReport:
    """How a pass went.

    Attributes:
        macs: Multiply-accumulates of the whole pass; 0 where not counted.
        activations: Elements of the outputs of convolutions, linear and recurrent layers that lie on a path from the
            model's input to its output; 0 where not counted or where the graph is not recorded.
        features: The names of the features, in the order of execution.
        connected: Whether the blocks ran in their order, at least half of them on the output of another, and few on
            mixtures of several.
        graph: The model's operators; ``None`` where not recorded.
    """

    macs: float
    activations: float
    features: tuple[str, ...]
    connected: bool
    graph: OperatorGraph | None = None


class _Watch(TorchFunctionMode):
    """Counts, records and traces every function of torch: one mode, as each costs as much as launching a kernel."""

    def __init__(self, counter: MacCounter | None, recorder: Recorder | None, trace: OperatorTrace | None) -> None:
        super().__init__()
        self._counter, self._recorder, self._trace = counter, recorder, trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        activations = 0.0
        if self._counter is None:
            out = func(*args, **kwargs)
        else:
            before = self._counter.activations
            out = self._counter.__torch_function__(func, types, args, kwargs)
            activations = self._counter.activations - before
        if self._recorder is not None:
            out = self._recorder.note(func, args, kwargs, out)
        if self._trace is not None:  # last, so that it sees what the model gets
            self._trace.note(func, args, kwargs, out, activations)
        return out


class Reporter:
    """Counts, differentiates and reports the features of one pass.

    Args:
        request: What was asked for.
    """

    def __init__(self, request: PassRequest) -> None:
        self.request = request
        self.names: list[str] = []
        self._counter = MacCounter() if request.count_macs else None
        self._macs_before = 0.0
        self.trace = OperatorTrace() if request.trace else None
        self._graph: OperatorGraph | None = None
        self._activations = 0.0

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the pass so far; 0 where not counted."""
        return self._counter.total if self._counter is not None else 0.0

    @contextmanager
    def running(self, recorder: Recorder | None, watched: Mapping[str, nn.Module]) -> Iterator[list[Any]]:
        """Run the body with the request's substitutes, counted, recorded and traced; remove the hooks that it collects.

        Args:
            recorder: Records what functions return.
            watched: Modules whose calls are recorded, by their names.

        Yields:
            The list to which the handles of hooks are added.
        """
        hooks = recorder.hooks(watched) if recorder is not None else []
        with (
            removing_hooks() as handles,
            substituted([*self.request.state, *hooks]),
            _Watch(self._counter, recorder, self.trace),
        ):
            yield handles

    def call(self, inputs: Any, last: Callable[[], tuple[str, torch.Size] | None] = lambda: None) -> Any:
        """Run the model on its inputs, or on a copy that is prepared for the pass, and return its output.

        Args:
            inputs: As in :class:`PassRequest`.
            last: As in :func:`~optuna_aznas.proxies.model.forward.call_model`.
        """
        if self.trace is not None:
            self.trace.begin(inputs)
        output = call_model(self.request.model, inputs, last=last)
        if self.trace is not None:
            self._graph = self.trace.graph(output)
            self._activations = self.trace.activations(output)
        return output

    def report(
        self,
        name: str,
        module: nn.Module,
        feature: Tensor,
        source: Tensor | None,
        *,
        macs: float,
        previous: int | None,
        layers: tuple[nn.Module, ...] = (),
    ) -> int:
        """Report a feature to all observers.

        Args:
            name: As in :class:`BlockPass`.
            module: As there.
            feature: The feature with its autograd graph.
            source: The feature that the block started from; ``None`` for a stem.
            macs: Multiply-accumulates from the start of the pass to this feature.
            previous: The index of ``source`` among the features reported.
            layers: As in :class:`BlockPass`.

        Returns:
            The feature's index.
        """
        cotangent = gradient = product = None
        if self.request.draw_cotangent is not None and source is not None:
            cotangent = self.request.draw_cotangent(feature)
            where = f"block {name!r} ({type(module).__name__})"
            product = partial(vector_jacobian_product, feature, source, where=where)
            gradient = product(cotangent)
        since, self._macs_before = macs - self._macs_before, macs
        block = BlockPass(name, module, feature.detach(), cotangent, gradient, since, product, previous, layers)
        for observe in self.request.observe:
            observe(block)
        self.names.append(name)
        return len(self.names) - 1

    def summary(self, *, connected: bool) -> PassReport:
        """Return the report of the whole pass."""
        return PassReport(self.macs, self._activations, tuple(self.names), connected, self._graph)


def vector_jacobian_product(feature: Tensor, source: Tensor, cotangent: Tensor, *, where: str = "a block") -> Tensor:
    """Return a block's ``J^T v``: zeros where no gradient path leads from ``feature`` to ``source``.

    Args:
        feature: The block's output.
        source: What it started from.
        cotangent: v, shaped as ``feature``.
        where: The block, for the error message.

    Raises:
        ProxyEvaluationError: The backward pass failed.
    """
    if not feature.requires_grad:  # for example a cell in which every operation is "none"
        return torch.zeros_like(source)
    # Retained, because parallel blocks share a piece of the graph. It is freed with the tensors in any case.
    (gradient,) = differentiate(feature, source, cotangent, where=where, retain_graph=True)
    return torch.zeros_like(source) if gradient is None else gradient
