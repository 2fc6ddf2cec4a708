"""The update of a learned optimizer as a function of its gradient and of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors, upstream

NUM_WARMUP = 10
"""Steps before the update of a curve, unless told otherwise."""


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
        """Largest slope between neighbours, `|d update / d gradient|`."""
        return float(np.max(np.abs(np.diff(self.update) / np.diff(self.gradient))))

    @property
    def relative_roughness(self) -> float:
        """The same in units that do not grow with updates or gradients; that of a line is sqrt(3).

        Roughness times the largest gradient, over the root mean square of the updates; NaN where
        all of these are 0.
        """
        size = np.sqrt(np.mean(np.square(self.update)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.roughness * np.max(np.abs(self.gradient)) / size)


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
    warmup = limit * jax.random.normal(jax.random.PRNGKey(seed), (num_warmup, 1))
    history = jnp.broadcast_to(warmup, (num_warmup, num_points))
    update = updates_after(opt, history, gradient, seed)
    return UpdateCurve(np.asarray(gradient), np.asarray(update))


def updates_after(
    opt: upstream.Optimizer, history: jax.Array, gradient: jax.Array, seed: int = 0
) -> jax.Array:
    """What is added to n params that start at 0 by `gradient` [n], after `history` [steps, n]."""
    first, *keys = jax.random.split(jax.random.PRNGKey(seed), len(history) + 2)
    loss = jnp.zeros(())
    state = opt.init(jnp.zeros_like(gradient), num_steps=len(history) + 1, key=first)
    for before, key in zip(history, keys, strict=False):
        state = opt.update(state, before, loss=loss, key=key)
    moved = opt.update(state, gradient, loss=loss, key=keys[-1])
    return opt.get_params(moved) - opt.get_params(state)


def update_curves(
    opt: upstream.Optimizer,
    limits: Sequence[float] = (1e-4, 1e-1),
    num_warmup: int = NUM_WARMUP,
) -> list[UpdateCurve]:
    """`update_curve` at each of several scales."""
    return [update_curve(opt, limit, num_warmup=num_warmup) for limit in limits]
