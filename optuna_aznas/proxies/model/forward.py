"""Running a model forward and backward, and explaining its errors in the user's language."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.model.draws import own_draws
from optuna_aznas.proxies.model.interrupts import call_held_handlers, run_interruptible
from optuna_aznas.proxies.model.nested import tensors_in

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


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
    call_held_handlers()
    try:
        with own_draws():
            output = run_interruptible(model, *args, **kwargs)
    except ProxyEvaluationError:
        raise
    except Exception as error:
        if _is_ours(error.__traceback__):
            raise internal_error(error, model) from error
        raise _explain(error, model, inputs, last()) from error
    call_held_handlers()
    if next(tensors_in(output), None) is None:
        raise ProxyEvaluationError(
            f"{type(model).__name__}.forward returned {type(output).__name__} without a tensor in it. "
            "It must return its output tensor (or a tuple, list, mapping or dataclass that holds one)."
        )
    return output


def differentiate(
    outputs: Tensor,
    inputs: Tensor | Sequence[Tensor],
    cotangent: Tensor | None = None,
    *,
    where: str,
    **options: bool,
) -> tuple[Tensor | None, ...]:
    """Return :func:`torch.autograd.grad` of ``outputs``, ``None`` for inputs that it does not depend on.

    Args:
        outputs: What to differentiate.
        inputs: With respect to what.
        cotangent: The vector of the vector-Jacobian product; ``None`` where ``outputs`` is a number.
        where: The module, for the error message.
        **options: ``create_graph`` and ``retain_graph``.

    Raises:
        ProxyEvaluationError: The backward pass failed.
    """
    call_held_handlers()
    try:
        seed: Tensor = outputs
        if cotangent is not None:
            seed = _Seed.apply(outputs, cotangent)  # type: ignore[no-untyped-call]
        return torch.autograd.grad(seed, inputs, None, allow_unused=True, **options)
    except ProxyEvaluationError:
        raise
    except Exception as error:
        shape = tuple(outputs.shape)
        raise ProxyEvaluationError(
            f"The backward pass through {where} failed, from its output of shape {shape}: {_said(error)} "
            f"{_remedy(error, None, 'Leave out the proxies that need gradients, or choose other blocks.')}"
        ) from error


class _Seed(torch.autograd.Function):
    """A number whose gradient with respect to a tensor is a given cotangent.

    ``torch.autograd.grad(outputs, inputs, cotangent)`` gives the same, but imports sympy to compare two shapes: a
    quarter of a second in each process.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, cotangent: Tensor) -> Tensor:
        ctx.cotangent = cotangent
        return outputs.new_empty(())  # nobody looks at it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.cotangent, None


def internal_error(error: BaseException, model: nn.Module) -> ProxyEvaluationError:
    """Return the error for a defect of this package, as against one of the model."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" in {last[0].name} ({os.path.basename(last[0].filename)}, line {last[0].lineno})" if last else ""
    if is_out_of_memory(error):
        return ProxyEvaluationError(f"Memory ran out{place} while {type(model).__name__} was scored. {_SMALLER}")
    return ProxyEvaluationError(
        f"Scoring {type(model).__name__} failed{place}, not in its own code: {_said(error)} "
        "Please report it. Until it is mended, choose other blocks= or leave out proxies."
    )


def out_of_memory(error: BaseException, what: str) -> ProxyEvaluationError | None:
    """Return the error for memory that ran out while ``what`` was made; ``None`` for any other error."""
    if not is_out_of_memory(error):
        return None
    return ProxyEvaluationError(f"There is not enough memory for {what}: {_said(error)} {_SMALLER}")


def _is_ours(tb: TracebackType | None) -> bool:
    """Whether an error under a model's forward came from our own hooks, as against the model.

    Our torch modes call each function of the model, so errors in it pass them: those are the model's.
    """
    frames = traceback.extract_tb(tb)
    called = next((i for i, frame in enumerate(frames) if frame.name == run_interruptible.__name__), len(frames))
    ours = [i for i, frame in enumerate(frames) if i > called and frame.filename.startswith(_OURS)]
    if not ours:
        return False
    last = frames[ours[-1]]
    passes = last.name in ("__torch_function__", "__torch_dispatch__") and "func(*args" in (last.line or "")
    return not passes and last.name != run_interruptible.__name__


def _said(error: BaseException) -> str:
    """Return an error's class and first line as a sentence."""
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    return said if said.endswith((".", "!", "?")) else f"{said}."


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
    message += f"{_said(error)} "
    message += f"The model was given input of shape {given_shapes}"
    if last is not None:
        message += f"; the last block that ran, {last[0]!r}, gave {tuple(last[1])}"
    remedy = _wrong_dimensions(error, model, inputs)
    return ProxyEvaluationError(
        f"{message}. {remedy or _remedy(error, inputs, 'Check input_shape, or pass a real batch with inputs=.')}"
    )


