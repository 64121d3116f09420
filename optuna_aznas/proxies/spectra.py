"""Spectra of matrices, many at once: entropy of eigenvalues, singular values, least squares.

Every function takes stacks (n, rows, columns), works on the device where they lie, and returns one number, or a few,
for each of the n matrices.

Narrow features, below :data:`WIDE` channels, are measured in double precision by complete decompositions. For wide ones
that would cost more than the network itself, so

* least squares are solved in single precision where the matrix of v is well conditioned, which random signs make it
  (:func:`_factored`), with a relative error of at most 1e-4 in every number that is returned;
* where only the largest singular value is wanted, it comes from Lanczos iteration (:func:`_largest_singular_value`),
  with a relative error mostly below 1e-5, but up to 5e-3 where the largest ones are as close to each other;
* on a CPU, products of a matrix with itself take fewer operations than a general product (:func:`sign_gram`,
  :func:`_gram`), without another error than that of rounding.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from optuna_aznas.proxies.lanczos import largest_eigenvalue

#: Channels from which a feature is wide.
WIDE = 192

_EPS_ENTROPY = 1e-8  # added to each share inside the logarithm (Lee and Ham, 2024)
_FLOOR = 1e-3  # singular values below it count as this in the logarithm
_SOUND_PIVOTS = 0.03  # smallest over largest Cholesky pivot above which a matrix is inverted by that factorisation
_SOUND_IN_SINGLE = 0.4  # the same in single precision: the condition number is then some hundreds
_PANELS = 4  # column panels in a product of a matrix with itself


def scatter(x: Tensor) -> Tensor:
    """Return the scatter matrices (n, C, C) of ``x`` (n, P, C): P times the covariance of the columns.

    Where P < C these are the (n, P, P) products of the centred rows: their eigenvalues are the same except for zeros.
    """
    x = x - x.mean(dim=1, keepdim=True)
    return _gram(x if x.shape[1] >= x.shape[2] else x.mT)


def sign_gram(v: Tensor) -> Tensor:
    """Return v^T v (n, C, C) of matrices v (n, P, C) whose entries are -1, 0 or 1.

    A CPU multiplies 8-bit integers several times faster than floating-point numbers. The sums are exact either way up
    to 2^24 positions.
    """
    if v.device.type != "cpu" or min(v.shape[1:]) < WIDE or not _has_integer_products():
        return v.mT @ v
    integers = v.to(torch.int8)
    return torch.stack([torch._int_mm(x.mT, x) for x in integers]).to(v.dtype)


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
    sigma = torch.linalg.eigvalsh(_squares(matrices)).clamp_min(0.0).sqrt()
    isometry = -sigma.clamp_min(_FLOOR).log().abs().mean(dim=-1)
    return torch.stack([sigma[..., -1], isometry, _relative_entropy(sigma)], dim=-1)


def _squares(matrices: Tensor) -> Tensor:
    """Return M M^T or M^T M, whichever is smaller, of (n, a, b) matrices in double precision."""
    matrices = matrices.double()  # the squares of float32 numbers fit
    a, b = matrices.shape[-2:]
    return matrices @ matrices.mT if a <= b else matrices.mT @ matrices


def spectrum_of_few(matrices: Tensor) -> Tensor:
    """Return the same as :func:`spectrum` with NaN for all but the largest: the others are not well estimated."""
    wide = min(matrices.shape[-2:]) >= WIDE
    return _with_nan(_largest_singular_value(matrices) if wide else spectrum(matrices)[..., 0])


def least_squares_spectrum(cross: Tensor, gram: Tensor) -> Tensor:
    """Return :func:`spectrum` of G = (sum g v^T)(sum v v^T)^-1, the least-squares solution of g = G v.

    Where the solution is not unique, G is the one with the smallest norm.

    Args:
        cross: sum g v^T, (n, channels of g, channels of v).
        gram: sum v v^T, (n, channels of v, channels of v).
    """
    factored = _factored(cross, gram)
    if factored is not None:
        cross, factor = factored
        half = torch.linalg.solve_triangular(factor.mT, cross, upper=True, left=False)
        return spectrum(torch.linalg.solve_triangular(factor, half, upper=False, left=False))
    return spectrum(_smallest_solution(cross, gram))


def least_squares_spectrum_of_few(cross: Tensor, gram: Tensor) -> Tensor:
    """Return :func:`least_squares_spectrum` with NaN for all but the largest singular value."""
    factored = _factored(cross, gram)
    if factored is not None:
        return _with_nan(_largest_singular_value(*factored))
    return _with_nan(spectrum(_smallest_solution(cross, gram))[..., 0])


def least_squares_norm_of_few(g_gram: Tensor, v_gram: Tensor) -> Tensor:
    """Return the same as :func:`least_squares_spectrum_of_few`, for fewer positions P than channels.

    In that case G = g (v^T v)^-1 v^T with g and v as matrices (channels, P), so G G^T = g (v^T v)^-1 g^T.

    Args:
        g_gram: g^T g, (n, P, P).
        v_gram: v^T v, (n, P, P).
    """
    root = _inverse_root(v_gram)
    return _with_nan(torch.linalg.eigvalsh(root.mT @ g_gram.double() @ root)[..., -1].clamp_min(0.0).sqrt())


def _smallest_solution(cross: Tensor, gram: Tensor) -> Tensor:
    root = _inverse_root(gram)
    return cross.double() @ root @ root.mT


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


def _gram(x: Tensor) -> Tensor:
    """Return x^T x (n, C, C) of matrices (n, P, C).

    On a CPU the wide ones are multiplied in panels of columns, and what is below the diagonal is copied from above it.
    """
    channels = x.shape[-1]
    if x.device.type != "cpu" or channels < WIDE:
        return x.mT @ x
    product = x.new_empty(len(x), channels, channels)
    width = -(-channels // _PANELS)
    for begin in range(0, channels, width):
        end = begin + width
        product[:, :end, begin:end] = x[..., :end].mT @ x[..., begin:end]
        product[:, begin:end, :begin] = product[:, :begin, begin:end].mT
    return product


@functools.cache
def _has_integer_products() -> bool:
    """Whether this CPU and this version of torch multiply matrices of 8-bit integers by fast instructions."""
    if not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    try:
        torch._int_mm(*(torch.zeros(32, 32, dtype=torch.int8) for _ in "ab"))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def _factored(cross: Tensor, gram: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return ``cross`` and the Cholesky factor of a wide ``gram`` in the least precision that is enough for a solution.

    Returns:
        Both in the precision of ``cross``, in double precision, or ``None`` where the matrix is narrow, or so badly
        conditioned that its factor is of no use.
    """
    if gram.shape[-1] < WIDE:
        return None
    factor = _sound_factor(gram.to(cross.dtype), _SOUND_IN_SINGLE if cross.dtype == torch.float32 else _SOUND_PIVOTS)
    if factor is not None:
        return cross, factor
    factor = _sound_factor(gram.double(), _SOUND_PIVOTS)
    return None if factor is None else (cross.double(), factor)


