"""What a model scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from optuna_aznas.proxies.aznas import BlockScores


class ProxyScores(tuple[float, ...]):
    """What a model scored: a tuple of floats that Optuna takes as objective values as it is.

    Bigger is better for every proxy. A score that came out NaN is ``-inf``: ranked last.

    Attributes:
        names: The proxies' names, in the order of the values. Each is also an attribute: ``scores.expressivity``.
        blocks: A :class:`~optuna_aznas.proxies.BlockScores` for the stem and each block, in the order of execution
            (of the first repeat, where there are several).
        seconds: Wall-clock time of the evaluation.
        how: How the blocks were chosen, in words; empty where none were.

    Example:
        >>> scores = ProxyScores([57.1, 0.2], names=["expressivity", "progressivity"])
        >>> scores.progressivity
        0.2
        >>> scores.as_dict()
        {'expressivity': 57.1, 'progressivity': 0.2}
    """

    names: tuple[str, ...]
    blocks: tuple[BlockScores, ...]
    seconds: float
    how: str

    def __new__(
        cls,
        values: Iterable[float],
        *,
        names: Sequence[str],
        blocks: Iterable[BlockScores] = (),
        seconds: float = math.nan,
        how: str = "",
    ) -> ProxyScores:
        scores = super().__new__(cls, (-math.inf if math.isnan(value) else float(value) for value in values))
        if len(names) != len(scores):
            raise ValueError(f"names must name each of the {len(scores)} values; got {len(names)} names.")
        scores.names = tuple(names)
        scores.blocks = tuple(blocks)
        scores.seconds = seconds
        scores.how = how
        return scores

    def as_dict(self) -> dict[str, float]:
        """Return the scores by proxy name."""
        return dict(zip(self.names, self, strict=True))

    def __getattr__(self, name: str) -> float:
        if not name.startswith("_") and name in self.names:
            return self[self.names.index(name)]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v:.6g}' for n, v in self.as_dict().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_scores, (tuple(self), self.names, self.blocks, self.seconds, self.how)


def _restore_scores(
    values: tuple[float, ...], names: tuple[str, ...], blocks: tuple[BlockScores, ...], seconds: float, how: str
) -> ProxyScores:
    return ProxyScores(values, names=names, blocks=blocks, seconds=seconds, how=how)
