"""Sums of functions of eigenvalues by products of matrices alone: for all wide features of a network on a GPU.

A GPU multiplies matrices hundreds of times faster than it decomposes them. With a symmetric matrix X whose eigenvalues
x_i lie between 0 and 1, repeated squaring gives X^2, X^4, X^8, ..., and each scalar product of two of these is a sum of
powers, <X^a, X^b> = sum_i x_i^(a + b). As x^m is about exp(-m (1 - x)), the powers with m = 1, 2, 4, ..., 2^J are
exponentials whose rates grow geometrically. Sums of such exponentials approximate functions f(1 - x) with a
singularity at 1 - x = 0, such as q log q or the square root, with an error that falls exponentially with J (Beylkin and
Monzon, "On approximation of functions by exponential sums", Applied and Computational Harmonic Analysis 19, 2005). So

    sum_i f(1 - x_i) = sum_m c_m sum_i x_i^m, up to the number of eigenvalues times the error of the fit,

with coefficients c_m that are fitted once by least squares. The eigenvalues are scaled into the interval by a bound
that cannot lie below the largest: the eighth root of the sum of their eighth powers.

Launching a product takes longer than computing it unless the matrices are large. So matrices of several sizes are
padded with zeros and multiplied together, and nothing waits for the GPU: the sums are launched (:class:`Launched`), and
numbers are made of them on the CPU once they have arrived there. Everything is in double precision, in which a GPU for
computing multiplies as fast as in single precision. ``tests/proxies/test_matrix_functions.py`` holds the errors that
are stated here against decompositions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

_ENTROPY_OCTAVES = 18  # J for q log q: error 4e-7
_OCTAVES = 24  # J for sqrt(q) and sqrt(q) log(q): errors 3e-5 and 6e-4, a tenth of that for q above 1e-5
_FLOOR = 1e-3  # singular values below it count as this in the logarithm
_LARGEST = 100.0  # largest singular value up to which |log sigma| is fitted
_NORM_SQUARINGS = 12  # for the largest singular value: error at most log(n) / 2^13, relative
_BYTES = 2**25  # of a stack of matrices that are multiplied at once
_PADDING = 2**28  # most k^3 of zeros in a stack: multiplying more of them takes longer than launching another stack
_ROUNDING = 1e-5  # by which bounds are raised
_CONVERGED = 1e-15  # distance from 1 at which an iteration ends
_LEAST = 0.03  # smallest eigenvalue of A over 1.5 times its diagonal entry, in :func:`spectra`
_INVERTED = 1e-6  # most that the trace of a matrix times its inverse, over their size, may differ from 1


class Launched(NamedTuple):
    """Work that a GPU does while the CPU goes on.

    Attributes:
        numbers: Its results, on the GPU.
        finish: Takes them on the CPU and returns the result for each job.
    """

    numbers: Tensor
    finish: Callable[[Tensor], list[Tensor]]


#: Some of a job's matrices: the job's position among all jobs, and which of its matrices.
_Part: TypeAlias = tuple[int, slice]


def entropies(jobs: Sequence[Sequence[Tensor]]) -> Launched:
    """Launch the entropies (nats) of normalised eigenvalues.

    With p_i the eigenvalues over their sum and b >= max p_i, at most C^(1/8) times it: -sum p log p = -log b - b sum q
    log q, where q = p / b. The error of the sum is at most 4e-7 b C.

    Args:
        jobs: Each holds a stack (n, C, C) of positive semi-definite matrices.

    Returns:
        What finishes with entropies (n,) for each job; NaN for a zero matrix.
    """
    stacks = [stack for (stack,) in jobs]
    groups = _groups([(stack.shape[-1], len(stack)) for stack in stacks])
    numbers = torch.cat([_entropy_sums(_padded([stacks[job][rows] for job, rows in group])) for group in groups])

    def finish(numbers: Tensor) -> list[Tensor]:
        bound, sums = numbers[:, 0], numbers[:, 1:] - _padding(groups, [stack.shape[-1] for stack in stacks])
        return _by_job(bound * (sums @ _fit_of_entropy()) - bound.log(), groups)

    return Launched(numbers, finish)


def spectra(jobs: Sequence[Sequence[Tensor]]) -> Launched:
    """Launch three numbers of the singular values sigma_1, ..., sigma_k of matrices.

    They are the largest (relative error 1e-3), minus the mean of ``|log max(sigma_i, 0.001)|`` (error 1e-4, and 0.06
    for each sigma_i within a factor of 5 of 0.001, over k), and the entropy of ``sigma_i / sum sigma`` over log k
    (error 1e-4).

    Args:
        jobs: Each holds a stack M (n, a, b); or M and a stack of symmetric positive definite matrices A (n, b, b), for
            the singular values of M A^-1. The eigenvalues of A over their mean must lie between 0.03 and 2.9, as they
            do where A = sum v v^T with random signs v and at least twice as many v as channels.

    Returns:
        What finishes with the numbers (n, 3) for each job. They are NaN where A is out of range, or where a singular
        value may exceed 100, for which the logarithm is not fitted.
    """
    groups = _groups([(job[-1].shape[-1], len(job[0])) for job in jobs])
    numbers = torch.cat([_spectrum_sums([[s[rows] for s in jobs[job]] for job, rows in group]) for group in groups])
    sizes = [min(job[0].shape[1:]) for job in jobs]

    def finish(numbers: Tensor) -> list[Tensor]:
        k = torch.tensor([sizes[job] for group in groups for job, rows in group for _ in range(rows.stop - rows.start)])
        return _by_job(_spectrum_of_sums(numbers, k, _padding(groups, sizes)), groups)

    return Launched(numbers, finish)


# --- Stacks of matrices of several sizes -----------------------------------------------------------------------------


def _groups(stacks: Sequence[tuple[int, int]]) -> list[list[_Part]]:
    """Return which matrices are padded to one size and multiplied together, those of a job in their order.

    Args:
        stacks: The size k and the number of the matrices of each job.
    """
    groups: list[list[_Part]] = []
    size = count = padding = 0
    for job, (k, n) in sorted(enumerate(stacks), key=lambda stack: -stack[1][0]):
        most = max(1, _BYTES // (8 * k * k))
        for begin in range(0, n, most):
            part = job, slice(begin, min(begin + most, n))
            rows = part[1].stop - begin
            zeros = rows * (size**3 - k**3)
            if groups and 8 * (count + rows) * size**2 <= _BYTES and padding + zeros <= _PADDING:
                groups[-1].append(part)
                count, padding = count + rows, padding + zeros
            else:
                groups.append([part])
                size, count, padding = k, rows, 0
    return groups


def _padded(stacks: Sequence[Tensor]) -> Tensor:
    """Return one stack of square matrices in double precision, padded with zeros to the largest size."""
    if len(stacks) == 1:
        return stacks[0].double()
    k = max(stack.shape[-1] for stack in stacks)
    together = stacks[0].new_zeros(sum(map(len, stacks)), k, k, dtype=torch.float64)
    for place, stack in zip(together.split([len(stack) for stack in stacks]), stacks, strict=True):
        place[:, : stack.shape[-1], : stack.shape[-1]] = stack
    return together


def _padding(groups: Sequence[Sequence[_Part]], sizes: Sequence[int]) -> Tensor:
    """Return how many rows of zeros each matrix was padded with, as a column."""
    added = [
        max(sizes[job] for job, _ in group) - sizes[job]
        for group in groups
        for job, rows in group
        for _ in range(rows.stop - rows.start)
    ]
    return torch.tensor(added, dtype=torch.float64)[:, None]


def _by_job(results: Tensor, groups: Sequence[Sequence[_Part]]) -> list[Tensor]:
    """Return the results of each job, given those of all groups one after the other."""
    parts = [part for group in groups for part in group]
    pieces = results.split([rows.stop - rows.start for _, rows in parts])
    found: dict[int, list[Tensor]] = {}
    for (job, _), piece in zip(parts, pieces, strict=True):
        found.setdefault(job, []).append(piece)
    return [torch.cat(found[job]) for job in sorted(found)]


# --- Entropies -------------------------------------------------------------------------------------------------------


def _entropy_sums(matrices: Tensor) -> Tensor:
    """Return b and the traces of the powers of I - A / (b trace A) as rows."""
    shares = matrices / _trace(matrices)[:, None, None]
    bound = _upper_bound(shares)
    rest = _complement(shares / bound[:, None, None])
    return torch.cat([bound[:, None], _traces_of_powers(rest, _ENTROPY_OCTAVES)], dim=1)


# --- Spectra ---------------------------------------------------------------------------------------------------------


def _spectrum_sums(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the numbers, as rows, of which :func:`_spectrum_of_sums` makes those of the spectra.

    Args:
        parts: As the jobs of :func:`spectra`.
    """
    if len(parts[0]) == 1:
        quotients = [matrices.double() for (matrices,) in parts]
        inverted = torch.ones(sum(map(len, quotients)), dtype=torch.float64, device=quotients[0].device)
    else:
        quotients, inverted = _quotients(parts)
    together = _padded([torch.bmm(q, q.mT) if q.shape[1] <= q.shape[2] else torch.bmm(q.mT, q) for q in quotients])
    total = _trace(together)
    shares = together / total.where(total != 0, 1.0)[:, None, None]
    bound = _upper_bound(shares).where(total != 0, 1.0)
    shares = shares / bound[:, None, None]
    w = _distance_from_one(together, (bound * total).clamp(0.0, _LARGEST**2))
    # One chain of powers for all three.
    powers = _traces_of_powers(torch.cat([_complement(shares), _complement(w), w]), _OCTAVES)
    scalars = [inverted, total, bound, *_traces_for_largest(shares)]
    return torch.cat([torch.stack(scalars, dim=1), *powers.chunk(3)], dim=1)


