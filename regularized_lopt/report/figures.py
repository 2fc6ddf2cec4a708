"""Figures of outer training and meta-test, readable on light and dark ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import figure as mpl_figure

from regularized_lopt.measure import selections
from regularized_lopt.measure.cubic_regression import EarlyEvidence
from regularized_lopt.measure.flatness import LABELS, PROPERTIES
from regularized_lopt.measure.loss_slices import LossSlices
from regularized_lopt.measure.results import POINTS
from regularized_lopt.measure.training_curves import trailing_mean
from regularized_lopt.report import plot_style
from regularized_lopt.report.verdicts import MEASURES, Verdict, compare, measured_pair

_AT = {"poc": "at the PoC", "completion": "at completion"}
_RADIUS = {
    "absolute": "radius",
    "relative": "radius / rms of the filter",
    "live": "radius / rms of the filter's live weights",
    "l2": "l2 radius / norm of live weights",
}


def training_curves(task: xr.Dataset) -> mpl_figure.Figure:
    """Training loss (trailing mean) and test accuracy, or test loss, by inner step; all runs."""
    classified = selections.has_accuracy(task)
    with matplotlib.rc_context(plot_style.STYLE):
        figure, (left, right) = plot_style.new_figure(2)
        for style, one in plot_style.styled(task):
            smooth, steps = selections.networks(one["train_loss"]), task["loss_step"].values
            smooth = smooth[np.isfinite(smooth).all(axis=1)]  # The table has those that diverged.
            if len(smooth):
                plot_style.band(left, steps + 1, smooth, **style)
            declared = one["poc_step"].values[one["poc_declared"].values]
            if len(smooth) and len(declared):
                at = np.median(declared)
                height = np.interp(at, steps, smooth.mean(axis=0))
                left.plot(at + 1, height, "o", color=style["color"], markersize=5)
            ends = 100 * one["test_accuracy"] if classified else one["test_loss"]
            shown = selections.networks(ends)
            plot_style.band(right, task["eval_step"].values, shown, marker=".", **style)
        loss = "training loss (nats)" if classified else "training loss"
        left.set(xscale="log", yscale="log", xlabel="inner step", ylabel=loss)
        left.set_title("Training loss (dot: median PoC)")
        right.set(xscale="symlog", xlabel="inner step", ylabel=selections.quality_label(task))
        right.set_xticks([0, *[10**e for e in range(int(np.log10(task.attrs["num_steps"])) + 1)]])
        right.set_title(selections.quality_name(task).capitalize())
        right.set_yscale("linear" if classified else "log")
        if classified:
            best = max(selections.accuracy(one).mean() for one in selections.optimizers(task))
            right.set_ylim(max(0.0, best - 40), min(101.0, right.get_ylim()[1]))
        plot_style.legend_below(figure, right)
    return figure


def property_by_radius(
    tasks: Sequence[xr.Dataset], name: str, keys: Sequence[str], scale: str = "absolute"
) -> mpl_figure.Figure:
    """A property after the last ascent step by radius (the paper's Figures 4 to 6).

    Small multiples: a column per task, a row per point.

    Args:
      tasks: their datasets.
      name: "sam", "gsam" or "gam".
      keys: optimizers to show.
      scale: of the radius, one that was measured, see `flatness`.
    """
    with matplotlib.rc_context(plot_style.STYLE):
        figure = mpl_figure.Figure(
            figsize=(max(4.8, 2.6 * len(tasks) + 1), 5.2), layout="constrained"
        )
        axes = figure.subplots(2, len(tasks), sharex=True, squeeze=False)
        colors = plot_style.palette(tasks)
        for column, task in enumerate(tasks):
            for row, point in enumerate(POINTS):
                axis = axes[row, column]
                for style, one in plot_style.styled(task, keys, colors):
                    last = selections.last(one, name).sel(point=point, scale=scale)
                    radii, values = task["radius"].values, selections.networks(last)
                    plot_style.band(axis, radii, values, marker=".", **style)
                axis.set(xscale="log", yscale="log")
                if row == 0:
                    axis.set_title(selections.label(task))
                else:
                    axis.set_xlabel(_RADIUS[scale])
                if column == 0:
                    axis.set_ylabel(f"{LABELS[name]}, {_AT[point]}")
        plot_style.legend_below(figure, *axes.ravel())
    return figure


def ascent_curves(task: xr.Dataset, scale: str = "absolute") -> mpl_figure.Figure:
    """The three properties along the ascent at the headline radius (the paper's Figure 3)."""
    with matplotlib.rc_context(plot_style.STYLE):
        figure = mpl_figure.Figure(figsize=(9.6, 5.2), layout="constrained")
        axes = figure.subplots(2, len(PROPERTIES), sharex=True)
        for column, name in enumerate(PROPERTIES):
            for row, point in enumerate(POINTS):
                axis = axes[row, column]
                for style, one in plot_style.styled(task):
                    ascent = selections.ascent(one, name).sel(point=point, scale=scale)
                    curve = selections.networks(ascent)
                    plot_style.band(axis, np.arange(curve.shape[1]), curve, **style)
                if row == 0:
                    axis.set_title(LABELS[name])
                else:
                    axis.set_xlabel("ascent step")
                if column == 0:
                    axis.set_ylabel(_AT[point])
        plot_style.legend_below(figure, axes[0, 0])
    return figure


def differences(task: xr.Dataset, judged: Sequence[Verdict]) -> mpl_figure.Figure:
    """What each optimizer gained or lost against the reference on a task, with 95% intervals.

    Left: test accuracy, or test loss. Right: the rise that it is judged by at completion, in three
    ways of measuring it, each as a share of the reference's value.
    """
    base, rows = selections.reference(task), list(selections.others(task))
    reference = task.attrs["reference"]
    with matplotlib.rc_context(plot_style.STYLE):
        figure = mpl_figure.Figure(figsize=(9.6, 1.4 + 0.34 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        found = {(v.task, v.optimizer, v.property, v.point): v for v in judged}
        for y, one in enumerate(rows):
            quality = compare(selections.quality(one), selections.quality(base))
            plot_style.interval(left, y, quality, 1.0, plot_style.COLORS[0])
            name = selections.judged_by(one)
            verdict = found[task.attrs["task"], one["optimizer"].item(), name, "completion"]
            for offset, measure in enumerate(MEASURES):
                unit = measured_pair(one, base, name, "completion", measure)[1].mean()
                plot_style.interval(
                    right,
                    y + 0.2 * (offset - 1),
                    getattr(verdict, measure),
                    100 / unit,
                    plot_style.COLORS[offset + 1],
                )
        left.set_yticks(range(len(rows)), [one["name"].item() for one in rows])
        left.invert_yaxis()
        for axis in (left, right):
            axis.axvline(0, color="black", linewidth=0.8)
        what = selections.quality_name(task)
        left.set(xlabel="points" if selections.has_accuracy(task) else what)
        left.set_title(f"{selections.label(task)}: {what} against {reference}")
        right.set(
            xlabel=f"% of {reference}'s",
            title="Rise nearby at completion (left is flatter)",
        )
        names = ("absolute radius", "relative radius", "at matched training loss")
        for name, color in zip(names, plot_style.COLORS[1:], strict=False):
            right.plot([], [], "o", color=color, label=name, markersize=4)
        plot_style.legend_below(figure, right)
    return figure


def seeds(tasks: Sequence[xr.Dataset], columns: int = 5) -> mpl_figure.Figure:
    """Test error of every meta-training seed, task by task: a mean can hide that one seed fails.

    Baselines, which have no such seed, are hollow: the mean over runs. A seed of which a run
    diverged counts as an error of 100%; without accuracies losses are drawn, and it is left out.
    """
    colors = plot_style.palette(tasks)
    keys = list(colors)
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.panels(len(tasks), columns, 0.9 + 0.24 * len(keys))
        for axis, task in zip(axes, tasks, strict=True):
            for one in selections.optimizers(task):
                key = one["optimizer"].item()
                error, color = _error(one), colors[key]
                style = {"color": color, "alpha": 0.75, "markersize": 5, "markeredgewidth": 1.2}
                filled = color if selections.is_learned(one) else "none"
                at = np.full(len(error), keys.index(key))
                axis.plot(error, at, "o", markerfacecolor=filled, **style)
            plot_style.panel_title(axis, selections.label(task))
            axis.set_xlabel(_ERROR[selections.has_accuracy(task)])
            plot_style.log_if_some_fail(axis, "x")
        axes[0].set_yticks(range(len(keys)), keys)
        axes[0].invert_yaxis()
    return figure


def validation(
    tasks: Sequence[xr.Dataset], losses: Mapping[str, Sequence[float]], columns: int = 5
) -> mpl_figure.Figure:
    """Test error (or loss) on each task against the validation loss of meta-training.

    Args:
      tasks: their datasets.
      losses: by optimizer, one (nats) per meta-training seed; the others are left out.
      columns: at most so many panels beside each other.
    """
    colors = plot_style.palette(tasks)
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.panels(len(tasks), columns, 2.5, sharey=False)
        for axis, task in zip(axes, tasks, strict=True):
            for one in selections.optimizers(task):
                key = one["optimizer"].item()
                if key in losses:
                    style = {"color": colors[key], "alpha": 0.75, "markersize": 5}
                    axis.plot(losses[key], _error(one), "o", label=one["name"].item(), **style)
            plot_style.panel_title(axis, selections.label(task))
            axis.set_xlabel("validation loss (nats)")
            plot_style.log_if_some_fail(axis, "y")
            if axis is axes[0] or not selections.has_accuracy(task):
                axis.set_ylabel(_ERROR[selections.has_accuracy(task)])
        plot_style.legend_below(figure, *axes)
    return figure


def loss_slices(slices: Mapping[str, LossSlices], label: str) -> mpl_figure.Figure:
    """The loss on a line and on a plane through the PoC of run 0, by optimizer.

    Directions are random and normalized by filter (Li et al. 2018), the same for all optimizers.
    """
    with matplotlib.rc_context(plot_style.STYLE):
        figure = mpl_figure.Figure(
            figsize=(max(4.8, 2.4 * (len(slices) + 1)), 2.9), layout="constrained"
        )
        axes = figure.subplots(1, len(slices) + 1)
        finite = [one.plane[np.isfinite(one.plane)] for one in slices.values()]
        top = max((np.quantile(plane, 0.9) for plane in finite if plane.size), default=1.0)
        bottom = min((plane.min() for plane in finite if plane.size), default=0.1)
        # Rounded, for processors differ in a power's last digit, and a contour in what is drawn.
        levels = [float(f"{level:.4g}") for level in np.geomspace(max(bottom, 1e-6), top, 12)]
        for index, (color, (name, one)) in enumerate(
            zip(plot_style.cycle(), slices.items(), strict=False)
        ):
            axes[0].plot(one.at, one.line, color=color, label=name, linewidth=1.4)
            axis = axes[index + 1]
            if finite[index].size:
                plane = one.plane.T
                axis.contour(one.at, one.at, plane, levels=levels, cmap="viridis", linewidths=1)
                axis.plot(0, 0, "+", color="black")
            else:
                axis.text(0.5, 0.5, "diverged", ha="center", transform=axis.transAxes)
            axis.set_title(name)
            axis.set_aspect("equal")
            axis.set_xlabel("direction 1")
            axis.grid(False)
        axes[0].set(yscale="log", xlabel="direction 1", ylabel="held-out loss (nats)")
        axes[0].set_title(label)
        plot_style.legend_below(figure, axes[0])
    return figure


def early_evidence(found: EarlyEvidence, examples: int = 3) -> mpl_figure.Figure:
    """R^2 and norms over all polynomials, and the first fits with the data."""
    with matplotlib.rc_context(plot_style.STYLE):
        figure = mpl_figure.Figure(figsize=(9.6, 5.4), layout="constrained")
        top, bottom = np.asarray(figure.subfigures(2, 1))
        left, right = top.subplots(1, 2)
        names = list(found.fits)
        for index, (color, fits) in enumerate(
            zip(plot_style.cycle(), found.fits.values(), strict=False)
        ):
            # R^2 has no lower end: what is below -1 is drawn there.
            spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(fits.r2))
            left.plot(np.maximum(fits.r2, -1), index + spread, ".", color=color, markersize=4)
            left.plot(np.median(fits.r2), index, "|", color="black", markersize=22)
            right.ecdf(np.nan_to_num(fits.norm, nan=np.inf), color=color, linewidth=1.5)
        left.set_yticks(range(len(names)), names)
        for color, label in zip(plot_style.cycle(), left.get_yticklabels(), strict=False):
            label.set_color(color)  # The legend of all panels.
        left.invert_yaxis()
        left.set(xlabel="R² on held-out points (line: median)", title="Regression on noisy cubics")
        right.set(xscale="log", xlabel="‖p‖", ylabel="share of the polynomials")
        right.set_title("Norm of the params")
        for example, axis in enumerate(bottom.subplots(1, examples)):
            axis.plot(found.x[example], found.y[example], ".", color="#808080", markersize=5)
            axis.plot(found.grid, found.truth[example], color="black", linewidth=1, linestyle=":")
            for color, fits in zip(plot_style.cycle(), found.fits.values(), strict=False):
                axis.plot(found.grid, fits.fit[example], color=color, linewidth=1.3)
            axis.set(xlabel="x", title=f"Polynomial {example} (dotted: without noise)")
    return figure


def outer_training(
    curves: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
) -> mpl_figure.Figure:
    """Outer loss (running mean) and validation loss by outer step, one curve per meta-training.

    Below, where it was measured: how much the outer loss rises within the reference radius, which
    a regularizer should lower, in both spaces (see `ObjectiveCheck`).

    Args:
      curves: by optimizer and meta-training seed, as `load_metrics` has them; those of one
        optimizer share a colour.
    """
    one_by_one = [
        (columns, color, None if place else name)  # One line in the legend for all seeds.
        for (name, seeds), color in zip(curves.items(), plot_style.cycle(), strict=False)
        for place, columns in enumerate(seeds.values())
    ]
    every = [columns for columns, *_ in one_by_one]
    measured = any(np.isfinite(of.get(name, np.nan)).any() for of in every for name in _RISES)
    rises = list(_RISES.items()) if measured else []
    with matplotlib.rc_context(plot_style.STYLE):
        figure, (left, right, *below) = plot_style.new_figure(2, rows=2 if measured else 1)
        for columns, color, label in one_by_one:
            loss = columns["loss"]
            smooth = trailing_mean(loss[None], np.arange(len(loss)), 10)[0]
            left.plot(columns["outer_step"], smooth, color=color, label=label, linewidth=1.2)
            _by_outer_step(right, columns, "validation_loss", color)
            for axes, (column, _) in zip(below, rises, strict=True):
                _by_outer_step(axes, columns, column, color)
        left.set(yscale="log", xlabel="outer step", ylabel="outer loss (nats)")
        left.set_title("Outer loss of an unroll (running mean)")
        right.set(yscale="log", xlabel="outer step", ylabel="held-out loss (nats)")
        right.set_title("Validation")
        for axes, (_, label) in zip(below, rises, strict=True):
            axes.set(xlabel="outer step", ylabel="L_reg − L (nats)", title=label)
            axes.set_yscale("symlog", linthresh=1e-4)  # Along its gradient a loss may fall, too.
        plot_style.legend_below(figure, left)
    return figure


_RISES = {
    "optimizee_rise_at_reference": "Rise of the outer loss around params",
    "meta_rise_at_reference": "Rise of the outer loss around theta",
}


def _by_outer_step(axes: Any, columns: Mapping[str, np.ndarray], column: str, color: str) -> None:
    """A column of metrics.csv that only some rows have."""
    values = columns.get(column, np.full_like(columns["outer_step"], np.nan))
    there = np.isfinite(values)
    axes.plot(columns["outer_step"][there], values[there], ".-", color=color, linewidth=1.2)


_ERROR = {True: "test error (%)", False: "test loss"}


def _error(one: xr.Dataset) -> np.ndarray:
    """[seeds], percent; 100 where a run diverged; without accuracies the test loss."""
    ends = selections.quality(one).mean(axis=1)
    return 100 - np.nan_to_num(ends, nan=0.0) if selections.has_accuracy(one) else ends
