"""One forward and one backward pass through a model whose module tree does not show its blocks.

The model is run once as a whole. Its features are cut vertices of the autograd graph
(:mod:`~optuna_aznas.proxies.features.dataflow`): the stem's output, and the end of each piece with branches (a residual
sum, a concatenation), or of each layer with weights where no piece has branches. As everything that a block computes
passes through the features at its two ends, the vector-Jacobian product from one to the other is the block's own, and
the graph need not be cut.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.block_pass import PassReport, PassRequest, Reporter
from optuna_aznas.proxies.features.blocks import has_children, has_weight
from optuna_aznas.proxies.features.dataflow import Graph, Node, Piece
from optuna_aznas.proxies.features.record import Call, Recorder, Result, heaviest
from optuna_aznas.proxies.features.sources import SourceRecorder
from optuna_aznas.proxies.model.nested import tensors_in

_POOLING = re.compile(r"^(Mkldnn)?(Max|Avg|AdaptiveMax|AdaptiveAvg)Pool")

_CONTAINERS = {nn.Sequential, nn.ModuleList, nn.ModuleDict}

_LINEAR = re.compile("^(Addmm|Mm|Linear)Backward")

_RECURRENT = re.compile("Rnn|Lstm|Gru")


class NotFoundError(ProxyEvaluationError):
    """The model has fewer than two tensors through which everything passes."""


class NoGradientError(ProxyEvaluationError):
    """The model runs without gradients."""


@dataclasses.dataclass(frozen=True)
class _Feature:
    """A feature, and the node of the feature that its block started from; ``None`` for a stem."""

    result: Result
    previous: Node | None


def run_whole(request: PassRequest, *, with_input: bool = False) -> PassReport:
    """Run a model once as a whole, find its features, and report them in the order of execution.

    Args:
        request: The model, and what to report of it.
        with_input: Whether the input of a model of one layer below its head is a feature, too. That of a perceptron is
            in any case, as it has no stem.

    Raises:
        NotFoundError: The model has fewer than two such features.
        NoGradientError: The model runs without gradients.
        ProxyEvaluationError: The forward failed, or returned no tensor.
    """
    model, reporter = request.model, Reporter(request)
    recorder = SourceRecorder(lambda: reporter.macs)
    given = recorder.as_sources(request.inputs)
    with reporter.running(recorder, dict(model.named_modules())):
        output = reporter.call(given)
    recorder.on = False
    end = next((t.grad_fn for t in tensors_in(output) if t.grad_fn is not None), None)
    if end is None:
        end = recorder.last_node()  # the output is chosen, rounded or detached
    if end is None:
        raise NoGradientError(
            f"No gradient leads through {type(model).__name__}, so its blocks cannot be found by running it. "
            "Let it run without torch.no_grad, or name blocks with ProxyEvaluator(blocks=[...])."
        )
    features = _features(end, recorder)
    if features and (_is_perceptron(recorder) or (with_input and _is_one_layer(features, recorder))):
        features = [_Feature(recorder.result_of_input(), None), *features]
        features[1] = dataclasses.replace(features[1], previous=recorder.input_node)
    if len(features) < 2:
        raise NotFoundError("fewer than two tensors are such that everything passes through them")
    _report(features, recorder, reporter)
    return reporter.summary(connected=True)


def _features(end: Node, recorder: SourceRecorder) -> list[_Feature]:
    """Return the features of all sources, in the order of execution."""
    found: dict[Node, _Feature] = {}
    for source in recorder.sources:
        previous: Result | None = None
        pieces = Graph(end, {source}).chain(open_dominant=len(recorder.sources) == 1)
        for result in _on_one_path(_by_function(pieces, recorder), recorder, looked_up=recorder.sources[source]):
            node = result.tensor.grad_fn
            feature = _Feature(result, None if previous is None else previous.tensor.grad_fn)
            known = found.get(node)
            if known is None or _index(known.previous, recorder) < _index(feature.previous, recorder):
                found[node] = feature
            previous = result
    return sorted(found.values(), key=lambda feature: feature.result.index)


def _is_perceptron(recorder: SourceRecorder) -> bool:
    """Whether the model's layers are its blocks, and its only input holds vectors."""
    return recorder.layers_are_blocks and recorder.input is not None and recorder.input.ndim == 2


def _is_one_layer(features: Sequence[_Feature], recorder: SourceRecorder) -> bool:
    """Whether the model has a single input and a single feature, and one call of a layer with weights before it."""
    layers = [call for call in recorder.calls if has_weight(call.module) and not has_children(call.module)]
    before = [call for call in layers if call.begin < features[0].result.index]
    return recorder.input is not None and len(features) == len(before) == 1


