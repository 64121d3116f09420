"""Coefficients of exponential sums: functions of an eigenvalue as sums of its powers, or of those of its complement.

As x^m is about exp(-m (1 - x)), the powers of x from 0 to 1 with m = 1, 2, 4, ..., 2^J are exponentials whose rates
grow geometrically. Their sums approximate functions f(1 - x) with a singularity at 1 - x = 0, such as q log q or the
square root, with an error that falls exponentially with J (Beylkin and Monzon, "On approximation of functions by
exponential sums", Applied and Computational Harmonic Analysis 19, 2005). The coefficients are fitted once by least
squares.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

ENTROPY_OCTAVES = 18  # J for q log q: error 4e-7
OCTAVES = 24  # J for sqrt(q) and sqrt(q) log(q): errors 3e-5 and 6e-4, a tenth of that for q above 1e-5
LARGEST = 100.0  # largest singular value up to which |log sigma| is fitted
_FLOOR = 1e-3  # singular values below it count as this in the logarithm


def _exponents(octaves: int) -> list[int]:
    """Return the exponents m, from 0."""
    return [0, 1, 2, 3, 4, 5, 6, 8, *(2**j for j in range(4, octaves + 1))]


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
def of_entropy() -> Tensor:
    """Return the coefficients (exponents,) of -q log q as a function of 1 - q."""
    q, weights = _shares_grid()
    return _fitted(_powers(1 - q, ENTROPY_OCTAVES), torch.special.entr(q)[:, None], weights)[:, 0]


@functools.cache
def of_roots() -> Tensor:
    """Return the coefficients (exponents, 2) of sqrt(q) and sqrt(q) log(q)."""
    q, weights = _shares_grid()
    values = torch.stack([q.sqrt(), torch.xlogy(q.sqrt(), q)], dim=-1)
    return _fitted(_powers(1 - q, OCTAVES), values, weights)


@functools.cache
def of_logarithm() -> Tensor:
    """Return the coefficients of |log max(sigma, 0.001)| for the powers of 1 - w, then those of w."""
    log_sigma = torch.linspace(-10.0, math.log(LARGEST), 300, dtype=torch.float64)
    near_one = torch.logspace(-9, -1, 60, dtype=torch.float64)
    log_sigma = torch.cat([torch.tensor([-40.0], dtype=torch.float64), log_sigma, near_one, -near_one])
    weights = torch.ones_like(log_sigma)
    weights[log_sigma < -10.0] = 300.0  # where there is no full rank
    weights[(log_sigma > -8.5) & (log_sigma < -5.5)] = 0.05  # the corner at the floor
    return _fitted(_log_basis(log_sigma), log_sigma.clamp_min(math.log(_FLOOR)).abs()[:, None], weights)[:, 0]


def _log_basis(log_sigma: Tensor) -> Tensor:
    w = log_sigma.cosh() ** -2.0
    return torch.cat([_powers(log_sigma.tanh() ** 2, OCTAVES), _powers(w, OCTAVES)[:, 1:]], dim=1)