def _spectrum_of_sums(numbers: Tensor, k: Tensor, padding: Tensor) -> Tensor:
    """Return the three numbers (n, 3) of each spectrum.

    Args:
        numbers: Of :func:`_spectrum_sums`, on the CPU.
        k: How many singular values there are (n,).
        padding: Rows of zeros (n, 1): eigenvalues of 1 of the first two matrices whose powers were taken.
    """
    inverted, total, bound, norm, trace, log_scale = numbers[:, :6].unbind(1)
    of_shares, of_complement, of_w = numbers[:, 6:].chunk(3, dim=1)
    of_shares, of_complement = of_shares - padding, of_complement - padding
    share = ((norm.square() / trace).log().add(log_scale) / 2.0**_NORM_SQUARINGS).exp()
    isometry = -(torch.cat([of_complement, of_w[:, 1:]], 1) @ _fit_of_logarithm()) / k
    roots, root_times_log = (of_shares @ _fit_of_roots()).unbind(-1)
    # The entropy of s_i = sqrt(q_i) over their sum S is log S - (sum s log s) / S, and sqrt(q) log q is 2 s log s.
    rank = (roots.log() - 0.5 * root_times_log / roots) / k.log().where(k > 1, 1.0)
    rank = rank.where(k > 1, 1.0).where(total != 0, 0.0)  # a single number has all of the sum
    found = torch.stack([(share * bound * total).sqrt().where(total != 0, 0.0), isometry, rank], dim=-1)
    fit = ((inverted - 1.0).abs() < _INVERTED) & (bound * total <= _LARGEST**2)
    return found.where(fit[:, None], math.nan)


