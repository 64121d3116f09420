"""Sums of functions of eigenvalues by products of matrices alone: for the features of a network on a GPU.

A GPU multiplies matrices hundreds of times faster than it decomposes them. With a symmetric matrix X whose eigenvalues
x_i lie between 0 and 1, repeated squaring gives X^2, X^4, X^8, ..., and each scalar product of two of these is a sum of
powers, <X^a, X^b> = sum_i x_i^(a + b). Functions such as the entropy's are sums of such powers
(``exponential_sums.py``), so

    sum_i f(1 - x_i) = sum_m c_m sum_i x_i^m, up to the number of eigenvalues times the error of the fit,

with coefficients c_m that do not depend on X. The eigenvalues are scaled into the interval by a bound that cannot lie
below the largest: the eighth root of the sum of their eighth powers.

Launching a product takes longer than computing it unless the matrices are large. So matrices of several sizes are
padded with zeros and multiplied together, and nothing waits for the GPU: the sums are launched (:class:`Launched`), and
numbers are made of them on the CPU once they have arrived there. Everything is in double precision, in which a GPU for
computing multiplies as fast as in single precision. ``tests/proxies/test_matrix_functions.py`` holds the errors that
are stated here against decompositions.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from optuna_aznas.proxies import exponential_sums
from optuna_aznas.proxies.exponential_sums import ENTROPY_OCTAVES, LARGEST, OCTAVES

_ROUND = 3  # squarings whose results are held at once
_NORM_SQUARINGS = 12  # for the largest singular value: error at most log(n) / 2^13, relative
_BYTES = 3 * 2**24  # of the matrices whose powers are taken at once
_PADDING = 2**31  # most k^3 of zeros in them: more take longer than launching the products of another group
_ROUNDING = 1e-5  # by which bounds are raised
_CONVERGED = 1e-15  # distance from 1 at which an iteration ends
_LEAST = 0.03  # smallest eigenvalue of A over 1.5 times its diagonal entry, in :attr:`Wanted.SPECTRUM`
_INVERTED = 1e-6  # most that the trace of A A^-1, over its size, may differ from 1


class Wanted(enum.Enum):
    """What is to be measured of a stack of matrices.

    Attributes:
        ENTROPY: The entropy (nats) of the normalised eigenvalues of positive semi-definite matrices (n, C, C); NaN for
            a zero matrix. With p_i the eigenvalues over their sum and b >= max p_i, at most C^(1/8) times it, it is
            -log b - b sum q log q, where q = p / b. The error of the sum is at most 4e-7 b C.
        SPECTRUM: Three numbers of the singular values sigma_1, ..., sigma_k of matrices M (n, a, b); or of M A^-1,
            where a second stack holds symmetric matrices A (n, b, b). They are the largest (relative error 1e-3), minus
            the mean of ``|log max(sigma_i, 0.001)|`` (error 1e-4, and 0.06 for each sigma_i within a factor of 5 of
            0.001, over k), and the entropy of ``sigma_i / sum sigma`` over log k (error 1e-4). They are NaN where a
            singular value may exceed 100, for which the logarithm is not fitted, and where the eigenvalues of A over
            its diagonal entries do not lie between 0.05 and 2.9. They do where A = sum v v^T with random signs v and at
            least twice as many v as channels, unless these are few.
    """

    ENTROPY = "entropy"
    SPECTRUM = "spectrum"


class Job(NamedTuple):
    """Stacks of matrices on a GPU, and what is to be measured of them."""

    wanted: Wanted
    stacks: Sequence[Tensor]

    @property
    def size(self) -> int:
        """The number of eigenvalues or singular values."""
        return min(self.stacks[0].shape[1:])

    @property
    def widest(self) -> int:
        """The size of the largest square matrix that is computed with."""
        return self.stacks[-1].shape[-1] if len(self.stacks) > 1 else self.size


class Launched(NamedTuple):
    """Work that a GPU does while the CPU goes on.

    Attributes:
        numbers: Its results, on the GPU.
        finish: Takes them on the CPU and returns the result for each job: (n,) or (n, 3).
    """

    numbers: Tensor
    finish: Callable[[Tensor], list[Tensor]]


def launch(jobs: Sequence[Job]) -> Launched:
    """Launch the measurements of some jobs; either all of their spectra have a matrix A or none."""
    if not jobs:
        return Launched(torch.empty(0), lambda numbers: [])
    groups = _groups(jobs)
    launched = [
        _measured([Job(jobs[j].wanted, [stack[rows] for stack in jobs[j].stacks]) for j, rows in group])
        for group in groups
    ]
    shapes = [tensor.shape for tensors in launched for tensor in tensors]

    def finish(numbers: Tensor) -> list[Tensor]:
        pieces = numbers.split([shape.numel() for shape in shapes])
        tensors = iter([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)])
        found: dict[int, list[Tensor]] = {}
        for group in groups:
            measured = _Measured(*(next(tensors) for _ in _Measured._fields))
            results = _results([jobs[j] for j, rows in group for _ in range(_length(rows))], measured)
            for (j, _), result in zip(group, results.split([_length(rows) for _, rows in group]), strict=True):
                found.setdefault(j, []).append(result if jobs[j].wanted is Wanted.SPECTRUM else result[:, 0])
        return [torch.cat(found[j]) for j in range(len(jobs))]

    return Launched(torch.cat([tensor.flatten() for tensors in launched for tensor in tensors]), finish)


#: Some of a job's matrices: the job's position among all jobs, and which of its matrices.
_Part: TypeAlias = tuple[int, slice]

#: Matrices whose powers are taken for each matrix: I - Q; for a spectrum also I - W, W, and Q.
_CHAINS = {Wanted.ENTROPY: 1, Wanted.SPECTRUM: 4}


def _groups(jobs: Sequence[Job]) -> list[list[_Part]]:
    """Return which matrices are padded to one size and multiplied together: spectra first, those of a job in order."""
    groups: list[list[_Part]] = []
    size = chains = padding = 0
    for j, job in sorted(enumerate(jobs), key=lambda item: -item[1].widest):
        k, each, n = job.widest, _CHAINS[job.wanted], len(job.stacks[0])
        most = max(1, _BYTES // (8 * each * k * k))
        for begin in range(0, n, most):
            rows = slice(begin, min(begin + most, n))
            more = each * _length(rows)
            zeros = more * (size**3 - k**3)
            if groups and 8 * (chains + more) * size**2 <= _BYTES and padding + zeros <= _PADDING:
                groups[-1].append((j, rows))
                chains, padding = chains + more, padding + zeros
            else:
                groups.append([(j, rows)])
                size, chains, padding = k, more, 0
    return [sorted(group, key=lambda part: jobs[part[0]].wanted is Wanted.ENTROPY) for group in groups]


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


# --- On the GPU ------------------------------------------------------------------------------------------------------


class _Measured(NamedTuple):
    """The numbers of which :func:`_results` makes the results of a group of n matrices, s of them for spectra.

    Q is a matrix over its trace and a bound of its largest eigenvalue; W is that of :func:`_distance_from_one`. The
    spectra come first.
    """

    total: Tensor  # (n,): traces
    bound: Tensor  # (n,): bounds of the largest eigenvalue over the trace
    inverted: Tensor  # (s,): traces of A A^-1; empty where there is no A
    inner: Tensor  # (4, n + 3 s): <I, X>, <X, X^2>, <X, X^4>, <X^2, X^4> with X = I - Q, and for spectra I - W, W and Q
    norms: Tensor  # (J, n + 3 s): norms of X, X^2, X^4, X^8, ...


def _measured(group: Sequence[Job]) -> _Measured:
    """Launch the products for a group of jobs."""
    spectra = [job.stacks for job in group if job.wanted is Wanted.SPECTRUM]
    squares, inverted = _squares(spectra, group[0].stacks[0].device)
    s = sum(map(len, squares))
    squares += [job.stacks[0] for job in group if job.wanted is Wanted.ENTROPY]
    total, bound, bases = _bases(_padded(squares), s)
    del squares
    inner, norms = _powers_of(bases, OCTAVES if s else ENTROPY_OCTAVES, scaled=s)
    return _Measured(total.flatten(), bound.flatten(), inverted, inner, norms)


def _bases(matrices: Tensor, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the traces and bounds (n, 1, 1) of :class:`_Measured`, and the matrices of which powers are taken."""
    total = _trace(matrices)
    shares = matrices / total.where(total != 0, 1.0)
    second = torch.bmm(shares, shares)
    # The eighth root of the sum of eighth powers: at least the largest, at most k^(1/8) times it.
    bound = (_norm(torch.bmm(second, second)) ** 0.25 * (1.0 + _ROUNDING)).where(total != 0, 1.0)
    shares = shares / bound
    if not s:
        return total, bound, _complement(shares)
    w = _distance_from_one(matrices[:s], (bound[:s] * total[:s]).clamp(0.0, LARGEST**2))
    return total, bound, torch.cat([_complement(shares), _complement(w), w, shares[:s]])


