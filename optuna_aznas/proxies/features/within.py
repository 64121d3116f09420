"""Features within a block: the residual sums of a transformer's layer, and the units of a stage.

A module that is taken for a block may hold several. The tensors between them are cut vertices of the autograd graph
between the block's input and its output (:mod:`~optuna_aznas.proxies.features.dataflow`). A block whose own units end
at cut vertices, such as a stage of a vision transformer, is a stage: each unit is a block, and what multiplies matrices
before, between or behind them is a block as well, such as a downsampling layer. In a block that joins its units, as a
CSP block or a cell does, they end at none, and it stays whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from optuna_aznas.proxies.features.blocks import Inside
from optuna_aznas.proxies.features.dataflow import Graph, Piece, node_of
from optuna_aznas.proxies.features.record import Call, Recorder, Result


class Within(NamedTuple):
    """A feature within a block.

    Attributes:
        result: The feature.
        unit: The call of a unit that it is the output of; ``None`` where it is none's.
    """

    result: Result
    unit: Call | None


def features_within(source: Tensor, output: Tensor, recorder: Recorder, inside: Inside) -> list[Within]:
    """Return the features within a block in the order of execution, without its output.

    Args:
        source: What the block started from.
        output: Its output.
        recorder: What was computed in it.
        inside: What may be a feature.
    """
    if output.grad_fn is None or not source.requires_grad:
        return []
    graph = Graph(output.grad_fn, {node_of(source)})
    pieces = graph.chain()
    owners = _owners(pieces, graph, recorder, inside.units)
    working = [i for i, piece in enumerate(pieces) if piece.products]
    groups = [list(group) for _, group in itertools.groupby(working, key=lambda i: id(owners[i]))]
    found: list[Within] = []
    for group in groups:
        sums = [i for i in group if inside.sums and pieces[i].residual]
        ends = [*sums[:-1], *(group[-1:] if group is not groups[-1] else [])]
        found += filter(None, (_feature(pieces, i, owners[i], recorder) for i in ends))
    return [feature for feature in found if len(feature.result.tensor) == len(output)]


def _owners(
    pieces: Sequence[Piece], graph: Graph, recorder: Recorder, units: Mapping[str, nn.Module]
) -> list[Call | None]:
    """Return the call of a unit in which each piece was computed; ``None`` for all of them unless this is a stage.

    It is one where each unit on the way from the input to the output ends at a cut vertex, and one of them has branches
    of its own: plain layers in a row are no blocks of a stage.
    """
    calls = [call for call in recorder.calls if call.name in units and call.node in graph.position]
    ends = {piece.end for piece in pieces}
    owners: list[Call | None] = []
    index = recorder.count
    for piece in reversed(pieces):  # a node without a result belongs to the function whose result comes next
        index = recorder.results[piece.end].index if piece.end in recorder.results else index
        owners.append(next((call for call in calls if call.begin < index <= call.end), None))
    owners.reverse()
    branches = any(owner is not None and piece.is_unit for owner, piece in zip(owners, pieces, strict=True))
    in_a_row = all(call.node in ends for call in calls)
    return owners if branches and in_a_row else [None] * len(pieces)


def _feature(pieces: Sequence[Piece], at: int, owner: Call | None, recorder: Recorder) -> Within | None:
    """Return the feature at a piece; ``None`` where its tensor was overwritten.

    Where plain operations follow the piece, such as the normalisation in post-norm transformers, their result is the
    feature, and so is the output of the unit, whatever its shape.
    """
    result = recorder.at(pieces[at].end)
    unit = owner if owner is not None and owner.node is pieces[at].end else None
    for following in pieces[at + 1 :]:
        if following.products or following.branches or unit is not None:
            break
        later = recorder.at(following.end)
        if later is None:
            continue
        if owner is not None and owner.node is following.end:
            unit = owner
        if unit is not None or result is None or later.tensor.shape == result.tensor.shape:
            result = later
    return None if result is None else Within(result, unit)
