"""Random signs: the vectors v of the vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Fewest signs to draw at once.
_POOL = 2**20


def random_signs(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a function that draws independent +-1 entries in the shape and memory layout of a tensor.

    On a CPU, each random 64-bit word gives 64 entries, and each draw serves several tensors: drawing entries one by one
    would cost more than running a block. On a GPU it takes two kernels.

    Args:
        generator: Source of the draws; the signs lie on its device.
    """
    bits = torch.arange(256, device=generator.device)[:, None] >> torch.arange(8, device=generator.device)
    signs_of_byte = 2 * (bits & 1) - 1
    pool = torch.empty(0)

    def draw(like: Tensor) -> Tensor:
        nonlocal signs_of_byte, pool
        if like.device.type != "cpu":
            zeros_and_ones = torch.empty_like(like).random_(0, 2, generator=generator)
            return torch.threshold_(zeros_and_ones, 0.5, -1.0)
        if pool.numel() < like.numel() or pool.dtype != like.dtype:
            words = torch.empty(-(-max(like.numel(), _POOL) // 64), dtype=torch.int64, device=like.device)
            words.random_(-(2**63), None, generator=generator)  # all 64 bits
            signs_of_byte = signs_of_byte.to(like.dtype)
            pool = nn.functional.embedding(words.view(torch.uint8).int(), signs_of_byte).flatten()
        signs, pool = pool[: like.numel()], pool[like.numel() :]
        if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return signs.view(like.shape[0], *like.shape[2:], like.shape[1]).permute(0, 3, 1, 2)
        return signs.view(like.shape)

    return draw
