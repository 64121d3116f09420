"""LearnedAggregation: a ranking that starts as S and is corrected by trained values, by a Gaussian process.

Notation: n networks, m proxies; S their rank scores, z their normal scores; y the normal scores of trained values; rho
the prior correlation of z and y; f the Gaussian process on the residual y - rho z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from optuna_aznas.aggregation.rank import sum_log_ranks
from optuna_aznas.aggregation.table import as_table

if TYPE_CHECKING:
    from optuna_aznas.aggregation.gaussian_process import Process

_Floats = npt.NDArray[np.float64]

MIN_TRAINED = 5  # trained values below which nothing is learned: the ranking is that of S
PRIOR_CORRELATION = 0.85  # rho by default

# Blocks of columns are scaled to these mean squared distances between two networks, so that one prior of the length
# scales serves any number of proxies and parameters.
_SPREAD_SCORES = 16.0  # proxy scores
_SPREAD_SINGLE = 4.8  # parameters one by one
_SPREAD_POOLED = 4.3  # parameters pooled
_SPREAD_HYPERPARAMETERS = 4.0  # hyperparameters

_MAX_FIT = 256  # most trained values on which the kernel's hyperparameters are chosen
_MAX_CONDITION = 1000  # most trained values on which the process is conditioned
_MAX_BEST = 64  # trained networks, half of them those with the highest values, among which the best is looked for
_GROWTH = 1.15  # the kernel's hyperparameters are chosen anew when the trained values have grown by this factor

# Estimating the proxy scores of networks that have none:
_MAX_SCORED = 500  # most networks from which they are estimated
_ESTIMATE_LENGTH = 3.0  # length scale
_ESTIMATE_NOISE = 0.02  # variance of the noise


class Parameters(NamedTuple):
    """Architectures as numbers.

    Attributes:
        single: A group of columns for each parameter, shape (n, p).
        pooled: Sums over parameters of one kind, shape (n, q): how often each choice occurs, for example.
    """

    single: _Floats
    pooled: _Floats


class Prediction(NamedTuple):
    """Posterior of networks' trained values, as normal scores among all networks.

    Attributes:
        mean: Posterior mean, shape (n,), bigger is better. A ranking.
        std: Posterior standard deviation, shape (n,).
        best: Highest posterior mean of a trained network; ``-inf`` where nothing was learned.
    """

    mean: _Floats
    std: _Floats
    best: float


class LearnedAggregation:
    """Ranks networks by S, corrected by trained values: the more of them there are, the further.

    A Gaussian process models the residual of the non-linear aggregation. With z(i) the normal score of S(i) among all n
    networks (:func:`~optuna_aznas.aggregate`) and y(i) that of a trained network's value,

        y(i) = rho z(i) + f(i) + noise,    f ~ GP(0, k),

    where k depends on ranks, logarithms of ranks, the architecture's parameters and the hyperparameters. So rho z is
    the prior mean. With fewer than 5 trained values f is 0, and the ranking is that of S. The kernel's hyperparameters
    maximise the marginal likelihood times priors that favour a small f, so that the ranking departs from the prior mean
    only where the trained values are evidence for it.

    Trained values count by their order alone, so that outliers, failures and the metric's scale have no effect.

    The kernel's hyperparameters are kept between calls and chosen anew when the trained values have grown by 15%, on at
    most 256 of them. The process is conditioned on at most 1,000: the best half, and the others evenly by rank.

    Args:
        exploring: Expect larger linear effects of proxy scores and parameters from the start. Few trained values then
            change the ranking more, often for the worse, but errors of S are found sooner. Meant for choosing what to
            train next, not for ranking.
        prior_correlation: Prior correlation rho between S and the trained value, above 0 and at most 1.

    Raises:
        ValueError: ``prior_correlation`` is out of range.

    Example:
        >>> proxy_scores = [[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]
        >>> LearnedAggregation().predict(proxy_scores, [np.nan] * 3).mean.round(2)
        array([-0.82,  0.37,  0.37])
    """

    def __init__(self, *, exploring: bool = False, prior_correlation: float = PRIOR_CORRELATION) -> None:
        if not 0.0 < prior_correlation <= 1.0:
            raise ValueError(f"prior_correlation must be above 0 and at most 1; got {prior_correlation!r}.")
        self._exploring = exploring
        self._rho = prior_correlation
        self._process: Process | None = None
        self._widths = (0, 0, 0)  # columns of proxy scores, parameters and hyperparameters
        self._fitted_at = 0  # trained values when the kernel's hyperparameters were chosen

    def predict(
        self,
        proxy_scores: npt.ArrayLike,
        trained_values: npt.ArrayLike,
        parameters: Parameters | None = None,
        hyperparameters: npt.ArrayLike | None = None,
        *,
        prior: npt.ArrayLike | None = None,
        at: npt.ArrayLike | None = None,
    ) -> Prediction:
        """Predict the trained values of networks of a table.

        Args:
            proxy_scores: Table of shape (n, m): n networks, m proxies, bigger is better. NaN counts as ``-inf``.
            trained_values: Trained values of the networks, shape (n,), bigger is better; NaN for what was not trained.
            parameters: The architectures as numbers, of n rows.
            hyperparameters: Hyperparameters of each network as numbers, shape (n, h). The prediction is for the
                hyperparameters of the network with the highest trained value.
            prior: Replaces S, shape (n,).
            at: Positions of the networks to predict; by default all n.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        table, values = as_table(proxy_scores), np.asarray(trained_values, dtype=np.float64)
        _check_length("trained_values", values, len(table), 1)
        if len(table) == 0:
            return Prediction(np.zeros(0), np.zeros(0), -np.inf)
        ranks = rankdata(table, axis=0)
        s = _rank_scores(ranks) if prior is None else np.asarray(prior, dtype=np.float64)
        _check_length("prior", s, len(table), 1)
        prior_mean = self._rho * normal_scores(s)
        wanted = np.arange(len(table)) if at is None else np.asarray(at, dtype=np.intp)
        trained = np.flatnonzero(~np.isnan(values))
        if not _is_informative(values[trained]):
            prior_std = np.full(len(wanted), np.sqrt(1 - self._rho**2))
            return Prediction(prior_mean[wanted], prior_std, -np.inf)
        process, x = self._condition(ranks, prior_mean, values, trained, parameters, hyperparameters)
        residual, std = process.predict(x[wanted])
        best = trained[_choose(values[trained], _MAX_BEST)]
        highest = float(np.max(prior_mean[best] + process.predict(x[best])[0]))
        return Prediction(prior_mean[wanted] + residual, std, highest)

    def sample(
        self,
        proxy_scores: npt.ArrayLike,
        trained_values: npt.ArrayLike,
        others: npt.ArrayLike,
        n: int,
        hyperparameters: npt.ArrayLike | None = None,
        rng: np.random.Generator | None = None,
    ) -> _Floats:
        """Draw the trained values of further networks from the posterior, by their proxy scores.

        Args:
            proxy_scores: As in :meth:`predict`.
            trained_values: As in :meth:`predict`.
            others: Proxy scores of the further networks, shape (k, m). They are ranked among those of the table.
            n: Number of draws.
            hyperparameters: As in :meth:`predict`.
            rng: Source of the random numbers.

        Returns:
            Normal scores, shape (n, k). Each row is one draw of the function.

        Raises:
            ValueError: There are fewer than 5 trained values, or all of them are equal.
        """
        table, further = as_table(proxy_scores), as_table(others)
        values = np.asarray(trained_values, dtype=np.float64)
        trained = np.flatnonzero(~np.isnan(values))
        if not _is_informative(values[trained]):
            raise ValueError(
                f"trained_values must hold at least {MIN_TRAINED} that are not all equal; got {len(trained)}."
            )
        ranks = rankdata(table, axis=0)
        s = _rank_scores(ranks)
        further_ranks = _ranks_among(further, table)
        process, x = self._condition(
            ranks, self._rho * normal_scores(s), values, trained, None, hyperparameters, further_ranks
        )
        further_s = _rank_scores(further_ranks, len(table))
        places = _ranks_among(further_s[:, np.newaxis], np.sort(s)[:, np.newaxis])[:, 0]
        prior_mean = self._rho * ndtri((places - 0.5) / len(table))
        return prior_mean + process.sample(x[len(table) :], n, np.random.default_rng() if rng is None else rng)

    def _condition(
        self,
        ranks: _Floats,
        prior_mean: _Floats,
        values: _Floats,
        trained: npt.NDArray[np.intp],
        parameters: Parameters | None,
        hyperparameters: npt.ArrayLike | None,
        further_ranks: _Floats | None = None,
    ) -> tuple[Process, _Floats]:
        """Return the conditioned process, and the networks' columns, those of ``further_ranks`` last."""
        from optuna_aznas.aggregation.gaussian_process import Process

        y = _calibrated(values[trained], prior_mean[trained] / self._rho, self._rho)
        residual = y - prior_mean[trained]
        x, widths = _columns(ranks, parameters, hyperparameters, trained, further_ranks)
        if self._process is None or widths != self._widths:
            self._process, self._widths, self._fitted_at = Process(*widths, exploring=self._exploring), widths, 0
        if len(y) >= _GROWTH * self._fitted_at or len(y) < self._fitted_at:
            few = _choose(y, _MAX_FIT)
            self._process.fit(x[trained[few]], residual[few])
            self._fitted_at = len(y)
        chosen = _choose(y, _MAX_CONDITION)
        self._process.condition(x[trained[chosen]], residual[chosen])
        if widths[2]:  # predictions are for the hyperparameters of the best trained network
            x[:, -widths[2] :] = x[trained[np.argmax(y)], -widths[2] :]
        return self._process, x


def normal_scores(values: _Floats) -> _Floats:
    """Return the standard normal quantiles of (rank - 1/2) / n; ties share their average rank."""
    return ndtri((rankdata(values) - 0.5) / len(values))


def complete_scores(proxy_scores: npt.ArrayLike, is_scored: npt.NDArray[np.bool_], parameters: Parameters) -> _Floats:
    """Estimate the proxy scores of networks that have none from those of other networks, by their parameters.

    Each proxy's normal scores are interpolated by a Gaussian process over the parameters. An estimate is then read back
    as the proxy score that lies at the same quantile.

    Args:
        proxy_scores: Table of shape (n, m); rows that are not scored are ignored.
        is_scored: Which rows are scored, shape (n,).
        parameters: The architectures as numbers, of n rows.

    Returns:
        The table with the other rows filled in.
    """
    table = as_table(proxy_scores)
    if is_scored.all() or not is_scored.any():
        return table
    from optuna_aznas.aggregation.gaussian_process import interpolate

    x = np.hstack([_scaled(parameters.single, _SPREAD_SINGLE), _scaled(parameters.pooled, _SPREAD_POOLED)])
    rows = np.flatnonzero(is_scored)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MAX_SCORED)).astype(int)]
    y = np.stack([normal_scores(column) for column in table[rows].T], axis=1)
    quantiles = ndtr(interpolate(x[rows], y, x[~is_scored], _ESTIMATE_LENGTH, _ESTIMATE_NOISE))
    for column, in_order, quantile in zip(table.T, np.sort(table[rows], axis=0).T, quantiles.T, strict=True):
        column[~is_scored] = in_order[np.clip((quantile * len(rows)).astype(int), 0, len(rows) - 1)]
    return table


