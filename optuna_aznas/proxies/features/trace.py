"""OperatorTrace: records which operators of torch a model runs, and on whose results.

The trace is told of every function of torch during the forward pass. Each tensor that depends on the model's input
carries the number of the operator that returned it, as an attribute, so the trace keeps no tensor alive.

A tensor that no operator has returned depends on the input all the same if it requires a gradient, as parameters do not
while a model is scored. It comes from a function that is not seen, such as a scripted one, and counts as the result of
the operator recorded last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optuna_aznas.proxies.features.operators import INPUT, OperatorGraph
from optuna_aznas.proxies.model.nested import tensors_in

#: Attribute of a tensor: the number of the operator that returned it; -1 if it does not depend on the input.
_OPERATOR = "_optuna_aznas_operator"

#: What a function does: a kind of operator, or one of the following, or a rule that says which.
_SAME = "same"  # hands its first tensor on
_OWN = "own"  # the same, but the others only say how: a shape, a type
_CONSTANT = "constant"  # its result does not depend on the numbers that it is given

#: Takes positional and named arguments, and the number of them that depend on the input.
_Rule: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], int], str]


class OperatorTrace:
    """Records the operators of which it takes note."""

    def __init__(self) -> None:
        self._kinds = [INPUT]
        self._before: list[tuple[int, ...]] = [()]
        self._activations = [0.0]

    def begin(self, inputs: Any) -> None:
        """Take the first tensor and all floating-point ones as the model's input.

        Further tensors of whole numbers, such as masks and positions, only say how the first is to be read.
        """
        for k, tensor in enumerate(tensors_in(inputs)):
            if k == 0 or tensor.is_floating_point():
                setattr(tensor, _OPERATOR, 0)

    def graph(self, output: Any) -> OperatorGraph:
        """Return the operators on whose results a model's output depends.

        Args:
            output: What the model returned. Its first tensor that depends on the input counts.
        """
        numbers = (getattr(tensor, _OPERATOR, -1) for tensor in tensors_in(output))
        last = next((number for number in numbers if number >= 0), len(self._kinds) - 1)
        return OperatorGraph.ending_with(last, self._kinds, self._before)

    def activations(self, output: Any) -> float:
        """Return the activations of the operators on paths from the model's input to its output.

        Args:
            output: What the model returned. All of its tensors that depend on the input count.
        """
        numbers = (getattr(tensor, _OPERATOR, -1) for tensor in tensors_in(output))
        reaching = {number for number in numbers if number >= 0} or {len(self._kinds) - 1}
        for i in range(max(reaching), -1, -1):
            if i in reaching:
                reaching.update(self._before[i])
        return sum(self._activations[i] for i in reaching)

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, activations: float) -> None:
        """Take note of a function, of what it returned, and of how many activations it has."""
        rule = _rules.get(func)
        if rule is None:
            rule = _rules[func] = _rule(func)
        if rule is _CONSTANT:
            return
        given: list[int] = []
        _collect(args, given)
        if kwargs:
            _collect(kwargs.values(), given)
        if not given:
            numbers = [getattr(t, _OPERATOR, None) for t in tensors_in(args) if t.requires_grad]
            if None not in numbers:
                for tensor in tensors_in(out) if numbers else ():
                    tensor.__dict__[_OPERATOR] = -1
                return
            given.append(len(self._kinds) - 1)
        if rule is _OWN and args[0].__dict__.get(_OPERATOR, -1) < 0:
            return
        kind = rule if isinstance(rule, str) else rule(args, kwargs, len(given))
        if kind is _CONSTANT:
            return
        number = given[0] if kind is _SAME or kind is _OWN else self._add(kind, given, activations)
        if isinstance(out, Tensor):
            out.__dict__[_OPERATOR] = number
        elif out is None:  # __setitem__
            args[0].__dict__[_OPERATOR] = number
        else:
            for tensor in tensors_in(out):
                tensor.__dict__[_OPERATOR] = number

    def _add(self, kind: str, given: list[int], activations: float) -> int:
        self._kinds.append(kind)
        self._before.append(tuple(dict.fromkeys(given)))
        self._activations.append(activations)
        return len(self._kinds) - 1


def hand_on(tensor: Tensor, copy: Tensor) -> None:
    """Let a copy that was made unseen count as the tensor that it is a copy of."""
    number = getattr(tensor, _OPERATOR, None)
    if number is None and not tensor.requires_grad:
        number = -1  # the copy may require a gradient all the same
    if number is not None:
        setattr(copy, _OPERATOR, number)


def _collect(arguments: Iterable[Any], given: list[int]) -> None:
    """Add the numbers of the operators that returned these arguments, or what they hold."""
    for argument in arguments:
        kind = type(argument)
        if kind in _PLAIN:
            continue
        if isinstance(argument, Tensor):
            number = argument.__dict__.get(_OPERATOR)
            if number is not None and number >= 0:
                given.append(number)
        elif isinstance(argument, tuple | list):
            _collect(argument, given)


#: Types of arguments without tensors, which most arguments are.
_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.Size}


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any], n: int) -> str:
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    _, channels, *sides = weight.shape
    longest = max(sides)
    depthwise = groups > 1 and channels == 1
    if longest == 1 and not depthwise:
        return "conv_1x1"
    size = "3x3" if longest <= 3 else "5x5" if longest <= 5 else "7x7"
    return f"depthwise_{size}" if depthwise else f"conv_{size}"


def _product(args: tuple[Any, ...], kwargs: dict[str, Any], n: int) -> str:
    return "matmul" if n > 1 else "linear"


def _scaling(args: tuple[Any, ...], kwargs: dict[str, Any], n: int) -> str:
    if n > 1:
        return "mul"
    return _CONSTANT if any(isinstance(arg, int | float) and arg == 0 for arg in args[1:2]) else _SAME


def _joining(kind: str) -> _Rule:
    return lambda args, kwargs, n: kind if n > 1 else _SAME


#: Functions by name, without underscores around it. What is not named here is an operator of kind ``other``.
_NAMED: dict[str, str | _Rule] = {
    name: rule
    for names, rule in (
        ("conv1d conv2d conv3d", _convolution),
        ("conv_transpose1d conv_transpose2d conv_transpose3d", "conv_transpose"),
        ("linear bilinear", "linear"),
        ("matmul rmatmul mm bmm mv addmm addmv addbmm baddbmm einsum tensordot dot", _product),
        ("scaled_dot_product_attention multi_head_attention_forward native_multi_head_attention", "attention"),
        ("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", "recurrent"),
        ("embedding embedding_bag", "embedding"),
        ("avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d mean nanmean", "avg_pool"),
        ("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", "avg_pool"),
        ("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices", "max_pool"),
        ("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax fractional_max_pool2d", "max_pool"),
        ("interpolate upsample upsample_nearest upsample_bilinear grid_sample", "resize"),
        ("batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize", "norm"),
        ("softmax log_softmax softmin gumbel_softmax", "softmax"),
        ("relu relu6 leaky_relu rrelu prelu elu celu selu gelu silu mish hardtanh hardswish hardsigmoid", "activation"),
        ("sigmoid logsigmoid tanh softplus softsign softshrink hardshrink tanhshrink threshold glu", "activation"),
        ("exp expm1 log log1p log2 sqrt rsqrt square pow abs clamp clip clamp_min clamp_max sin cos erf", "activation"),
        ("reciprocal rpow", "activation"),
        ("add iadd radd sub isub rsub subtract lerp addcmul addcdiv maximum minimum", _joining("add")),
        ("mul imul rmul multiply", _scaling),
        ("div idiv rdiv truediv itruediv rtruediv divide true_divide", _joining("mul")),
        ("cat concat concatenate stack hstack vstack dstack column_stack setitem where", _joining("cat")),
        ("to type_as expand_as view_as reshape_as", _OWN),
        ("view reshape permute transpose swapaxes swapdims movedim moveaxis t T mT H mH", _SAME),
        ("flatten unflatten ravel squeeze unsqueeze expand broadcast_to contiguous clone detach", _SAME),
        ("alias data type float double half bfloat16 cpu cuda requires_grad neg positive", _SAME),
        ("getitem chunk split split_with_sizes tensor_split unbind narrow select index_select gather take", _SAME),
        ("take_along_dim roll flip rot90 repeat repeat_interleave tile unfold fold im2col col2im pad", _SAME),
        ("pixel_shuffle pixel_unshuffle channel_shuffle masked_fill tril triu diagonal", _SAME),
        ("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout", _SAME),
        ("size dim ndimension numel nelement len stride storage_offset is_floating_point is_contiguous", _CONSTANT),
        ("is_complex get_device element_size data_ptr item tolist numpy bool int index hash repr format", _CONSTANT),
        (
            "zeros_like ones_like empty_like full_like rand_like randn_like randint_like bernoulli untyped_storage",
            _CONSTANT,
        ),
        ("new_zeros new_ones new_empty new_full new_tensor eq ne lt le gt ge equal isnan isinf isfinite", _CONSTANT),
        ("logical_and logical_or logical_not logical_xor argmax argmin argsort any all allclose", _CONSTANT),
    )
    for name in names.split()
}

#: Rules by function, as far as they have been asked for.
_rules: dict[Any, str | _Rule] = {}


def _rule(func: Any) -> str | _Rule:
    name = getattr(func, "__name__", "")
    if name == "__get__":  # of an attribute
        name = getattr(func.__self__, "__name__", "")
        return _NAMED.get(name, _CONSTANT)
    return _NAMED.get(name.strip("_"), "other")
