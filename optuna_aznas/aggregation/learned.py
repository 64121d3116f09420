"""LearnedAggregation: a ranking that starts as S and is corrected by trained values, by a Gaussian process.

Notation: n networks, m proxies; S their rank scores, z the normal scores of S; y the normal scores of trained values;
rho the prior mean of the slope of y on z; f the Gaussian process on the residual y - rho z.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import rankdata

from optuna_aznas.aggregation.columns import (
    by_group,
    centred,
    check_length,
    normal_scores,
    rank_scores,
    ranks_among,
    standardised,
)
from optuna_aznas.aggregation.gaussian_process import Group, Process, Term
from optuna_aznas.aggregation.networks import Hyperparameters, Networks, Parameters, as_hyperparameters
from optuna_aznas.aggregation.posterior import Posterior, Prediction
from optuna_aznas.aggregation.table import as_table

_Floats = npt.NDArray[np.float64]

MIN_TRAINED = 5  # trained values below which nothing is learned: the ranking is that of S
PRIOR_CORRELATION = 0.85  # rho by default

# Log-normal priors: mean and standard deviation of the logarithm. The trained values have variance 1, and each group of
# columns has variance 1. Where the mean is low, the evidence of the trained values has to outweigh it.
_CONSTANT = (-1.0, 1.5)  # variance of the constant term
_SLOPE = (-4.0, 2.0)  # variance of the slope on z: rho is seldom wrong, but then may be by far
_SLOPE_EXPLORING = (-1.4, 1.0)  # the same, if exploring
_LINEAR_RANKS = (-4.0, 1.0)  # variance of the linear term in proxy ranks
_LINEAR_RANKS_EXPLORING = (0.0, 1.0)  # the same, if exploring
_LINEAR_PARAMETERS = (-4.5, 1.0)  # variance of the linear term in the architecture's parameters
_LINEAR_PARAMETERS_EXPLORING = (-0.5, 1.0)  # the same, if exploring
_LINEAR_GRAPH = (-4.5, 1.0)  # variance of the linear term in features of the graph, also if exploring
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


class LearnedAggregation:
    """Ranks networks by S, corrected by trained values: the more of them there are, the further.

    A Gaussian process models the residual of the non-linear aggregation. With z(i) the normal score of S(i) among all n
    networks (:func:`~optuna_aznas.aggregate`) and y(i) that of a trained network's value among the trained ones,

        y(i) = rho z(i) + f(i) + noise,    f ~ GP(0, k),

        k = constant + slope on z + linear in ranks + linear in parameters + linear in the graph + Matern in ranks
            + Matern in ranks, parameters and the graph + Matern in hyperparameters
            + Matern in ranks, parameters, the graph and hyperparameters.

    Parameters, hyperparameters and features of the graph (``ProxyScores.graph``) are used where they are given. So
    rho z is the prior mean, and the slope on z, which has a variance of its own, is how far S is trusted: where the
    trained values contradict S, its posterior mean goes to 0 and below. Proxy ranks, each kind of parameter, the
    features of the graph and each hyperparameter have length scales of their own. With fewer than 5 trained values f is
    0, and the ranking is that of S.
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
        graph: npt.ArrayLike | None = None,
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
            graph: Features of the networks' own graphs, shape (n, g). A row with NaN counts as the mean of the others.
            at: Positions of the networks to predict; by default all n.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        posterior = self.condition(Networks(proxy_scores, trained_values, parameters, hyperparameters, prior, graph))
        wanted = np.arange(len(posterior.prior_mean)) if at is None else np.asarray(at, dtype=np.intp)
        return Prediction(*posterior.predict(wanted), posterior.best)

    def condition(self, networks: Networks) -> Posterior:
        """Return the posterior of networks' trained values.

        Raises:
            ValueError: The shapes do not fit each other.
        """
        table = as_table(networks.proxy_scores)
        ranks = rankdata(table, axis=0)
        s = rank_scores(ranks) if networks.prior is None else np.asarray(networks.prior, dtype=np.float64)
        check_length("prior", s, len(table), 1)
        return self._condition(networks, ranks, normal_scores(s), len(table))

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
        s = rank_scores(ranks)
        further_ranks = ranks_among(further, table)
        further_s = rank_scores(further_ranks, len(table))
        places = ranks_among(further_s[:, np.newaxis], np.sort(s)[:, np.newaxis])[:, 0]
        z = np.concatenate([normal_scores(s), ndtri((places - 0.5) / len(table))])
        networks = Networks(table, values, hyperparameters=hyperparameters)
        posterior = self._condition(networks, np.vstack([ranks, further_ranks]), z, len(table))
        assert posterior.process is not None
        how = np.broadcast_to(posterior.hyperparameters, (len(further), posterior.hyperparameters.size))
        x = np.hstack([posterior.columns[len(table) :], how])
        draws = posterior.process.sample(x, n, np.random.default_rng() if rng is None else rng)
        return posterior.prior_mean[len(table) :] + draws

    def _condition(self, networks: Networks, ranks: _Floats, z: _Floats, n: int) -> Posterior:
        """Return the posterior of networks by their ranks among the first ``n`` of them and their z."""
        values = np.asarray(networks.trained_values, dtype=np.float64)
        check_length("trained_values", values, n, 1)
        prior_mean, prior_std = self._rho * z, float(np.sqrt(1.0 - self._rho**2))
        columns, groups, terms = _architecture_terms(z, ranks, n, networks, self._exploring)
        trained = np.flatnonzero(~np.isnan(values))
        how = as_hyperparameters(networks.hyperparameters, n, trained)
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
    z: _Floats, ranks: _Floats, n: int, networks: Networks, exploring: bool
) -> tuple[_Floats, list[Group], list[Term]]:
    """Return networks as rows of numbers, and the groups and terms of the kernel that depend on the architecture."""
    relative = ranks / n
    # Relative ranks are uniform, with variance 1 / 12; their logarithms have variance 1. Both get the same weight.
    blocks = [z[:, np.newaxis], centred(np.hstack([np.sqrt(12.0) * relative, np.log(relative)]), np.arange(n))]
    parameters = networks.parameters
    if parameters is not None:
        for name, block, labels in (
            ("single", parameters.single, parameters.single_kinds),
            ("pooled", parameters.pooled, parameters.pooled_kinds),
        ):
            check_length(f"parameters.{name}", block, n, 2)
            for columns in by_group(labels, block.shape[1], f"parameters.{name}_kinds"):
                blocks.append(centred(block[:, columns]))
    n_inputs = len(blocks)  # without features of the graph
    if networks.graph is not None:
        features = np.asarray(networks.graph, dtype=np.float64)
        check_length("graph", features, n, 2)
        features = standardised(features)
        if features.shape[1]:
            blocks.append(features)
    length = (0.5 * np.log(len(blocks) - 1), _LENGTH_DEVIATION)
    ends = np.cumsum([block.shape[1] for block in blocks]).tolist()
    groups = [Group(tuple(range(begin, end)), length) for begin, end in itertools.pairwise([0, *ends])]
    inputs = tuple(range(1, len(blocks)))
    terms = [
        Term("constant", (), _CONSTANT),
        Term("linear", (0,), _SLOPE_EXPLORING if exploring else _SLOPE),
        Term("linear", (1,), _LINEAR_RANKS_EXPLORING if exploring else _LINEAR_RANKS),
        Term("matern", inputs, _ARCHITECTURE),
    ]
    if len(inputs) > 1:
        terms.append(Term("matern", (1,), _RANKS))
    if n_inputs > 2:
        of_parameters = inputs[1 : n_inputs - 1]
        terms.append(Term("linear", of_parameters, _LINEAR_PARAMETERS_EXPLORING if exploring else _LINEAR_PARAMETERS))
    if len(blocks) > n_inputs:
        terms.append(Term("linear", (n_inputs,), _LINEAR_GRAPH))
    return np.hstack(blocks), groups, terms


