"""Process: the Gaussian process of the learned ranking. Imports numpy and scipy alone.

Notation, for n networks in rows x with G groups of columns (one group: the ranks, or one kind of parameter, or one
hyperparameter):

* l_g: length scale of group g;  d2_T(x, x') = sum over g in T of |x_g - x'_g|^2 / l_g^2.
* M(d2) = (1 + sqrt(5 d2) + 5/3 d2) exp(-sqrt(5 d2)): Matern-5/2 as a function of the squared distance.
* c_t: variance of term t of the kernel;  s2: variance of the noise.
* theta = (log c_1, ..., log c_T, log l_1, ..., log l_G, log s2): the kernel's hyperparameters.

The kernel is a sum of terms, each on some of the groups:

    k(x, x') = sum of c_t  +  sum of c_t <x_T, x'_T>  +  sum of c_t M(d2_T(x, x'))
               (constant)      (linear)                   (Matern)

theta maximises the marginal likelihood times independent log-normal priors. Its gradient is that of Rasmussen and
Williams (2006), equation 5.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

_Floats = npt.NDArray[np.float64]

#: Log-normal prior of a variance or length scale: mean and standard deviation of its logarithm.
Prior = tuple[float, float]

_REACH = 4.0  # theta lies within this many standard deviations of its prior's mean
_JITTER = 1e-8  # added to the kernel matrix's diagonal for numerical stability


class Group(NamedTuple):
    """Columns that share a length scale.

    Attributes:
        columns: Their positions.
        length: Prior of the length scale.
    """

    columns: tuple[int, ...]
    length: Prior


class Term(NamedTuple):
    """A term of the kernel.

    Attributes:
        kind: What it is.
        groups: Positions of the groups that it depends on.
        variance: Prior of its variance.
    """

    kind: Literal["constant", "linear", "matern"]
    groups: tuple[int, ...]
    variance: Prior


class Process:
    """A Gaussian process of mean 0.

    Args:
        groups: The groups of columns.
        terms: The terms of the kernel.
        noise: Prior of the noise's variance.
    """

    def __init__(self, groups: Sequence[Group], terms: Sequence[Term], noise: Prior) -> None:
        self.groups, self.terms = tuple(groups), tuple(terms)
        self._columns = [_as_slice([c for g in term.groups for c in groups[g].columns]) for term in terms]
        group_of = {column: g for g, group in enumerate(groups) for column in group.columns}
        self._group_of = [group_of[column] for column in range(len(group_of))]
        priors = [*(term.variance for term in terms), *(group.length for group in groups), noise]
        self._mean, self._deviation = np.array(priors).T
        self.theta = self._mean.copy()
        self._x: _Floats = np.zeros((0, 0))
        self._y: _Floats = np.zeros(0)
        self._factor: _Floats = np.zeros((0, 0))
        self._weights: _Floats = np.zeros(0)

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return float(np.exp(self.theta[-1]))

    def fit(self, x: _Floats, y: _Floats, max_iterations: int = 40) -> None:
        """Choose theta, starting from the last choice.

        Args:
            x: Networks, shape (k, columns).
            y: Their trained values less the prior mean, shape (k,).
            max_iterations: Bound on the iterations of L-BFGS-B; each costs O(k^3).
        """
        inner, squared = self._by_group(x)
        low, high = self._mean - _REACH * self._deviation, self._mean + _REACH * self._deviation

        def loss(theta: _Floats) -> tuple[float, _Floats]:
            likelihood, gradient = self._log_likelihood(theta, inner, squared, y)
            z = (theta - self._mean) / self._deviation
            return 0.5 * float(z @ z) - likelihood, z / self._deviation - gradient

        found = minimize(
            loss,
            np.clip(self.theta, low, high),
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([low, high], axis=1),
            options={"maxiter": max_iterations},
        )
        if np.all(np.isfinite(found.x)):
            self.theta = found.x

    def log_likelihood(self, theta: _Floats, x: _Floats, y: _Floats) -> tuple[float, _Floats]:
        """Return the log marginal likelihood of values, shape (k,), of networks (k, columns), and its gradient."""
        return self._log_likelihood(theta, *self._by_group(x), y)

    def _by_group(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """Return inner products and squared distances of networks, shape (k, columns): (groups, k, k) each."""
        parts = [x[:, group.columns] for group in self.groups]
        return np.stack([part @ part.T for part in parts]), np.stack([cdist(p, p, "sqeuclidean") for p in parts])

    def _log_likelihood(self, theta: _Floats, inner: _Floats, squared: _Floats, y: _Floats) -> tuple[float, _Floats]:
        """The same, from inner products and squared distances of each group, both of shape (groups, k, k)."""
        n, n_terms = len(y), len(self.terms)
        variances, precisions, noise = self._unpack(theta)
        kernel = (noise + _JITTER) * np.eye(n)
        parts: list[_Floats] = []  # each term's share of the kernel
        slopes: list[_Floats] = []  # its derivative by the squared distance
        for variance, term in zip(variances, self.terms, strict=True):
            groups = list(term.groups)
            if term.kind == "matern":
                d2 = np.tensordot(precisions[groups], squared[groups], 1)
                parts.append(variance * matern(d2))
                slopes.append(variance * matern_slope(d2))
            else:
                parts.append(variance * (inner[groups].sum(axis=0) if groups else np.ones((n, n))))
                slopes.append(np.zeros(0))
            kernel += parts[-1]
        try:
            factor = cho_factor(kernel, lower=True)
        except np.linalg.LinAlgError:
            return -np.inf, np.zeros(len(theta))
        alpha = cho_solve(factor, y)
        likelihood = -0.5 * y @ alpha - np.log(np.diag(factor[0])).sum() - 0.5 * n * np.log(2.0 * np.pi)
        half = 0.5 * (np.outer(alpha, alpha) - cho_solve(factor, np.eye(n)))  # of the likelihood by the kernel
        gradient = np.zeros(len(theta))
        for t, (term, part, slope) in enumerate(zip(self.terms, parts, slopes, strict=True)):
            gradient[t] = np.vdot(half, part)
            if term.kind == "matern":
                weighted = half * slope
                for g in term.groups:  # by log l_g: d2 changes by -2 |x_g - x'_g|^2 / l_g^2
                    gradient[n_terms + g] -= 2.0 * precisions[g] * np.vdot(weighted, squared[g])
        gradient[-1] = noise * np.trace(half)
        return float(likelihood), gradient

    def condition(self, x: _Floats, y: _Floats) -> None:
        """Condition on values, shape (k,), of networks, shape (k, columns), at the theta chosen last."""
        kernel = self.kernel(x, x) + (self.noise + _JITTER) * np.eye(len(x))
        self._x, self._y = x, y
        self._factor = cho_factor(kernel, lower=True)[0]
        self._weights = cho_solve((self._factor, True), y)

    def extend(self, x: _Floats, y: _Floats) -> None:
        """Condition on further values, shape (k,), of networks, shape (k, columns)."""
        self.condition(np.vstack([self._x, x]), np.concatenate([self._y, y]))

    def predict(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """Return the posterior mean and standard deviation of networks (n, columns), without the noise."""
        cross = self.kernel(x, self._x)
        explained = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = self._diagonal(x) - np.einsum("ij,ij->j", explained, explained)
        return cross @ self._weights, np.sqrt(np.maximum(variance, 0.0))

    def predict_mean(self, x: _Floats) -> _Floats:
        """Return the posterior mean alone, shape (n,)."""
        return self.kernel(x, self._x) @ self._weights

    def sample(self, x: _Floats, n: int, rng: np.random.Generator) -> _Floats:
        """Return ``n`` draws of the posterior function at networks (k, columns), shape (n, k)."""
        cross = self.kernel(x, self._x)
        explained = solve_triangular(self._factor, cross.T, lower=True)
        values, vectors = np.linalg.eigh(self.kernel(x, x) - explained.T @ explained)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return cross @ self._weights + rng.standard_normal((n, len(x))) @ root.T

    def kernel(self, x: _Floats, other: _Floats) -> _Floats:
        """Return k(x, x') without the noise, shape (n, n'), of networks (n, columns) and (n', columns)."""
        variances, precisions, _ = self._unpack(self.theta)
        scale = np.sqrt(precisions)[self._group_of]
        scaled, scaled_other = x * scale, other * scale
        total = np.zeros((len(x), len(other)))
        for variance, term, columns in zip(variances, self.terms, self._columns, strict=True):
            if term.kind == "constant":
                total += variance
                continue
            if term.kind == "linear":
                part = x[:, columns] @ other[:, columns].T
            else:
                part = matern(squared_distances(scaled[:, columns], scaled_other[:, columns]))
            part *= variance
            total += part
        return total

    def _diagonal(self, x: _Floats) -> _Floats:
        """Return k(x, x), shape (n,)."""
        variances, _, _ = self._unpack(self.theta)
        total = np.zeros(len(x))
        for variance, term, columns in zip(variances, self.terms, self._columns, strict=True):
            total += variance * ((x[:, columns] ** 2).sum(axis=1) if term.kind == "linear" else 1.0)
        return total

    def _unpack(self, theta: _Floats) -> tuple[_Floats, _Floats, float]:
        """Return the variances c, the precisions 1 / l^2, and the variance of the noise."""
        n_terms = len(self.terms)
        return np.exp(theta[:n_terms]), np.exp(-2.0 * theta[n_terms:-1]), float(np.exp(theta[-1]))


def _as_slice(columns: list[int]) -> slice | list[int]:
    """Return columns as a slice, which copies nothing, where they follow each other."""
    start = columns[0] if columns else 0
    return slice(start, start + len(columns)) if columns == list(range(start, start + len(columns))) else columns


def squared_distances(x: _Floats, other: _Floats) -> _Floats:
    """Return the squared distances (n, n') of rows (n, columns) and (n', columns), by their inner products.

    With the tens of columns of architectures it takes a tenth of the time of scipy's ``cdist``. Its rounding errors are
    some 1e-16 of the squared lengths of the rows.
    """
    squared = x @ other.T
    squared *= -2.0
    squared += np.einsum("ij,ij->i", x, x)[:, np.newaxis]
    squared += np.einsum("ij,ij->i", other, other)
    return np.maximum(squared, 0.0, out=squared)


def matern(squared_distance: _Floats) -> _Floats:
    """Return the Matern-5/2 kernel of variance 1 by squared distances in units of the length scale."""
    d = np.sqrt(5.0 * squared_distance)
    kernel = d / 3.0  # 1 + d + d^2 / 3 = (d / 3 + 1) d + 1, in place: these are the largest arrays of a proposal
    kernel += 1.0
    kernel *= d
    kernel += 1.0
    kernel *= np.exp(np.negative(d, out=d), out=d)
    return kernel


def matern_slope(squared_distance: _Floats) -> _Floats:
    """Return the derivative of :func:`matern` by the squared distance."""
    d = np.sqrt(5.0 * squared_distance)
    return -5.0 / 6.0 * (1.0 + d) * np.exp(-d)


def interpolate(x: _Floats, y: _Floats, at: _Floats, length: float, noise: float) -> _Floats:
    """Return the posterior mean, shape (n, m), of m processes of mean 0, variance 1 and one Matern-5/2 kernel.

    Args:
        x: Where values are known, shape (k, columns).
        y: The values, shape (k, m).
        at: Where they are wanted, shape (n, columns).
        length: Length scale of the kernel.
        noise: Variance of the noise.
    """
    kernel = matern(squared_distances(x, x) / length**2) + noise * np.eye(len(x))
    return matern(squared_distances(at, x) / length**2) @ cho_solve(cho_factor(kernel), y)