def _padded(stacks: Sequence[Tensor]) -> Tensor:
    """Return one stack of square matrices in double precision, padded with zeros to the largest size."""
    if len(stacks) == 1:
        return stacks[0].double()
    k = max(stack.shape[-1] for stack in stacks)
    together = stacks[0].new_zeros(sum(map(len, stacks)), k, k, dtype=torch.float64)
    for place, stack in zip(together.split([len(stack) for stack in stacks]), stacks, strict=True):
        place[:, : stack.shape[-1], : stack.shape[-1]] = stack
    return together


def _squares(spectra: Sequence[Sequence[Tensor]], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Return the products of M or M A^-1 with their transposes, and the traces of A A^-1: the size of A if exact."""
    grams = [stacks[1] for stacks in spectra if len(stacks) > 1]
    if not grams:
        return [_square(m.double()) for (m,) in spectra], torch.empty(0, dtype=torch.float64, device=device)
    together = _padded(grams)
    positions = together.diagonal(dim1=-2, dim2=-1).amax(-1).view(-1, 1, 1)
    inverses = _inverse(together, 1.0 / (1.5 * positions), _LEAST)  # 1.5 is the mean of the extreme eigenvalues
    squares = [
        _square(torch.bmm(m.double(), inverse[:, : gram.shape[-1], : gram.shape[-1]]))
        for (m, gram), inverse in zip(spectra, inverses.split([len(gram) for gram in grams]), strict=True)
    ]
    return squares, _inner(together, inverses)


def _square(m: Tensor) -> Tensor:
    """Return M M^T or M^T M, whichever is smaller."""
    return torch.bmm(m, m.mT) if m.shape[1] <= m.shape[2] else torch.bmm(m.mT, m)


def _distance_from_one(squares: Tensor, largest: Tensor) -> Tensor:
    """Return matrices whose eigenvalues w tell how far those of ``squares``, sigma^2, are from 1 either way.

    With y = 1 / (1 + sigma^2), w = 4 y (1 - y) = 1 / cosh(log sigma)^2. So |log sigma| is a function of w with a square
    root's singularity at w = 1, which is sigma = 1, and a logarithm's at w = 0, which is sigma = 0. Powers of w and of
    1 - w fit it from both ends.

    Args:
        squares: The matrices.
        largest: Upper bounds (n, 1, 1) of their eigenvalues, at most the square of ``LARGEST``.
    """
    y = _inverse(_plus_identity(squares.clone()), 2.0 / (2.0 + largest), 2.0 / (2.0 + LARGEST**2))
    return torch.baddbmm(y, y, y, beta=4.0, alpha=-4.0)


def _inverse(matrices: Tensor, start: Tensor, least: float) -> Tensor:
    """Return inverses by the iteration of Newton and Schulz, X <- c (2 X - X A X), from X = start I.

    Each step maps the eigenvalues x of X A to c x (2 - x). They lie between ``least`` and 2 - ``least`` at first, and
    in an interval around 1 that shrinks with each step. The factor c keeps 1 in its middle, which halves the number of
    steps (Pan and Schreiber, SIAM Journal on Scientific and Statistical Computing 12, 1991).

    Args:
        matrices: A (n, k, k), symmetric positive definite. Zeros that it is padded with do no harm.
        start: The first multiple of the identity (n, 1, 1).
        least: A lower bound of the eigenvalues of start A, which are at most 2 - ``least``.
    """
    inverse: Tensor | None = None
    while 1.0 - least > _CONVERGED:
        image = least * (2.0 - least)
        c = 2.0 / (1.0 + image)
        if inverse is None:
            inverse = matrices * (-c * start.square())
            inverse.diagonal(dim1=-2, dim2=-1).add_(2.0 * c * start[:, 0])
        else:
            inverse = torch.baddbmm(inverse, inverse, torch.bmm(matrices, inverse), beta=2.0 * c, alpha=-c)
        least = c * image
    assert inverse is not None
    return inverse


def _powers_of(x: Tensor, octaves: int, *, scaled: int) -> tuple[Tensor, Tensor]:
    """Return the numbers ``inner`` and ``norms`` of :class:`_Measured`.

    Args:
        x: Matrices with eigenvalues from 0 to 1.
        octaves: J: norms of powers up to 2^(J - 1) are returned.
        scaled: The powers of so many of the last ones are divided by their norm at the end of the first
            rounds of squarings, so that their largest eigenvalue does not vanish before power ``2^_NORM_SQUARINGS``.
    """
    powers = x.new_empty(_ROUND, *x.shape)
    norms, inner, last = [_norm(x)[None]], x, x
    for begin in range(1, octaves, _ROUND):
        count = min(_ROUND, octaves - begin)
        for power in powers[:count]:
            last = torch.bmm(last, last, out=power)
        norms.append(_norm(powers[:count]))
        if begin == 1:
            pairs = ((x, powers[0]), (x, powers[1]), (powers[0], powers[1]))
            inner = torch.stack([_trace(x).flatten(), *(_inner(a, b) for a, b in pairs)])
        if scaled and begin + _ROUND < _NORM_SQUARINGS:
            last[-scaled:].div_(norms[-1][-1, -scaled:])
    return inner, torch.cat(norms).flatten(1)


def _plus_identity(matrices: Tensor) -> Tensor:
    """Return I + A in place of A."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return matrices


def _complement(matrices: Tensor) -> Tensor:
    """Return I - A."""
    return _plus_identity(-matrices)


def _trace(matrices: Tensor) -> Tensor:
    """Return the traces (n, 1, 1)."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1).view(-1, 1, 1)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar products <A, B> (n,)."""
    return (a * b).sum((-2, -1))


def _norm(a: Tensor) -> Tensor:
    """Return the Frobenius norms (..., 1, 1): the square roots of <A, A>."""
    return torch.linalg.vector_norm(a, dim=(-2, -1), keepdim=True)


# --- On the CPU ------------------------------------------------------------------------------------------------------


def _results(jobs: Sequence[Job], measured: _Measured) -> Tensor:
    """Return the results (n, 3) of a group, given the job of each matrix; entropies are in the first column."""
    spectra = sum(job.wanted is Wanted.SPECTRUM for job in jobs)
    k = torch.tensor([job.size for job in jobs], dtype=torch.float64)
    norms, inner = measured.norms, measured.inner
    # The traces of the powers 1, 2, 3, 4, 5, 6, 8, 16, ...
    low = [inner[0], norms[0].square(), inner[1], norms[1].square(), inner[2], inner[3]]
    traces = torch.stack([*low, *norms[2:].square()], dim=1)
    of_q, of_w = traces[: len(jobs) + spectra].split([len(jobs), spectra]), traces[len(jobs) + spectra :][:spectra]
    padding = k.max() - k  # I - Q and I - W have so many eigenvalues of 1 too many
    q = torch.cat([k[:, None], of_q[0] - padding[:, None]], dim=1)
    results = torch.full((len(jobs), 3), math.nan, dtype=torch.float64)
    bound = measured.bound
    coefficients = exponential_sums.of_entropy()
    entropies = bound * (q[:, : len(coefficients)] @ coefficients) - bound.log()
    results[:, 0] = entropies.where(measured.total != 0, math.nan)
    if spectra:
        k, padding = k[:spectra], padding[:spectra]
        w = torch.cat([k[:, None], of_q[1] - padding[:, None], of_w], dim=1)
        total, bound = measured.total[:spectra], bound[:spectra]
        isometry = -(w @ exponential_sums.of_logarithm()) / k
        roots, root_times_log = (q[:spectra] @ exponential_sums.of_roots()).unbind(-1)
        # The entropy of s_i = sqrt(q_i) over their sum S is log S - (sum s log s) / S, and sqrt(q) log q is 2 s log s.
        rank = (roots.log() - 0.5 * root_times_log / roots) / k.log().where(k > 1, 1.0)
        rank = rank.where(k > 1, 1.0).where(total != 0, 0.0)  # a single number has all of the sum
        square = total * bound * _largest(norms[:, -spectra:])
        found = torch.stack([square.sqrt().where(total != 0, 0.0), isometry, rank], dim=-1)
        fit = bound * total <= LARGEST**2
        if len(measured.inverted):
            widest = torch.tensor([job.widest for job in jobs[:spectra]])
            fit &= (measured.inverted / widest - 1.0).abs() < _INVERTED
        results[:spectra] = found.where(fit[:, None], math.nan)
    return results


def _largest(norms: Tensor) -> Tensor:
    """Return the largest eigenvalues of Q, given the norms of its powers: (sum q^2m / sum q^m)^(1/m) with m = 2^12."""
    logs = norms.log()
    scales = sum(2 ** (_NORM_SQUARINGS - j) * logs[j] for j in range(_ROUND, _NORM_SQUARINGS, _ROUND))
    return ((scales + 2.0 * (logs[_NORM_SQUARINGS] - logs[_NORM_SQUARINGS - 1])) / 2**_NORM_SQUARINGS).exp()
