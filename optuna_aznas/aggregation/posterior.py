"""Posterior: what the learned ranking knows of networks' trained values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_aznas.aggregation.gaussian_process import Process

_Floats = npt.NDArray[np.float64]


class Prediction(NamedTuple):
    """Posterior of networks' trained values, as normal scores among the trained ones.

    Attributes:
        mean: Posterior mean, shape (n,), bigger is better. A ranking.
        std: Posterior standard deviation, shape (n,).
        best: Highest posterior mean of a trained network; ``-inf`` where nothing was learned.
    """

    mean: _Floats
    std: _Floats
    best: float


class Posterior(NamedTuple):
    """A Gaussian process over the networks of a table, conditioned on those that were trained.

    Attributes:
        process: The process of the residuals; ``None`` where nothing was learned, and the prior mean is all there is.
        prior_mean: Prior mean of each network, shape (n,).
        prior_std: Standard deviation where nothing was learned.
        columns: Networks as numbers without hyperparameters, shape (n, c).
        hyperparameters: Those of the network with the highest trained value, shape (h,).
        best: Highest posterior mean of a trained network; ``-inf`` where nothing was learned.
    """

    process: Process | None
    prior_mean: _Floats
    prior_std: float
    columns: _Floats
    hyperparameters: _Floats
    best: float

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise of trained values; 0 where nothing was learned."""
        return 0.0 if self.process is None else math.sqrt(self.process.noise)

    def predict(
        self, at: npt.NDArray[np.intp], hyperparameters: npt.ArrayLike | None = None
    ) -> tuple[_Floats, _Floats]:
        """Return posterior mean and standard deviation, both of shape (k,).

        Args:
            at: Positions in the table, shape (k,).
            hyperparameters: How each of them is trained, shape (k, h); by default as the best trained network was.
        """
        if self.process is None:
            return self.prior_mean[at], np.full(len(at), self.prior_std)
        residual, std = self.process.predict(self._rows(at, hyperparameters))
        return self.prior_mean[at] + residual, std

    def mean(self, at: npt.NDArray[np.intp], hyperparameters: npt.ArrayLike | None = None) -> _Floats:
        """Return the posterior mean alone, which takes less time."""
        if self.process is None:
            return self.prior_mean[at]
        return self.prior_mean[at] + self.process.predict_mean(self._rows(at, hyperparameters))

    def assume_mean(self, at: npt.NDArray[np.intp], hyperparameters: npt.ArrayLike | None = None) -> None:
        """Condition on networks of the table, shape (k,), as if their trained values were their posterior means.

        It lowers the standard deviation near networks that are being trained and leaves the mean as it is.
        """
        if self.process is not None:
            x = self._rows(at, hyperparameters)
            self.process.extend(x, self.process.predict_mean(x))

    def _rows(self, at: npt.NDArray[np.intp], hyperparameters: npt.ArrayLike | None) -> _Floats:
        how = self.hyperparameters if hyperparameters is None else np.asarray(hyperparameters, dtype=np.float64)
        return np.hstack([self.columns[at], np.broadcast_to(how, (len(at), self.hyperparameters.size))])
