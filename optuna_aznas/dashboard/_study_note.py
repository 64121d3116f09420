"""The note on a study: its leaderboard and how to read it."""

from __future__ import annotations

from optuna.study import Study

from optuna_aznas._optuna import study_id
from optuna_aznas._text import for_markdown, number
from optuna_aznas.aggregation.consensus import describe_weights
from optuna_aznas.dashboard._markdown import table
from optuna_aznas.study import Leaderboard
from optuna_aznas.visualization._scored import ScoredTrials

_METHOD = """\
### How to read this

Each network was scored, untrained, with zero-cost proxies. Bigger is better for each proxy. Under each proxy, the n
scored trials have ranks from 1 for the lowest to n for the best. The **rank score** is

    S = sum over the proxies of weight * log(rank / n)

It is at most 0, and 0 only for a network that is the best under every proxy. Because of the logarithm, a network that
is bad under one proxy cannot make up for it under the others. S compares the networks of this study as it is now: it
changes as the study grows, and cannot be compared across studies. (AZ-NAS, Lee and Ham, CVPR 2024.)"""

_WHAT = {
    "expressivity": "entropy of the features, summed over the blocks (nats)",
    "progressivity": "smallest step of entropy from one block to the next (nats)",
    "entropy_retention": "entropy that the features lose from block to block, in total (nats); 0 if they lose none",
    "trainability": "how close the largest singular value of each block's Jacobian is to 1; at most 0",
    "isometry": "how close all singular values of the blocks' Jacobians are to 1; at most 0",
    "jacobian_rank": "effective rank of the blocks' Jacobians, from 0 to 1",
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
    values = study.metric_names if len(study.directions) == 1 else None
    trained = len(study.directions) == 1
    header = ["place", "trial", "S", *map(for_markdown, proxies)]
    if trained:
        header.append(for_markdown(values[0] if values else "value"))
    rows = [
        [
            str(entry.place),
            f"[{entry.number}](/dashboard/studies/{study_id(study)}/trials?numbers={entry.number})",
            f"{entry.rank_score:.3f}".replace("-", "−"),
            *(number(value) for value in entry.proxy_scores.values()),
            *([number(entry.values[0])] if trained else []),
            ", ".join(
                f"{for_markdown(name)}={for_markdown(value, longest=60)}" for name, value in entry.params.items()
            ),
        ]
        for entry in leaderboard
    ]
    known = [f"- **{name}**: {_WHAT[name]}" for name in proxies if name in _WHAT]
    parts += [
        f"{len(scored):,} trials are ranked.",
        table([*header, "parameters"], rows, words=-1),
        _METHOD,
        _weights(scored),
        "\n".join(known),
    ]
    return "\n\n".join(filter(None, parts))


def _weights(scored: ScoredTrials) -> str:
    reduced = describe_weights([for_markdown(name) for name in scored.names], scored.weights)
    return f"The weights are 1, except: {reduced}." if reduced else "All weights are 1."
