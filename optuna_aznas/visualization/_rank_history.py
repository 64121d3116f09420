"""plot_rank_history: the rank score of each trial by number, and the best so far."""

from __future__ import annotations

import numpy as np
from optuna.study import Study

from optuna_aznas._arguments import check_count
from optuna_aznas.visualization._plotly import (
    Figure,
    axis,
    counted,
    empty_figure,
    graph_objects,
    new_figure,
    shown_range,
)
from optuna_aznas.visualization._points import add_best_line, add_star, add_trials, in_density
from optuna_aznas.visualization._scored import ScoredTrials

TITLE = "Search history"


def plot_rank_history(study: Study, *, max_points: int = 1000) -> Figure:
    """Plot the rank score S of all scored trials by number, and the best so far.

    S compares all trials that are in the study now, so later trials change the S of earlier ones. Completed, pruned,
    failed and infeasible trials have markers of their own. The best so far is that of completed and feasible trials. A
    star marks the trial with the highest S, the one to take.

    Args:
        study: The study.
        max_points: Number of trials drawn as points, at least 1. The best are; the others are drawn as a density.

    Returns:
        The figure. The vertical axis does not extend to low outliers; a double click shows them.

    Raises:
        ValueError: ``max_points`` is out of range.
        ImportError: Plotly is not installed.
    """
    check_count("max_points", max_points)
    graph_objects()
    scored = ScoredTrials.of(study)
    if not len(scored):
        return empty_figure(TITLE, "No scored trial yet.")
    low, _ = shown_range(scored.rank_scores)
    bounds = (low, -0.06 * low)  # S is at most 0
    below = int(np.count_nonzero(scored.rank_scores < low))
    remarks = in_density(len(scored), max_points), counted(below, "below the axis (double click)")
    figure = new_figure(TITLE, [*scored.summary(), *remarks])
    add_trials(
        figure,
        scored,
        scored.numbers,
        scored.rank_scores,
        limit=max_points,
        importance=scored.rank_scores,
        hover="trial %{customdata}<br>S = %{y:.3f}",
        y_range=bounds,
    )
    rows = np.flatnonzero(scored.complete)
    if len(rows):
        add_best_line(
            figure,
            scored.numbers[rows],
            scored.rank_scores[rows],
            end=scored.numbers[-1],
            name="best so far",
            hovertemplate="trial %{x}<br>S = %{y:.3f}<extra>best so far</extra>",
        )
        best = rows[np.lexsort((scored.numbers[rows], -scored.rank_scores[rows]))[0]]
        add_star(figure, scored, best, scored.numbers[best], scored.rank_scores[best], "highest S")
    figure.update_layout(
        xaxis=axis(title_text="trial"), yaxis=axis(title_text="rank score S (0 is best)", range=list(bounds))
    )
    return figure
