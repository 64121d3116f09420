"""Sums of functions of eigenvalues by products of matrices alone: for wide features on a GPU.

A GPU multiplies matrices hundreds of times faster than it decomposes them. With a symmetric matrix X whose eigenvalues
x_i lie between 0 and 1, repeated squaring gives X^2, X^4, X^8, ..., and each scalar product of two of these is a sum of
powers, <X^a, X^b> = sum_i x_i^(a + b). As x^m is about exp(-m (1 - x)), the powers with m = 1, 2, 4, ..., 2^J are
exponentials whose rates grow geometrically. Sums of such exponentials approximate functions f(1 - x) with a
singularity at 1 - x = 0, such as q log q or the square root, with an error that falls exponentially with J (Beylkin and
Monzon, "On approximation of functions by exponential sums", Applied and Computational Harmonic Analysis 19, 2005). So

    sum_i f(1 - x_i) = sum_m c_m sum_i x_i^m, up to the number of eigenvalues times the error of the fit,

with coefficients c_m that are fitted once by least squares. The eigenvalues are scaled into the interval by a bound
that cannot lie below the largest: the eighth root of the sum of their eighth powers. ``tests/proxies/
test_matrix_functions.py`` holds the errors that are stated here against decompositions in double precision.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_ENTROPY_OCTAVES = 18  # J for q log q: error 4e-7; in single precision more is rounding
_OCTAVES = 24  # J for sqrt(q) and sqrt(q) log(q): errors 3e-5 and 6e-4, a tenth of that for q above 1e-5
_FLOOR = 1e-3  # singular values below it count as this in the logarithm
_LARGEST = 100.0  # largest singular value up to which |log sigma| is fitted
_NORM_SQUARINGS = 12  # for the largest singular value: error at most log(n) / 2^13, relative
_BYTES = 2**25  # of a stack of matrices that are multiplied at once
_ROUNDING = 1e-5  # by which bounds are raised


def entropy(matrices: Tensor) -> Tensor:
    """Return the entropy (nats) of the normalised eigenvalues of (n, C, C) positive semi-definite matrices.

    With p_i the eigenvalues over their sum and b >= max p_i, at most C^(1/8) times it: -sum p log p = -log b - b sum q
    log q, where q = p / b. The error of the sum is at most 4e-7 b C. Rounding comes on top of it, and in single
    precision it dominates where one eigenvalue holds nearly everything: 2e-4 was seen for a rank-one matrix of 192
    channels, 2e-3 for 1,024 and 5e-3 for 2,048. NaN for a zero matrix.
    """
    return torch.cat([_entropy(chunk) for chunk in _chunks(matrices)])


def spectrum(squares: Tensor) -> Tensor | None:
    """Return three numbers (n, 3) of the roots sigma_1, ..., sigma_k of the eigenvalues of (n, k, k) ``squares``.

    They are the largest (relative error 1e-3), minus the mean of ``|log max(sigma_i, 0.001)|`` (error 1e-4, and 0.06
    for each sigma_i within a factor of 5 of 0.001, over k), and the entropy of ``sigma_i / sum sigma`` over log k
    (error 1e-4). The matrices are in double precision, as the smallest roots count.

    Returns:
        The numbers, or ``None`` where a root may exceed 100, for which the logarithm is not fitted.
    """
    k = squares.shape[-1]
    found = []
    for chunk in _chunks(squares):
        total = _trace(chunk)
        shares = chunk / total.where(total > 0, 1.0)[:, None, None]
        bound = _upper_bound(shares).where(total > 0, 1.0)
        largest_square = float((bound * total).max())
        if largest_square > _LARGEST**2:
            return None
        shares = shares / bound[:, None, None]
        norm = (_largest(shares) * bound * total).sqrt()
        w = _distance_from_one(chunk, largest_square)
        # One chain of powers for all three, as launching a product takes longer than computing it.
        powers = _traces_of_powers(torch.cat([_complement(shares), _complement(w), w]), _OCTAVES).chunk(3)
        isometry = -(torch.cat([powers[1], powers[2][:, 1:]], 1) @ _fit_of_logarithm().to(norm.device)) / k
        rank = _relative_entropy(powers[0] @ _fit_of_roots().to(norm.device), k)
        found.append(torch.stack([norm, isometry, rank.where(total > 0, 0.0)], dim=-1))
    return torch.cat(found)


def _chunks(matrices: Tensor) -> tuple[Tensor, ...]:
    """Split a stack so that each part takes at most ``_BYTES``, or is one matrix."""
    return matrices.split(max(1, _BYTES // (matrices[0].numel() * matrices.element_size())))


def _entropy(matrices: Tensor) -> Tensor:
    shares = matrices / _trace(matrices).to(matrices.dtype)[:, None, None]
    bound = _upper_bound(shares)
    rest = _complement(shares / bound.to(shares.dtype)[:, None, None])
    return bound * (_traces_of_powers(rest, _ENTROPY_OCTAVES) @ _fit_of_entropy().to(rest.device)) - bound.log()


def _relative_entropy(sums: Tensor, k: int) -> Tensor:
    """Return the entropy of s_i = sqrt(q_i) over their sum S, over log k.

    -sum (s / S) log(s / S) = log S - (sum s log s) / S.

    Args:
        sums: (n, 2): S, and the sum of sqrt(q) log q, which is twice that of s log s.
        k: How many they are.
    """
    total, root_times_log = sums.unbind(-1)
    return (total.log() - 0.5 * root_times_log / total) / math.log(k)


def _distance_from_one(squares: Tensor, largest: float) -> Tensor:
    """Return matrices whose eigenvalues w tell how far those of ``squares``, sigma^2, are from 1 either way.

    With y = 1 / (1 + sigma^2), w = 4 y (1 - y) = 1 / cosh(log sigma)^2. So |log sigma| is a function of w with a square
    root's singularity at w = 1, which is sigma = 1, and a logarithm's at w = 0, which is sigma = 0. Powers of w and of
    1 - w fit it from both ends.

    Args:
        squares: The matrices.
        largest: An upper bound of their eigenvalues.
    """
    y = _inverse_of_one_plus(squares, largest)
    return torch.baddbmm(y, y, y, beta=4.0, alpha=-4.0)


def _inverse_of_one_plus(squares: Tensor, largest: float) -> Tensor:
    """Return the inverses of I + A by the iteration of Newton and Schulz, which converges from 2 / (2 + largest) I."""
    matrices = squares.clone()
    matrices.diagonal(dim1=-2, dim2=-1).add_(1.0)
    start = 2.0 / (2.0 + largest)
    inverse = -(start**2) * matrices
    inverse.diagonal(dim1=-2, dim2=-1).add_(2.0 * start)  # the first step, from a multiple of the identity
    residual = (1.0 - start) ** 2
    while residual > 1e-16:
        inverse = torch.baddbmm(inverse, inverse, torch.bmm(matrices, inverse), beta=2.0, alpha=-1.0)
        residual *= residual
    return inverse


def _largest(shares: Tensor) -> Tensor:
    """Return the largest eigenvalue: (sum q^2m / sum q^m)^(1/m) with a large m; ``shares`` have eigenvalues up to 1."""
    power, log_scale = shares, shares.new_zeros(len(shares))
    for i in range(_NORM_SQUARINGS):
        if i and i % 3 == 0:  # so that nothing vanishes
            norm = _norm(power)
            power = power / norm[:, None, None]
            log_scale = log_scale + norm.log()
        power = torch.bmm(power, power)
        log_scale = 2.0 * log_scale
    m = 2.0**_NORM_SQUARINGS
    return ((_norm(power).square() / _trace(power)).log().add(log_scale) / m).exp().nan_to_num(0.0)


def _upper_bound(shares: Tensor) -> Tensor:
    """Return (sum p^8)^(1/8) of the eigenvalues p of matrices: at least the largest, at most n^(1/8) times it."""
    second = torch.bmm(shares, shares)
    return _norm(torch.bmm(second, second)) ** 0.25 * (1.0 + _ROUNDING)


def _complement(matrices: Tensor) -> Tensor:
    """Return I - A."""
    rest = -matrices
    rest.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return rest


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), dtype=torch.float64)


def _norm(a: Tensor) -> Tensor:
    """Return the Frobenius norms: the square roots of <A, A>."""
    return torch.linalg.vector_norm(a, dim=(-2, -1), dtype=torch.float64)


# --- Powers and fits -------------------------------------------------------------------------------------------------


def _exponents(octaves: int) -> list[int]:
    """Return the exponents m, from 0."""
    return [0, 1, 2, 3, 4, 5, 6, 8, *(2**j for j in range(4, octaves + 1))]


def _traces_of_powers(x: Tensor, octaves: int) -> Tensor:
    """Return the traces (n, exponents) of the powers of (n, k, k) matrices; exponents up to 2^octaves."""
    second = torch.bmm(x, x)
    fourth = torch.bmm(second, second)
    power, norms = fourth, [_norm(x), _norm(second), _norm(fourth)]
    for _ in range(octaves - 3):
        power = torch.bmm(power, power)
        norms.append(_norm(power))
    of_two, of_four, *others = torch.stack(norms).square().unbind()
    dimension = torch.full_like(of_two, x.shape[-1])
    low = [_trace(x), of_two, _inner(x, second), of_four, _inner(x, fourth), _inner(second, fourth)]
    return torch.stack([dimension, *low, *others], dim=-1)


def _powers(x: Tensor, octaves: int) -> Tensor:
    """Return the powers (points, exponents) of numbers from 0 to 1."""
    return x[:, None] ** torch.tensor(_exponents(octaves), dtype=torch.float64)


def _fitted(basis: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    solution = torch.linalg.lstsq(weights[:, None] * basis, weights[:, None] * values, rcond=1e-13, driver="gelsd")
    return solution.solution


def _shares_grid() -> tuple[Tensor, Tensor]:
    """Return points q from 0 to 1 at which functions of them are fitted, and weights: as good as equal at 0."""
    low = torch.logspace(-13, math.log10(0.5), 100, dtype=torch.float64)
    q = torch.cat([torch.zeros(1, dtype=torch.float64), low, 1 - low.flip(0)])
    weights = torch.ones_like(q)
    weights[0] = 100.0  # of a matrix without full rank many eigenvalues are 0
    return q, weights


@functools.cache
def _fit_of_entropy() -> Tensor:
    """Return the coefficients (exponents,) of -q log q as a function of 1 - q."""
    q, weights = _shares_grid()
    return _fitted(_powers(1 - q, _ENTROPY_OCTAVES), torch.special.entr(q)[:, None], weights)[:, 0]


@functools.cache
def _fit_of_roots() -> Tensor:
    """Return the coefficients (exponents, 2) of sqrt(q) and sqrt(q) log(q)."""
    q, weights = _shares_grid()
    values = torch.stack([q.sqrt(), torch.xlogy(q.sqrt(), q)], dim=-1)
    return _fitted(_powers(1 - q, _OCTAVES), values, weights)


@functools.cache
def _fit_of_logarithm() -> Tensor:
    """Return the coefficients of |log max(sigma, 0.001)| for the powers of 1 - w, then those of w."""
    log_sigma = torch.linspace(-10.0, math.log(_LARGEST), 300, dtype=torch.float64)
    near_one = torch.logspace(-9, -1, 60, dtype=torch.float64)
    log_sigma = torch.cat([torch.tensor([-40.0], dtype=torch.float64), log_sigma, near_one, -near_one])
    weights = torch.ones_like(log_sigma)
    weights[log_sigma < -10.0] = 300.0  # where there is no full rank
    weights[(log_sigma > -8.5) & (log_sigma < -5.5)] = 0.05  # the corner at the floor
    return _fitted(_log_basis(log_sigma), log_sigma.clamp_min(math.log(_FLOOR)).abs()[:, None], weights)[:, 0]


def _log_basis(log_sigma: Tensor) -> Tensor:
    w = log_sigma.cosh() ** -2.0
    return torch.cat([_powers(log_sigma.tanh() ** 2, _OCTAVES), _powers(w, _OCTAVES)[:, 1:]], dim=1)
