"""plot_complexity: rank score against complexity, with the budget."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from optuna.study import Study

from optuna_aznas._arguments import check_count
from optuna_aznas._text import for_plotly
from optuna_aznas.study.numbers import RecordedNumber, recorded_numbers
from optuna_aznas.visualization._plotly import (
    RED,
    Figure,
    axis,
    counted,
    empty_figure,
    graph_objects,
    new_figure,
    shown_range,
)
from optuna_aznas.visualization._points import add_best_line, add_trials, in_density
from optuna_aznas.visualization._scored import ScoredTrials

TITLE = "Complexity and rank score"


def plot_complexity(
    study: Study, *, budget: float | None = None, proxy: str = "complexity", max_points: int = 1000
) -> Figure:
    """Plot the rank score S of each trial against its complexity, with the best S up to each complexity.

    Args:
        study: The study.
        budget: The greatest complexity that is allowed, in the unit of ``proxy``, above 0; drawn as a vertical line. By
            default the limit of :class:`~optuna_aznas.Limits`, if ``proxy`` has one.
        proxy: What measures the cost: a proxy, a recorded number such as ``"latency"``
            (:func:`~optuna_aznas.record_numbers`), or a user attribute that is a number. The default is in
            multiply-accumulates.
        max_points: Number of trials drawn as points, at least 1. The best are; the others are drawn as a density.

    Returns:
        The figure. Its horizontal axis is logarithmic if the complexities differ by more than a factor of 20. The line
        of the best S takes completed and feasible trials into account.

    Raises:
        ValueError: The study has no such proxy or number; ``budget`` is not above 0; or ``max_points`` is out of range.
        ImportError: Plotly is not installed.
    """
    check_count("max_points", max_points)
    if budget is not None and not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be a number above 0, in the unit of {proxy!r}; got {budget!r}.")
    graph_objects()
    scored = ScoredTrials.of(study)
    if not len(scored):
        return empty_figure(TITLE, "No scored trial yet.")
    known = {**_numbers(scored), **dict(zip(scored.names, scored.proxy_scores.T, strict=True))}
    if proxy not in known:
        raise ValueError(
            f"proxy must be one of the study's proxies, {list(scored.names)}, or a number of its trials, "
            f"{[name for name in known if name not in scored.names]}; got {proxy!r}."
        )
    recorded = [numbers[proxy] for trial in scored.trials if proxy in (numbers := recorded_numbers(trial))]
    if budget is None and recorded:
        budget = recorded[-1].limit
    cost = known[proxy]
    finite = np.isfinite(cost)
    scored, cost = scored.take(finite), cost[finite]
    if not len(scored):
        return empty_figure(_title(proxy), f"No trial has a finite {for_plotly(proxy)}.")
    log = bool(cost.min() > 0 and max(cost.max(), budget or 0.0) > 20 * cost.min())
    low, _ = shown_range(scored.rank_scores)
    bounds = (low, -0.04 * low)
    over = int(np.count_nonzero(cost > budget)) if budget else 0
    remarks = (
        in_density(len(scored), max_points),
        counted(over, "above the budget"),
        counted(int(np.count_nonzero(~finite)), "not finite, left out"),
    )
    figure = new_figure(_title(proxy), [*scored.summary(), *remarks])
    add_trials(
        figure,
        scored,
        cost,
        scored.rank_scores,
        limit=max_points,
        importance=scored.rank_scores,
        hover="trial %{customdata}<br>%{x:.4s}<br>S = %{y:.3f}",
        log_x=log,
        y_range=bounds,
    )
    rows = np.flatnonzero(scored.complete)
    if len(rows):
        rows = rows[np.lexsort((-scored.rank_scores[rows], cost[rows]))]
        add_best_line(figure, cost[rows], scored.rank_scores[rows], end=cost[rows][-1], name="best up to here")
    figure.update_layout(
        xaxis=axis(
            title_text=_unit(proxy, recorded), tickformat="~s", **({"type": "log", "dtick": "D2"} if log else {})
        ),
        yaxis=axis(title_text="rank score S (0 is best)", range=list(bounds)),
    )
    if budget:
        figure.add_vline(
            x=budget, line={"color": RED, "dash": "dash"}, annotation_text="budget", annotation_position="bottom right"
        )
    return figure


def _title(proxy: str) -> str:
    return TITLE if proxy == "complexity" else f"{for_plotly(proxy)} and rank score"


def _numbers(scored: ScoredTrials) -> dict[str, npt.NDArray[np.float64]]:
    """Return the recorded numbers and numerical user attributes of n trials by name, each (n,), NaN where missing."""
    found: dict[str, npt.NDArray[np.float64]] = {}
    for row, trial in enumerate(scored.trials):
        own = {key: value for key, value in trial.user_attrs.items() if type(value) in (int, float)}
        own |= {name: number.measurement.median for name, number in recorded_numbers(trial).items()}
        for name, value in own.items():
            found.setdefault(name, np.full(len(scored), np.nan))[row] = value
    return found


def _unit(proxy: str, recorded: list[RecordedNumber]) -> str:
    unit = "multiply-accumulates" if proxy == "complexity" else recorded[-1].measurement.unit if recorded else ""
    return for_plotly(f"{proxy} ({unit})" if unit else proxy)