def _sound_factor(gram: Tensor, least: float) -> Tensor | None:
    """Return the Cholesky factors of matrices if the smallest over the largest pivot of each exceeds ``least``."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    sound = (failed == 0) & (pivots.amin(-1) > least * pivots.amax(-1))
    return factor if bool(sound.all()) else None


def _largest_singular_value(matrices: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return the largest singular value (n,) of each G = M (L L^T)^-1, by Lanczos iteration on G^T G.

    Args:
        matrices: M, (n, a, b).
        factor: L, (n, b, b) lower triangular; ``None`` for the identity.
    """
    largest = matrices.abs().amax((-2, -1), keepdim=True)
    scale = largest.where(largest > 0, 1.0)  # so that squares stay within the range of single precision

    def divided(x: Tensor) -> Tensor:
        if factor is not None:  # cholesky_solve would copy the factor
            x = torch.linalg.solve_triangular(factor, x, upper=False)
            x = torch.linalg.solve_triangular(factor.mT, x, upper=True)
        return x / scale

    def product(x: Tensor) -> Tensor:
        return divided(matrices.mT @ (matrices @ divided(x)))

    eigenvalues = largest_eigenvalue(product, matrices[:, 0, :])
    return eigenvalues.clamp_min(0.0).sqrt() * scale[:, 0, 0]


def _inverse_root(gram: Tensor) -> Tensor:
    """Return W with W W^T the (pseudo-)inverse of (n, C, C) symmetric positive semi-definite matrices.

    A well-conditioned matrix is factored by Cholesky; otherwise eigenvalues below the precision of float32 count as 0.
    """
    n = gram.shape[-1]
    gram = gram.double()  # exact, as v holds +-1, so that a singular matrix is recognised
    factor = _sound_factor(gram, _SOUND_PIVOTS)
    if factor is not None:
        identity = torch.eye(n, dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor.mT, identity.expand_as(gram), upper=True)
    values, vectors = torch.linalg.eigh(gram)
    noise = values[..., -1:] * n * torch.finfo(torch.float32).eps  # the precision of the products with g
    return vectors * values.where(values > noise, math.inf).rsqrt().unsqueeze(-2)
