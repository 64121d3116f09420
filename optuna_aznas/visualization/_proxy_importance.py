"""plot_proxy_importance: how much each proxy contributes to the ranking learned from trained values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.study import Study

from optuna_aznas.visualization._plotly import BLUE, Figure, axis, graph_objects, in_two_lines, new_figure

TITLE = "Proxy importance"


def plot_proxy_importance(study: Study, **arguments: Any) -> Figure:
    """Plot how much each proxy contributes to the ranking that is learned from trained values.

    Args:
        study: The study. Some of its scored trials must have a trained value.
        arguments: Passed on to :func:`~optuna_aznas.proxy_importance`, which computes the importances.

    Returns:
        The figure: a bar with the standard deviation for each proxy, the most important proxy first.

    Raises:
        ValueError: No trial has a trained value, or too few have.
        ImportError: Plotly is not installed.
    """
    from optuna_aznas import proxy_importance

    go = graph_objects()
    importance: Mapping[str, Any] = proxy_importance(study, **arguments)
    figure = new_figure(TITLE, ["mean and standard deviation"])
    figure.add_trace(
        go.Bar(
            x=[float(entry.mean) for entry in importance.values()],
            y=[in_two_lines(name) for name in importance],
            error_x={"type": "data", "array": [float(entry.std) for entry in importance.values()], "color": "#555555"},
            orientation="h",
            marker={"color": BLUE},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis=axis(title_text="importance"), yaxis=axis(autorange="reversed", type="category"), showlegend=False
    )
    return figure
