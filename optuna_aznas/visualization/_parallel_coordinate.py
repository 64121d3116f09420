"""plot_parallel_coordinate: the ranks of the trials under each proxy."""

from __future__ import annotations

import numpy as np
from optuna.study import Study

from optuna_aznas._arguments import check_count
from optuna_aznas._text import for_plotly
from optuna_aznas.visualization._plotly import (
    COLORSCALE,
    Figure,
    compact,
    empty_figure,
    graph_objects,
    new_figure,
    shown_range,
)
from optuna_aznas.visualization._scored import ScoredTrials, best_and_some, drawn_remark

TITLE = "Ranks under each proxy"


def plot_parallel_coordinate(study: Study, *, max_lines: int = 400) -> Figure:
    """Plot each trial's rank under each proxy as a line, coloured by the rank score S.

    The best of n trials has rank n, at the top. A trial with a high S has no low rank under any proxy, because S is a
    sum of logarithms. Draw a range on an axis to select lines.

    Args:
        study: The study.
        max_lines: Number of trials drawn, at least 2: half of them the best, the rest sampled evenly from the others.
            Ranks are those among all trials.

    Returns:
        The figure.

    Raises:
        ValueError: ``max_lines`` is out of range.
        ImportError: Plotly is not installed.
    """
    check_count("max_lines", max_lines)
    graph_objects()
    scored = ScoredTrials.of(study)
    if not len(scored):
        return empty_figure(TITLE, "No scored trial yet.")
    rows = best_and_some(scored.rank_scores, max(2, max_lines))
    n, ranks = len(scored), scored.ranks[rows]
    low, _ = shown_range(scored.rank_scores)
    dimensions = [
        {"label": for_plotly(name), "values": compact(column), "range": [1, max(n, 2)], "tickvals": []}
        for name, column in zip(scored.names, ranks.T, strict=True)
    ]
    s = np.clip(scored.rank_scores[rows], low, 0.0)
    # The remark says what the ends of the axes are, and the colour bar has the numbers of S.
    s_axis = {"label": "S", "values": compact(s), "range": [low, 0], "tickvals": []}
    figure = new_figure(
        TITLE,
        [*scored.summary(), drawn_remark(len(rows), len(scored)), f"rank {n:,} (best) is at the top, 1 at the bottom"],
    )
    figure.add_trace(
        graph_objects().Parcoords(
            dimensions=[*dimensions, s_axis],
            line={
                "color": compact(s),
                "colorscale": COLORSCALE,
                "cmin": low,
                "cmax": 0,
                "showscale": True,
                "colorbar": {"title": {"text": "S"}, "thickness": 12},
            },
            labelfont={"size": 11},
            labelangle=-30,
            rangefont={"color": "rgba(0,0,0,0)"},  # the lines would cover the ends' numbers
        )
    )
    figure.update_layout(margin={"l": 40, "r": 30, "t": figure.layout.margin.t + 60, "b": 30})
    return figure