def _is_informative(trained_values: _Floats) -> bool:
    """Whether there are enough trained values to learn from, and not all of them are equal."""
    return len(trained_values) >= MIN_TRAINED and bool(np.any(trained_values != trained_values[0]))


def _rank_scores(ranks: _Floats, n: int | None = None) -> _Floats:
    """Return S, rounded, so that networks whose S differs only by rounding errors tie."""
    return np.round(sum_log_ranks(ranks, len(ranks) if n is None else n), 12)


def _ranks_among(values: _Floats, table: _Floats) -> _Floats:
    """Return the ranks, 1 to n, of values (k, m) among those of a table (n, m).

    A value that occurs in the table has the mean rank of those equal to it; any other has that of the next lower one.
    """
    ranks = np.empty(values.shape)
    for k, in_order in enumerate(np.sort(table, axis=0).T):
        low, high = (np.searchsorted(in_order, values[:, k], side=side) for side in ("left", "right"))
        ranks[:, k] = np.where(high > low, 0.5 * (low + high + 1), np.maximum(low, 1))
    return ranks


def _calibrated(trained_values: _Floats, z: _Floats, rho: float) -> _Floats:
    """Return normal scores of trained values, moved and scaled to what they would be among all networks.

    Networks are mostly trained because S ranks them high, so that normal scores among the trained ones alone would have
    too low a mean and too high a variance. If y and z are jointly normal among all networks, with correlation rho, then
    the y of networks that were selected by z have the mean rho mean(z) and the variance rho^2 var(z) + 1 - rho^2.

    Args:
        trained_values: Trained values, shape (k,).
        z: Normal scores, among all networks, of the same networks' S, shape (k,).
        rho: Prior correlation.
    """
    std = np.sqrt(rho**2 * (np.var(z) - 1.0) + 1.0)
    return rho * float(np.mean(z)) + std * normal_scores(trained_values)


