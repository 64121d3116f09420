"""Fresh weights for scoring, drawn beside the model and never written into it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)

#: Standard deviation of the truncated normal that is customary for vision transformers.
TRANSFORMER_STD = 0.02


def is_transformer(model: nn.Module) -> bool:
    """Whether a model is scored as a transformer: it has attention and layer normalisation, and no batch
    normalisation.
    """
    modules = list(model.modules())
    return (
        any("attention" in type(m).__name__.lower() or "attn" in type(m).__name__.lower() for m in modules)
        and any(isinstance(m, nn.LayerNorm) for m in modules)
        and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    )


def substitute_state(
    model: nn.Module, *, init: str | None, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Return parameters and buffers to run ``model`` with, as :func:`torch.func.functional_call` takes them.

    Every tensor is new and lies on ``device``; the model's own are only read. Nothing requires a gradient. Half
    precision becomes float32. Where a weight is drawn its own value is not even read, so a model built on the
    ``meta`` device can be scored.

    Args:
        model: The model.
        init: ``"kaiming"``: weights of convolutions and linear layers are Kaiming-normal (fan-in, ReLU gain;
            He et al., 2015); ``"trunc_normal"``: they have standard deviation 0.02, cut at two of them (Dosovitskiy et
            al., 2021). Both: biases 0, normalisation weights 1, running statistics fresh. Other parameters keep their
            values. ``None``: everything does.
        generator: Source of the draws, on ``device``.
        device: Where the new tensors lie.
    """
    state: dict[str, Tensor] = {}
    drawn: dict[str, tuple[torch.Size, float]] = {}
    for name, owner, tensor in _named_tensors(model):
        if torch.nn.parameter.is_lazy(tensor):
            raise ProxyEvaluationError(
                f"{name!r} of {type(model).__name__} is a lazy parameter without a shape yet. "
                "Run the model once on a batch before scoring it."
            )
        leaf_name = name.rpartition(".")[2]
        is_parameter = isinstance(tensor, nn.Parameter)
        dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
        if init is not None and isinstance(owner, _WEIGHTED) and is_parameter and leaf_name == "weight":
            drawn[name] = (
                tensor.shape,
                (2.0 / tensor.shape[1:].numel()) ** 0.5 if init == "kaiming" else TRANSFORMER_STD,
            )
            state[name] = tensor  # a place holder, so that the order is the model's
        elif init is not None and isinstance(owner, _WEIGHTED + _NORMS) and leaf_name in _FRESH:
            value = _FRESH[leaf_name]
            state[name] = torch.full(tensor.shape, value, dtype=dtype, device=device)
        elif tensor.is_meta:
            raise ProxyEvaluationError(
                f"{name!r} of {type(model).__name__} lies on the meta device and is not drawn anew, so it has no "
                "values. Materialise the model first (torch.nn.Module.to_empty and an initialisation of your own)."
            )
        else:
            state[name] = tensor.detach().to(device=device, dtype=dtype, copy=True)
    # One draw for all weights: dozens of small ones cost more than the numbers themselves.
    flat = torch.empty(sum(shape.numel() for shape, _ in drawn.values()), device=device)
    if init == "trunc_normal":
        nn.init.trunc_normal_(flat, 0.0, 1.0, -2.0, 2.0, generator=generator)
    else:
        flat.normal_(generator=generator)
    pieces = flat.split([shape.numel() for shape, _ in drawn.values()])
    for (name, (shape, std)), piece in zip(drawn.items(), pieces, strict=True):
        dtype = state[name].dtype
        weight = piece.mul_(std).view(shape)
        state[name] = weight.double() if dtype == torch.float64 else weight
    return state


#: What else a fresh layer holds: parameters and running statistics by their name in torch.
_FRESH = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    seen: set[int] = set()  # tied parameters come once
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{prefix}.{name}" if prefix else name, module, tensor
