"""Imports plotly when it is needed; colours, axes, titles and number types that all figures share."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optuna_aznas._text import for_plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

Figure: TypeAlias = "go.Figure"

#: Colours that colour-blind people can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#9a9a9a"

#: Colours for S, from light to dark: the best trials are dark on a white background.
COLORSCALE = "Viridis_r"

_LINE = 50  # characters of remarks on one line: optuna-dashboard shows figures 340 pixels wide on a phone

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "#333333"}
_AXIS = {"gridcolor": "#e8e8e8", "linecolor": "#bbbbbb", "zeroline": False, "automargin": True}


def is_available() -> bool:
    """Whether plotly is installed, so that figures can be drawn."""
    return importlib.util.find_spec("plotly") is not None


def graph_objects() -> Any:
    """Return ``plotly.graph_objects``.

    Raises:
        ImportError: Plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError(
            "Figures are drawn by plotly, which is not installed: pip install 'optuna-aznas[visualization]', or "
            "'optuna-aznas[dashboard]' to see them in optuna-dashboard."
        ) from error
    return go


def new_figure(title: str, remarks: Iterable[str] = ()) -> Figure:
    """Return an empty figure in the package's look.

    Args:
        title: Plotly text. Text of a user must be escaped first, by :func:`~optuna_aznas._text.for_plotly`.
        remarks: Plotly text for smaller lines below the title; empty remarks are left out.
    """
    lines: list[str] = []
    for remark in filter(None, remarks):
        if lines and len(lines[-1]) + len(remark) < _LINE:
            lines[-1] += f" · {remark}"
        else:
            lines.append(remark)
    figure = graph_objects().Figure()
    below = "".join(f"<br><span style='font-size:12px;color:#666666'>{line}</span>" for line in lines)
    figure.update_layout(
        # Without it plotly adds its default template, 7 KB, to every figure that is stored.
        template="none",
        title={
            "text": title + below,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 16, "t": 22},
            "font": {"size": 15},
        },
        font=_FONT,
        paper_bgcolor="white",
        plot_bgcolor="white",
        hovermode="closest",
        margin={"l": 60, "r": 24, "t": 62 + 17 * len(lines), "b": 75},
        legend={"orientation": "h", "x": 0, "y": -0.19, "yanchor": "top"},
    )
    return figure


def axis(**properties: Any) -> dict[str, Any]:
    """Return the properties of an axis in the package's look."""
    return {**_AXIS, **properties}


def in_two_lines(name: str) -> str:
    """Return a proxy's name as plotly text, broken near its middle at an underscore if it is long."""
    places = [i for i, character in enumerate(name) if character == "_"]
    if len(name) <= 12 or not places:
        return for_plotly(name)
    middle = min(places, key=lambda i: abs(i - len(name) / 2))
    return f"{for_plotly(name[:middle])}<br>{for_plotly(name[middle:])}"


def empty_figure(title: str, message: str) -> Figure:
    """Return a figure that shows a message instead of data."""
    figure = new_figure(title)
    figure.update_layout(
        xaxis={"visible": False},
        yaxis={"visible": False},
        annotations=[{"text": message, "showarrow": False, "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}],
    )
    return figure


def compact(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return numbers in a small type, as figures are stored in a database and sent to a browser.

    Integers stay exact; floats are rounded to seven digits.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return array.astype(kind)
    return array.astype(np.float32) if np.all(np.abs(array[np.isfinite(array)]) < 1e38) else array.astype(np.float64)


def shown_range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return an axis range without outliers.

    An outlier lies more than three times the distance between the quartiles beyond them ("far out", Tukey).

    Args:
        values: At least one finite number.
    """
    finite = values[np.isfinite(values)]
    low, first, third, high = np.quantile(finite, [0.0, 0.25, 0.75, 1.0])
    if third > first:
        low, high = max(low, first - 3.0 * (third - first)), min(high, third + 3.0 * (third - first))
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return float(low - margin), float(high + margin)


def in_lines(remark: str) -> list[str]:
    """Return a long remark for a title, plotly text, as one remark a line."""
    return textwrap.wrap(remark, _LINE, break_long_words=False, break_on_hyphens=False)


def counted(n: int, what: str) -> str:
    """Return a number with its noun, or nothing for 0."""
    return f"{n:,} {what}" if n else ""