def _with_hyperparameters(
    groups: list[Group], terms: list[Term], start: int, names: tuple[int, ...]
) -> tuple[list[Group], list[Term]]:
    """Return groups and terms with those that depend on hyperparameters, whose columns begin at ``start``."""
    parts = by_group(names, len(names), "hyperparameters.names")
    architecture = tuple(range(1, len(groups)))
    own = tuple(range(len(groups), len(groups) + len(parts)))
    length = (0.5 * np.log(len(architecture) + len(own)), _LENGTH_DEVIATION_HYPERPARAMETERS)
    added = [Group(tuple(start + column for column in part), length) for part in parts]
    return groups + added, [
        *terms,
        Term("matern", own, _HYPERPARAMETERS),
        Term("matern", (*architecture, *own), _JOINT),
    ]


def _is_informative(trained_values: _Floats) -> bool:
    """Whether there are enough trained values to learn from, and not all of them are equal."""
    return len(trained_values) >= MIN_TRAINED and bool(np.any(trained_values != trained_values[0]))


def _choose(y: _Floats, limit: int) -> npt.NDArray[np.intp]:
    """Return positions of at most ``limit`` values: the highest, as one half, and the others evenly by rank."""
    if len(y) <= limit:
        return np.arange(len(y))
    order = np.argsort(-y, kind="stable")
    half = limit // 2
    others = np.linspace(half, len(y) - 1, limit - half).astype(int)
    return np.sort(np.concatenate([order[:half], order[others]]))
