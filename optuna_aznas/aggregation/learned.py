"""The rank aggregation as a prior that trained networks correct."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from optuna_aznas.aggregation.rank import as_table, sum_log_ranks

if TYPE_CHECKING:
    from optuna_aznas.aggregation.gaussian_process import Process

_Floats = npt.NDArray[np.float64]

#: Trained networks below which nothing is learned: the ranking is the plain aggregation's.
MIN_RESULTS = 5

#: Correlation between the aggregation's normal scores and those of the results that is assumed before any are known.
PRIOR_CORRELATION = 0.85

#: Mean squared distance between two networks, by block of columns, to which the columns are scaled: so the priors of
#: the length scales serve any number of proxies and parameters.
_SPREAD_SCORES, _SPREAD_PARAMETERS, _SPREAD_POOLED, _SPREAD_TRAINING = 16.0, 4.8, 4.3, 4.0

#: Results on which hyperparameters are chosen, and on which the process is conditioned, at most.
_FIT_POINTS, _POINTS = 256, 1000

#: Trained networks, the best half of them by their results, among which the best is looked for.
_BEST_OF = 64

#: Hyperparameters are chosen anew when the number of results has grown by this factor.
_GROWTH = 1.15

#: Networks from which missing scores are estimated, at most; length scale and noise variance of the estimate.
_KNOWN_POINTS, _KNOWN_LENGTH, _KNOWN_NOISE = 500, 3.0, 0.02


class Parameters(NamedTuple):
    """Architectures as numbers.

    Attributes:
        single: A group of columns for each parameter, shape (n, p).
        pooled: Sums over parameters of one kind, shape (n, q): how often each choice occurs, for example.
    """

    single: _Floats
    pooled: _Floats


class Prediction(NamedTuple):
    """What is expected of networks' results, in units of their standard deviation over all networks.

    Attributes:
        mean: Expected normal score of the result, shape (n,), bigger is better. A ranking.
        std: Its standard deviation, shape (n,).
        best: Expected normal score of the best trained network; ``-inf`` where nothing was learned.
    """

    mean: _Floats
    std: _Floats
    best: float


class LearnedAggregation:
    """Ranks networks by their scores, and the more by trained results the more of them there are.

    A Gaussian process on the residual of the non-linear aggregation. With z(i) the normal score of S(i) among all n
    networks (:func:`~optuna_aznas.aggregate`) and y(i) that of a trained network's result,

        y(i) = 0.85 z(i) + f(i) + noise,    f ~ GP(0, k),

    where k depends on ranks, log-ranks and the architecture's parameters. With fewer than 5 results f is 0, and the
    ranking is the plain aggregation's. Hyperparameters maximise the marginal likelihood times priors that favour
    small f, so that the ranking departs from the prior only where the results say so.

    Results count by their order alone, so that outliers, failures and the metric's scale do no harm.

    Hyperparameters are kept between calls and chosen anew when the results have grown by 15%, on at most 256 of them;
    the process is conditioned on at most 1,000, the best half and an even part of the others by rank.

    Args:
        exploring: Expect larger linear effects of scores and parameters from the start. Few results then change the
            ranking more, often for the worse; but where it is wrong is found out sooner. For choosing what to train
            next, not for ranking.
        correlation: What takes the place of 0.85 above: how far the aggregation is trusted, above 0 and at most 1.

    Example:
        >>> scores = [[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]
        >>> LearnedAggregation().predict(scores, [np.nan] * 3).mean.round(2)
        array([-0.82,  0.37,  0.37])
    """

    def __init__(self, *, exploring: bool = False, correlation: float = PRIOR_CORRELATION) -> None:
        if not 0.0 < correlation <= 1.0:
            raise ValueError(f"correlation must be above 0 and at most 1; got {correlation!r}.")
        self._exploring = exploring
        self._correlation = correlation
        self._process: Process | None = None
        self._shape = (0, 0, 0)
        self._fitted_at = 0

    def predict(
        self,
        scores: npt.ArrayLike,
        results: npt.ArrayLike,
        parameters: Parameters | None = None,
        training: npt.ArrayLike | None = None,
        *,
        prior: npt.ArrayLike | None = None,
        at: npt.ArrayLike | None = None,
    ) -> Prediction:
        """Predict the results of networks of a table.

        Args:
            scores: Table of shape (n, m): n networks, m proxies, bigger is better. NaN counts as ``-inf``.
            results: Results of the networks, shape (n,), bigger is better; NaN for what was not trained.
            parameters: The architectures as numbers.
            training: How each network was trained, shape (n, h): its hyperparameters as numbers. What is predicted is
                the result of training as the best one was.
            prior: What takes the place of S, shape (n,).
            at: Positions of the networks that are asked for; by default all n.

        Raises:
            ValueError: Shapes do not fit each other.
        """
        table, known = as_table(scores), np.asarray(results, dtype=np.float64)
        _check_length("results", known, len(table), 1)
        if len(table) == 0:
            return Prediction(np.zeros(0), np.zeros(0), -np.inf)
        ranks = rankdata(table, axis=0)
        s = _s(ranks) if prior is None else np.asarray(prior, dtype=np.float64)
        _check_length("prior", s, len(table), 1)
        mean = self._correlation * normal_scores(s)
        wanted = np.arange(len(table)) if at is None else np.asarray(at, dtype=np.intp)
        rows = np.flatnonzero(~np.isnan(known))
        if not _tell_anything(known[rows]):
            spread = float(np.sqrt(1 - self._correlation**2))
            return Prediction(mean[wanted], np.full(len(wanted), spread), -np.inf)
        process, x = self._condition(ranks, mean, known, rows, parameters, training)
        residual, std = process.predict(x[wanted])
        best = rows[_choose(known[rows], _BEST_OF)]
        return Prediction(mean[wanted] + residual, std, float(np.max(mean[best] + process.predict(x[best])[0])))

    def sample(
        self,
        scores: npt.ArrayLike,
        results: npt.ArrayLike,
        others: npt.ArrayLike,
        n: int,
        training: npt.ArrayLike | None = None,
        rng: np.random.Generator | None = None,
    ) -> _Floats:
        """Draw from what the results of further networks may be, by their scores.

        Args:
            scores: As in :meth:`predict`.
            results: As in :meth:`predict`.
            others: Scores of the further networks, shape (k, m). They are ranked among those of the table.
            n: Number of draws.
            training: As in :meth:`predict`.
            rng: Source of the random numbers.

        Returns:
            Normal scores, shape (n, k). One draw's values belong to one function.

        Raises:
            ValueError: Fewer than 5 results are known, or all of them are equal.
        """
        table, known, further = as_table(scores), np.asarray(results, dtype=np.float64), as_table(others)
        rows = np.flatnonzero(~np.isnan(known))
        if not _tell_anything(known[rows]):
            raise ValueError(f"results must hold at least {MIN_RESULTS} that are not all equal; got {len(rows)}.")
        ranks = rankdata(table, axis=0)
        s = np.sort(_s(ranks))
        ranks_of_further = _ranks_among(further, table)
        prior = self._correlation * normal_scores(_s(ranks))
        process, x = self._condition(ranks, prior, known, rows, None, training, ranks_of_further)
        places = _ranks_among(_s(ranks_of_further, len(table))[:, np.newaxis], s[:, np.newaxis])[:, 0]
        own = self._correlation * ndtri((places - 0.5) / len(table))
        return own + process.sample(x[len(table) :], n, np.random.default_rng() if rng is None else rng)

    def _condition(
        self,
        ranks: _Floats,
        prior: _Floats,
        results: _Floats,
        rows: npt.NDArray[np.intp],
        parameters: Parameters | None,
        training: npt.ArrayLike | None,
        further: _Floats | None = None,
    ) -> tuple[Process, _Floats]:
        """Return the process, conditioned, and the networks' columns, those of ``further`` ranks last."""
        from optuna_aznas.aggregation.gaussian_process import Process

        y = _calibrated(results[rows], prior[rows] / self._correlation, self._correlation)
        residual = y - prior[rows]
        x, shape = _columns(ranks, parameters, training, rows, further)
        if self._process is None or shape != self._shape:
            self._process, self._shape, self._fitted_at = Process(*shape, exploring=self._exploring), shape, 0
        if len(y) >= _GROWTH * self._fitted_at or len(y) < self._fitted_at:
            few = _choose(y, _FIT_POINTS)
            self._process.fit(x[rows[few]], residual[few])
            self._fitted_at = len(y)
        chosen = _choose(y, _POINTS)
        self._process.condition(x[rows[chosen]], residual[chosen])
        if shape[2]:  # all as the best was trained
            x[:, -shape[2] :] = x[rows[np.argmax(y)], -shape[2] :]
        return self._process, x


def normal_scores(values: _Floats) -> _Floats:
    """Return the standard normal quantiles of (rank - 1/2) / n; ties share their average rank."""
    return ndtri((rankdata(values) - 0.5) / len(values))


def complete_scores(scores: npt.ArrayLike, known: npt.NDArray[np.bool_], parameters: Parameters) -> _Floats:
    """Estimate the scores of networks that have none from those of others, by their parameters.

    Each proxy's normal scores are interpolated by a Gaussian process over the parameters, and read back as scores.

    Args:
        scores: Table of shape (n, m); rows that are not known are ignored.
        known: Which rows are known, shape (n,).
        parameters: The architectures as numbers, of n rows.

    Returns:
        The table with the other rows filled in.
    """
    table = as_table(scores)
    if known.all() or not known.any():
        return table
    from optuna_aznas.aggregation.gaussian_process import interpolate

    x = np.hstack([_scaled(parameters.single, _SPREAD_PARAMETERS), _scaled(parameters.pooled, _SPREAD_POOLED)])
    rows = np.flatnonzero(known)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _KNOWN_POINTS)).astype(int)]
    y = np.stack([normal_scores(column) for column in table[rows].T], axis=1)
    estimate = ndtr(interpolate(x[rows], y, x[~known], _KNOWN_LENGTH, _KNOWN_NOISE))
    for column, in_order, share in zip(table.T, np.sort(table[rows], axis=0).T, estimate.T, strict=True):
        column[~known] = in_order[np.clip((share * len(rows)).astype(int), 0, len(rows) - 1)]
    return table


