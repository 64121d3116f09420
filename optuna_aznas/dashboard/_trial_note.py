"""The note on one of the best trials: its proxy scores, what they contribute to S, and what stands out."""

from __future__ import annotations

import math

import numpy as np
from optuna.study import StudyDirection

from optuna_aznas._text import for_markdown, number, with_signs
from optuna_aznas.dashboard._markdown import table
from optuna_aznas.study.attributes import architecture_names
from optuna_aznas.study.numbers import recorded_numbers
from optuna_aznas.visualization._scored import ScoredTrials

_MOST_DIFFERENCES = 4  # most differences from the best trial that are listed one by one


def trial_note(scored: ScoredTrials, row: int, place: int, best: int, direction: StudyDirection | None) -> str:
    """Return the note as Markdown.

    Args:
        scored: The study's scored trials.
        row: The trial's position among them.
        place: Its place on the leaderboard, from 1.
        best: The position of the trial in the first place.
        direction: The direction of the objective; ``None`` if no trained values are recorded.
    """
    n, places = len(scored), scored.places[row]
    parts = scored.weights * np.log((n + 1 - places) / n) + 0.0  # the sum turns -0 into 0
    rows = [
        [for_markdown(name), number(score), f"{under:,.10g} of {n:,}", with_signs(f"{part:.3f}")]
        for name, score, under, part in zip(scored.names, scored.proxy_scores[row], places, parts, strict=True)
    ]
    findings = [*_findings(scored, row, places, parts), *_differences(scored, row, best), *_numbers(scored, row)]
    if direction is not None:
        findings += _trained(scored, row, direction)
    return "\n\n".join(
        [
            with_signs(f"### Place {place} by rank score: S = {scored.rank_scores[row]:.3f}"),
            table(["proxy", "score", "place under it", "part of S"], rows, words=0),
            "\n".join(f"- {finding}" for finding in findings),
        ]
    )


def _findings(scored: ScoredTrials, row: int, places: np.ndarray, parts: np.ndarray) -> list[str]:
    n, names = len(scored), [f"**{for_markdown(name)}**" for name in scored.names]
    found = []
    top = [name for name, place in zip(names, places, strict=True) if place == 1]
    if top and n > 1:
        found.append(f"It is the best of all under {', '.join(top)}.")
    elif len(names) > 1:
        strongest = int(np.argmin(places))
        found.append(f"Its strong point is {names[strongest]}: place {places[strongest]:,.10g} of {n:,}.")
    weakest = int(np.argmin(parts))
    if len(names) > 1 and parts[weakest] < 0:
        share = parts[weakest] / scored.rank_scores[row]
        found.append(
            f"Its weak point is {names[weakest]}: place {places[weakest]:,.10g} of {n:,} makes up {share:.0%} of what "
            "S falls short of 0."
        )
    for name, score in zip(names, scored.proxy_scores[row], strict=True):
        if math.isinf(score) and score < 0:
            found.append(f"{name} is −∞: the network is dead, or has a block that does nothing.")
    return found


def _numbers(scored: ScoredTrials, row: int) -> list[str]:
    return [
        f"Its {for_markdown(name)} is {for_markdown(recorded.measurement)}"
        + (f", the limit {number(recorded.limit)}." if recorded.limit else ".")
        for name, recorded in recorded_numbers(scored.trials[row]).items()
        if name not in scored.names or recorded.limit
    ]


def _differences(scored: ScoredTrials, row: int, best: int) -> list[str]:
    if row == best:
        return []
    trial, first = scored.trials[row], scored.trials[best]
    names = dict.fromkeys([*architecture_names(first), *architecture_names(trial)])
    differ = [name for name in names if trial.params.get(name) != first.params.get(name)]
    if not differ:
        return [f"Its architecture is that of trial {first.number}, the best."]
    if len(differ) > _MOST_DIFFERENCES:
        return [f"It differs from trial {first.number}, the best, in {len(differ)} of {len(names)} parameters."]
    words = (
        f"{for_markdown(name)} is {_value(trial.params, name)} instead of {_value(first.params, name)}"
        for name in differ
    )
    return [f"It differs from trial {first.number}, the best, in this: {'; '.join(words)}."]


def _value(params: dict[str, object], name: str) -> str:
    return for_markdown(params[name], longest=60) if name in params else "absent"


def _trained(scored: ScoredTrials, row: int, direction: StudyDirection) -> list[str]:
    value = scored.trials[row].values[0]
    trained = [
        trial.values[0] for trial, state in zip(scored.trials, scored.states, strict=True) if state == "complete"
    ]
    better = sum(v > value if direction == StudyDirection.MAXIMIZE else v < value for v in trained)
    return [f"Trained, it gave {number(value)}: place {better + 1} of {len(trained):,} trained trials."]
