"""OperatorGraph: the operators that a model runs, and which runs on whose result; graph_features describes it."""

from __future__ import annotations

import dataclasses
from collections import Counter
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


def graph_features(graph: OperatorGraph) -> dict[str, float]:
    """Describe a graph of operators by numbers, the same names for every graph.

    A path leads from the input to the output. The numbers are

    * ``operators``, ``edges``; ``joins`` and ``forks``: operators that run on several results, and nodes on whose
      result several operators run; ``in_degree`` and ``out_degree``: the largest of each;
    * ``shortest`` and ``longest``: operators on the path that has fewest and on the path that has most;
    * ``<kind>``, ``<kind>:shortest`` and ``<kind>:longest`` for each of :data:`KINDS`: how many operators of this kind
      there are, and how many are on the path that has fewest and on the path that has most of them.

    The time is linear in the number of edges.
    """
    column = {kind: k for k, kind in enumerate(dict.fromkeys(graph.kinds[1:]))}
    # Numbers on a path to each node, itself included: of each kind that occurs, and last of any kind. With arrays
    # instead of lists it takes seven times as long.
    fewest, most = [[0] * (len(column) + 1)], [[0] * (len(column) + 1)]
    for kind, before in zip(graph.kinds[1:], graph.before[1:], strict=True):
        for counts, choose in ((fewest, min), (most, max)):
            given = [counts[p] for p in before]
            here = given[0].copy() if len(given) == 1 else list(map(choose, *given))
            here[column[kind]] += 1
            here[-1] += 1
            counts.append(here)
    into = [len(before) for before in graph.before]
    out = Counter(p for before in graph.before for p in before)
    features = {
        "operators": len(into) - 1,
        "edges": sum(into),
        "joins": sum(degree > 1 for degree in into),
        "forks": sum(degree > 1 for degree in out.values()),
        "in_degree": max(into),
        "out_degree": max(out.values(), default=0),
        "shortest": fewest[-1][-1],
        "longest": most[-1][-1],
    }
    number = Counter(graph.kinds)
    for kind in KINDS:
        k = column.get(kind)
        features[kind] = number[kind]
        features[f"{kind}:shortest"] = 0 if k is None else fewest[-1][k]
        features[f"{kind}:longest"] = 0 if k is None else most[-1][k]
    return {name: float(value) for name, value in features.items()}
