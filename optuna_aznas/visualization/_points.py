"""Scatter plots of trials: the best as points, the others as a density, so that large studies stay quick."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from optuna_aznas.visualization._plotly import BLUE, GREEN, GREY, ORANGE, RED, Figure, compact, graph_objects
from optuna_aznas.visualization._scored import STATES, ScoredTrials

_Floats = npt.NDArray[np.float64]

_COLOURS = {"complete": BLUE, "pruned": ORANGE, "not feasible": RED, "failed": GREY}
_SYMBOLS = {"complete": "circle", "pruned": "triangle-down", "not feasible": "x", "failed": "cross"}

_CELLS = (90, 50)  # cells of the density, horizontally and vertically


def add_trials(
    figure: Figure,
    scored: ScoredTrials,
    x: npt.NDArray[Any],
    y: _Floats,
    *,
    limit: int,
    importance: _Floats,
    hover: str,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
) -> None:
    """Draw trials as points; of more than ``limit`` only the best, the others as a density behind them.

    The points are drawn as SVG, not with WebGL: a page of optuna-dashboard has more figures than a browser allows WebGL
    contexts, and machines without a graphics card may have no WebGL. As their number is bounded, SVG is as quick.

    Args:
        figure: The figure to draw on.
        scored: The n trials.
        x: Shape (n,), finite.
        y: Shape (n,), finite.
        limit: Number of trials that are drawn as points.
        importance: Shape (n,). The trials with the highest values are drawn as points.
        hover: Hover text, with plotly's ``%{x}``, ``%{y}`` and ``%{customdata}`` for the trial's number.
        log_x: Whether the horizontal axis is logarithmic.
        y_range: Range of the vertical axis. The density covers this range only.
    """
    go = graph_objects()
    order = np.argsort(importance, kind="stable")
    beyond = max(0, len(order) - limit)
    crowd, drawn = order[:beyond], np.sort(order[beyond:])
    if len(crowd):
        _add_density(figure, x[crowd], y[crowd], log_x, y_range)
    numbers = scored.numbers
    for state in STATES:
        rows = drawn[scored.states[drawn] == state]
        if not len(rows):
            continue
        figure.add_trace(
            go.Scatter(
                x=compact(x[rows]),
                y=compact(y[rows]),
                customdata=compact(numbers[rows]),
                mode="markers",
                name=state,
                marker={
                    "color": _COLOURS[state],
                    "symbol": _SYMBOLS[state],
                    "size": 6 if len(drawn) <= 300 else 5,
                    "opacity": 0.75 if state == "complete" else 0.6,
                },
                hovertemplate=f"{hover}<extra>{state}</extra>",
            )
        )


def add_best_line(
    figure: Figure, x: npt.NDArray[Any], s: _Floats, *, end: float, name: str, hovertemplate: str | None = None
) -> None:
    """Draw the highest rank score so far as steps over x.

    Args:
        figure: The figure to draw on.
        x: Shape (n,), ascending, n at least 1.
        s: Rank scores, shape (n,).
        end: Where the line ends.
        name: Its name in the legend.
        hovertemplate: Its hover text; by default it has none.
    """
    best = np.maximum.accumulate(s)
    steps = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)
    figure.add_trace(
        graph_objects().Scatter(
            x=compact(np.append(x[steps], end)),
            y=compact(np.append(best[steps], best[-1])),
            mode="lines",
            line={"shape": "hv", "color": GREEN, "width": 2.5},
            name=name,
            **({"hovertemplate": hovertemplate} if hovertemplate else {"hoverinfo": "skip"}),
        )
    )


def add_star(figure: Figure, scored: ScoredTrials, row: int, x: float, y: float, name: str) -> None:
    """Draw a star at one trial, with its number in the legend.

    Args:
        figure: The figure to draw on.
        scored: The trials.
        row: The trial's position among them.
        x: Where the star stands.
        y: Where the star stands.
        name: What stands out about the trial.
    """
    name = f"trial {scored.numbers[row]}: {name}"
    figure.add_trace(
        graph_objects().Scatter(
            x=[float(x)],
            y=[float(y)],
            mode="markers",
            name=name,
            marker={"color": GREEN, "size": 14, "symbol": "star"},
            hovertemplate=f"{name}<extra></extra>",
        )
    )


def in_density(n: int, limit: int) -> str:
    """Return a remark on how many of ``n`` trials :func:`add_trials` shows as a density."""
    return f"{n - limit:,} of them as grey density" if n > limit else ""


def _add_density(
    figure: Figure, x: npt.NDArray[Any], y: _Floats, log_x: bool, y_range: tuple[float, float] | None
) -> None:
    low, high = y_range or (float(y.min()), float(y.max()))
    inside = (y >= low) & (y <= high)
    if not inside.any() or low == high:
        return
    across = np.log10(x) if log_x else x
    counts, x_edges, y_edges = np.histogram2d(
        across[inside], y[inside], bins=_CELLS, range=[_extent(across), [low, high]]
    )
    middles = 0.5 * (x_edges[1:] + x_edges[:-1])
    shade = np.log1p(counts.T)
    figure.add_trace(
        graph_objects().Heatmap(
            x=compact(10.0**middles if log_x else middles),
            y=compact(0.5 * (y_edges[1:] + y_edges[:-1])),
            z=np.round(255 * shade / shade.max()).astype(np.uint8),
            colorscale=[[0, "rgba(255,255,255,0)"], [0.01, "#eeeeee"], [1, "#8a8a8a"]],
            showscale=False,
            hoverinfo="skip",
            name="density",
        )
    )


def _extent(values: _Floats) -> list[float]:
    low, high = float(values.min()), float(values.max())
    return [low, high] if high > low else [low - 0.5, high + 0.5]
