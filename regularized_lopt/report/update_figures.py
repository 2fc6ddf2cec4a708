"""Figures of the update of a learned optimizer as a function of gradients.

`smoothness` is after Fig. 7 of Xiong & Hsieh 2022: an optimizer that was trained without a
smoothing term may answer a slightly different gradient with quite another update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from regularized_lopt import errors, upstream
from regularized_lopt.measure.update_curves import (
    NUM_WARMUP,
    UpdateCurve,
    update_curves,
    updates_after,
)
from regularized_lopt.report import plot_style


def update_by_history(
    opt: upstream.Optimizer, scale: float = 1e-2, num_steps: int = 10, num_points: int = 61
) -> mpl_figure.Figure:
    """The update as a function of the gradient, after several pasts.

    Left: after no steps, and after `num_steps` gradients of the largest size: positive, negative,
    or in turn. Right: after `num_steps` equal gradients, whatever their size. Axes of gradients are
    linear below `scale` / 1,000 and logarithmic above.

    Args:
      opt: a learned optimizer, `LoadedLOpt.opt()`, or any of upstream's.
      scale: the gradients span [-scale, scale], > 0.
      num_steps: gradients before, > 0.
      num_points: gradients, and pasts, > 1.

    Raises:
      ValueError: an argument is out of its range.
    """
    errors.check_positive("update_by_history.scale", scale)
    errors.check_positive("update_by_history.num_steps", num_steps)
    errors.check_positive("update_by_history.num_points - 1", num_points - 1)
    smallest = scale / 1000
    half = np.concatenate([[0.0], np.geomspace(smallest, scale, num_points // 2)])
    gradient = np.concatenate([-half[:0:-1], half])
    ones = np.ones((num_steps, len(gradient)), np.float32)
    in_turn = (-1.0) ** np.arange(num_steps)[:, None]
    pasts: dict[str, np.ndarray] = {
        "no steps": ones[:0],
        f"{num_steps} gradients of {scale:g}": scale * ones,
        f"{num_steps} of {-scale:g}": -scale * ones,
        f"{num_steps} of ±{scale:g} in turn": scale * ones * in_turn,
    }
    present, past = (grid.reshape(-1) for grid in np.meshgrid(gradient, gradient))
    flat = updates_after(opt, jnp.tile(jnp.asarray(past), (num_steps, 1)), jnp.asarray(present))
    field = np.asarray(flat).reshape(len(gradient), len(gradient))
    with matplotlib.rc_context(plot_style.STYLE):
        figure, (left, right) = plot_style.new_figure(2)
        for color, (name, before) in zip(plot_style.cycle(), pasts.items(), strict=False):
            update = np.asarray(updates_after(opt, jnp.asarray(before), jnp.asarray(gradient)))
            left.plot(gradient, update, color=color, label=name)
        left.set(xlabel="gradient", ylabel="update", title="Update by gradient, after ...")
        left.set_xscale("symlog", linthresh=smallest)
        plot_style.legend_below(figure, left)
        most = np.abs(field).max()
        mesh = right.pcolormesh(
            gradient, gradient, field, cmap="PuOr", vmin=-most, vmax=most, rasterized=True
        )
        figure.colorbar(mesh, ax=right, label="update")
        for set_scale in (right.set_xscale, right.set_yscale):
            set_scale("symlog", linthresh=smallest)
        for axis in (left.xaxis, right.xaxis, right.yaxis):  # All decades would collide.
            axis.set_ticks([-scale, -10 * smallest, 0, 10 * smallest, scale])
        right.grid(visible=False)
        right.set(xlabel="gradient", ylabel=f"each of the {num_steps} gradients before")
        right.set_title("Update by gradient and past")
    return figure


def smoothness(
    opts: Mapping[str, upstream.Optimizer],
    limits: Sequence[float] = (1e-4, 1e-1),
    num_warmup: int = NUM_WARMUP,
) -> mpl_figure.Figure:
    """Update against gradient around zero, at two scales, for several optimizers."""
    curves = {name: update_curves(opt, limits, num_warmup) for name, opt in opts.items()}
    return draw(curves, num_warmup)


def draw(
    curves: Mapping[str, Sequence[UpdateCurve]], num_warmup: int = NUM_WARMUP
) -> mpl_figure.Figure:
    """The curves of several optimizers, a panel per scale."""
    with matplotlib.rc_context(plot_style.STYLE):
        figure, axes = plot_style.new_figure(len(next(iter(curves.values()))))
        for index, axis in enumerate(axes):
            for color, (name, of) in zip(plot_style.cycle(), curves.items(), strict=False):
                axis.plot(of[index].gradient, of[index].update, color=color, label=name)
            limit = of[index].gradient.max()
            axis.set(xlabel="gradient", ylabel="update")
            axis.locator_params(axis="x", nbins=4)
            axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
            axis.set_title(f"Gradients up to {limit:g}, after {num_warmup} steps")
        plot_style.legend_below(figure, axes[-1])
    return figure
