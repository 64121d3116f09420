"""Counting the multiply-accumulates (MACs) and activations of a model while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


class MacCounter(TorchFunctionMode):
    """Counts the multiply-accumulates of everything that runs under it, and the activations of its layers.

    Activations are the elements of the outputs of convolutions, linear and recurrent layers (Radosavovic et al.,
    "Designing Network Design Spaces", CVPR 2020). Products of two features, as in attention, are not layers.

    :class:`torch.utils.flop_counter.FlopCounterMode` intercepts every operator, which more than doubles the time of a
    small network's forward pass. This counter takes three paths instead: layers are counted from the shapes of their
    calls, functions known to multiply no matrices are not intercepted, and the operators of all other functions are
    counted one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layers = 0
        self._activations = 0
        self._operators = _OperatorCounter()

    @property
    def total(self) -> float:
        """Multiply-accumulates so far, of the whole batch."""
        return self._layers + self._operators.total

    @property
    def activations(self) -> float:
        """Elements of the layers' outputs so far, of the whole batch."""
        return self._activations + self._operators.activations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WITHOUT_PRODUCTS:
            return func(*args, **kwargs)
        if func in _LAYERS and len(args) > 1 and args[1].ndim > 1:
            out = func(*args, **kwargs)
            self._activations += out.numel()
            self._layers += out.numel() * args[1].shape[1:].numel()  # an output is one row of the weight times inputs
            return out
        if func in _RECURRENT:
            out = func(*args, **kwargs)
            weights = next(arg for arg in args if isinstance(arg, tuple | list) and len(arg) > 2)
            self._layers += args[0].shape[:-1].numel() * sum(w.numel() for w in weights if w.ndim == 2)
            self._activations += out[0].numel()
            return out
        with self._operators:
            return func(*args, **kwargs)


class _OperatorCounter(TorchDispatchMode):
    """Counts multiply-accumulates of every operator with the formulas of :mod:`torch.utils.flop_counter`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0
        self.activations = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket) or _ATTENTION.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) / 2  # a multiplication and an addition: one MAC
            if func._overloadpacket in _OF_LAYERS:
                self.activations += out.numel()
        return out


def _attention_flops(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, out_val: Any = None, **kwargs: Any
) -> float:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


#: Operators that torch's registry lacks: attention on a CPU.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}

#: Operators of layers, as against products of two features.
_OF_LAYERS = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm}

#: Recurrent layers: each time step of each sample is multiplied once with each weight matrix.
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}

#: Functions whose first two arguments are the input and a weight of shape (outputs, ...).
_LAYERS = {nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d}

#: Frequent functions and tensor methods without a product of matrices. A function missing here is only slower.
_WITHOUT_PRODUCTS = {
    getattr(owner, name)
    for owner, names in {
        nn.functional: """
            adaptive_avg_pool1d adaptive_avg_pool2d avg_pool1d avg_pool2d batch_norm celu dropout dropout2d elu gelu
            group_norm hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu max_pool1d max_pool2d mish pad
            pixel_shuffle pixel_unshuffle relu relu6 rms_norm selu sigmoid silu softmax softplus tanh
        """,
        torch: """
            add arange cat chunk div exp flatten mean mul ones_like permute relu relu_ reshape roll sigmoid softmax
            split sqrt stack sub sum tanh transpose unsqueeze zeros_like
        """,
        Tensor: """
            __eq__ __getitem__ __len__ __radd__ __rmul__ __rsub__ add add_ chunk clamp clone contiguous detach dim div
            div_ exp expand flatten float ge gt is_floating_point long masked_fill mean mul mul_ ne numel permute relu
            relu_ reshape sigmoid size softmax split sqrt squeeze sub sub_ sum tanh to transpose type_as unsqueeze
            view
        """,
    }.items()
    for name in names.split()
    if hasattr(owner, name)
} | {attribute.__get__ for attribute in vars(torch._C.TensorBase).values() if hasattr(type(attribute), "__set__")}
