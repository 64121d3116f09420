"""The note on a study: its leaderboard and how to read it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from optuna.study import Study, StudyDirection

from optuna_aznas._optuna import study_id
from optuna_aznas._text import for_markdown, number, with_signs
from optuna_aznas.aggregation.consensus import describe_weights
from optuna_aznas.dashboard._markdown import table
from optuna_aznas.study import Leaderboard
from optuna_aznas.visualization._scored import ScoredTrials

_METHOD = """\
### How to read this

Each network was scored, untrained, with zero-cost proxies. Bigger is better for each proxy. Under each proxy, the n
scored trials have places from 1 for the best to n for the last. The **rank score** is

    S = sum over the proxies of weight * log((n + 1 - place) / n)

It is at most 0, and 0 only for a network that has place 1 under every proxy. Because of the logarithm, a network that
is bad under one proxy cannot make up for it under the others. S compares the networks of this study as it is now: it
changes as the study grows, and cannot be compared across studies. (AZ-NAS, Lee and Ham, CVPR 2024.)"""

_PARETO = (
    "What optuna-dashboard calls *Best Trials* is the Pareto front: every network that no other one beats under all "
    "proxies at once. These are many. The list above is ordered by S."
)

_WHAT = {
    "expressivity": "entropy of the features, summed over the blocks (nats)",
    "progressivity": "smallest step of entropy from one block to the next (nats)",
    "entropy_retention": "entropy that the features lose from block to block, in total (nats); 0 if they lose none",
    "trainability": "how close the largest singular value of each block's Jacobian is to 1; at most 0",
    "isometry": "how close all singular values of the blocks' Jacobians are to 1; at most 0",
    "jacobian_rank": "effective rank of the blocks' Jacobians",
    "activations": "number of values that the layers between input and output put out",
    "complexity": "multiply-accumulates of one forward pass",
}


def study_note(study: Study, leaderboard: Leaderboard, scored: ScoredTrials) -> str:
    """Return the note as Markdown.

    Args:
        study: The study.
        leaderboard: Its best trials.
        scored: Its scored trials.
    """
    parts = [f"## {for_markdown(study.study_name)}: the best by rank score"]
    if not leaderboard:
        return "\n\n".join([*parts, "No scored trial has been completed yet."])
    proxies = list(leaderboard[0].proxy_scores)
    numbers = (f"{name} ({unit})" if unit else name for name, unit in leaderboard.units.items())
    header = ["place", "trial", "S", *map(for_markdown, [*leaderboard[0].values, *proxies, *numbers])]
    rows = [
        [
            str(entry.place),
            _link(study, entry.number),
            with_signs(f"{entry.rank_score:.3f}"),
            *map(number, [*entry.values.values(), *entry.proxy_scores.values(), *leaderboard.medians(entry)]),
            _listed(leaderboard.differing_params(entry)),
        ]
        for entry in leaderboard
    ]
    known = [f"- **{name}**: {_WHAT[name]}" for name in proxies if name in _WHAT]
    shared = _listed(leaderboard.shared_params)
    parts += [
        _summary(study, leaderboard, scored),
        table([*header, "parameters"], rows, words=-1),
        f"All of them have {shared}." if shared else "",
        _PARETO if len(study.directions) > 1 else "",
        _METHOD,
        _weights(scored),
        "\n".join(known),
    ]
    return "\n\n".join(filter(None, parts))


def _summary(study: Study, leaderboard: Leaderboard, scored: ScoredTrials) -> str:
    """Say which network to take, and whether the search still gets better."""
    best = leaderboard[0]
    later = int(np.count_nonzero(scored.numbers > best.number))
    progress = (
        f"{later:,} trials were scored after it, none of them with a higher S" if later else "It is the newest trial"
    )
    take = f"**Take trial {_link(study, best.number)}**, the first of {len(scored):,} scored trials. {progress}."
    if not best.values or len(study.directions) > 1:
        return take
    direction = "lowest" if study.directions[0] == StudyDirection.MINIMIZE else "highest"
    trained = study.best_trial.number
    return (
        f"By proxy scores alone, trial {_link(study, best.number)} is the first of {len(scored):,} scored trials. "
        f"{progress}. By the trained value, **take trial {_link(study, trained)}**: it has the {direction} one."
    )


def _link(study: Study, trial: int) -> str:
    """Return a trial's number with a link. The number itself is no link: dark mode shows links in dark blue."""
    return f"{trial}\N{NO-BREAK SPACE}[↗](/dashboard/studies/{study_id(study)}/trials?numbers={trial})"


def _listed(params: Mapping[str, object]) -> str:
    return ", ".join(f"{for_markdown(name)}={for_markdown(value, longest=60)}" for name, value in params.items())


def _weights(scored: ScoredTrials) -> str:
    reduced = describe_weights([for_markdown(name) for name in scored.names], scored.weights)
    return f"The weights are 1, except: {reduced}." if reduced else "All weights are 1."
