"""The largest eigenvalue of symmetric matrices that are given by their products with vectors: Lanczos iteration.

On the space spanned by x, A x, A^2 x, ... with a random x, A is a tridiagonal matrix, whose largest eigenvalue
approaches that of A from below (Golub and Van Loan, Matrix Computations, section 10.1). Single precision would lose the
orthogonality of the space's basis, so each new vector is made orthogonal to all before it.

scipy's ARPACK takes one matrix after the other, on the CPU; ``torch.lobpcg`` takes matrices and not products.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 96  # most steps
_ROUND = 8  # steps between two looks at whether all have converged
_RESIDUAL = 1e-3  # the residual's length over the eigenvalue at which one has; the error is about its square


def largest_eigenvalue(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the largest eigenvalue (n,) of n symmetric matrices A, given only their products with vectors.

    Args:
        product: Takes vectors (n, m, 1) and returns A times them.
        like: A tensor (n, m) of the device and precision wanted.
    """
    n, m = like.shape
    steps = min(_STEPS, m)
    start = torch.randn(m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = (start / start.norm()).to(like).expand(n, m)
    basis = like.new_zeros(n, steps, m)
    tridiagonal = torch.zeros(n, steps, steps, dtype=torch.float64, device=like.device)
    longest, noise = like.new_zeros(n, 1), 100 * torch.finfo(like.dtype).eps
    for k in range(steps):
        basis[:, k] = vector
        known = basis[:, : k + 1]
        image = product(vector.unsqueeze(-1))
        tridiagonal[:, k, k] = (vector * image[..., 0]).sum(-1)
        longest = torch.maximum(longest, image.norm(dim=-2))
        for _ in range(2):  # once leaves a rounding error where the image lies almost in the space
            image = image - known.mT @ (known @ image)
        length = image.norm(dim=-2)
        ended = length <= noise * longest  # the image lies in the space: what is left of it is rounding
        length = length.where(~ended, 0.0)
        vector = image[..., 0] / length.where(~ended, math.inf)
        if (k + 1) % _ROUND == 0 or k + 1 == steps:
            values, vectors = torch.linalg.eigh(tridiagonal[:, : k + 1, : k + 1].cpu())  # a GPU is slow at small ones
            residual = length[:, 0].cpu() * vectors[:, -1, -1].abs()
            if k + 1 == steps or bool((residual <= _RESIDUAL * values[:, -1]).all()):
                return values[:, -1].to(like)
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = length[:, 0]
    raise AssertionError("the last step returns")
