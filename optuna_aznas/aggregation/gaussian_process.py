"""The Gaussian process behind the learned ranking. Imports scikit-learn, so it is itself imported on first use only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Kernel, Matern, WhiteKernel

_Floats = npt.NDArray[np.float64]

#: Log-normal priors of the hyperparameters (mean and standard deviation of the logarithm). Those of the variances lie
#: low: the process departs from its prior mean where the results' evidence outweighs them. The results are in units
#: of their own standard deviation.
_OFFSET = (-1.0, 1.5)
_LINEAR = (-6.0, 1.0)
_LINEAR_EXPLORING = (-2.0, 1.0)
_SCORES = (-5.0, 1.0)
_JOINT = (-3.0, 1.0)
_TRAINING = (-3.0, 1.5)
_LENGTH = (0.7, 0.7)
_NOISE = (-3.5, 1.0)

#: Hyperparameters lie within so many standard deviations of their prior's mean.
_REACH = 4.0

_JITTER = 1e-8


class Columns(Kernel):  # type: ignore[misc]  # scikit-learn has no types
    """A kernel on some of the columns of its input.

    Args:
        kernel: The kernel.
        start: The first of the columns.
        stop: The first column after them.
    """

    def __init__(self, kernel: Any, start: int, stop: int) -> None:
        self.kernel = kernel
        self.start = start
        self.stop = stop

    @property
    def hyperparameters(self) -> list[Any]:
        return self.kernel.hyperparameters

    @property
    def theta(self) -> _Floats:
        return self.kernel.theta

    @theta.setter
    def theta(self, theta: _Floats) -> None:
        self.kernel.theta = theta

    @property
    def bounds(self) -> _Floats:
        return self.kernel.bounds

    def __call__(self, X: _Floats, Y: _Floats | None = None, eval_gradient: bool = False) -> Any:  # noqa: N803
        other = None if Y is None else Y[:, self.start : self.stop]
        return self.kernel(X[:, self.start : self.stop], other, eval_gradient=eval_gradient)

    def diag(self, X: _Floats) -> _Floats:  # noqa: N803
        return self.kernel.diag(X[:, self.start : self.stop])

    def is_stationary(self) -> bool:
        return self.kernel.is_stationary()


class Process:
    """A Gaussian process of mean 0 over the blocks of columns that describe networks.

    Its kernel is a sum: an offset; linear in scores; linear in parameters; Matern-5/2 in scores; Matern-5/2 in scores
    and parameters together; Matern-5/2 in how a network was trained; noise. Hyperparameters maximise the marginal
    likelihood times their log-normal priors.

    Args:
        scores: Columns of the first block.
        parameters: Columns of the second block; 0 leaves its terms out.
        training: Columns of the third block; 0 leaves its term out.
        exploring: Whether the linear terms are given more room.
    """

    def __init__(self, scores: int, parameters: int = 0, training: int = 0, *, exploring: bool = False) -> None:
        linear_prior = _LINEAR_EXPLORING if exploring else _LINEAR
        both = scores + parameters
        terms: list[Any] = []
        priors: list[tuple[float, float]] = []

        def add(variance: tuple[float, float], kernel: Any = None, start: int = 0, stop: int = 0) -> None:
            scale = ConstantKernel(np.exp(variance[0]), _bounds(variance))
            terms.append(scale if kernel is None else scale * Columns(kernel, start, stop))
            priors.append(variance)
            if isinstance(kernel, Matern):
                priors.append(_LENGTH)

        def matern() -> Any:
            return Matern(np.exp(_LENGTH[0]), _bounds(_LENGTH), nu=2.5)

        def linear() -> Any:
            return DotProduct(sigma_0=0.0, sigma_0_bounds="fixed")

        add(_OFFSET)
        add(linear_prior, linear(), 0, scores)
        add(_SCORES if parameters else _JOINT, matern(), 0, scores)
        if parameters:
            add(linear_prior, linear(), scores, both)
            add(_JOINT, matern(), 0, both)
        if training:
            add(_TRAINING, matern(), both, both + training)
        priors.append(_NOISE)
        kernel = WhiteKernel(np.exp(_NOISE[0]), _bounds(_NOISE))
        for term in reversed(terms):
            kernel = term + kernel
        self._kernel = kernel
        self._priors = np.array(priors)
        self._regressor: Any = None
        self.width = both + training

    def fit(self, x: _Floats, y: _Floats, max_iterations: int = 40) -> None:
        """Choose hyperparameters, starting from those that were chosen last.

        Args:
            x: Networks, shape (k, columns).
            y: Their results, shape (k,).
            max_iterations: Bound on the iterations of L-BFGS-B; each costs O(k^3).
        """
        regressor = GaussianProcessRegressor(self._kernel, alpha=_JITTER, optimizer=None).fit(x, y)
        mean, deviation = self._priors.T

        def loss(theta: _Floats) -> tuple[float, _Floats]:
            likelihood, gradient = regressor.log_marginal_likelihood(theta, eval_gradient=True, clone_kernel=False)
            z = (theta - mean) / deviation
            return 0.5 * float(z @ z) - likelihood, z / deviation - gradient

        bounds = np.stack([mean - _REACH * deviation, mean + _REACH * deviation], axis=1)
        start = np.clip(self._kernel.theta, *bounds.T)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": max_iterations})
        if np.all(np.isfinite(found.x)):
            self._kernel.theta = found.x

    def condition(self, x: _Floats, y: _Floats) -> None:
        """Condition on results (k,) of networks (k, columns), at the hyperparameters chosen last."""
        self._regressor = GaussianProcessRegressor(self._kernel, alpha=_JITTER, optimizer=None).fit(x, y)

    def predict(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """Return posterior mean and standard deviation, noise left out, of networks (n, columns)."""
        mean, deviation = self._regressor.predict(x, return_std=True)
        variance = deviation**2 - np.exp(self._kernel.theta[-1])
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def sample(self, x: _Floats, n: int, rng: np.random.Generator) -> _Floats:
        """Return ``n`` draws of the posterior function at networks (k, columns), shape (n, k)."""
        mean, covariance = self._regressor.predict(x, return_cov=True)
        covariance = covariance - np.exp(self._kernel.theta[-1]) * np.eye(len(x))
        values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return mean + rng.standard_normal((n, len(x))) @ root.T


def _bounds(prior: tuple[float, float]) -> tuple[float, float]:
    return float(np.exp(prior[0] - _REACH * prior[1])), float(np.exp(prior[0] + _REACH * prior[1]))


def interpolate(x: _Floats, y: _Floats, at: _Floats, length: float, noise: float) -> _Floats:
    """Return the posterior mean, shape (n, m), of m processes of mean 0, variance 1 and one Matern-5/2 kernel.

    Args:
        x: Where values are known, shape (k, columns).
        y: The values, shape (k, m).
        at: Where they are wanted, shape (n, columns).
        length: The kernel's length scale.
        noise: Variance of the noise.
    """
    kernel = Matern(length, nu=2.5)
    regressor = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x, y)
    return regressor.predict(at).reshape(len(at), -1)
