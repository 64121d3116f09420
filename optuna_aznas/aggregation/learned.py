"""LearnedAggregation: a ranking that starts as S and is corrected by trained values, by a Gaussian process.

Notation: n networks, m proxies; S their rank scores, z the normal scores of S; y the normal scores of trained values;
rho the prior mean of the slope of y on z; f the Gaussian process on the residual y - rho z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from optuna_aznas.aggregation.gaussian_process import Group, Process, Term, interpolate
from optuna_aznas.aggregation.rank import sum_log_ranks
from optuna_aznas.aggregation.table import as_table

_Floats = npt.NDArray[np.float64]

MIN_TRAINED = 5  # trained values below which nothing is learned: the ranking is that of S
PRIOR_CORRELATION = 0.85  # rho by default

# Log-normal priors: mean and standard deviation of the logarithm. The trained values have variance 1, and each group of
# columns has variance 1. Where the mean is low, the evidence of the trained values has to outweigh it.
_CONSTANT = (-1.0, 1.5)  # variance of the constant term
_SLOPE = (-4.0, 1.0)  # variance of the slope on z: by how much rho may be wrong
_SLOPE_EXPLORING = (-1.4, 1.0)  # the same, if exploring
_LINEAR_RANKS = (-4.0, 1.0)  # variance of the linear term in proxy ranks
_LINEAR_RANKS_EXPLORING = (0.0, 1.0)  # the same, if exploring
_LINEAR_PARAMETERS = (-4.5, 1.0)  # variance of the linear term in the architecture's parameters
_LINEAR_PARAMETERS_EXPLORING = (-0.5, 1.0)  # the same, if exploring
_RANKS = (-5.0, 1.0)  # variance of the Matern term in proxy ranks
_ARCHITECTURE = (-3.0, 1.0)  # variance of the Matern term in proxy ranks and parameters
_HYPERPARAMETERS = (-1.0, 1.5)  # variance of the Matern term in hyperparameters
_JOINT = (-2.0, 1.5)  # variance of the Matern term in parameters and hyperparameters together
_NOISE = (-4.0, 1.5)  # variance of the noise
_LENGTH_DEVIATION = 0.7  # of the logarithm of a length scale of the architecture
_LENGTH_DEVIATION_HYPERPARAMETERS = 1.0  # of the logarithm of a length scale of a hyperparameter

_MAX_FIT = 256  # most trained values on which the kernel's hyperparameters are chosen
_MAX_CONDITION = 512  # most trained values on which the process is conditioned
_MAX_BEST = 64  # trained networks, half of them those with the highest values, among which the best is looked for
_GROWTH = 1.15  # the kernel's hyperparameters are chosen anew when the trained values have grown by this factor

# Estimating the proxy scores of networks that have none:
_MAX_SCORED = 500  # most networks from which they are estimated
_ESTIMATE_LENGTH = 3.0  # length scale
_ESTIMATE_NOISE = 0.02  # variance of the noise
_SPREAD_SINGLE = 2.4  # variance of the parameters one by one
_SPREAD_POOLED = 2.15  # variance of the parameters pooled


class Parameters(NamedTuple):
    """Architectures as numbers.

    Attributes:
        single: A group of columns for each parameter, shape (n, p).
        pooled: Sums over parameters of one kind, shape (n, q): how often each choice occurs, for example.
        single_kinds: A label for each column of ``single``: parameters of one kind, such as the widths of several
            layers, have the same and share a length scale. Without labels, all are of one kind.
        pooled_kinds: The same for ``pooled``.
    """

    single: _Floats
    pooled: _Floats
    single_kinds: tuple[int, ...] = ()
    pooled_kinds: tuple[int, ...] = ()


class Hyperparameters(NamedTuple):
    """Hyperparameters as numbers.

    Attributes:
        values: One or more columns for each hyperparameter, shape (n, h), scaled so that a hyperparameter that is drawn
            uniformly has a variance of about 1 over its columns.
        names: A label for each column: columns of one hyperparameter have the same and share a length scale.
    """

    values: _Floats
    names: tuple[int, ...]


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


class LearnedAggregation:
    """Ranks networks by S, corrected by trained values: the more of them there are, the further.

    A Gaussian process models the residual of the non-linear aggregation. With z(i) the normal score of S(i) among all n
    networks (:func:`~optuna_aznas.aggregate`) and y(i) that of a trained network's value among the trained ones,

        y(i) = rho z(i) + f(i) + noise,    f ~ GP(0, k),

        k = constant + slope on z + linear in ranks + linear in parameters + Matern in ranks
            + Matern in ranks and parameters + Matern in hyperparameters + Matern in parameters and hyperparameters.

    So rho z is the prior mean, and the slope on z, which has a variance of its own, is how far S is trusted: where the
    trained values contradict S, its posterior mean goes to 0 and below. Every proxy, every kind of parameter and every
    hyperparameter has a length scale of its own. With fewer than 5 trained values f is 0, and the ranking is that of S.
    The kernel's hyperparameters maximise the marginal likelihood times priors that favour a small f, so that the
    ranking departs from the prior mean only where the trained values are evidence for it.

    Trained values count by their order alone, so that outliers, failures and the metric's scale have no effect.

    The kernel's hyperparameters are kept between calls and chosen anew when the trained values have grown by 15%, on at
    most 256 of them. The process is conditioned on at most 512: the best half, and the others evenly by rank.

    Args:
        exploring: Expect larger linear effects of proxy scores and parameters from the start. Few trained values then
            change the ranking more, often for the worse, but errors of S are found sooner. Meant for choosing what to
            train next, not for ranking.
        prior_correlation: Prior mean rho of the slope of trained values on S, above 0 and at most 1.

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
        self._fitted_at = 0  # trained values when the kernel's hyperparameters were chosen

    def predict(
        self,
        proxy_scores: npt.ArrayLike,
        trained_values: npt.ArrayLike,
        parameters: Parameters | None = None,
        hyperparameters: npt.ArrayLike | Hyperparameters | None = None,
        *,
        prior: npt.ArrayLike | None = None,
        at: npt.ArrayLike | None = None,
    ) -> Prediction:
        """Predict the trained values of networks of a table, trained as the best one was.

        Args:
            proxy_scores: Table of shape (n, m): n networks, m proxies, bigger is better. NaN counts as ``-inf``.
            trained_values: Trained values of the networks, shape (n,), bigger is better; NaN for what was not trained.
            parameters: The architectures as numbers, of n rows.
            hyperparameters: Hyperparameters of each network as numbers, of n rows; those of networks that were not
                trained are ignored. Each column of an array is a hyperparameter. The prediction is for the
                hyperparameters of the network with the highest trained value.
            prior: Replaces S, shape (n,).
            at: Positions of the networks to predict; by default all n.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        posterior = self.condition(proxy_scores, trained_values, parameters, hyperparameters, prior=prior)
        wanted = np.arange(len(posterior.prior_mean)) if at is None else np.asarray(at, dtype=np.intp)
        return Prediction(*posterior.predict(wanted), posterior.best)

    def condition(
        self,
        proxy_scores: npt.ArrayLike,
        trained_values: npt.ArrayLike,
        parameters: Parameters | None = None,
        hyperparameters: npt.ArrayLike | Hyperparameters | None = None,
        *,
        prior: npt.ArrayLike | None = None,
    ) -> Posterior:
        """Return the posterior of networks' trained values; the arguments are those of :meth:`predict`."""
        table, values = as_table(proxy_scores), np.asarray(trained_values, dtype=np.float64)
        _check_length("trained_values", values, len(table), 1)
        ranks = rankdata(table, axis=0)
        s = _rank_scores(ranks) if prior is None else np.asarray(prior, dtype=np.float64)
        _check_length("prior", s, len(table), 1)
        return self._condition(ranks, normal_scores(s), values, parameters, hyperparameters, len(table))

    def sample(
        self,
        proxy_scores: npt.ArrayLike,
        trained_values: npt.ArrayLike,
        others: npt.ArrayLike,
        n: int,
        hyperparameters: npt.ArrayLike | Hyperparameters | None = None,
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
        trained = values[~np.isnan(values)]
        if not _is_informative(trained):
            raise ValueError(
                f"trained_values must hold at least {MIN_TRAINED} that are not all equal; got {len(trained)}."
            )
        ranks = rankdata(table, axis=0)
        s = _rank_scores(ranks)
        further_ranks = _ranks_among(further, table)
        further_s = _rank_scores(further_ranks, len(table))
        places = _ranks_among(further_s[:, np.newaxis], np.sort(s)[:, np.newaxis])[:, 0]
        z = np.concatenate([normal_scores(s), ndtri((places - 0.5) / len(table))])
        posterior = self._condition(np.vstack([ranks, further_ranks]), z, values, None, hyperparameters, len(table))
        assert posterior.process is not None
        how = np.broadcast_to(posterior.hyperparameters, (len(further), posterior.hyperparameters.size))
        x = np.hstack([posterior.columns[len(table) :], how])
        draws = posterior.process.sample(x, n, np.random.default_rng() if rng is None else rng)
        return posterior.prior_mean[len(table) :] + draws

    def _condition(
        self,
        ranks: _Floats,
        z: _Floats,
        values: _Floats,
        parameters: Parameters | None,
        hyperparameters: npt.ArrayLike | Hyperparameters | None,
        n: int,
    ) -> Posterior:
        """Return the posterior of networks by their ranks among the first ``n`` of them and their z."""
        prior_mean, prior_std = self._rho * z, float(np.sqrt(1.0 - self._rho**2))
        columns, groups, terms = _architecture_terms(z, ranks, n, parameters, self._exploring)
        trained = np.flatnonzero(~np.isnan(values))
        how = _as_hyperparameters(hyperparameters, n, trained)
        if how is not None:
            groups, terms = _with_hyperparameters(groups, terms, columns.shape[1], how.names)
        none = np.zeros(0)
        if not _is_informative(values[trained]):
            return Posterior(None, prior_mean, prior_std, columns, none, -np.inf)
        y = normal_scores(values[trained])
        x = columns[trained] if how is None else np.hstack([columns[trained], how.values[trained]])
        residual = y - prior_mean[trained]
        process = self._fitted(groups, terms, x, residual, y)
        chosen = _choose(y, _MAX_CONDITION)
        process.condition(x[chosen], residual[chosen])
        top = _choose(y, _MAX_BEST)
        best = float(np.max(prior_mean[trained[top]] + process.predict_mean(x[top])))
        return Posterior(
            process, prior_mean, prior_std, columns, none if how is None else how.values[trained[np.argmax(y)]], best
        )

    def _fitted(self, groups: list[Group], terms: list[Term], x: _Floats, residual: _Floats, y: _Floats) -> Process:
        """Return the process with its kernel's hyperparameters, chosen anew where the trained values have grown."""
        process = self._process
        if process is None or (process.groups, process.terms) != (tuple(groups), tuple(terms)):
            process, self._fitted_at = Process(groups, terms, _NOISE), 0
        if len(y) >= _GROWTH * self._fitted_at or len(y) < self._fitted_at:
            few = _choose(y, _MAX_FIT)
            process.fit(x[few], residual[few])
            self._fitted_at = len(y)
        self._process = process
        return process


def _architecture_terms(
    z: _Floats, ranks: _Floats, n: int, parameters: Parameters | None, exploring: bool
) -> tuple[_Floats, list[Group], list[Term]]:
    """Return networks as rows of numbers, and the groups and terms of the kernel that depend on the architecture."""
    relative = ranks / n
    # Relative ranks are uniform, with variance 1 / 12; their logarithms have variance 1. Both get the same weight.
    blocks = [z[:, np.newaxis], _centred(np.hstack([np.sqrt(12.0) * relative, np.log(relative)]), np.arange(n))]
    parts: list[list[int]] = [[0], list(range(1, 1 + blocks[1].shape[1]))]
    if parameters is not None:
        for name, block, labels in (
            ("single", parameters.single, parameters.single_kinds),
            ("pooled", parameters.pooled, parameters.pooled_kinds),
        ):
            _check_length(f"parameters.{name}", block, n, 2)
            for columns in _by_group(labels, block.shape[1], f"parameters.{name}_kinds"):
                start = sum(part.shape[1] for part in blocks)
                parts.append(list(range(start, start + len(columns))))
                blocks.append(_centred(block[:, columns]))
    length = (0.5 * np.log(len(parts) - 1), _LENGTH_DEVIATION)
    groups = [Group(tuple(part), length) for part in parts]
    inputs = tuple(range(1, len(parts)))
    terms = [
        Term("constant", (), _CONSTANT),
        Term("linear", (0,), _SLOPE_EXPLORING if exploring else _SLOPE),
        Term("linear", (1,), _LINEAR_RANKS_EXPLORING if exploring else _LINEAR_RANKS),
        Term("matern", inputs, _ARCHITECTURE),
    ]
    if len(inputs) > 1:
        terms.append(Term("matern", (1,), _RANKS))
        terms.append(Term("linear", inputs[1:], _LINEAR_PARAMETERS_EXPLORING if exploring else _LINEAR_PARAMETERS))
    return np.hstack(blocks), groups, terms


def _with_hyperparameters(
    groups: list[Group], terms: list[Term], start: int, names: tuple[int, ...]
) -> tuple[list[Group], list[Term]]:
    """Return groups and terms with those that depend on hyperparameters, whose columns begin at ``start``."""
    parts = _by_group(names, len(names), "hyperparameters.names")
    architecture = tuple(range(1, len(groups)))
    own = tuple(range(len(groups), len(groups) + len(parts)))
    length = (0.5 * np.log(len(architecture) + len(own)), _LENGTH_DEVIATION_HYPERPARAMETERS)
    added = [Group(tuple(start + column for column in part), length) for part in parts]
    return groups + added, [
        *terms,
        Term("matern", own, _HYPERPARAMETERS),
        Term("matern", (*architecture, *own), _JOINT),
    ]


def _as_hyperparameters(
    hyperparameters: npt.ArrayLike | Hyperparameters | None, n: int, trained: npt.NDArray[np.intp]
) -> Hyperparameters | None:
    """Return hyperparameters with one length scale for each column of an array, scaled by the trained networks'."""
    if isinstance(hyperparameters, Hyperparameters):
        return hyperparameters if hyperparameters.names else None
    if hyperparameters is None:
        return None
    block = np.array(hyperparameters, dtype=np.float64)
    _check_length("hyperparameters", block, n, 2)
    rows = trained if len(trained) else np.arange(n)
    scaled = np.hstack([_centred(block[:, [k]], rows) for k in range(block.shape[1])])
    return Hyperparameters(scaled, tuple(range(block.shape[1])))


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
    x = np.hstack(
        [
            np.sqrt(_SPREAD_SINGLE) * _centred(parameters.single),
            np.sqrt(_SPREAD_POOLED) * _centred(parameters.pooled),
        ]
    )
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


def _centred(block: _Floats, rows: npt.NDArray[np.intp] | None = None) -> _Floats:
    """Return columns of mean 0, scaled to a total variance of 1, both among ``rows`` (by default among all rows)."""
    reference = block if rows is None else block[rows]
    if not len(reference):
        return block
    variance = float(np.var(reference, axis=0).sum())
    return (block - reference.mean(axis=0)) * (1.0 / np.sqrt(variance) if variance > 0.0 else 0.0)


def _by_group(labels: Sequence[int], n_columns: int, name: str) -> list[list[int]]:
    """Return the columns of each group; without labels all are one group."""
    if not labels:
        return [list(range(n_columns))] if n_columns else []
    if len(labels) != n_columns:
        raise ValueError(f"{name} must have a label for each of {n_columns} columns; got {len(labels)}.")
    groups: dict[int, list[int]] = {}
    for column, label in enumerate(labels):
        groups.setdefault(label, []).append(column)
    return list(groups.values())


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
