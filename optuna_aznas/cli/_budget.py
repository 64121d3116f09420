"""Keeps a search within a budget of multiply-accumulates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from optuna.trial import FixedTrial, FrozenTrial
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

#: User attribute of a trial: multiply-accumulates of its network. The constraint is computed before a trial has values.
COMPLEXITY_KEY = "aznas:complexity"


def constraint(budget: float) -> Callable[[FrozenTrial], Sequence[float]]:
    """Return a ``constraints_func``: trials above the budget are infeasible, hence neither parents nor printed."""
    return lambda trial: (trial.user_attrs[COMPLEXITY_KEY] / budget - 1.0,)


def within(
    budget: float, build: Callable[[Any], nn.Module], input_shape: Sequence[int]
) -> Callable[[dict[str, Any]], bool]:
    """Return a function for ``accept``: whether the network of a candidate keeps to the budget.

    Its multiply-accumulates are counted without computing anything, on the ``meta`` device. Where that cannot be done,
    as the candidate does not have all parameters yet or its network does not run there, it is let pass: the constraint
    decides when it has been scored.
    """

    @functools.lru_cache(maxsize=4096)
    def keeps_to_it(items: tuple[tuple[str, Any], ...]) -> bool:
        try:
            return count_macs(build(FixedTrial(dict(items))), input_shape) <= budget
        except Exception:
            return True

    def accept(params: dict[str, Any]) -> bool:
        try:
            return keeps_to_it(tuple(sorted(params.items())))
        except TypeError:  # a choice that is not hashable
            return True

    return accept


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> float:
    """Return the multiply-accumulates of one sample's forward pass. The model is moved to the ``meta`` device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.to("meta").eval()(torch.empty((1, *input_shape), device="meta"))
    return counter.get_total_flops() / 2
