"""Substitutes for a model's parameters and buffers: fresh weights for scoring, never written into the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.model.isolation import Substitute
from optuna_aznas.proxies.model.reparametrized import Reparametrized, weight_place

#: Layers with a weight matrix or kernel.
WEIGHTED: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

#: Layers whose weights are drawn anew.
_DRAWN = (*WEIGHTED, *_EMBEDDINGS, nn.MultiheadAttention, nn.RNNBase)

#: Layers of normalisation.
NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

#: Initial values of the other parameters and running statistics of a fresh layer, by their name in torch.
_FRESH = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}

#: Standard deviation of the truncated normal distribution usual for vision transformers (Dosovitskiy et al., 2021).
TRANSFORMER_STD = 0.02


def is_transformer(modules: Iterable[nn.Module]) -> bool:
    """Whether a model of these modules is scored as a transformer: it has attention and layer normalisation, and no
    batch normalisation.
    """
    attention = layer_norm = False
    for kind in {type(module) for module in modules}:
        if issubclass(kind, nn.modules.batchnorm._BatchNorm):
            return False
        attention |= "attention" in kind.__name__.lower() or "attn" in kind.__name__.lower()
        layer_norm |= issubclass(kind, nn.LayerNorm)
    return attention and layer_norm


def suits_channels_last(modules: Iterable[nn.Module], device: torch.device) -> bool:
    """Whether a model of these modules runs faster where the channels of images are last in memory.

    On a CPU pooling and normalisation take a third of the time so. On a GPU, cuDNN compiles kernels for convolutions in
    groups in this layout when they first run, which takes seconds for a network with depthwise convolutions.
    """
    return device.type == "cpu" or not any(getattr(module, "groups", 1) != 1 for module in modules)


def substitute_state(
    modules: Iterable[tuple[str, nn.Module]],
    *,
    init: str | None,
    generator: torch.Generator,
    device: torch.device,
    channels_last: bool = False,
    running_statistics: bool = True,
) -> list[Substitute]:
    """Return the substitutes with which a model is run in place of its parameters and buffers.

    Every tensor is new and lies on ``device``; the model's own are only read. Parameters that get the same constant,
    such as the weights of normalisation layers of one width, share a tensor. Nothing requires a gradient. Half
    precision becomes float32. Where a weight is drawn its own value is not even read, so a model built on the
    ``meta`` device can be scored.

    Args:
        modules: The model's modules by name, as ``named_modules`` yields them.
        init: ``"kaiming"``: weights of convolutions and linear layers are Kaiming-normal (fan-in, ReLU gain;
            He et al., 2015); ``"trunc_normal"``: they have standard deviation 0.02, cut at two of them (Dosovitskiy et
            al., 2021). Both: biases 0, normalisation weights 1, running statistics fresh; a weight that is computed
            from others, by weight or spectral normalisation or a parametrization, has these drawn. Other parameters
            and masks of pruning keep their values. ``None``: everything does.
        generator: Source of the draws, on ``device``.
        device: Where the new tensors lie.
        channels_last: Whether tensors with four dimensions lie in memory as ``torch.channels_last`` says.
        running_statistics: Whether batch normalisation gets its running statistics. In train mode it only writes them,
            and each of them costs a tensor and a kernel.
    """
    draw = _StateDraw(init, device, channels_last)
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    recurrent: list[nn.RNNBase] = []
    for prefix, module in modules:
        draw.enter(prefix, module)
        if isinstance(module, nn.RNNBase):
            recurrent.append(module)
        left_out = _STATISTICS if not running_statistics and _is_batch_norm(module) else ()
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    places.append((store, name, tensor))
                    draw.add(prefix, module, store, name, tensor, left_out=name in left_out)
    values = draw.finish(generator)
    state = [Substitute(store, name, values[id(tensor)]) for store, name, tensor in places]
    for module in recurrent:  # they run on a list of their own
        flat = [None if weight is None else values.get(id(weight), weight) for weight in module._flat_weights]
        state.append(Substitute(module.__dict__, "_flat_weights", flat))
    return state


class _StateDraw:
    """Collects the substitutes of parameters and buffers, each tensor once, by its identity: tied ones stay tied."""

    def __init__(self, init: str | None, device: torch.device, channels_last: bool) -> None:
        self._init, self._device, self._channels_last = init, device, channels_last
        self._values: dict[int, Tensor | None] = {}
        self._drawn: list[tuple[Tensor, float]] = []
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._reparametrized = Reparametrized()

    def enter(self, prefix: str, module: nn.Module) -> None:
        """Take note of a module, before its tensors are added."""
        if self._init is not None and isinstance(module, _DRAWN):
            self._reparametrized.find(prefix, module)

    def add(
        self, prefix: str, module: nn.Module, store: dict[str, Any], name: str, tensor: Tensor, *, left_out: bool
    ) -> None:
        """Add the tensor that lies in a module's ``store`` under ``name``; ``left_out`` replaces it by ``None``."""
        if id(tensor) in self._values:
            return
        self._values[id(tensor)] = None
        if torch.nn.parameter.is_lazy(tensor):
            raise ProxyEvaluationError(
                f"{_dotted(prefix, name)!r} is a lazy parameter without a shape yet. "
                "Run the model once on a batch before scoring it."
            )
        if left_out:
            return
        if tensor in self._reparametrized:
            return  # computed when the weights are drawn
        owner, name_there = self._reparametrized.owner(module, name)
        weighted = self._init is not None and isinstance(owner, _DRAWN) and store is module._parameters
        fresh = weighted or (self._init is not None and isinstance(owner, NORMS))
        kind = _kind(name_there) if weighted else name_there
        if weighted and kind == "weight":
            self._drawn.append((tensor, _kaiming_std(owner, tensor)))
        elif fresh and kind in _FRESH:
            key = (tensor.shape, _FRESH[kind], _full_precision(tensor.dtype))
            constant = self._constants.get(key)
            if constant is None or store is module._buffers:  # buffers are written to, so each is a tensor of its own
                constant = torch.full(key[0], key[1], dtype=key[2], device=self._device)
            if store is not module._buffers:
                self._constants[key] = constant
            self._values[id(tensor)] = constant
        elif tensor.is_meta:
            raise ProxyEvaluationError(
                f"{_dotted(prefix, name)!r} lies on the meta device and is not drawn anew, so it has no "
                "values. Materialise the model first (Module.to_empty and an initialisation of your own)."
            )
        else:
            layout = torch.channels_last if self._channels_last and tensor.ndim == 4 else torch.preserve_format
            self._values[id(tensor)] = tensor.detach().to(
                device=self._device, dtype=_full_precision(tensor.dtype), copy=True, memory_format=layout
            )

    def finish(self, generator: torch.Generator) -> dict[int, Tensor | None]:
        """Draw the weights and return all substitutes by the identity of what they replace."""
        if self._init is not None:
            self._values |= _drawn(self._drawn, self._init, generator, self._device, self._channels_last)
            self._values |= self._reparametrized.values(self._values, generator)
        return self._values