def _tell_anything(results: _Floats) -> bool:
    return len(results) >= MIN_RESULTS and bool(np.any(results != results[0]))


def _s(ranks: _Floats, n: int | None = None) -> _Floats:
    """Return S, rounded, so that networks whose S is the same but for rounding tie."""
    return np.round(sum_log_ranks(ranks, len(ranks) if n is None else n), 12)


def _ranks_among(values: _Floats, table: _Floats) -> _Floats:
    """Return the ranks, 1 to n, that values (k, m) have among those of a table (n, m): the mean of what they tie with,
    else that of the next lower one.
    """
    ranks = np.empty(values.shape)
    for k, in_order in enumerate(np.sort(table, axis=0).T):
        low, high = (np.searchsorted(in_order, values[:, k], side=side) for side in ("left", "right"))
        ranks[:, k] = np.where(high > low, 0.5 * (low + high + 1), np.maximum(low, 1))
    return ranks


def _calibrated(results: _Floats, z: _Floats, correlation: float) -> _Floats:
    """Return normal scores of results, moved and scaled to where those of all networks are to be expected.

    Networks are mostly trained because they rank high. With z their S as normal scores among all networks, results
    among all networks have the mean rho mean(z) and the variance rho^2 var(z) + 1 - rho^2, rho being the correlation.
    """
    spread = np.sqrt(correlation**2 * (np.var(z) - 1.0) + 1.0)
    return correlation * float(np.mean(z)) + spread * normal_scores(results)


