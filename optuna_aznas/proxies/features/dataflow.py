"""Cut vertices of the autograd graph: tensors through which everything that a model computes passes.

The autograd graph of a forward pass says which results depend on which. A node that lies on every path from an input to
the output is a *cut vertex* (in terms of compilers: it dominates the output). Two neighbouring cut vertices enclose a
piece of the network with one input and one output, which is what a block is. In a residual network the sum of shortcut
and branch is a cut vertex, and nothing inside a branch is; in a plain chain every layer is.

Cut vertices are found in one scan, without a general algorithm for dominators. Take the nodes in topological order, and
for each node the position of its last use. Node i is a cut vertex if no edge jumps over it: no node before i is used
after i, and all roots lie at or before i.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

#: A node of the autograd graph.
Node: TypeAlias = Any

#: Products of matrices, of activations with weights or with each other, by the names of their autograd nodes.
_PRODUCT = re.compile(
    r"^(Addmm|Mm|Bmm|Baddbmm|Addbmm|Mv|Addmv|Linear|Bilinear|\w*Convolution\w*|SlowConv\w*|ConvDepthwise\w*|ScaledDotProduct\w*"
    r"|\w*Rnn\w*|\w*Lstm\w*|\w*Gru\w*|EmbeddingBag|Fft\w*)Backward"
)

#: Operations that join a shortcut and a branch. ``CopySlices`` is an operation in place on a view.
_SUM = re.compile(r"^((Add|Sub|Addcmul|Lerp)Backward|torch::autograd::CopySlices)")

#: Operations that merge branches into one feature. The product of two branches does not: it is a gate or attention.
_MERGE = re.compile(
    r"^(Add|Sub|Addcmul|Lerp|Cat|Stack|Maximum|Mean|Sum|NativeLayerNorm|NativeGroupNorm|NativeBatchNorm"
    r"|torch::autograd::CopySlices)"
)

# When a piece is opened because most of the network lies under one shortcut, as in a U-Net:
_MANY_PRODUCTS = 4  # it holds at least this many products
_DOMINANT = 4  # and at least this many times as many as any other piece
_ONE_PATH = 0.65  # at least this share of them lies on one path
_FEWEST_PIECES = 3  # and that path has at least this many pieces with products


def is_product(node: Node) -> bool:
    """Whether a node multiplies matrices or convolves."""
    return _matches(_PRODUCT, node.name())


@functools.cache
def _matches(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a name begins with a pattern; there are few names and many nodes."""
    return pattern.match(name) is not None


@dataclasses.dataclass(frozen=True)
class Piece:
    """The nodes between two neighbouring cut vertices.

    Attributes:
        start: The first cut vertex, which does not belong to the piece.
        end: The second cut vertex, which does.
        inside: The nodes between them.
        products: The products of matrices in the piece.
        branches: Whether the piece has nodes other than ``end``.
        residual: Whether ``end`` adds a path with products and one without.
        merges: Whether ``end`` merges branches into one feature.
        shortcut: Whether a shortcut leads from ``start`` around an opened piece, to a node behind this piece.
    """

    start: Node
    end: Node
    inside: tuple[Node, ...]
    products: tuple[Node, ...]
    branches: bool
    residual: bool
    merges: bool
    shortcut: bool = False

    @property
    def is_unit(self) -> bool:
        """Whether the piece is a block of branches, as against a single layer."""
        return bool(self.products) and self.branches and self.merges


