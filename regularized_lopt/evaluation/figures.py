"""Figures of outer training and meta-test, readable on light and dark ground."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from regularized_lopt.evaluation import results as results_lib
from regularized_lopt.evaluation.meta_test import MetaTestResult

# Distinguishable for colour-blind readers and mid-tone, so that they stand out on white and on
# black.
COLORS = ("#3d8ed6", "#e0752d", "#2ca58d", "#c75b9b", "#8f7ee7", "#b39b1d")
_INK = "#010203"  # Stands for the page's text colour in SVGs, see `to_svg`.
STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": "#80808055",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "regularized_lopt",
}


def new_figure(
    columns: int, width: float = 9.6, height: float = 3.3
) -> tuple[mpl_figure.Figure, Any]:
    """An empty figure, to be filled within `rc_context(STYLE)`: (figure, axes)."""
    figure = mpl_figure.Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def training_curves(result: MetaTestResult) -> mpl_figure.Figure:
    """Training loss (trailing mean) and test accuracy by inner step, over runs."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_figure(2)
        for color, (name, runs) in zip(cycle(), result.runs.items(), strict=False):
            smooth = _trailing_mean(runs.train_loss, 20)
            steps = np.arange(1, smooth.shape[1] + 1)
            _band(left, steps, smooth, color, name)
            declared = runs.poc_declared
            if declared.any():
                at = int(np.median(runs.poc_step[declared]))
                left.plot(at + 1, smooth.mean(axis=0)[at], "o", color=color, markersize=5)
            _band(right, runs.eval_steps, 100 * runs.test_accuracy, color, name, marker=".")
        left.set(xscale="log", yscale="log", xlabel="inner step", ylabel="training loss (nats)")
        left.set_title("Training loss (dot: median PoC)")
        right.set(xscale="symlog", xlabel="inner step", ylabel="test accuracy (%)")
        right.set_xticks([0, *[10**e for e in range(int(np.log10(result.num_steps)) + 1)]])
        right.set_title("Test accuracy")
        best = max(100 * runs.test_accuracy[:, -1].mean() for runs in result.runs.values())
        right.set_ylim(bottom=max(0.0, best - 40))
        right.legend(loc="lower right")
    return figure


def sharpness_by_radius(result: MetaTestResult) -> mpl_figure.Figure:
    """How much the held-out loss rises within a radius, at the PoC and at completion."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2)
        points = (
            ("at the point of convergence", result.at_poc),
            ("at completion", result.at_completion),
        )
        for axis, (title, measured) in zip(axes, points, strict=True):
            for color, (name, sharpness) in zip(cycle(), measured.items(), strict=False):
                rise = np.maximum(sharpness.values[:, :, -1] - sharpness.centre[:, None], 1e-8)
                _band(axis, np.asarray(result.radii), rise, color, name, marker=".")
            axis.set(
                xscale="log",
                yscale="log",
                xlabel="l∞ radius",
                ylabel="rise of the held-out loss (nats)",
            )
            axis.set_title(f"Rise after 10 steps of PGA, {title}")
        axes[0].legend(loc="upper left")
    return figure


def ascent_curves(result: MetaTestResult) -> mpl_figure.Figure:
    """The held-out loss along the ascent at the headline radius (the paper's Figures 3-6)."""
    index = results_lib.headline_index(result)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2)
        points = (
            ("at the point of convergence", result.at_poc),
            ("at completion", result.at_completion),
        )
        for axis, (title, measured) in zip(axes, points, strict=True):
            for color, (name, sharpness) in zip(cycle(), measured.items(), strict=False):
                curve = sharpness.values[:, index]
                _band(axis, np.arange(curve.shape[1]), curve, color, name, marker=".")
            axis.set(xlabel="ascent step", ylabel="held-out loss (nats)")
            axis.set_title(f"Radius {result.radii[index]:g}, {title}")
        axes[0].legend(loc="upper left")
    return figure


def outer_training(metrics: Mapping[str, Mapping[str, np.ndarray]]) -> mpl_figure.Figure:
    """Outer loss (running mean) and validation loss by outer step, one curve per run."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = new_figure(2)
        for color, (name, columns) in zip(cycle(), metrics.items(), strict=False):
            steps, loss = columns["outer_step"], columns["loss"]
            left.plot(
                steps, _trailing_mean(loss[None], 10)[0], color=color, label=name, linewidth=1.4
            )
            validated = np.isfinite(columns["validation_loss"])
            right.plot(
                steps[validated],
                columns["validation_loss"][validated],
                ".-",
                color=color,
                label=name,
            )
        left.set(yscale="log", xlabel="outer step", ylabel="outer loss (nats)")
        left.set_title("Outer loss at the end of an unroll (running mean)")
        right.set(yscale="log", xlabel="outer step", ylabel="held-out loss (nats)")
        right.set_title("Validation at the next, longer horizon")
        left.legend(loc="upper right")
    return figure


def meta_test_figures(result: MetaTestResult) -> dict[str, mpl_figure.Figure]:
    """All figures of a meta-test, by file name."""
    return {
        "training_curves": training_curves(result),
        "sharpness_by_radius": sharpness_by_radius(result),
        "ascent_curves": ascent_curves(result),
    }


def to_svg(figure: mpl_figure.Figure) -> str:
    """The figure as an SVG element that takes its ink from the page (`currentColor`)."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r'\1width="100%"', svg, count=1)


def save_png(figure: mpl_figure.Figure, path: pathlib.Path) -> None:
    """The figure on white, for places that know no themes."""
    figure.savefig(path, dpi=160, facecolor="white")


def cycle() -> Any:
    """The colours, again and again."""
    return (COLORS[i % len(COLORS)] for i in range(1000))


def _band(
    axis: Any, x: np.ndarray, runs: np.ndarray, color: str, label: str, **kwargs: Any
) -> None:
    mean = runs.mean(axis=0)
    axis.plot(x, mean, color=color, label=label, linewidth=1.6, **kwargs)
    if len(runs) > 1:
        std = runs.std(axis=0, ddof=1)
        # On a logarithmic axis mean - std may be negative: end the band at the lowest run instead.
        axis.fill_between(
            x,
            np.maximum(mean - std, runs.min(axis=0)),
            mean + std,
            color=color,
            alpha=0.18,
            linewidth=0,
        )


def _trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    sums = np.cumsum(np.nan_to_num(values), axis=-1)
    sums[..., window:] = sums[..., window:] - sums[..., :-window].copy()
    return sums / np.minimum(np.arange(1, values.shape[-1] + 1), window)
