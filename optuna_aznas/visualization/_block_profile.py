"""plot_block_profile: entropy, step, spectral norm and complexity of each block of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optuna_aznas._text import for_plotly, number
from optuna_aznas.visualization._plotly import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    Figure,
    axis,
    graph_objects,
    new_figure,
)

TITLE = "Block profile"

_TICKS = 16  # names of blocks that fit below a panel

_SOUND_SIGMAS = (0.5, 2.0)  # spectral norms beyond these die or explode, by diagnose's rule

_ROWS = ("entropy (nats)", "step of entropy", "spectral norm", "complexity (share)")


def plot_block_profile(subject: Any, other: Any = None, *, labels: Sequence[str] | None = None) -> Figure:
    """Plot a model block by block; or two models side by side, on the same scales.

    The panels show, from top to bottom:

    * the entropy of each block's features, in nats;
    * its step from the block before, negative where expressivity is lost;
    * the spectral norm of the block's mean Jacobian: gradients grow above 1 and shrink below;
    * the block's share of the model's complexity.

    Args:
        subject: The result of :func:`~optuna_aznas.diagnose`, a :class:`~optuna_aznas.ProxyScores`, or a pair of a
            ``torch.nn.Module`` and the :class:`~optuna_aznas.ProxyEvaluator` that scores it.
        other: A second subject to compare with.
        labels: A name for each subject; by default the model's class, or "model".

    Returns:
        The figure. A red cross marks a block whose features have no entropy (constant, or not finite), and one whose
        gradients die or explode by the rule of :func:`~optuna_aznas.diagnose`. The horizontal axis names up to 16
        blocks; the hover text of every panel has the name.

    Raises:
        TypeError: ``subject`` or ``other`` is of another type.
        ValueError: A subject has no blocks, or the number of ``labels`` is not the number of subjects.
        ImportError: Plotly is not installed.
    """
    go = graph_objects()
    subjects = [subject] if other is None else [subject, other]
    profiles = [_blocks_of(each, name) for each, name in zip(subjects, ("subject", "other"), strict=False)]
    if labels is None:
        labels = [_label(each) for each in subjects]
    if len(labels) != len(subjects):
        raise ValueError(f"labels must name each of the {len(subjects)} models; got {list(labels)}.")
    figure = new_figure(TITLE, [for_plotly(label) for label in labels])
    figure.update_layout(showlegend=False, bargap=0.25)
    width, gap = (1.0, 0.0) if len(subjects) == 1 else (0.47, 0.06)
    height = 0.2
    space = (1.0 - len(_ROWS) * height) / (len(_ROWS) - 1)
    for column, (blocks, label) in enumerate(zip(profiles, labels, strict=True)):
        left = column * (width + gap)
        for row, title in enumerate(_ROWS):
            panel = row * len(subjects) + column + 1
            suffix = "" if panel == 1 else str(panel)
            bottom = max(0.0, (len(_ROWS) - 1 - row) * (height + space))
            _add_panel(figure, go, row, blocks, suffix)
            last = row == len(_ROWS) - 1
            ticks = list(range(0, len(blocks), math.ceil(len(blocks) / _TICKS)))
            x_axis = axis(
                domain=[left, left + width],
                anchor=f"y{suffix}",
                range=[-0.6, len(blocks) - 0.4],
                tickvals=ticks,
                ticktext=[for_plotly(_short(blocks[i].name)) for i in ticks],
                showticklabels=last,
                tickangle=-40,
                tickfont={"size": 10},
                showgrid=False,
                matches=None if row == 0 else f"x{'' if column == 0 else column + 1}",
            )
            y_axis = axis(
                domain=[bottom, min(1.0, bottom + height)],
                anchor=f"x{suffix}",
                title={"text": title if column == 0 else "", "font": {"size": 10}},
                range=_range_of_row([_values(blocks, row) for blocks in profiles]),
                nticks=4,
                tickfont={"size": 9},
                tickformat=".0%" if last else None,
            )
            figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
        if len(subjects) > 1:
            figure.add_annotation(
                text=f"<b>{for_plotly(label)}</b>",
                x=left + width / 2,
                y=1.0,
                xref="paper",
                yref="paper",
                xanchor="center",
                yanchor="bottom",
                showarrow=False,
            )
    figure.update_layout(height=640, margin={"b": 80})
    return figure


def _blocks_of(subject: Any, argument: str) -> Sequence[Any]:
    blocks = getattr(subject, "blocks", None)
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        if not isinstance(subject, tuple) or len(subject) != 2 or not callable(subject[1]):
            raise TypeError(
                f"{argument} must be a diagnosis, ProxyScores, or a pair (model, evaluator); "
                f"got {type(subject).__name__}."
            )
        model, evaluator = subject
        blocks = evaluator(model).blocks
    if not blocks:
        raise ValueError(f"{argument} has no blocks to show: its scores do not come from a ProxyEvaluator.")
    return blocks


def _label(subject: Any) -> str:
    is_pair = isinstance(subject, tuple) and getattr(subject, "blocks", None) is None
    return type(subject[0]).__name__ if is_pair else getattr(subject, "model_name", "model")


def _short(name: str) -> str:
    return name if len(name) <= 22 else "…" + name[-21:]


def _values(blocks: Sequence[Any], row: int) -> npt.NDArray[np.float64]:
    """Return the values of the blocks in a row of panels, NaN if not finite."""
    total = sum(block.complexity for block in blocks if math.isfinite(block.complexity))
    # A diagnosis has the share of the whole model's complexity. Otherwise the share is that of all blocks together.
    shares = [getattr(block, "share", block.complexity / total if total else math.nan) for block in blocks]
    shown = [
        (block.entropy, block.step, block.spectral_norm, share)[row]
        for block, share in zip(blocks, shares, strict=True)
    ]
    return np.array([value if math.isfinite(value) else math.nan for value in shown])


def _range_of_row(rows: Sequence[npt.NDArray[np.float64]]) -> list[float]:
    """Return the range of the panels in a row, which includes 0."""
    values = np.concatenate([[0.0], *rows])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.08 * (high - low) or 1.0
    return [low - margin if low < 0 else 0.0, high + margin]


def _add_panel(figure: Figure, go: Any, row: int, blocks: Sequence[Any], suffix: str) -> None:
    x, values = list(range(len(blocks))), _values(blocks, row)
    common: dict[str, Any] = {
        "x": x,
        "y": [None if math.isnan(value) else round(float(value), 5) for value in values],
        "hovertext": [_hover(block) for block in blocks],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
    }
    if row == 0:
        figure.add_trace(go.Scatter(**common, mode="lines+markers", line={"color": BLUE}, marker={"size": 6}))
        dead = [i for i, value in enumerate(values) if math.isnan(value)]
        _add_crosses(figure, go, blocks, dead, [0.0] * len(dead), "no entropy", suffix)
    elif row == 2:
        figure.add_trace(go.Scatter(**common, mode="lines+markers", line={"color": ORANGE}, marker={"size": 6}))
        bad = [i for i, sigma in enumerate(values) if sigma < _SOUND_SIGMAS[0] or sigma > _SOUND_SIGMAS[1]]
        _add_crosses(figure, go, blocks, bad, values[bad], "gradients die or explode", suffix)
        # A line at 1, where gradients keep their length.
        figure.add_trace(
            go.Scatter(
                x=[-0.6, len(blocks) - 0.4],
                y=[1, 1],
                mode="lines",
                line={"color": GREY, "dash": "dot", "width": 1},
                hoverinfo="skip",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
    else:
        colour = [RED if value < 0 else BLUE for value in values] if row == 1 else GREY
        figure.add_trace(go.Bar(**common, marker={"color": colour}))


def _add_crosses(
    figure: Figure, go: Any, blocks: Sequence[Any], at: Sequence[int], y: npt.ArrayLike, what: str, suffix: str
) -> None:
    """Mark the blocks at some positions with red crosses."""
    if len(at):
        figure.add_trace(
            go.Scatter(
                x=at,
                y=y,
                mode="markers",
                marker={"color": RED, "symbol": "x", "size": 9},
                hovertext=[_hover(blocks[i]) for i in at],
                hovertemplate=f"%{{hovertext}}<extra>{what}</extra>",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )


def _hover(block: Any) -> str:
    lines = [
        f"<b>{for_plotly(block.name)}</b> {for_plotly(tuple(block.shape))}",
        f"entropy {number(block.entropy)}, step {number(block.step)}",
        f"spectral norm {number(block.spectral_norm)}, trainability {number(block.trainability)}",
        f"complexity {number(block.complexity)}",
        *(for_plotly(finding, longest=200) for finding in getattr(block, "findings", ())),
    ]
    return "<br>".join(lines)