def _by_function(pieces: Sequence[Piece], recorder: Recorder) -> list[Piece]:
    """Join pieces until each ends with the result of a function of torch.

    The nodes inside one function, such as a recurrent layer, differ from device to device.
    """
    joined: list[Piece] = []
    parts: list[Piece] = []
    for piece in pieces:
        parts.append(piece)
        if piece.end not in recorder.results:
            continue
        inside = tuple(node for part in parts for node in (*part.inside, part.end))[:-1]
        branching = [p for p in parts if p.branches and any(node in recorder.results for node in p.inside)]
        joined.append(
            Piece(
                parts[0].start,
                piece.end,
                inside,
                tuple(node for part in parts for node in part.products),
                branches=bool(branching),
                residual=any(part.residual for part in branching),
                merges=any(part.merges for part in branching),
                shortcut=any(part.shortcut for part in parts),
            )
        )
        parts = []
    return joined


def _is_linear(piece: Piece) -> bool:
    return len(piece.products) == 1 and _LINEAR.match(piece.products[0].name()) is not None


def _is_recurrent(piece: Piece) -> bool:
    return not piece.branches and (len(piece.products) > 1 or _RECURRENT.search(piece.products[0].name()) is not None)


def _index(node: Node | None, recorder: Recorder) -> int:
    return -1 if node is None else recorder.results[node].index


def _on_one_path(pieces: Sequence[Piece], recorder: SourceRecorder, *, looked_up: bool) -> list[Result]:
    """Choose the features on the way from one source to the output: the stem's, then each block's.

    The pieces with products are put into groups, one for the stem and one for each block (:func:`_groups`). A feature
    is the end of its group's last piece, or of the activations, normalisations and pooling after it
    (:func:`_end_of_block`). What follows the last block belongs to the head, so the last block takes in no more passive
    pieces than the longest block before.

    Args:
        pieces: The pieces from the source to the output.
        recorder: What was computed there.
        looked_up: Whether the source is a row of a table, such as a token's embedding. It is the stem's feature then,
            even if no layer precedes the first block.
    """
    working = [i for i, piece in enumerate(pieces) if piece.products]
    units = [i for i in working if pieces[i].is_unit]
    if len(units) == 1 and not (pieces[units[0]].residual and (looked_up or units[0] != working[0])):
        units = []  # a single one that is no residual block says nothing, and without a stem it is the only feature
    recorder.layers_are_blocks = not units
    groups = _groups(pieces, working, units, recorder)
    found: list[Result] = []
    longest = 0  # the most passive pieces that a block took in
    if looked_up and groups and (groups[0][0] in units or not units):
        embedded, _ = _end_of_block(pieces, 0, range(1, groups[0][0]), recorder, stem=True)
        found += [embedded] if embedded is not None else []
    for k, group in enumerate(groups):
        following = working.index(group[-1]) + 1
        limit = working[following] if following < len(working) else len(pieces)
        passive = range(group[-1] + 1, limit)
        if k == len(groups) - 1 and k and len(units) >= 2:
            passive = passive[:longest]
        stem = not found and group[0] not in units and len(groups) > 1
        result, used = _end_of_block(pieces, group[-1], passive, recorder, stem=stem)
        if group[-1] in units:
            longest = max(longest, used)
        if result is not None and (not found or result.index > found[-1].index):
            found.append(result)
    return found


def _groups(
    pieces: Sequence[Piece], working: Sequence[int], units: Sequence[int], recorder: SourceRecorder
) -> list[list[int]]:
    """Group the pieces with products: each group is the stem or a block.

    Where there are units (pieces with branches; a single one must be a residual block), each is a block of its own. The
    layers between two units form a block together, a transition; a layer in a module of the same class as the units'
    modules, such as a bottleneck without shortcut, is a block of its own. The layers before the first unit form the
    stem, those after the last the head. Without units each layer is a block, and the head is left out.

    Args:
        pieces: The pieces from a source to the output.
        working: The indices of those with products.
        units: The indices of those with products and branches.
        recorder: What was computed there.
    """
    if not units:
        body = [i for i in working if i in units or not _is_linear(pieces[i])]
        kept = working[: working.index(body[-1]) + 2] if body else working
        if kept and not _is_recurrent(pieces[kept[-1]]):
            kept = kept[:-1]  # the head: the first linear layer after the body, or the last layer of all
        return [[i] for i in kept]
    groups: list[list[int]] = []
    recorder.kinds |= _kinds_of_blocks(pieces, recorder)
    alike = [call for call in recorder.calls if type(call.module) in recorder.kinds]
    bounds = [bound for call in alike for bound in (call.begin, call.end)]
    for i in working[: working.index(units[-1]) + 1]:
        alone = i in units or not groups or groups[-1][-1] in units
        if not alone:
            before, now = (_when(pieces[k:], recorder) for k in (groups[-1][-1], i))
            alone = any(before <= bound < now for bound in bounds)
        groups.append([i]) if alone else groups[-1].append(i)
    return groups


def _when(pieces: Sequence[Piece], recorder: Recorder) -> int:
    """Return the index of the first result among these pieces."""
    return next(
        (recorder.results[piece.end].index for piece in pieces if piece.end in recorder.results), recorder.count
    )