def _columns(
    ranks: _Floats,
    parameters: Parameters | None,
    training: npt.ArrayLike | None,
    trained: npt.NDArray[np.intp],
    further: _Floats | None = None,
) -> tuple[_Floats, tuple[int, int, int]]:
    """Return all networks as rows of numbers, and the widths of the blocks: scores, parameters, training.

    ``further`` are ranks of networks beyond those n, with nothing else known of them: rows that are added at the end.
    """
    n = len(ranks)
    share = (ranks if further is None else np.vstack([ranks, further])) / n
    blocks = [_scaled(np.hstack([np.sqrt(12.0) * share, np.log(share)]), _SPREAD_SCORES, np.arange(n))]
    widths = [blocks[0].shape[1], 0, 0]
    if parameters is not None:
        for name, block, spread in (
            ("parameters.single", parameters.single, _SPREAD_PARAMETERS),
            ("parameters.pooled", parameters.pooled, _SPREAD_POOLED),
        ):
            _check_length(name, block, n, 2)
            blocks.append(_scaled(block, spread))
            widths[1] += block.shape[1]
    if training is not None:
        block = np.array(training, dtype=np.float64)
        _check_length("training", block, n, 2)
        scaled = _scaled(block, _SPREAD_TRAINING, trained)
        blocks.append(scaled if further is None else np.vstack([scaled, np.zeros((len(further), block.shape[1]))]))
        widths[2] = block.shape[1]
    return np.hstack(blocks), (widths[0], widths[1], widths[2])


def _scaled(block: _Floats, spread: float, rows: npt.NDArray[np.intp] | None = None) -> _Floats:
    """Return columns of mean 0, scaled so that two rows lie ``spread`` apart in the mean square."""
    reference = block if rows is None else block[rows]
    variance = float(np.var(reference, axis=0).sum())
    return (block - reference.mean(axis=0)) * (np.sqrt(spread / (2 * variance)) if variance > 0.0 else 0.0)


def _choose(y: _Floats, limit: int) -> npt.NDArray[np.intp]:
    """Return positions of at most ``limit`` results: the best half, and an even part of the others by rank."""
    if len(y) <= limit:
        return np.arange(len(y))
    order = np.argsort(-y, kind="stable")
    half = limit // 2
    others = np.linspace(half, len(y) - 1, limit - half).astype(int)
    return np.sort(np.concatenate([order[:half], order[others]]))


def _check_length(name: str, values: npt.NDArray[np.float64], n: int, ndim: int) -> None:
    if values.ndim != ndim or len(values) != n:
        raise ValueError(f"{name} must have {ndim} dimensions and a row for each of {n} networks; got {values.shape}.")