def layer_weights(model: nn.Module, state: Sequence[Substitute]) -> Iterator[tuple[int, Tensor]]:
    """Yield each layer's weight with its place in the state; a tied one at each of its places."""
    places = {(id(s.store), s.name): i for i, s in enumerate(state)}
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            store, name = weight_place(module)
            i = places.get((id(store), name))
            if i is not None:
                yield i, state[i].tensor


def with_gradients(
    model: nn.Module, state: Sequence[Substitute], change: Callable[[Tensor], Tensor] = lambda w: w
) -> tuple[list[Substitute], list[Tensor]]:
    """Return a state in which the layers' weights require a gradient, and these weights.

    Args:
        model: The model.
        state: What to run it with.
        change: Applied to each weight before.

    Raises:
        ProxyEvaluationError: The model has no layer with weights.
    """
    changed, weights = list(state), {}
    for i, old in layer_weights(model, state):
        if id(old) not in weights:
            weights[id(old)] = change(old.detach()).clone().requires_grad_()
        changed[i] = changed[i]._replace(tensor=weights[id(old)])
    if not weights:
        raise ProxyEvaluationError(
            f"{type(model).__name__} has no convolution or linear layer, whose weights these proxies look at."
        )
    return changed, list(weights.values())


def _kind(name: str) -> str:
    """Return what a parameter of a layer with weights is: ``"weight"``, ``"bias"``, or else its own name."""
    if "bias" in name:  # in_proj_bias, bias_ih_l0, ...
        return "bias"
    return "weight" if name.startswith("weight") or name.endswith("weight") else name


def _kaiming_std(module: nn.Module, weight: Tensor) -> float:
    """Return the standard deviation of a Kaiming-normal draw (fan-in, ReLU gain); 1 for embeddings, which are looked
    up and not multiplied.
    """
    return 1.0 if isinstance(module, _EMBEDDINGS) else (2.0 / weight.shape[1:].numel()) ** 0.5


def _drawn(
    weights: Sequence[tuple[Tensor, float]],
    init: str,
    generator: torch.Generator,
    device: torch.device,
    channels_last: bool,
) -> dict[int, Tensor | None]:
    """Return a fresh draw for each weight (given with its standard deviation under ``"kaiming"``), by the weight's
    identity.

    All weights come from one draw: dozens of small draws cost more than the numbers themselves.
    """
    sizes = [weight.numel() for weight, _ in weights]
    flat = torch.empty(sum(sizes), dtype=torch.float32, device=device)
    if init == "trunc_normal":
        _draw_truncated_normal(flat, TRANSFORMER_STD, generator)
        pieces = flat.split(sizes)
    else:
        pieces = flat.normal_(generator=generator).split(sizes)
        if pieces:
            torch._foreach_mul_(pieces, [std for _, std in weights])
    values: dict[int, Tensor | None] = {}
    for (weight, _), piece in zip(weights, pieces, strict=True):
        if channels_last and weight.ndim == 4:
            c_out, c_in, height, width = weight.shape
            value = piece.view(c_out, height, width, c_in).permute(0, 3, 1, 2)
        else:
            value = piece.view(weight.shape)
        values[id(weight)] = value.double() if weight.dtype == torch.float64 else value
    return values


def _draw_truncated_normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a tensor with draws from a normal distribution of mean 0 that is cut at two standard deviations.

    By the inverse of its cumulative distribution function, with one draw for each number. In torch 2.13
    :func:`torch.nn.init.trunc_normal_` takes ten times as long, because it draws all numbers again until none lies
    outside.
    """
    inside = math.erf(2 / math.sqrt(2))  # the probability within two standard deviations
    tensor.uniform_(-inside, inside, generator=generator).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2 * std, 2 * std)


def _is_batch_norm(module: nn.Module) -> bool:
    """Whether a module runs torch's own batch normalisation, and no forward of its own."""
    return type(module).forward is nn.modules.batchnorm._BatchNorm.forward


def _full_precision(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