def _kinds_of_blocks(pieces: Sequence[Piece], recorder: Recorder) -> set[type[nn.Module]]:
    """Return the classes of the modules that hold just one piece with branches, and passive pieces after it."""
    kinds: set[type[nn.Module]] = set()
    calls = [call for call in recorder.calls if call.name and has_children(call.module)]
    for i, piece in enumerate(pieces):
        start = recorder.results.get(piece.start)
        if not piece.is_unit or start is None:
            continue
        ends = {piece.end}
        for following in pieces[i + 1 :]:
            if following.products:
                break
            ends.add(following.end)
        spanning = [call for call in calls if call.node in ends and call.begin <= start.index]
        latest = max((call.begin for call in spanning), default=0)
        kinds.update(type(call.module) for call in spanning if call.begin == latest)
    return kinds - _CONTAINERS


def _end_of_block(
    pieces: Sequence[Piece], at: int, passive: Sequence[int], recorder: Recorder, *, stem: bool
) -> tuple[Result | None, int]:
    """Return the feature of a block, and how many passive pieces after it belong to the block.

    The block ends with piece ``at`` and the activations, normalisations and pooling after it, as long as these keep the
    channels; a stem extends to the first block.

    Args:
        pieces: All pieces from a source to the output.
        at: The index of the block's last piece with products.
        passive: The indices of the pieces without products after it.
        recorder: What was computed there.
        stem: Whether the block is the stem.
    """
    result = recorder.at(pieces[at].end)
    used = 0
    ended = result is not None and recorder.ends_module(result)
    if ended and pieces[at].is_unit:
        return result, used  # the block is a module, and what follows is another's
    for steps, i in enumerate(passive, 1):
        if pieces[i].shortcut and result is not None:
            break
        later = recorder.at(pieces[i].end)
        if later is None or not later.tensor.is_floating_point() or later.tensor.ndim < 2:
            continue
        ends = recorder.ends_module(later)
        if result is None or _continues(result.tensor, later.tensor, pieces[i].end) or (stem and (ends or not ended)):
            result, used, ended = later, steps, ended or ends
    return result, used


def _continues(feature: Tensor, later: Tensor, node: Node) -> bool:
    """Whether ``later``, computed by ``node``, is the same feature after an activation, normalisation or pooling."""
    if later.shape == feature.shape:
        return True
    pooled = _POOLING.match(node.name()) is not None and later.ndim == feature.ndim
    return pooled and later.shape[:2] == feature.shape[:2] and later.shape[2:].numel() > 1


def _report(features: Sequence[_Feature], recorder: SourceRecorder, reporter: Reporter) -> None:
    indices: dict[Node, int] = {}
    numbers = Counter(type(call.module) for call in recorder.calls if type(call.module) not in _CONTAINERS)
    begin = 0
    for feature in features:
        result, start = feature.result, feature.previous
        name, module, layers = _name(result, begin, recorder, numbers)
        indices[result.tensor.grad_fn] = reporter.report(
            name,
            module,
            result.tensor,
            None if start is None else recorder.results[start].tensor,
            macs=result.macs,
            previous=None if start is None else indices[start],
            layers=layers,
        )
        begin = result.index


def _name(
    result: Result, begin: int, recorder: SourceRecorder, numbers: Mapping[type[nn.Module], int]
) -> tuple[str, nn.Module, tuple[nn.Module, ...]]:
    """Return a feature's name, the module it is named after, and the layers that ran since the feature before.

    A feature is named after the module whose output it is, or else after the largest module that ran before it.

    Args:
        result: The feature.
        begin: The index of the feature before.
        recorder: What was computed.
        numbers: How often modules of each class ran, without containers.
    """
    if result.tensor is recorder.input:
        root = next(call.module for call in recorder.calls if not call.name)
        return f"input of {type(root).__name__}", root, ()
    first, last = (bisect.bisect_left(recorder.calls, at, key=lambda call: call.begin) for at in (begin, result.index))
    begun = [call for call in recorder.calls[first:last] if call.name]
    layers = tuple(call.module for call in begun if not has_children(call.module))
    giving = [call for call in begun if call.node is result.tensor.grad_fn]
    giving = [call for call in giving if has_children(call.module)] or giving
    if giving:  # a block rather than the stage that it ends: what there are most of
        call = max(giving, key=lambda call: (type(call.module) in recorder.kinds, numbers[type(call.module)]))
        return call.name + _number(call), call.module, layers
    largest = heaviest(begun, begin, result.index)
    if largest is not None:
        return f"after {largest.name}{_number(largest)}", largest.module, layers
    owner = next(call for call in recorder.calls if call.name == result.owner)
    return f"{result.owner or type(owner.module).__name__}, result {result.index}", owner.module, layers


def _number(call: Call) -> str:
    return f" (call {call.number})" if call.number > 1 else ""
