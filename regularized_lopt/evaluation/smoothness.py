"""How smooth a learned optimizer is: its update as a function of the gradient, around zero.

After Fig. 7 of Xiong & Hsieh 2022: an optimizer that was trained without a smoothing term may
answer a slightly different gradient with quite another update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from regularized_lopt import errors, upstream
from regularized_lopt.evaluation import figures


class UpdateCurve(NamedTuple):
    """Updates by gradient, one coordinate each, hidden state fixed.

    Attributes:
      gradient: inputs, [n], evenly spaced around 0.
      update: what the optimizer adds to the param, [n].
    """

    gradient: np.ndarray
    update: np.ndarray

    @property
    def roughness(self) -> float:
        """Largest slope between neighbours, |d update / d gradient|."""
        return float(np.max(np.abs(np.diff(self.update) / np.diff(self.gradient))))


def update_curve(
    opt: upstream.Optimizer,
    limit: float = 1e-2,
    num_points: int = 401,
    num_warmup: int = 0,
    seed: int = 0,
) -> UpdateCurve:
    """The update of `num_points` coordinates that differ in their present gradient alone.

    All coordinates start at 0 and see the same `num_warmup` gradients, drawn from N(0, limit^2),
    before each sees its own. Optimizers that look at all coordinates at once (say, to normalise)
    see the whole grid.

    Args:
      opt: a learned optimizer, `LoadedLOpt.opt()`, or any of upstream's.
      limit: the gradients span [-limit, limit], > 0.
      num_points: how many, > 1.
      num_warmup: steps before, >= 0.
      seed: of the gradients before.
    """
    errors.check_positive("update_curve.limit", limit)
    errors.check_positive("update_curve.num_points - 1", num_points - 1)
    errors.check_not_negative("update_curve.num_warmup", num_warmup)
    gradient = jnp.linspace(-limit, limit, num_points)
    key = jax.random.PRNGKey(seed)
    state = opt.init(jnp.zeros(num_points), num_steps=num_warmup + 1, key=key)
    loss = jnp.zeros(())
    for value in limit * jax.random.normal(key, (num_warmup,)):
        state = opt.update(state, jnp.full(num_points, value), loss=loss, key=key)
    moved = opt.update(state, gradient, loss=loss, key=key)
    update = opt.get_params(moved) - opt.get_params(state)
    return UpdateCurve(np.asarray(gradient), np.asarray(update))


def smoothness(
    opts: Mapping[str, upstream.Optimizer],
    limits: tuple[float, float] = (1e-4, 1e-1),
    num_warmup: int = 10,
) -> mpl_figure.Figure:
    """Update against gradient around zero, at two scales, for several optimizers."""
    with matplotlib.rc_context(figures.STYLE):
        figure, axes = figures.new_figure(2)
        for axis, limit in zip(axes, limits, strict=True):
            for color, (name, opt) in zip(figures.cycle(), opts.items(), strict=False):
                curve = update_curve(opt, limit, num_warmup=num_warmup)
                axis.plot(curve.gradient, curve.update, color=color, label=name)
            axis.set(xlabel="gradient", ylabel="update")
            axis.locator_params(axis="x", nbins=4)
            axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
            axis.set_title(f"Gradients up to {limit:g}, after {num_warmup} steps")
        figures.legend_below(figure, axes[-1])
    return figure
