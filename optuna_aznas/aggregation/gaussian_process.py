"""Process: the Gaussian process of the learned ranking. Imports scikit-learn, so it is imported on first use only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Kernel, Matern, WhiteKernel

_Floats = npt.NDArray[np.float64]

# Log-normal priors of the kernel's hyperparameters: mean and standard deviation of the logarithm. The variances are in
# units of the trained values' variance. Their priors favour small values, so that the process departs from its prior
# mean only where the evidence of the trained values outweighs them.
_OFFSET = (-1.0, 1.5)  # variance of the offset
_LINEAR = (-6.0, 1.0)  # variance of the linear terms
_LINEAR_EXPLORING = (-2.0, 1.0)  # the same, if exploring
_SCORES = (-5.0, 1.0)  # variance of the Matern term in proxy scores, beside a joint one
_JOINT = (-3.0, 1.0)  # variance of the Matern term in all that is known of the architecture
_HYPERPARAMETERS = (-3.0, 1.5)  # variance of the Matern term in hyperparameters
_LENGTH = (0.7, 0.7)  # length scales
_NOISE = (-3.5, 1.0)  # variance of the noise

_REACH = 4.0  # hyperparameters lie within this many standard deviations of their prior's mean
_JITTER = 1e-8  # added to the kernel matrix's diagonal for numerical stability


class Columns(Kernel):  # type: ignore[misc]  # scikit-learn has no types
    """A kernel on some of the columns of its input.

    Args:
        kernel: The kernel.
        start: Index of the first of the columns.
        stop: Index after the last of them.
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

    The kernel is a sum of terms with a variance each: an offset; linear in proxy scores; linear in parameters;
    Matern-5/2 in proxy scores; Matern-5/2 in proxy scores and parameters together; Matern-5/2 in hyperparameters;
    noise. Each Matern term has one length scale for all of its columns. Variances and length scales are chosen by
    maximum a posteriori: they maximise the marginal likelihood times their log-normal priors.

    Args:
        proxy_scores: Number of columns of the first block.
        parameters: Number of columns of the second block; 0 leaves its terms out.
        hyperparameters: Number of columns of the third block; 0 leaves its term out.
        exploring: Whether the linear terms' prior allows larger variances.
    """

    def __init__(
        self, proxy_scores: int, parameters: int = 0, hyperparameters: int = 0, *, exploring: bool = False
    ) -> None:
        linear_prior = _LINEAR_EXPLORING if exploring else _LINEAR
        architecture = proxy_scores + parameters
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
        add(linear_prior, linear(), 0, proxy_scores)
        add(_SCORES if parameters else _JOINT, matern(), 0, proxy_scores)
        if parameters:
            add(linear_prior, linear(), proxy_scores, architecture)
            add(_JOINT, matern(), 0, architecture)
        width = architecture + hyperparameters
        if hyperparameters:
            add(_HYPERPARAMETERS, matern(), architecture, width)
        priors.append(_NOISE)
        kernel = WhiteKernel(np.exp(_NOISE[0]), _bounds(_NOISE))
        for term in reversed(terms):
            kernel = term + kernel
        self._kernel = kernel
        self._priors = np.array(priors)
        self._regressor: Any = None
        self.width = width

    def fit(self, x: _Floats, y: _Floats, max_iterations: int = 40) -> None:
        """Choose the kernel's hyperparameters, starting from those that were chosen last.

        Args:
            x: Networks, shape (k, columns).
            y: Their trained values less the prior mean, shape (k,).
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
        """Condition on values, shape (k,), of networks, shape (k, columns), at the hyperparameters chosen last."""
        self._regressor = GaussianProcessRegressor(self._kernel, alpha=_JITTER, optimizer=None).fit(x, y)

    def predict(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """Return the posterior mean and standard deviation of networks (n, columns), without the noise."""
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
        length: Length scale of the kernel.
        noise: Variance of the noise.
    """
    kernel = Matern(length, nu=2.5)
    regressor = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x, y)
    return regressor.predict(at).reshape(len(at), -1)
