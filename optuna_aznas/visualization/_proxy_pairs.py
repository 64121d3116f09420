"""plot_proxy_pairs: each pair of proxies, with its rank correlation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from scipy.stats import rankdata

from optuna_aznas._arguments import check_count
from optuna_aznas._text import for_plotly
from optuna_aznas.aggregation.consensus import describe_weights
from optuna_aznas.visualization._plotly import (
    COLORSCALE,
    GREY,
    Figure,
    axis,
    compact,
    counted,
    empty_figure,
    graph_objects,
    in_lines,
    in_two_lines,
    new_figure,
    shown_range,
)
from optuna_aznas.visualization._scored import ScoredTrials, best_and_some, drawn_remark

_Floats = npt.NDArray[np.float64]

TITLE = "Proxies pairwise"

_MOST_PANELS = 5  # proxies beyond which only the correlations are shown, as panels would be too small to read
_GAP = 0.025  # between two panels, as a share of the figure


def plot_proxy_pairs(study: Study, *, proxies: Sequence[str] | None = None, max_points: int = 4000) -> Figure:
    """Plot each proxy against each other, with Spearman's rank correlation over all scored trials.

    Two proxies with a high correlation tell almost the same; with a negative correlation no network is the best under
    both. A line below the title names each proxy shown that counts less in S, as it contradicts the others
    (:func:`~optuna_aznas.aggregation.consensus_weights`). The points are coloured by S. Outliers and ``-inf`` are drawn
    in grey on the border.

    Args:
        study: The study.
        proxies: Names of the proxies to show, two or more; by default all. For more than five, the figure is a table of
            correlations without points.
        max_points: Number of points in all panels together, at least 1: half of them the best trials, the rest sampled
            evenly from the others.

    Returns:
        The figure.

    Raises:
        ValueError: The study lacks one of ``proxies``; ``proxies`` has fewer than two names; or ``max_points`` is out
            of range.
        ImportError: Plotly is not installed.
    """
    check_count("max_points", max_points)
    graph_objects()
    scored = ScoredTrials.of(study)
    if not len(scored):
        return empty_figure(TITLE, "No scored trial yet.")
    names = list(scored.names) if proxies is None else list(proxies)
    if proxies is not None and (len(names) < 2 or not set(names) <= set(scored.names)):
        raise ValueError(f"proxies must be two or more of {list(scored.names)}; got {names}.")
    if len(names) < 2:
        return empty_figure(TITLE, "There is one proxy only.")
    table = scored.proxy_scores[:, [scored.names.index(name) for name in names]]
    correlation = rank_correlation(table)
    if len(names) > _MOST_PANELS:
        return _correlations(scored, names, correlation)
    return _panels(scored, names, table, correlation, max_points)


def _reduced(scored: ScoredTrials, names: list[str]) -> list[str]:
    """Return remarks on those of the proxies that count less in S than others."""
    weights = dict(zip(scored.names, scored.weights, strict=True))
    return in_lines(describe_weights([for_plotly(name) for name in names], [weights[name] for name in names]))


def rank_correlation(table: _Floats) -> _Floats:
    """Return Spearman's rank correlation of the columns of a table (n, m), shape (m, m).

    NaN for a constant column. ``-inf`` is the lowest value.
    """
    ranks = rankdata(table, axis=0)
    centred = ranks - ranks.mean(axis=0)
    norms = np.sqrt((centred**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(centred.T @ centred / np.outer(norms, norms), -1.0, 1.0)


def _correlations(scored: ScoredTrials, names: list[str], correlation: _Floats) -> Figure:
    figure = new_figure(f"{TITLE}: rank correlation", [*scored.summary(), "Spearman's ρ", *_reduced(scored, names)])
    labels = [in_two_lines(name) for name in names]
    figure.add_trace(
        graph_objects().Heatmap(
            x=labels,
            y=labels,
            z=compact(correlation),
            zmin=-1,
            zmax=1,
            colorscale="RdBu",
            texttemplate="%{z:.2f}",
            hovertemplate="%{y}, %{x}: ρ = %{z:.3f}<extra></extra>",
            showscale=False,
        )
    )
    figure.update_layout(
        xaxis=axis(tickangle=-45, tickfont={"size": 11}), yaxis=axis(autorange="reversed", tickfont={"size": 11})
    )
    return figure


def _panels(scored: ScoredTrials, names: list[str], table: _Floats, correlation: _Floats, max_points: int) -> Figure:
    m = len(names)
    pairs = list(itertools.combinations(range(m), 2))
    rows = best_and_some(scored.rank_scores, max(2, max_points // len(pairs)))
    ranges = [shown_range(column) if np.isfinite(column).any() else (-1.0, 1.0) for column in table.T]
    lows, highs = np.array(ranges).T
    inset = 0.02 * (highs - lows)
    drawn = np.clip(table[rows], lows + inset, highs - inset)
    outside = np.any(drawn != table[rows], axis=1)
    remark = counted(int(np.count_nonzero(outside)), "with a score off the axes (grey, on the border)")
    figure = new_figure(
        TITLE, [*scored.summary(), drawn_remark(len(rows), len(scored)), remark, *_reduced(scored, names)]
    )
    figure.update_layout(showlegend=False)
    size = (1.0 - _GAP * (m - 2)) / (m - 1)
    for panel, (column, row) in enumerate(pairs, start=1):
        suffix = "" if panel == 1 else str(panel)
        left, bottom = column * (size + _GAP), (m - 1 - row) * (size + _GAP)
        place = {f"xaxis{suffix}": [left, left + size], f"yaxis{suffix}": [bottom, bottom + size]}
        last_row, first_column = row == m - 1, column == 0
        for name, domain, variable, titled, anchor in (
            (f"xaxis{suffix}", place[f"xaxis{suffix}"], column, last_row, f"y{suffix}"),
            (f"yaxis{suffix}", place[f"yaxis{suffix}"], row, first_column, f"x{suffix}"),
        ):
            figure.update_layout({name: _panel_axis(names[variable], domain, ranges[variable], titled, anchor)})
        for subset, inside in ((~outside, True), (outside, False)):
            if subset.any():
                _add_points(figure, scored, rows[subset], drawn[subset][:, [column, row]], suffix, inside)
        figure.add_annotation(
            x=left + 0.01,
            y=bottom + size,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="top",
            showarrow=False,
            bgcolor="rgba(255,255,255,0.75)",
            text=f"<b>ρ = {correlation[row, column]:.2f}</b>",
        )
    figure.update_layout(
        coloraxis={
            "colorscale": COLORSCALE,
            "cmin": shown_range(scored.rank_scores)[0],
            "cmax": 0,
            "colorbar": {"title": {"text": "S"}, "len": 0.5, "y": 1, "yanchor": "top", "thickness": 12},
        }
    )
    return figure


def _panel_axis(
    name: str, domain: list[float], bounds: tuple[float, float], titled: bool, anchor: str
) -> dict[str, Any]:
    return axis(
        domain=domain,
        range=list(bounds),
        anchor=anchor,
        title={"text": for_plotly(name) if titled else "", "font": {"size": 11}},
        showticklabels=titled,
        nticks=4,
        tickfont={"size": 9},
        showline=True,
        mirror=True,
    )


def _add_points(
    figure: Figure, scored: ScoredTrials, rows: npt.NDArray[np.int64], points: _Floats, suffix: str, inside: bool
) -> None:
    marker = {"size": 4, "opacity": 0.7}
    colour = {"color": compact(scored.rank_scores[rows]), "coloraxis": "coloraxis"} if inside else {"color": GREY}
    figure.add_trace(
        graph_objects().Scatter(
            x=compact(points[:, 0]),
            y=compact(points[:, 1]),
            customdata=compact(scored.numbers[rows]),
            mode="markers",
            marker={**marker, **colour},
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
            hovertemplate="trial %{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>"
            if inside
            else "trial %{customdata}<extra>off the axes</extra>",
        )
    )
