"""What all figures share: their style, parts of them, and how they are written."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import xarray as xr
from matplotlib import figure as mpl_figure
from matplotlib.backends import backend_agg

from regularized_lopt.measure import selections
from regularized_lopt.statistics import Difference

# Distinguishable for colour-blind readers and mid-tone, so that they stand out on white and on
# black.
COLORS = (
    "#3d8ed6",
    "#e0752d",
    "#2ca58d",
    "#c75b9b",
    "#8f7ee7",
    "#b39b1d",
    "#8a8f98",
    "#d9534f",
    "#4fb3bf",
    "#8c6d4f",
    "#6f9c3d",
    "#a8455f",
    "#4a6fa5",
)
STYLE = {
    "grid.color": "#80808055",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # Where it is anyway; to look for what is in its way takes long.
}


_TITLE_WIDTH = 24
"""Characters of a title that fit above one of `panels`."""


def new_figure(
    columns: int, width: float = 9.6, height: float = 3.3, rows: int = 1
) -> tuple[mpl_figure.Figure, Any]:
    """An empty figure, to be filled within `rc_context(STYLE)`: (figure, axes in one line)."""
    figure = mpl_figure.Figure(figsize=(width, rows * height), layout="constrained")
    return figure, np.ravel(figure.subplots(rows, columns))


def panels(
    count: int, columns: int, height: float, sharey: bool = True
) -> tuple[mpl_figure.Figure, np.ndarray]:
    """One panel per task, at most `columns` in a line, each line `height` inches high."""
    lines = -(-count // columns)
    columns = -(-count // lines)
    size = (max(4.8, 1.2 + 2.0 * columns), lines * height)
    figure = mpl_figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, sharey=sharey, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def panel_title(axis: Any, title: str) -> None:
    """Above one of `panels`, in lines that do not run into its neighbour's."""
    axis.set_title(textwrap.fill(title, _TITLE_WIDTH))


def cycle() -> Any:
    """The colours, again and again."""
    return (COLORS[i % len(COLORS)] for i in range(1000))


def palette(tasks: Sequence[xr.Dataset]) -> dict[str, str]:
    """A colour for every optimizer of any task."""
    return dict(zip(selections.names(tasks), cycle(), strict=False))


def styled(
    task: xr.Dataset,
    keys: Sequence[str] | None = None,
    colors: Mapping[str, str] | None = None,
) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Optimizers with their labels and colours, default: of the task alone; baselines dashed."""
    colors = colors or palette([task])
    for key in selections.keys(task):
        if keys is None or key in keys:
            one = selections.optimizer(task, key)
            line = "-" if selections.is_learned(one) else "--"
            yield {"label": one["name"].item(), "color": colors[key], "linestyle": line}, one


def interval(axis: Any, y: float, difference: Difference, factor: float, color: str) -> None:
    """A difference, times a factor, and its 95% interval, if it has one."""
    if np.isfinite(difference.mean):
        ends = [difference.low * factor, difference.high * factor]
        if np.all(np.isfinite(ends)):
            axis.plot(ends, [y, y], color=color, linewidth=1.6)
        axis.plot(difference.mean * factor, y, "o", color=color, markersize=4)


def band(axis: Any, x: np.ndarray, runs: np.ndarray, **style: Any) -> None:
    """The mean of [runs, len(x)], and one standard deviation around it."""
    mean = runs.mean(axis=0)
    axis.plot(x, mean, linewidth=1.5, **style)
    if len(runs) > 1:
        std = runs.std(axis=0, ddof=1)
        # On a logarithmic axis mean - std may be negative: end the band at the lowest run instead.
        axis.fill_between(
            x,
            np.maximum(mean - std, runs.min(axis=0)),
            mean + std,
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )


def log_if_some_fail(axis: Any, which: str) -> None:
    """Errors of 2 and 3% can be told apart beside one of 90%, losses of 0.01 beside one of 1."""
    low, high = getattr(axis.dataLim, f"interval{which}")
    if 0 < low < high / 5:
        # Over more than two decades the powers of ten are enough.
        steps = (1, 2, 5) if high <= 100 * low else (1,)
        decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        ticks = [t for decade in decades for t in np.multiply(steps, 10.0**decade)]
        ticks = [t for t in ticks if low <= t <= high]
        getattr(axis, f"set_{which}scale")("log")
        getattr(axis, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])
        getattr(axis, f"set_{which}ticks")([], minor=True)


def legend_below(figure: mpl_figure.Figure, *axes: Any) -> None:
    """One legend for the whole figure, where it hides no curve."""
    drawn = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    columns = max(1, int(figure.get_figwidth() / 1.9))
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns, fontsize=8
    )


def to_png(figure: mpl_figure.Figure) -> bytes:
    """The figure on white, in 256 colours, a third of the bytes of all."""
    canvas, quantized = backend_agg.FigureCanvasAgg(figure), io.BytesIO()
    figure.set(dpi=140, facecolor="white")
    with matplotlib.rc_context(STYLE):
        # Laid out first and drawn once; `savefig` draws twice, once for the layout.
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")
        canvas.draw()
    image = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    colors = image.quantize(256, dither=PIL.Image.Dither.NONE)
    colors.save(quantized, format="png", optimize=True)
    return quantized.getvalue()