class Graph:
    """The part of an autograd graph between some sources and an output.

    Args:
        output: The node that ends it.
        sources: The nodes that begin it; what does not depend on them is left out.
    """

    def __init__(self, output: Node, sources: Collection[Node]) -> None:
        self.order = _topological(output, set(sources))
        self.position = {node: i for i, node in enumerate(self.order)}
        self.before: list[list[int]] = []
        for node in self.order:
            given = {self.position[p] for p, _ in node.next_functions if p in self.position and node not in sources}
            self.before.append(sorted(given))
        self.product = [is_product(node) for node in self.order]

    def chain(self, *, open_dominant: bool = False) -> list[Piece]:
        """Return the pieces from the sources to the output, in order.

        Args:
            open_dominant: Split a piece that holds most of the network's products, if most of them lie on one path
                apart from shortcuts around it, as in a U-Net.
        """
        if not self.order:
            return []
        everything = list(range(len(self.order)))
        return self._pieces(everything, open_dominant=open_dominant)

    def _pieces(self, members: Sequence[int], *, open_dominant: bool) -> list[Piece]:
        """Split a part of the graph at its cut vertices.

        Args:
            members: Positions of its nodes, in topological order; the last one is reached from all others.
            open_dominant: As in :meth:`chain`.
        """
        inside = set(members)
        last_use = dict.fromkeys(members, -1)
        for i in members:
            for p in self.before[i]:
                if p in inside:
                    last_use[p] = i
        cuts, furthest, roots = [], -1, sum(1 for i in members if not inside.intersection(self.before[i]))
        begun = 0
        for i in members:
            begun += not inside.intersection(self.before[i])
            if furthest <= i and begun == roots:  # no edge jumps over i
                cuts.append(i)
            furthest = max(furthest, last_use[i])
        index = {i: k for k, i in enumerate(members)}
        bounds = [(a, members[index[a] + 1 : index[b]], b) for a, b in itertools.pairwise(cuts)]
        pieces = [self._piece(*bound) for bound in bounds]
        if open_dominant and pieces:
            *others, (largest, k) = sorted((len(piece.products), k) for k, piece in enumerate(pieces))
            if largest >= max(_MANY_PRODUCTS, _DOMINANT * max((n for n, _ in others), default=0)):
                pieces[k : k + 1] = self._opened(*bounds[k]) or [pieces[k]]
        return pieces

    def _piece(self, a: int, interior: Sequence[int], b: int) -> Piece:
        start, end = self.order[a], self.order[b]
        inside = tuple(self.order[i] for i in interior)
        products = tuple(self.order[i] for i in (*interior, b) if self.product[i])
        residual = False
        if products and interior and _matches(_SUM, end.name()):
            free = {a}  # what is reached from the start without a product
            for i in interior:
                if not self.product[i] and free.intersection(self.before[i]):
                    free.add(i)
            residual = bool(free.intersection(self.before[b]))
        return Piece(start, end, inside, products, bool(interior), residual, _matches(_MERGE, end.name()))

    def _opened(self, a: int, interior: Sequence[int], b: int) -> list[Piece] | None:
        """Split the piece between cut vertices a and b along the branch with most products; ``None`` if none dominates.

        For each input p of b, the nodes of the piece from which p is reached form a branch. The one with most products
        is split at its own cut vertices, and the other inputs of b count as shortcuts.
        """
        inside = set(interior)
        best: set[int] = set()
        most, at = 0, a
        for p in sorted(self.before[b], reverse=True):
            if p not in inside:
                continue
            reaching = {p}
            for i in reversed(interior):
                if i in reaching:
                    reaching.update(q for q in self.before[i] if q in inside)
            work = sum(self.product[i] for i in reaching)
            if work > most:
                best, most, at = reaching, work, p
        if most < _ONE_PATH * sum(self.product[i] for i in interior):
            return None
        pieces = self._pieces([a, *(i for i in interior if i in best)], open_dominant=True)
        if sum(1 for piece in pieces if piece.products) < _FEWEST_PIECES:
            return None
        start, end = self.order[at], self.order[b]
        pieces[0] = dataclasses.replace(pieces[0], shortcut=True)
        return [*pieces, Piece(start, end, (), (end,) if self.product[b] else (), False, False, False)]


def _topological(output: Node, sources: set[Node]) -> list[Node]:
    """Return the nodes that lead to ``output`` and depend on a source, in topological order.

    This is a depth-first search with a stack of its own, as deep networks exceed Python's recursion limit.
    """
    reaches: dict[Node, bool] = {}
    order = []
    stack = [(output, iter(output.next_functions))]
    opened = {output}
    while stack:
        node, given = stack[-1]
        for p, _ in given:
            if p is not None and p not in opened:
                opened.add(p)
                stack.append((p, iter(() if p in sources else p.next_functions)))
                break
        else:
            stack.pop()
            reaches[node] = node in sources or any(reaches.get(p, False) for p, _ in node.next_functions)
            if reaches[node]:
                order.append(node)
    return order


def node_of(leaf: Tensor) -> Node:
    """Return the node at which the gradient of a leaf arrives."""
    with torch._C.DisableTorchFunction():
        return torch.autograd.graph.get_gradient_edge(leaf).node


def gradient_nodes(tensor: Tensor) -> set[Node]:
    """Return all nodes of the autograd graph that a tensor depends on."""
    found: set[Node] = set()
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack += [given for given, _ in node.next_functions]
    return found
