"""Which parameters an architecture asks for, as far as others tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ABSENT = "absent"


class Presence:
    """What conditional parameters depend on, learned from architectures.

    For each parameter that only some architectures have, the parameter is looked for by whose value alone it can be
    told whether they have it: the depth, for the width of the fifth layer. Where there is none, it is taken to be
    present.

    Args:
        architectures: Parameters of architectures.
    """

    def __init__(self, architectures: Sequence[Mapping[str, Any]]) -> None:
        counts: dict[str, int] = {}
        for params in architectures:
            for name in params:
                counts[name] = counts.get(name, 0) + 1
        self._rules: dict[str, tuple[str, dict[Any, bool]]] = {}
        conditional = [name for name, count in counts.items() if count < len(architectures)]
        by_count = sorted(counts, key=lambda name: -counts[name])  # what all have comes first
        for name in conditional:
            for other in by_count:
                rule = None if other == name else _rule(name, other, architectures)
                if rule is not None:
                    self._rules[name] = (other, rule)
                    break

    def present(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of some parameters that the architecture asks for."""
        asked: dict[str, bool] = {}

        def is_asked(name: str, depth: int = 0) -> bool:
            if name not in asked:
                asked[name] = name in params
                if asked[name] and name in self._rules and depth < len(self._rules):
                    other, rule = self._rules[name]
                    asked[name] = _look_up(rule, params[other] if is_asked(other, depth + 1) else _ABSENT)
            return asked[name]

        return {name: value for name, value in params.items() if is_asked(name)}


def _rule(name: str, other: str, architectures: Sequence[Mapping[str, Any]]) -> dict[Any, bool] | None:
    """Return whether ``name`` is there by the value of ``other``; ``None`` if that does not tell it."""
    rule: dict[Any, bool] = {}
    for params in architectures:
        key = _key(params.get(other, _ABSENT))
        if rule.setdefault(key, name in params) != (name in params):
            return None
    # A rule that has never seen a value twice tells nothing.
    return rule if len(rule) <= len(architectures) / 2 else None


def _look_up(rule: Mapping[Any, bool], value: Any) -> bool:
    key = _key(value)
    if key in rule:
        return rule[key]
    numbers = [k for k in rule if isinstance(k, int | float)]
    if isinstance(key, int | float) and numbers:  # as its neighbour
        return rule[min(numbers, key=lambda k: abs(k - key))]
    return True


def _key(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
