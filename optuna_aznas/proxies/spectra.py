"""Spectra of matrices, many at once: entropy of eigenvalues, singular values, least squares.

Every function takes stacks (n, rows, columns), works on the device where they lie, and returns one number, or a few,
for each of the n matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS_ENTROPY = 1e-8  # added to each share inside the logarithm (Lee and Ham, 2024)
_FLOOR = 1e-3  # singular values below it count as this in the logarithm
_SOUND_PIVOTS = 0.03  # smallest over largest Cholesky pivot above which a matrix is inverted by that factorisation


def scatter(x: Tensor) -> Tensor:
    """Return the scatter matrices (n, C, C) of ``x`` (n, P, C): P times the covariance of the columns.

    Where P < C these are the (n, P, P) products of the centred rows: their eigenvalues are the same except for zeros.
    """
    x = x - x.mean(dim=1, keepdim=True)
    return x.mT @ x if x.shape[1] >= x.shape[2] else x @ x.mT


def spectral_entropy(scatters: Tensor) -> Tensor:
    """Return the entropy (nats) of the normalised eigenvalues of (n, C, C) scatter matrices; NaN for a zero matrix."""
    eigenvalues = torch.linalg.eigvalsh(scatters).clamp_min(0.0)  # rounding leaves some just below zero
    p = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return -(p * torch.log(p + _EPS_ENTROPY)).sum(dim=-1)


def spectrum(matrices: Tensor) -> Tensor:
    """Return three numbers (n, 3) of the singular values sigma_1, ..., sigma_k of each of (n, a, b) matrices.

    They are the largest, minus the mean of ``|log max(sigma_i, 0.001)|``, and the entropy of ``sigma_i / sum sigma``
    over log k. The singular values are the roots of the eigenvalues of M M^T or M^T M, whichever is smaller. This is
    many times faster than a singular value decomposition, as accurate for the largest value, and in double precision
    accurate enough for values above 1e-7 of it.
    """
    matrices = matrices.double()  # the squares of float32 numbers fit
    a, b = matrices.shape[-2:]
    squares = torch.linalg.eigvalsh(matrices @ matrices.mT if a <= b else matrices.mT @ matrices)
    sigma = squares.clamp_min(0.0).sqrt()
    isometry = -sigma.clamp_min(_FLOOR).log().abs().mean(dim=-1)
    return torch.stack([sigma[..., -1], isometry, _relative_entropy(sigma)], dim=-1)


def spectrum_of_few(matrices: Tensor) -> Tensor:
    """Return the same as :func:`spectrum` with NaN for all but the largest: the others are not well estimated."""
    return _with_nan(spectrum(matrices)[..., 0])


def least_squares_spectrum(cross: Tensor, gram: Tensor) -> Tensor:
    """Return :func:`spectrum` of G = (sum g v^T)(sum v v^T)^-1, the least-squares solution of g = G v.

    Where the solution is not unique, G is the one with the smallest norm.

    Args:
        cross: sum g v^T, (n, channels of g, channels of v).
        gram: sum v v^T, (n, channels of v, channels of v).
    """
    root = _inverse_root(gram)
    return spectrum(cross.double() @ root @ root.mT)


def least_squares_spectrum_of_few(cross: Tensor, gram: Tensor) -> Tensor:
    """Return the same as :func:`least_squares_spectrum` with NaN for all but the largest singular value."""
    return _with_nan(least_squares_spectrum(cross, gram)[..., 0])


def least_squares_norm_of_few(g_gram: Tensor, v_gram: Tensor) -> Tensor:
    """Return the same as :func:`least_squares_spectrum_of_few`, for fewer positions P than channels.

    In that case G = g (v^T v)^-1 v^T with g and v as matrices (channels, P), so G G^T = g (v^T v)^-1 g^T.

    Args:
        g_gram: g^T g, (n, P, P).
        v_gram: v^T v, (n, P, P).
    """
    root = _inverse_root(v_gram)
    return _with_nan(torch.linalg.eigvalsh(root.mT @ g_gram.double() @ root)[..., -1].clamp_min(0.0).sqrt())


def _relative_entropy(sigma: Tensor) -> Tensor:
    """Return the entropy of (n, k) numbers normalised to sum 1, over log k: 1 where k is 1, 0 where all are 0."""
    k = sigma.shape[-1]
    total = sigma.sum(dim=-1, keepdim=True)
    if k == 1:
        return (total[..., 0] > 0).to(sigma.dtype)
    p = sigma / total.where(total > 0, 1.0)
    return torch.special.entr(p).sum(dim=-1) / math.log(k)


def _with_nan(largest: Tensor) -> Tensor:
    unknown = torch.full_like(largest, math.nan)
    return torch.stack([largest, unknown, unknown], dim=-1)


def _inverse_root(gram: Tensor) -> Tensor:
    """Return W with W W^T the (pseudo-)inverse of (n, C, C) symmetric positive semi-definite matrices.

    A well-conditioned matrix is factored by Cholesky; otherwise eigenvalues below the precision of float32 count as 0.
    """
    n = gram.shape[-1]
    gram = gram.double()  # exact, as v holds +-1, so that a singular matrix is recognised
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if not bool(failed.any()) and bool((pivots.amin(-1) > _SOUND_PIVOTS * pivots.amax(-1)).all()):
        identity = torch.eye(n, dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor.mT, identity.expand_as(gram), upper=True)
    values, vectors = torch.linalg.eigh(gram)
    noise = values[..., -1:] * n * torch.finfo(torch.float32).eps  # the precision of the products with g
    return vectors * values.where(values > noise, math.inf).rsqrt().unsqueeze(-2)