def _columns(
    ranks: _Floats,
    parameters: Parameters | None,
    hyperparameters: npt.ArrayLike | None,
    trained: npt.NDArray[np.intp],
    further_ranks: _Floats | None = None,
) -> tuple[_Floats, tuple[int, int, int]]:
    """Return all networks as rows of numbers, and the widths of the blocks: proxy scores, parameters, hyperparameters.

    ``further_ranks`` are ranks of networks beyond the n of the table, of which nothing else is known: rows that are
    added at the end.
    """
    n = len(ranks)
    relative = (ranks if further_ranks is None else np.vstack([ranks, further_ranks])) / n
    # Relative ranks are uniform, with variance 1 / 12; their logarithms have variance 1. Both get the same weight.
    blocks = [_scaled(np.hstack([np.sqrt(12.0) * relative, np.log(relative)]), _SPREAD_SCORES, np.arange(n))]
    widths = [blocks[0].shape[1], 0, 0]
    if parameters is not None:
        for name, block, spread in (
            ("parameters.single", parameters.single, _SPREAD_SINGLE),
            ("parameters.pooled", parameters.pooled, _SPREAD_POOLED),
        ):
            _check_length(name, block, n, 2)
            blocks.append(_scaled(block, spread))
            widths[1] += block.shape[1]
    if hyperparameters is not None:
        block = np.array(hyperparameters, dtype=np.float64)
        _check_length("hyperparameters", block, n, 2)
        scaled = _scaled(block, _SPREAD_HYPERPARAMETERS, trained)
        if further_ranks is not None:
            scaled = np.vstack([scaled, np.zeros((len(further_ranks), block.shape[1]))])
        blocks.append(scaled)
        widths[2] = block.shape[1]
    return np.hstack(blocks), (widths[0], widths[1], widths[2])


def _scaled(block: _Floats, spread: float, rows: npt.NDArray[np.intp] | None = None) -> _Floats:
    """Return columns of mean 0, scaled so that the mean squared distance of two rows is ``spread``.

    Mean and scale are those of ``rows``; by default of all rows.
    """
    reference = block if rows is None else block[rows]
    variance = float(np.var(reference, axis=0).sum())
    return (block - reference.mean(axis=0)) * (np.sqrt(spread / (2 * variance)) if variance > 0.0 else 0.0)


def _choose(y: _Floats, limit: int) -> npt.NDArray[np.intp]:
    """Return positions of at most ``limit`` values: the highest, as one half, and the others evenly by rank."""
    if len(y) <= limit:
        return np.arange(len(y))
    order = np.argsort(-y, kind="stable")
    half = limit // 2
    others = np.linspace(half, len(y) - 1, limit - half).astype(int)
    return np.sort(np.concatenate([order[:half], order[others]]))


def _check_length(name: str, values: npt.NDArray[np.float64], n: int, ndim: int) -> None:
    if values.ndim != ndim or len(values) != n:
        raise ValueError(f"{name} must have {ndim} dimensions and a row for each of {n} networks; got {values.shape}.")
