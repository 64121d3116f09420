"""OperatorGraph: the operators that a model runs, and which runs on whose result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

#: Kind of the node that stands for the model's input.
INPUT = "input"

#: Kinds of operators. What only moves or scales numbers is none: views, copies, dropout, sums and products with
#: constants and parameters. The same holds for a concatenation of one tensor with parameters, such as a class token.
KINDS = (
    "conv_1x1",  # convolutions by the longest side of their kernel, dense or in groups
    "conv_3x3",  # 2 or 3
    "conv_5x5",  # 4 or 5
    "conv_7x7",  # 6 or more
    "depthwise_3x3",  # convolutions of each channel by itself; up to 3
    "depthwise_5x5",  # 4 or 5
    "depthwise_7x7",  # 6 or more
    "conv_transpose",
    "linear",  # products with a parameter
    "matmul",  # products of two results, also as einsum
    "attention",  # scaled dot-product attention in one function
    "recurrent",
    "embedding",
    "avg_pool",  # also means over dimensions
    "max_pool",
    "resize",  # interpolation
    "norm",
    "softmax",
    "activation",  # any function of each number by itself that is not linear
    "add",  # sums and differences of two results
    "mul",  # products and ratios of two results, such as gates
    "cat",  # concatenations of two or more results
    "other",
)


@dataclasses.dataclass(frozen=True)
class OperatorGraph:
    """The operators between a model's input and its output, as a directed acyclic graph.

    Attributes:
        kinds: The kind of each node in topological order: :data:`INPUT` first, then those of :data:`KINDS`. The last
            node is the output, and is reached from all.
        before: The positions of the nodes on whose results each runs, each once.
    """

    kinds: tuple[str, ...]
    before: tuple[tuple[int, ...], ...]

    @classmethod
    def ending_with(cls, last: int, kinds: Sequence[str], before: Sequence[tuple[int, ...]]) -> OperatorGraph:
        """Return the part of a graph from which its node ``last`` is reached."""
        reaching = {last}
        for i in range(last, -1, -1):
            if i in reaching:
                reaching.update(before[i])
        kept = sorted(reaching)
        place = {i: k for k, i in enumerate(kept)}
        return cls(tuple(kinds[i] for i in kept), tuple(tuple(place[p] for p in before[i]) for i in kept))
