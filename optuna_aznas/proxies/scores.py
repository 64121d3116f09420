"""The proxy scores of a model, and of each of its blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optuna_aznas._text import html_table, plain_number
from optuna_aznas.proxies.settings import fingerprint as fingerprint_of


@dataclasses.dataclass(frozen=True)
class BlockScores:
    """Proxy scores of one block, measured at its output.

    Attributes:
        name: The block's name in the model; the first entry is the stem.
        shape: Shape of the block's output f_l for one sample, without the batch dimension.
        entropy: Entropy e_l of the normalised eigenvalues of the output's channel covariance, in nats, between 0 and
            log(channels); NaN where the output is constant or not finite.
        step: ``e_l - e_{l-1}``, against the feature that the block started from, in nats; NaN for a stem.
        spectral_norm: sigma, the largest singular value of the block's mean Jacobian. NaN for the stem; unless
            trainability is named, also in blocks with fewer than two positions for each channel and in transformers
            whose features all have one width.
        trainability: ``t_l = 2 - sigma - 1 / (sigma + 1e-6)``, at most 0; NaN where sigma is, ``-inf`` for an identity
            in a CNN and where the gradients are not finite.
        complexity: Multiply-accumulates of one sample since the feature before.
        isometry: Minus the mean of ``|log max(sigma_i, 0.001)|`` over all singular values of the mean Jacobian, at most
            0. NaN for the stem, and where the batch has fewer than two positions for each channel; ``-inf`` for an
            identity in a CNN.
        jacobian_rank: Entropy of the normalised singular values over the logarithm of their number, from 0 to 1; NaN
            like ``isometry``.
        channels: Channels of the block's output, which are the first or the last entry of ``shape``.
        singular_values: Number k of singular values of the mean Jacobian; 0 for the stem.

    A quantity that no named proxy needs is NaN, or 0 for complexity.
    """

    name: str
    shape: tuple[int, ...]
    entropy: float
    step: float
    spectral_norm: float
    trainability: float
    complexity: float
    isometry: float
    jacobian_rank: float
    channels: int = dataclasses.field(kw_only=True)
    singular_values: int = dataclasses.field(kw_only=True, default=0)


class ProxyScores(tuple[float, ...]):
    """The proxy scores of a model: a tuple of floats, which Optuna takes as objective values.

    Bigger is better for every proxy. NaN becomes ``-inf``, which ranks last.

    Attributes:
        names: The proxies' names, in the order of the values. Each is also an attribute: ``scores.expressivity``.
        blocks: A :class:`~optuna_aznas.proxies.BlockScores` for the stem and each block, in the order of execution
            (of the first repeat, where there are several).
        seconds: Wall-clock time of the evaluation, in seconds.
        block_source: How the blocks were chosen, in words; empty where no named proxy looks at blocks.
        graph: How often each kind of operator occurs in the model, the shortest and the longest path through each, and
            degrees: see :func:`~optuna_aznas.proxies.features.operators.graph_features`. Empty where no named proxy
            looks at blocks.
        settings: What of the evaluator changes scores, as plain JSON; empty for scores that no evaluator has made.
        fingerprint: Twelve digits that stand for the settings. Scores compare only where it is the same.

    Example:
        >>> scores = ProxyScores([57.1, 0.2], names=["expressivity", "progressivity"])
        >>> scores.progressivity
        0.2
        >>> scores.to_dict()
        {'expressivity': 57.1, 'progressivity': 0.2}
    """

    names: tuple[str, ...]
    blocks: tuple[BlockScores, ...]
    seconds: float
    block_source: str
    graph: Mapping[str, float]
    settings: Mapping[str, Any]

    def __new__(
        cls,
        values: Iterable[float],
        *,
        names: Sequence[str],
        blocks: Iterable[BlockScores] = (),
        seconds: float = math.nan,
        block_source: str = "",
        graph: Mapping[str, float] = MappingProxyType({}),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> ProxyScores:
        scores = super().__new__(cls, (-math.inf if math.isnan(value) else float(value) for value in values))
        if len(names) != len(scores):
            raise ValueError(f"names must name each of the {len(scores)} values; got {len(names)} names.")
        scores.names = tuple(names)
        scores.blocks = tuple(blocks)
        scores.seconds = seconds
        scores.block_source = block_source
        scores.graph = dict(graph)
        scores.settings = dict(settings)
        return scores

    @property
    def fingerprint(self) -> str:  # documented among the attributes
        return fingerprint_of(self.settings) if self.settings else ""

    def to_dict(self) -> dict[str, float]:
        """Return the proxy scores by name."""
        return dict(zip(self.names, self, strict=True))

    def __getattr__(self, name: str) -> float:
        if not name.startswith("_") and name in self.names:
            return self[self.names.index(name)]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v:.6g}' for n, v in self.to_dict().items())})"

    def _repr_html_(self) -> str:
        return html_table(self.names, [[plain_number(value) for value in self]])

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = ("names", "blocks", "seconds", "block_source", "graph", "settings")
        return _restore_scores, (tuple(self), {name: getattr(self, name) for name in attributes})


def _restore_scores(values: tuple[float, ...], attributes: dict[str, Any]) -> ProxyScores:
    return ProxyScores(values, **attributes)
