"""Finding a model's primary blocks in its module tree.

The primary blocks are the units that a network repeats: the cells of NAS-Bench-201, the residual blocks of a ResNet,
the layers of a transformer. Their outputs and the stem's are the features that the proxies are computed from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

from torch import nn

from optuna_aznas.proxies.errors import ProxyEvaluationError

#: What ``ProxyEvaluator(blocks=...)`` takes.
BlockChoice: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

_CONTAINERS = (nn.Sequential, nn.ModuleList)

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Inside(NamedTuple):
    """What of a block may be features of its own.

    Attributes:
        sums: Whether its residual sums are, as in a transformer's layer.
        units: Its own units by name: where they run one after another, the block is a stage, and they are the blocks.
    """

    sums: bool
    units: Mapping[str, nn.Module]


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """Where to look for a model's features.

    Attributes:
        blocks: Modules whose outputs are features, by name; may be empty if ``automatic``.
        automatic: Whether they were found and not chosen by the user.
        trusted: Whether they were chosen by the user, or the module tree leaves little doubt that they are the blocks.
        inside: What may be features within a block, by the block's name; blocks that are whole are left out.
    """

    blocks: dict[str, nn.Module]
    automatic: bool
    trusted: bool
    inside: Mapping[str, Inside] = dataclasses.field(default_factory=dict)


def plan_blocks(model: nn.Module, blocks: BlockChoice = None) -> BlockPlan:
    """Return where to look for a model's features, judging by its module tree.

    Args:
        model: Any module.
        blocks: As in :func:`find_blocks`.

    Raises:
        ProxyEvaluationError: As :func:`find_blocks`, but not if none is found automatically.
        ValueError: ``blocks`` is of another kind.
    """
    if not (blocks is None or blocks == "auto"):
        return BlockPlan(find_blocks(model, blocks), automatic=False, trusted=True)
    found = _find_automatically(model)
    inside = {name: Inside(_sums_are_features(block), _units_of_a_stage(name, block)) for name, block in found.items()}
    inside = {name: looked_at for name, looked_at in inside.items() if looked_at.sums or looked_at.units}
    return BlockPlan(found, automatic=True, trusted=bool(found) and _is_telling(model, found), inside=inside)


def find_blocks(model: nn.Module, blocks: BlockChoice = None) -> dict[str, nn.Module]:
    """Return a model's primary blocks by name, in the order of registration.

    Args:
        model: Any module.
        blocks: ``None`` or ``"auto"`` to find them (see below); the names of the blocks; one pattern in the
            syntax of :mod:`fnmatch` (``"layers.*"``: direct children only, as ``*`` does not cross a dot
            here); or a callable ``(name, module) -> bool``.

    Automatic choice: ``Sequential`` and ``ModuleList`` containers are opened until their elements are *units*,
    that is modules with children of their own (a ``Sequential`` of plain layers counts when it holds a weight
    matrix or kernel); a single unit, such as an encoder, is opened too. Where a model is a plain chain of layers, as a
    VGG or a multilayer perceptron is, each layer with a weight matrix or kernel makes a block together with the plain
    layers (norm, activation, pooling) behind it, and the head is left out: the last one, or the linear layers behind
    the last convolution. The layer that ends such a block stands for it.

    Raises:
        ProxyEvaluationError: No block was found, or a name or pattern matches nothing (the message lists
            candidates), or one chosen block is part of another.
        ValueError: ``blocks`` is of another kind.
    """
    if blocks is None or blocks == "auto":
        found = _find_automatically(model)
        if not found:
            raise ProxyEvaluationError(
                f"No blocks found in {type(model).__name__}: it has no repeated units and fewer than two layers with "
                f"weights below its head. {candidates(model)}"
            )
        return found
    found = _find_chosen(model, blocks)
    for outer in found:
        inner = next((name for name in found if name.startswith(outer + ".")), None)
        if inner is not None:
            raise ProxyEvaluationError(
                f"Blocks must not lie in one another, but {inner!r} is part of {outer!r}. Leave one of them out."
            )
    return found


def _sums_are_features(block: nn.Module) -> bool:
    """Whether a block's residual sums are features, as those of a transformer's layer are."""
    return has_children(block) and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules())


def _units_of_a_stage(name: str, block: nn.Module) -> dict[str, nn.Module]:
    """Return the units of a block that may be a stage by their names in the model; none if no container holds any."""
    return dict(_units(block, f"{name}.")) if _holds_units(block) else {}


def _is_telling(model: nn.Module, found: dict[str, nn.Module]) -> bool:
    """Whether modules found in the tree are blocks beyond doubt.

    They are where containers hold them, with few others before, between and behind, none of which holds units of its
    own. How many units a container holds does not matter, so the answer is the same for the networks of a space that
    differ in their depth. A chain of plain layers is not: each block is several of them.
    """
    if not any(map(has_children, found.values())):
        return False
    parents = _parents(model, found)
    containers = {name for name, parent in parents.items() if isinstance(parent, _CONTAINERS)}
    held = {type(unit) for name, unit in found.items() if _parent(name) in containers} - set(_CONTAINERS)
    loose = [unit for name, unit in found.items() if _parent(name) not in containers and type(unit) not in held]
    if not containers or len(loose) > len(containers) + 1 or any(map(_holds_units, loose)):
        return False
    return not any(_is_layer_in_pieces(model, name, parent) for name, parent in parents.items())


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _parents(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules that hold the named ones, by their own names."""
    return {parent: model.get_submodule(parent) for parent in {_parent(name): None for name in names}}


def _holds_units(module: nn.Module) -> bool:
    """Whether a container within a module holds a unit."""
    return any(isinstance(inner, _CONTAINERS) and any(map(_is_unit, inner)) for inner in module.modules())


