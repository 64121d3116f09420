"""FeasibilityModel: how likely it is that an architecture keeps a limit, learned from others.

A Gaussian process of a linear and a Matern-5/2 term learns by how much architectures exceed the limit, not only whether
they do: a limit on cost is close to a sum over the parts of a network, and a few trials tell where it lies (Gardner et
al., "Bayesian Optimization with Inequality Constraints", ICML 2014). Imports scikit-learn when it is first fitted.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

_REFIT_GROWTH = 1.25  # the kernel's hyperparameters are chosen anew when the number of rows has grown by this factor
_JITTER = 1e-6  # added to the kernel matrix's diagonal for numerical stability

_Floats = npt.NDArray[np.float64]


class FeasibilityModel:
    """The probability that a value is at most 0, by the features of what it is a value of."""

    def __init__(self) -> None:
        self._kernel: Any = None
        self._regressor: Any = None
        self._n_fitted = 0
        self._mean = 0.0

    def fit(self, x: _Floats, y: _Floats) -> None:
        """Learn from known values.

        Args:
            x: Features, shape (k, columns).
            y: Values, shape (k,), above 0 where the limit is exceeded. Those that are not finite are clipped.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        y = self._scaled(y)
        self._mean = float(y.mean())
        if self._kernel is None:
            self._kernel = (
                ConstantKernel(1.0, (1e-3, 1e3)) * DotProduct(0.0, "fixed")
                + ConstantKernel(0.1, (1e-3, 1e3)) * Matern(2.0, (0.3, 30.0), nu=2.5)
                + WhiteKernel(1e-2, (1e-4, 1.0))
            )
        due = len(x) >= _REFIT_GROWTH * self._n_fitted
        optimizer = "fmin_l_bfgs_b" if due else None
        self._regressor = GaussianProcessRegressor(self._kernel, alpha=_JITTER, optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a hyperparameter at its bound
            self._regressor.fit(x, y - self._mean)
        if due:
            self._kernel, self._n_fitted = self._regressor.kernel_, len(x)

    def probability(self, x: _Floats) -> _Floats:
        """Return the probability that values are at most 0, shape (n,), for features of shape (n, columns)."""
        mean, deviation = self._regressor.predict(x, return_std=True)
        return ndtr(-(mean + self._mean) / np.maximum(deviation, 1e-9))

    @staticmethod
    def _scaled(y: _Floats) -> _Floats:
        """Return values in a unit of their own, with large ones compressed; their signs stay."""
        finite = np.abs(y[np.isfinite(y)])
        unit = float(np.median(finite[finite > 0])) if np.any(finite > 0) else 1.0
        return np.arcsinh(np.clip(np.nan_to_num(y, nan=np.inf), -1e6 * unit, 1e6 * unit) / unit)