def _quotients(parts: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Return M A^-1 for each pair of stacks, and the trace of A A^-1 over its size, which is 1 where A was inverted."""
    grams = _padded([gram for _, gram in parts])
    diagonal = grams.diagonal(dim1=-2, dim2=-1)
    inverses = _inverse(grams, 1.0 / (1.5 * diagonal.amax(-1)), _LEAST)  # the mean of the extreme eigenvalues is 1.5
    counts = [len(gram) for _, gram in parts]
    quotients = [
        torch.bmm(matrices.double(), inverse[:, : gram.shape[-1], : gram.shape[-1]])
        for (matrices, gram), inverse in zip(parts, inverses.split(counts), strict=True)
    ]
    traces = _inner(grams, inverses).split(counts)
    return quotients, torch.cat([trace / gram.shape[-1] for (_, gram), trace in zip(parts, traces, strict=True)])


def _distance_from_one(squares: Tensor, largest: Tensor) -> Tensor:
    """Return matrices whose eigenvalues w tell how far those of ``squares``, sigma^2, are from 1 either way.

    With y = 1 / (1 + sigma^2), w = 4 y (1 - y) = 1 / cosh(log sigma)^2. So |log sigma| is a function of w with a square
    root's singularity at w = 1, which is sigma = 1, and a logarithm's at w = 0, which is sigma = 0. Powers of w and of
    1 - w fit it from both ends.

    Args:
        squares: The matrices.
        largest: Upper bounds (n,) of their eigenvalues, at most the square of ``_LARGEST``.
    """
    y = _inverse(_plus_identity(squares), 2.0 / (2.0 + largest), 2.0 / (2.0 + _LARGEST**2))
    return torch.baddbmm(y, y, y, beta=4.0, alpha=-4.0)


def _inverse(matrices: Tensor, start: Tensor, least: float) -> Tensor:
    """Return inverses by the iteration of Newton and Schulz, X <- c (2 X - X A X), from X = start I.

    Each step maps the eigenvalues x of X A to c x (2 - x). They lie between ``least`` and 2 - ``least`` at first, and
    in an interval around 1 that shrinks with each step. The factor c keeps 1 in its middle, which halves the number of
    steps (Pan and Schreiber, SIAM Journal on Scientific and Statistical Computing 12, 1991).

    Args:
        matrices: A (n, k, k), symmetric positive definite.
        start: The first multiple of the identity (n,).
        least: A lower bound of the eigenvalues of start A, which are at most 2 - ``least``.
    """
    inverse: Tensor | None = None
    while 1.0 - least > _CONVERGED:
        image = least * (2.0 - least)
        c = 2.0 / (1.0 + image)
        if inverse is None:
            inverse = (-c * start.square())[:, None, None] * matrices
            inverse.diagonal(dim1=-2, dim2=-1).add_(2.0 * c * start[:, None])
        else:
            inverse = torch.baddbmm(inverse, inverse, torch.bmm(matrices, inverse), beta=2.0 * c, alpha=-c)
        least = c * image
    assert inverse is not None
    return inverse


def _traces_for_largest(shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of matrices with eigenvalues q up to 1, what gives the largest: (sum q^2m / sum q^m)^(1/m) with m = 2^12.

    Returns:
        The norm and the trace of a multiple of the m-th power, and the logarithm of what it was divided by.
    """
    power, log_scale = shares, torch.zeros(len(shares), dtype=torch.float64, device=shares.device)
    for i in range(_NORM_SQUARINGS):
        if i and i % 3 == 0:  # so that nothing vanishes
            norm = _norm(power)
            power = power / norm[:, None, None]
            log_scale = log_scale + norm.log()
        power = torch.bmm(power, power)
        log_scale = 2.0 * log_scale
    return _norm(power), _trace(power), log_scale


# --- Powers and fits -------------------------------------------------------------------------------------------------


def _upper_bound(shares: Tensor) -> Tensor:
    """Return (sum p^8)^(1/8) of the eigenvalues p of matrices: at least the largest, at most n^(1/8) times it."""
    second = torch.bmm(shares, shares)
    return _norm(torch.bmm(second, second)) ** 0.25 * (1.0 + _ROUNDING)


def _complement(matrices: Tensor) -> Tensor:
    """Return I - A."""
    return _plus_identity(-matrices)


def _plus_identity(matrices: Tensor) -> Tensor:
    """Return I + A."""
    more = matrices.clone()
    more.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return more


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), dtype=torch.float64)


def _norm(a: Tensor) -> Tensor:
    """Return the Frobenius norms: the square roots of <A, A>."""
    return torch.linalg.vector_norm(a, dim=(-2, -1), dtype=torch.float64)


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
