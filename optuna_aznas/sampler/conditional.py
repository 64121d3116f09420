"""ConditionalParameters: which parameters an architecture has, learned from other architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = "absent"  # stands for the value of a parameter that an architecture does not have


class ConditionalParameters:
    """Rules that say which parameters an architecture has.

    In Optuna a conditional parameter is one that the objective suggests in some trials only, and nothing declares what
    it depends on. Here that is inferred: for each parameter that only some architectures have, the first other
    parameter is taken whose value alone determines, in all architectures, whether they have it. The width of the fifth
    layer, for example, is determined by the depth. Parameters that most architectures have are tried first. Where
    there is no such parameter, the conditional one is taken to be present. A value that no architecture had is
    treated as the nearest number that one had.

    Args:
        architectures: Parameters of architectures.
    """

    def __init__(self, architectures: Sequence[Mapping[str, Any]]) -> None:
        counts: dict[str, int] = {}
        for params in architectures:
            for name in params:
                counts[name] = counts.get(name, 0) + 1
        self._rules: dict[str, tuple[str, dict[Any, bool]]] = {}  # name -> what it depends on, value -> present
        by_count = sorted(counts, key=lambda name: -counts[name])
        for name in (name for name, count in counts.items() if count < len(architectures)):
            for other in by_count:
                rule = None if other == name else _rule(name, other, architectures)
                if rule is not None:
                    self._rules[name] = (other, rule)
                    break

    def present(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the parameters that the architecture has."""
        if not self._rules:
            return dict(params)
        known: dict[str, bool] = {}
        for name in params:
            # What depends on what is a chain. It ends at a parameter that depends on none, or is known already; rules
            # that depend on each other in a circle end it too.
            chain: list[str] = []
            while name not in known:
                known[name] = name in params
                if known[name] and name in self._rules:
                    chain.append(name)
                    name = self._rules[name][0]
            for dependent in reversed(chain):
                other, rule = self._rules[dependent]
                known[dependent] = _look_up(rule, params[other] if known[other] else _ABSENT)
        return {name: value for name, value in params.items() if known[name]}


def _rule(name: str, other: str, architectures: Sequence[Mapping[str, Any]]) -> dict[Any, bool] | None:
    """Return whether ``name`` is present by the value of ``other``; ``None`` if that value does not determine it."""
    rule: dict[Any, bool] = {}
    for params in architectures:
        key = _key(params.get(other, _ABSENT))
        if rule.setdefault(key, name in params) != (name in params):
            return None
    # Where nearly every value occurs once, any parameter would determine any other: that is no evidence.
    return rule if len(rule) <= len(architectures) / 2 else None


def _look_up(rule: Mapping[Any, bool], value: Any) -> bool:
    key = _key(value)
    if key in rule:
        return rule[key]
    numbers = [k for k in rule if isinstance(k, int | float)]
    if isinstance(key, int | float) and numbers:
        return rule[min(numbers, key=lambda k: abs(k - key))]
    return True


def _key(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
