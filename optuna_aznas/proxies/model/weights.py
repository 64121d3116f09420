"""Fresh weights for scoring, drawn beside the model and never written into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError

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

#: What else a fresh layer holds: parameters and running statistics by their name in torch.
_FRESH = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}

#: Standard deviation of the truncated normal that is customary for vision transformers.
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


class Substitute(NamedTuple):
    """What takes the place of one parameter or buffer while a model is scored.

    Attributes:
        store: The module's dict that holds the tensor.
        name: The tensor's name in it.
        tensor: The substitute.
    """

    store: dict[str, Any]
    name: str
    tensor: Any


@contextmanager
def substituted(substitutes: Sequence[Substitute]) -> Iterator[None]:
    """Run the body with substitutes in the place of a model's parameters and buffers.

    What :func:`torch.func.functional_call` does, without looking up each tensor by its dotted name: that costs a
    small network a third of its forward pass.
    """
    originals = [Substitute(store, name, store[name]) for store, name, _ in substitutes]
    try:
        for store, name, tensor in substitutes:
            store[name] = tensor
        yield
    finally:
        for store, name, tensor in originals:
            store[name] = tensor


def substitute_state(
    modules: Iterable[tuple[str, nn.Module]],
    *,
    init: str | None,
    generator: torch.Generator,
    device: torch.device,
    channels_last: bool = False,
    running_statistics: bool = True,
) -> list[Substitute]:
    """Return what to run a model with in the place of its parameters and buffers.

    Every tensor is new and lies on ``device``; the model's own are only read. Parameters that get the same constant,
    such as the weights of normalisation layers of one width, share a tensor. Nothing requires a gradient. Half
    precision becomes float32. Where a weight is drawn its own value is not even read, so a model built on the
    ``meta`` device can be scored.

    Args:
        modules: The model's modules by name, as ``named_modules`` yields them.
        init: ``"kaiming"``: weights of convolutions and linear layers are Kaiming-normal (fan-in, ReLU gain;
            He et al., 2015); ``"trunc_normal"``: they have standard deviation 0.02, cut at two of them (Dosovitskiy et
            al., 2021). Both: biases 0, normalisation weights 1, running statistics fresh. Other parameters keep their
            values. ``None``: everything does.
        generator: Source of the draws, on ``device``.
        device: Where the new tensors lie.
        channels_last: Whether tensors with four dimensions lie in memory as ``torch.channels_last`` says.
        running_statistics: Whether batch normalisation gets its running statistics. In train mode it only writes them,
            and each of them costs a tensor and a kernel.
    """
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    recurrent: list[nn.RNNBase] = []
    values: dict[int, Tensor | None] = {}  # by the identity of the original, so that tied ones stay tied
    drawn: list[tuple[Tensor, float]] = []
    constants: dict[tuple[Any, ...], Tensor] = {}
    for prefix, module in modules:
        weighted = init is not None and isinstance(module, _DRAWN)
        fresh = weighted or (init is not None and isinstance(module, NORMS))
        if isinstance(module, nn.RNNBase):
            recurrent.append(module)
        left_out = _STATISTICS if not running_statistics and _is_batch_norm(module) else ()
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is None:
                    continue
                places.append((store, name, tensor))
                if id(tensor) in values:
                    continue
                values[id(tensor)] = None
                if torch.nn.parameter.is_lazy(tensor):
                    raise ProxyEvaluationError(
                        f"{_dotted(prefix, name)!r} is a lazy parameter without a shape yet. "
                        "Run the model once on a batch before scoring it."
                    )
                if name in left_out:
                    continue
                kind = _kind(name) if weighted else name
                if weighted and kind == "weight" and store is module._parameters:
                    drawn.append((tensor, _kaiming_std(module, tensor)))
                elif fresh and kind in _FRESH:
                    key = (tensor.shape, _FRESH[kind], _full_precision(tensor.dtype))
                    if key not in constants or store is module._buffers:  # buffers are written to
                        constants[key] = torch.full(key[0], key[1], dtype=key[2], device=device)
                    values[id(tensor)] = constants[key]
                elif tensor.is_meta:
                    raise ProxyEvaluationError(
                        f"{_dotted(prefix, name)!r} lies on the meta device and is not drawn anew, so it has no "
                        "values. Materialise the model first (Module.to_empty and an initialisation of your own)."
                    )
                else:
                    layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.preserve_format
                    values[id(tensor)] = tensor.detach().to(
                        device=device, dtype=_full_precision(tensor.dtype), copy=True, memory_format=layout
                    )
    if init is not None:
        values |= _drawn(drawn, init, generator, device, channels_last)
    state = [Substitute(store, name, values[id(tensor)]) for store, name, tensor in places]
    for module in recurrent:  # they run on a list of their own
        flat = [None if weight is None else values[id(weight)] for weight in module._flat_weights]
        state.append(Substitute(module.__dict__, "_flat_weights", flat))
    return state


def _kind(name: str) -> str:
    """What a parameter of a layer with weights is: ``"weight"``, ``"bias"``, or by its own name."""
    if "bias" in name:  # in_proj_bias, bias_ih_l0, ...
        return "bias"
    return "weight" if name.startswith("weight") or name.endswith("weight") else name


def _kaiming_std(module: nn.Module, weight: Tensor) -> float:
    """Standard deviation of a Kaiming-normal draw (fan-in, ReLU gain); 1 for embeddings, which multiply nothing."""
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

    One draw for all of them: dozens of small ones cost more than the numbers themselves.
    """
    sizes = [weight.numel() for weight, _ in weights]
    flat = torch.empty(sum(sizes), device=device)
    if init == "trunc_normal":
        nn.init.trunc_normal_(
            flat, 0.0, TRANSFORMER_STD, -2 * TRANSFORMER_STD, 2 * TRANSFORMER_STD, generator=generator
        )
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


def _is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalises as torch's own batch normalisation does, not in a way of its own."""
    return type(module).forward is nn.modules.batchnorm._BatchNorm.forward


def _full_precision(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
