"""The arguments of ProxyEvaluator: checked, and normalised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import torch

from optuna_aznas.proxies.context import Jacobian
from optuna_aznas.proxies.model.nested import tensors_in
from optuna_aznas.proxies.registry import ALL_PROXIES

_BATCH = 8  # default batch size
_BATCH_OF_VECTORS = 1024  # default batch size where a sample is a vector

_INITS = ("auto", "kaiming", "trunc_normal", None)


def checked_arguments(
    *,
    input_shape: Sequence[int] | None,
    inputs: Any,
    proxies: Sequence[str],
    init: str | None,
    jacobian: Jacobian,
    device: str | torch.device,
    **others: Any,
) -> dict[str, Any]:
    """Return an evaluator's arguments, checked and normalised.

    Raises:
        ValueError: An argument is out of range; a proxy is unknown; the device is not there.
    """
    if (input_shape is None) == (inputs is None):
        raise ValueError(
            "Exactly one of input_shape and inputs must be given: the shape of one sample, such as (3, 32, 32), "
            "or a real batch."
        )
    if input_shape is not None:
        if not isinstance(input_shape, Iterable) or isinstance(input_shape, str):
            raise ValueError(
                "input_shape must be a sequence, the shape of one sample such as (3, 32, 32) for images; "
                f"got {input_shape!r}."
            )
        input_shape = tuple(input_shape)
        if not input_shape or not all(_is_int(size) and size >= 1 for size in input_shape):
            raise ValueError(
                "input_shape must hold positive integers, the shape of one sample without the batch; "
                f"got {input_shape}."
            )
    elif next(tensors_in(inputs), None) is None:
        raise ValueError(f"inputs must be a tensor, or a tuple or dict with tensors; got {type(inputs).__name__}.")
    if others["batch_size"] is None:
        is_vector = input_shape is not None and len(input_shape) == 1
        others["batch_size"] = _BATCH_OF_VECTORS if is_vector else _BATCH
    for name, least in (("batch_size", 1), ("repeats", 1), ("seed", 0)):
        value = others[name]
        if not _is_int(value) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    proxies = (proxies,) if isinstance(proxies, str) else tuple(proxies)
    unknown = [name for name in proxies if name not in ALL_PROXIES]
    if unknown or not proxies or len(set(proxies)) < len(proxies):
        raise ValueError(f"proxies must be one or more of {ALL_PROXIES}, each once; got {proxies}.")
    if init not in _INITS:
        raise ValueError(f"init must be one of {_INITS}; got {init!r}.")
    if jacobian not in get_args(Jacobian):
        raise ValueError(f"jacobian must be one of {get_args(Jacobian)}; got {jacobian!r}.")
    return {
        "input_shape": input_shape,
        "inputs": inputs,
        "proxies": proxies,
        "init": init,
        "jacobian": jacobian,
        "device": _resolve_device(device),
        **others,
    }


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.empty(0, device=torch.device(device)).device  # with its index, and it is there
        if resolved.type == "meta":
            raise RuntimeError("the meta device holds no values")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device {device!r} is not usable ({reason}). Use 'auto' or one of {there}.") from error
    return resolved
