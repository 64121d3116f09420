"""Calling a model on a batch, and explaining its errors in the user's language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.model.nested import tensors_in


def call_model(
    model: nn.Module,
    inputs: Any,
    *,
    last: Callable[[], tuple[str, torch.Size] | None] = lambda: None,
) -> Any:
    """Return a model's output for a batch.

    Args:
        model: The model.
        inputs: A tensor; a tuple or list of positional arguments; or a mapping of keyword arguments.
        last: Returns the name of the block that ran last and the shape of its output, for the error message.

    Raises:
        ProxyEvaluationError: The forward failed, or gave no tensor.
    """
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}
    try:
        output = model(*args, **kwargs)
    except ProxyEvaluationError:
        raise
    except Exception as error:
        raise _explain(error, model, inputs, last()) from error
    if next(tensors_in(output), None) is None:
        raise ProxyEvaluationError(
            f"{type(model).__name__}.forward returned {type(output).__name__} without a tensor in it. "
            "It must return its output tensor (or a tuple, list, mapping or dataclass that holds one)."
        )
    return output


def _explain(
    error: Exception, model: nn.Module, inputs: Any, last: tuple[str, torch.Size] | None
) -> ProxyEvaluationError:
    """Say in which module a forward pass failed, on what shape, and what to do."""
    names = {id(module): name for name, module in model.named_modules()}
    where, shapes = "", ""
    traceback = error.__traceback__
    while traceback is not None:  # the innermost frame that belongs to one of the model's modules wins
        local = traceback.tb_frame.f_locals
        name = names.get(id(local.get("self")))
        if name is not None:
            where = f"{name!r} ({type(local['self']).__name__})" if name else f"{type(model).__name__}.forward itself"
            given = [tuple(t.shape) for t in tensors_in([v for k, v in local.items() if k in ("args", "input", "x")])]
            shapes = f" on input of shape {given[0]}" if given else shapes
        traceback = traceback.tb_next
    given_shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(inputs))
    message = f"The forward pass of {type(model).__name__} failed in {where or 'the model'}{shapes}: "
    message += f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} "
    message += f"The model was given input of shape {given_shapes}"
    if last is not None:
        message += f"; the last block that ran, {last[0]!r}, gave {tuple(last[1])}"
    return ProxyEvaluationError(f"{message}. {_remedy(error, inputs)}")


def _remedy(error: Exception, inputs: Any) -> str:
    said = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "Use a smaller batch_size, or another device."
    if "more than 1 value per channel" in said:
        return (
            "Batch normalisation needs more than one value per channel: use batch_size of 2 or more, "
            "or a larger input_shape."
        )
    if type(error).__name__ == "CheckpointError":
        return "It computes activations anew in the backward pass: turn checkpointing off while it is scored."
    if "modified by an inplace operation" in said:
        return (
            "It overwrites a tensor that its gradient needs, so it could not be trained either: write that operation "
            "out of place, such as x = x + y for x += y."
        )
    types = {t.dtype for t in tensors_in(inputs)}
    if "indices" in said and all(dtype.is_floating_point for dtype in types):
        return "It looks up whole numbers, such as token ids: pass a batch of them with inputs=."
    if "dtype" in said or "type" in said:
        whole = sorted(str(dtype) for dtype in types if not dtype.is_floating_point)
        if whole:
            return (
                f"inputs holds {', '.join(whole)}: give the model what it computes with, such as inputs=batch.float()."
            )
        return (
            "Scoring runs in single precision, half precision included: let the model take its type from its input or "
            "parameters, instead of naming one."
        )
    return "Check input_shape, or pass a real batch with inputs=."
