"""plot_rank_against_value: the trained value against the rank score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import kendalltau, spearmanr

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas._text import for_plotly
from optuna_aznas.visualization._plotly import (
    BLUE,
    Figure,
    axis,
    compact,
    counted,
    empty_figure,
    graph_objects,
    new_figure,
    shown_range,
)
from optuna_aznas.visualization._points import add_star
from optuna_aznas.visualization._scored import ScoredTrials, best_and_some

TITLE = "Rank score and trained value"


def plot_rank_against_value(
    study: Study,
    *,
    target: Callable[[FrozenTrial], float] | None = None,
    target_name: str | None = None,
    max_points: int = 2000,
) -> Figure:
    """Plot the trained value of each completed trial against its rank score S, with their rank correlation.

    Args:
        study: The study. Without ``target`` it must have a single objective and trials with recorded proxy scores.
        target: Returns the value of a completed trial, as in :mod:`optuna.visualization`; the objective by default.
        target_name: Name of the value; by default the objective's metric name, or ``"Objective Value"``.
        max_points: Number of points, at least 2: half of them the best by S, the rest sampled evenly from the others.

    Returns:
        The figure. Values that are not finite are left out and counted in the title. The axes do not extend to
        outliers; a double click shows them.

    Raises:
        ValueError: ``target`` is missing in a study with several objectives, or is not a function; or ``max_points`` is
            out of range.
        ImportError: Plotly is not installed.
    """
    check_callable("target", target)
    check_count("max_points", max_points)
    graph_objects()
    if target is None and len(study.directions) > 1:
        raise ValueError(
            f"target must say which value of study {study.study_name!r} was trained, as it has "
            f"{len(study.directions)} objectives: for instance target=lambda trial: trial.values[0]."
        )
    direction = study.directions[0].name.lower() if target is None else ""
    if target_name is None:
        names = study.metric_names if target is None else None
        target_name = names[0] if names else "Objective Value"
    scored = ScoredTrials.of(study)
    trained = [i for i, trial in enumerate(scored.trials) if trial.state == TrialState.COMPLETE]
    values = np.array([_value(scored.trials[i], target) for i in trained], dtype=float)
    finite = np.isfinite(values)
    rows, values = np.array(trained, dtype=int)[finite], values[finite]
    if not len(rows):
        return empty_figure(TITLE, "No scored trial has been trained yet.")
    s = scored.rank_scores[rows]
    figure = new_figure(
        TITLE, [*_correlation(s, values), counted(int(np.count_nonzero(~finite)), "values not finite, left out")]
    )
    chosen = best_and_some(s, max(2, max_points))
    low, _ = shown_range(s)
    figure.add_trace(
        graph_objects().Scatter(
            x=compact(s[chosen]),
            y=compact(values[chosen]),
            customdata=compact(scored.numbers[rows[chosen]]),
            mode="markers",
            name="trained",
            marker={"color": BLUE, "size": 6, "opacity": 0.7},
            hovertemplate="trial %{customdata}<br>S = %{x:.3f}<br>%{y:.5g}<extra></extra>",
        )
    )
    if direction:
        best = int(np.argmax(values) if direction == "maximize" else np.argmin(values))
        add_star(figure, scored, int(rows[best]), s[best], values[best], "best value")
    figure.update_layout(
        xaxis=axis(title_text="rank score S (0 is best)", range=[low, -0.03 * low or 1.0]),
        yaxis=axis(
            title_text=for_plotly(target_name) + (f" ({direction})" if direction else ""),
            range=list(shown_range(values)),
        ),
    )
    return figure


def has_trained_values(study: Study) -> bool:
    """Whether :func:`plot_rank_against_value` has something to show without a ``target``."""
    return len(study.directions) == 1 and any(
        trial.state == TrialState.COMPLETE for trial in ScoredTrials.of(study).trials
    )


def _value(trial: FrozenTrial, target: Callable[[FrozenTrial], float] | None) -> float:
    value = trial.values[0] if target is None else target(trial)
    return float("nan") if value is None else float(value)


def _correlation(s: np.ndarray, values: np.ndarray) -> list[str]:
    trials = f"{len(s):,} trained trials" if len(s) > 1 else "1 trained trial"
    if len(np.unique(s)) < 2 or len(np.unique(values)) < 2:
        return [trials]
    tau, rho = kendalltau(s, values).statistic, spearmanr(s, values).statistic
    return [trials, f"Kendall's τ {tau:.2f}, Spearman's ρ {rho:.2f}"]
