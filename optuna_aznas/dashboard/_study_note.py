"""The note on a study: its leaderboard, and how to read it."""

from __future__ import annotations

from optuna.study import Study

from optuna_aznas._optuna import study_id
from optuna_aznas._text import for_markdown, number
from optuna_aznas.dashboard._markdown import table
from optuna_aznas.study import Leaderboard

_METHOD = """\
### How to read this

Each network was scored, untrained, with zero-cost proxies; bigger is better for each. Among the n scored trials,
*rank* counts from 1 for the lowest to n for the best, and the **aggregated rank** is

    S = sum over the proxies of log(rank / n)

It is at most 0, and 0 only for a network that is the best under every proxy. The logarithm makes a low rank under one
proxy weigh more than high ranks under others can make up for. S is a rank within this study at this moment: it changes
as the study grows, and means nothing across studies. (AZ-NAS, Lee and Ham, CVPR 2024.)"""

_WHAT = {
    "expressivity": "diversity of the features, summed over the blocks (nats)",
    "progressivity": "smallest gain in diversity from one block to the next (nats)",
    "trainability": "how well gradients pass through the blocks; at most 0",
    "complexity": "multiply-accumulates of one forward pass",
}


def study_note(study: Study, leaderboard: Leaderboard, n_scored: int) -> str:
    """Return the note as Markdown.

    Args:
        study: The study.
        leaderboard: Its best trials.
        n_scored: How many trials are ranked.
    """
    parts = [f"## {for_markdown(study.study_name)}: the best by aggregated rank"]
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
        f"{n_scored:,} trials are ranked.",
        table([*header, "parameters"], rows, words=-1),
        _METHOD,
        "\n".join(known),
    ]
    return "\n\n".join(filter(None, parts))