def _is_layer_in_pieces(model: nn.Module, name: str, parent: nn.Module) -> bool:
    """Whether a container holds pieces of one block, as ``ModuleList([attention, mlp])`` does within another."""
    if not isinstance(parent, nn.ModuleList) or len(parent) < 2:
        return False
    return isinstance(model.get_submodule(_parent(name)), nn.ModuleList) and len({type(m) for m in parent}) == len(
        parent
    )


def _find_chosen(
    model: nn.Module, blocks: str | Sequence[str] | Callable[[str, nn.Module], bool]
) -> dict[str, nn.Module]:
    if callable(blocks):
        found = {name: module for name, module in model.named_modules() if name and blocks(name, module)}
        if not found:
            raise ProxyEvaluationError(
                f"The callable given as blocks chose no module of {type(model).__name__}. {candidates(model)}"
            )
        return found
    patterns = [blocks] if isinstance(blocks, str) else list(blocks) if isinstance(blocks, Iterable) else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"blocks must be None, 'auto', names, a pattern or a callable (name, module) -> bool; got {blocks!r}."
        )
    found = {}
    for pattern in patterns:
        matched = {name: module for name, module in model.named_modules() if name and _matches(name, pattern)}
        if not matched:
            raise ProxyEvaluationError(
                f"No module of {type(model).__name__} is called {pattern!r}. {candidates(model)}"
            )
        found.update(matched)
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _find_automatically(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks as :func:`find_blocks` describes; empty if there are too few."""
    units = dict(_units(model))
    while len(units) == 1:  # a wrapper or an encoder: open it
        ((name, unit),) = units.items()
        if _is_only_layer(model, name, unit):
            return units
        inner = dict(_units(unit, f"{name}."))
        if not inner:
            break
        units = inner
    sequences = all(isinstance(unit, nn.Sequential) for unit in units.values())
    blocks = bool(units) and all(map(_is_convolution_with_company, units.values()))
    if len(units) < 3 and sequences and not blocks:
        # A plain chain of layers, perhaps inside a wrapper or two (``self.features``, ``self.classifier``).
        chain = _chain(model)
        if len(chain) >= 2:
            return chain
    units = _without_head(model, units)
    return units if len(units) >= 2 else {}


def _is_convolution_with_company(unit: nn.Module) -> bool:
    """Whether a unit is one convolution with its norm and activation, and so no chain of layers."""
    return sum(map(has_weight, unit.children())) == 1 and _convolves(unit)


def _is_only_layer(model: nn.Module, name: str, unit: nn.Module) -> bool:
    """Whether the only unit of a model is the one layer of a transformer, whose sums are features."""
    parent = _parent(name)
    in_container = bool(parent) and isinstance(model.get_submodule(parent), _CONTAINERS)
    return in_container and _sums_are_features(unit) and not _holds_units(unit)


def _without_head(model: nn.Module, units: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Leave out the head: linear layers behind units that lie in a container, such as a pooler or classifier."""
    names = list(units)
    parents = _parents(model, names)
    held = [i for i, name in enumerate(names) if isinstance(parents[_parent(name)], _CONTAINERS)]
    if len(held) < 2:
        return units
    behind = {name for name in names[held[-1] + 1 :] if not _convolves(units[name])}
    return {name: unit for name, unit in units.items() if name not in behind}


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())


def _chain(model: nn.Module) -> dict[str, nn.Module]:
    """Return the last layer of each block of a plain chain of layers."""
    layers = [(name, module) for name, module in model.named_modules() if not has_children(module)]
    starts = [i for i, (_, module) in enumerate(layers) if has_weight(module)]
    convolutions = [k for k, i in enumerate(starts) if isinstance(layers[i][1], nn.modules.conv._ConvNd)]
    if convolutions:
        starts = starts[: convolutions[-1] + 2]  # the linear layers behind the last one are the head
    # A block ends where the next starts, behind its norm, activation and pooling. Flattening belongs to what follows.
    ends = []
    for start in starts[1:]:
        end = start - 1
        while isinstance(layers[end][1], nn.Flatten):
            end -= 1
        ends.append(end)
    return dict(layers[end] for end in ends)


def _units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the units of a module by name, with containers opened."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        if isinstance(child, _CONTAINERS) and any(map(has_children, child)):
            yield from _units(child, name + ".")
        elif isinstance(child, nn.Sequential):
            if has_weight(child):
                yield name, child
        elif _is_unit(child):
            yield name, child


def _is_unit(module: nn.Module) -> bool:
    """Whether a module is made of others, and neither a container nor a normalisation with an activation inside."""
    return has_children(module) and not isinstance(module, (*_CONTAINERS, *_NORMS))


def has_children(module: nn.Module) -> bool:
    """Whether a module is made of others."""
    return next(module.children(), None) is not None  # not any(...): an empty container is falsy


def has_weight(module: nn.Module) -> bool:
    """Whether a module holds a weight matrix or kernel (as against the vectors of a normalisation layer)."""
    return any(parameter.ndim >= 2 for parameter in module.parameters())


def candidates(model: nn.Module) -> str:
    """Return a sentence for error messages that lists modules to choose as blocks."""
    layers = [m for m in model.modules() if has_weight(m) and not has_children(m)]
    if len(layers) == 1:
        return "Its only layer with weights counts as its head: score a model of two such layers or more."
    names = [name for name, module in model.named_modules() if name and has_weight(module)]
    if not names:
        return "It has no module with a weight matrix or kernel at all."
    shown = ", ".join(repr(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")
    return f"Name them with ProxyEvaluator(blocks=[...]); modules with weights: {shown}."
