"""The settings of an evaluator that change scores, as plain JSON, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optuna_aznas.proxies.features.blocks import BlockChoice
from optuna_aznas.proxies.model.nested import tensors_in

#: Number of the package's scores: raised with each change that moves the scores of networks.
SCORING = 4


def settings_of(
    *,
    input_shape: tuple[int, ...] | None,
    inputs: Any,
    batch_size: int,
    proxies: tuple[str, ...],
    blocks: BlockChoice,
    init: str | None,
    jacobian: str,
    repeats: int,
    seed: int,
    **others: Any,
) -> dict[str, Any]:
    """Return those arguments of an evaluator that change scores as plain JSON, and the number of the package's scores.

    The device is not among them, so that workers with and without a GPU can share a study, although the draws of a GPU
    are others. Of ``inputs`` the shapes and types count.
    """
    return {
        "input_shape": None if input_shape is None else list(map(int, input_shape)),
        "inputs": None if inputs is None else [_described(tensor) for tensor in tensors_in(inputs)],
        "batch_size": int(batch_size) if inputs is None else None,
        "proxies": list(proxies),
        "blocks": _blocks(blocks),
        "init": init,
        "jacobian": jacobian,
        "repeats": int(repeats),
        "seed": int(seed),
        "scoring": SCORING,
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits for the settings; the same in every process and on every machine."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _described(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _blocks(blocks: BlockChoice) -> str | list[str]:
    if blocks is None or isinstance(blocks, str):
        return blocks or "auto"
    if callable(blocks):
        return f"{getattr(blocks, '__module__', '')}.{getattr(blocks, '__qualname__', type(blocks).__qualname__)}"
    return list(map(str, blocks))
