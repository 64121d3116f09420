"""What the learned ranking is given: networks with proxy scores, trained values, parameters and hyperparameters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_aznas.aggregation.columns import centred, check_length

_Floats = npt.NDArray[np.float64]


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


class Networks(NamedTuple):
    """The networks of a table, trained or not.

    Attributes:
        proxy_scores: As in :meth:`LearnedAggregation.predict() <optuna_aznas.aggregation.LearnedAggregation.predict>`,
            and so are the others.
        trained_values: NaN for what was not trained.
        parameters: The architectures as numbers.
        hyperparameters: Those of each network as numbers.
        prior: Replaces S.
        graph: Features of the networks' graphs, shape (n, g); NaN in the rows of networks whose graph is not known.
    """

    proxy_scores: npt.ArrayLike
    trained_values: npt.ArrayLike
    parameters: Parameters | None = None
    hyperparameters: npt.ArrayLike | Hyperparameters | None = None
    prior: npt.ArrayLike | None = None
    graph: npt.ArrayLike | None = None


def as_hyperparameters(
    hyperparameters: npt.ArrayLike | Hyperparameters | None, n: int, trained: npt.NDArray[np.intp]
) -> Hyperparameters | None:
    """Return hyperparameters with one length scale for each column of an array, scaled by the trained networks'."""
    if isinstance(hyperparameters, Hyperparameters):
        return hyperparameters if hyperparameters.names else None
    if hyperparameters is None:
        return None
    block = np.array(hyperparameters, dtype=np.float64)
    check_length("hyperparameters", block, n, 2)
    rows = trained if len(trained) else np.arange(n)
    scaled = np.hstack([centred(block[:, [k]], rows) for k in range(block.shape[1])])
    return Hyperparameters(scaled, tuple(range(block.shape[1])))