_SMALLER = "Use a smaller batch_size or input_shape, or another device."


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, on whatever device, or a shape is beyond any."""
    said = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in said for words in ("allocate memory", "not enough memory", "out of memory", "overflow"))
    )


def _wrong_dimensions(error: Exception, model: nn.Module, inputs: Any) -> str:
    """Return a remedy for a batch with a dimension too many or too few for a model's layers; else nothing."""
    samples = [sample for kinds, sample in _SAMPLES if any(isinstance(m, kinds) for m in model.modules())]
    if not isinstance(inputs, Tensor) or len(samples) != 1 or not _DIMENSIONS.search(str(error)):
        return ""
    (sample,) = samples
    n, shape = len(sample), tuple(inputs.shape)
    words = f"input_shape is the shape of one sample, ({', '.join(sample)}) for this model"
    if inputs.ndim == n + 2:
        return (
            f"{words}, without the batch dimension, which batch_size adds: such as {shape[2:]} instead of {shape[1:]}. "
            f"A real batch, inputs=, has {n + 1} dimensions."
        )
    return f"{words}; {shape[1:]} lacks a dimension." if inputs.ndim < n + 1 else ""


#: What torch says of an input with a dimension too many or too few.
_DIMENSIONS = re.compile(r"\(batched\)|[Ee]xpected \dD|expected input\[|input to be \dD")

#: The dimensions of one sample by the layers that ask for them.
_SAMPLES = (
    ((nn.Conv1d, nn.ConvTranspose1d), ("channels", "length")),
    ((nn.Conv2d, nn.ConvTranspose2d), ("channels", "height", "width")),
    ((nn.Conv3d, nn.ConvTranspose3d), ("channels", "depth", "height", "width")),
    ((nn.RNNBase,), ("steps", "features")),
)


def _remedy(error: Exception, inputs: Any, otherwise: str) -> str:
    said = str(error)
    if is_out_of_memory(error):
        return _SMALLER
    if "target" in said.lower() and not isinstance(error, IndexError):
        return (
            "It needs targets beside its input, as detectors do in train mode: score its backbone, such as "
            "model.backbone, or pass what its forward takes with inputs=, a tuple or dict of arguments."
        )
    if isinstance(error, TypeError) and "required positional argument" in said:
        return "Pass what its forward takes with inputs=: a tuple of positional or a dict of keyword arguments."
    if "more than 1 value per channel" in said:
        return (
            "Batch normalisation needs more than one value per channel: use batch_size of 2 or more, "
            "or a larger input_shape."
        )
    if type(error).__name__ == "CheckpointError" or "utils.checkpoint" in said:
        return "It computes activations anew in the backward pass: turn checkpointing off while it is scored."
    if "modified by an inplace operation" in said:
        return (
            "It overwrites a tensor that its gradient needs, so it could not be trained either: write that operation "
            "out of place, such as x = x + y for x += y."
        )
    if "second time" in said:
        return "It keeps a tensor with its gradient from one call to the next: detach it, or keep it out of the model."
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
    return otherwise
