"""Figures 1 and 2 of Harrison, Metz & Sohl-Dickstein 2022, and one of linearized optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from regularized_lopt.measure.noisy_quadratic.linearization import Linearized
from regularized_lopt.measure.noisy_quadratic.meta_gradient import Variance
from regularized_lopt.measure.noisy_quadratic.meta_training import MetaTrained
from regularized_lopt.report import plot_style

_GREY = plot_style.COLORS[6]
_DRAWN = 700
"""Eigenvalues of each kind that Figure 1 shows; more would hide each other."""


def eigenvalue_maps(maps: Mapping[str, np.ndarray]) -> mpl_figure.Figure:
    """Eigenvalues of A, [samples, n], before and after each change (Figure 1)."""
    before, *changes = maps
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.new_figure(len(changes), height=2.1)
        for axis, change, color in zip(axes, changes, plot_style.cycle(), strict=False):
            for name, shade in ((before, _GREY), (change, color)):
                values = maps[name].ravel()[:_DRAWN]
                size = 2 if name == before else 4
                axis.scatter(values.real, values.imag, size, shade, linewidth=0, alpha=0.6)
            _unit_circle(axis)
            inside = [100 * stable(maps[name]) for name in (before, change)]
            axis.set_title(f"{change}\nstable: {inside[0]:.0f}% → {inside[1]:.0f}%")
            axis.set(xlim=(-2.6, 3.4), ylim=(-1.8, 1.8), xlabel="real part")
        axes[0].set_ylabel("imaginary part")
    return figure


def stable(eigenvalues: np.ndarray) -> float:
    """The share of A, [samples, n], of a spectral radius below 1."""
    return float(is_stable(eigenvalues).mean())


def is_stable(eigenvalues: np.ndarray) -> np.ndarray:
    """Whether the spectral radius is below 1, [samples], of [samples, n]."""
    return np.abs(eigenvalues).max(axis=1) < 1


def meta_learning(variance: Variance, trained: MetaTrained) -> mpl_figure.Figure:
    """The variance of the meta-gradient, and courses of meta-training (Figure 2)."""
    with matplotlib.rc_context(plot_style.STYLE):
        figure, (left, middle, right) = plot_style.new_figure(3, height=2.9)
        _variance(left, variance)
        steps = np.arange(trained.expected.shape[-1]) + 1
        for place, nominal in enumerate(trained.nominals):
            style = {"color": plot_style.COLORS[place % len(plot_style.COLORS)]}
            label = f"a = {nominal:.3g}"
            _course(middle, steps, trained.radius[place], label=label, **style)
            _course(right, steps, trained.expected[place], label=label, **style)
            right.plot(
                steps, trained.observed[place].mean(axis=0), alpha=0.35, linewidth=0.6, **style
            )
        middle.axhline(1, color=_GREY, linewidth=1)
        middle.set(xscale="log", xlabel="outer step", ylabel="spectral radius of A")
        middle.set_title("Stability in meta-training")
        right.axhline(trained.optimum, color=_GREY, linewidth=1, linestyle="--")
        right.set(xscale="log", yscale="log", xlabel="outer step", ylabel="meta-loss")
        right.set_title("Meta-loss (dashed: the lowest)")
        ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20) if tick < right.get_ylim()[1]]
        right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        right.set_yticks([], minor=True)
        middle.legend(fontsize=7, loc="lower left")
    return figure


def _variance(axis: Any, found: Variance) -> None:
    """A line per horizon, dark for short ones; some are named at their right ends."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(found.horizons)))
    named = {1, 10, 100, 1000} | {int(found.horizons[-1])}
    for horizon, trace, shade in zip(found.horizons, found.trace.T, shades, strict=True):
        label = f"T = {horizon}" if int(horizon) in named else None
        axis.plot(found.nominals, trace, color=shade, linewidth=1, label=label)
    axis.set(yscale="log", xlabel="nominal step a", ylabel="trace of the variance")
    axis.set_title("Variance of the meta-gradient")
    axis.legend(fontsize=7, loc="upper center")


def _course(axis: Any, steps: np.ndarray, seeds: np.ndarray, **style: Any) -> None:
    """The mean over [seeds, steps], and one standard error around it."""
    mean, error = seeds.mean(axis=0), seeds.std(axis=0, ddof=1) / len(seeds) ** 0.5
    axis.plot(steps, mean, linewidth=1.4, **style)
    low, high = mean - error, mean + error
    axis.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=style["color"])


def optimizers(found: Mapping[str, Linearized]) -> mpl_figure.Figure:
    """Eigenvalues of params and state, all states, a panel per optimizer: the whole circle."""
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.panels(len(found), columns=4, height=3.1)
        most = max([1.0, *(np.abs(one.joint).max() for one in found.values())])
        ends = -1.15 * most, 1.15 * most
        for axis, (name, one), color in zip(axes, found.items(), plot_style.cycle(), strict=False):
            values = one.joint.ravel()
            axis.scatter(values.real, values.imag, 5, color, linewidth=0, zorder=3)
            _unit_circle(axis)
            plot_style.panel_title(axis, name)
            axis.set(xlim=ends, ylim=ends, xlabel="real part")
            if axis.get_subplotspec().is_first_col():
                axis.set_ylabel("imaginary part")
    return figure


def _unit_circle(axis: Any) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(angle), np.sin(angle), color="#444444", linewidth=1)
    axis.set_aspect("equal")
