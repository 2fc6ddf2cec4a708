"""Theta's gradient through a sample of the coordinates.

A coordinate-wise learned optimizer reads inner gradients as inputs that are not differentiated
through, so that the unrolls of two coordinates meet only in the outer loss::

  dL/dtheta = sum over coordinates c and steps t of dL/dparams_t[c] * dparams_t[c]/dtheta.

The first factor is one gradient of the outer loss. The second is what backpropagation through time
costs, and a sum over thousands of coordinates is known well from a part of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regularized_lopt.learned_optimizers.coordinatewise import (
    CoordinateWiseLOpt,
    CoordinateWiseState,
)
from regularized_lopt.learned_optimizers.leaves import flatten


def sample(
    importance: Float[Array, n], count: int, key: jax.Array
) -> tuple[Int[Array, count], Float[Array, count]]:
    """Draws `count` coordinates with probabilities proportional to `importance`.

    Systematic: the points (i + u) / count, with one uniform u, on the cumulated importance. So a
    coordinate is drawn count * p times on average, and never off by one or more.

    Args:
      importance: >= 0; if all are zero, coordinates are drawn uniformly.
      count: how many to draw, > 0; some may be the same.
      key: of u.

    Returns:
      Indices and weights, the latter 1 / (count * p). The weighted sum of any f over the indices
      has as its mean the sum of f over all coordinates of positive importance.
    """
    total = jnp.sum(importance)
    probability = jnp.where(total > 0, importance / total, 1 / importance.size)
    points = (jnp.arange(count) + jax.random.uniform(key)) / count
    cumulated = jnp.cumsum(probability)
    # Scaled by the last, lest rounding leave points beyond it; side "right": never where p is 0.
    index = jnp.searchsorted(cumulated, points * cumulated[-1], side="right")
    index = jnp.minimum(index, importance.size - 1)
    return index, 1 / (count * probability[index])


def surrogate(
    learned_opt: CoordinateWiseLOpt,
    theta: Any,
    start: CoordinateWiseState,
    gradients: Float[Array, "steps n"],
    cotangents: Float[Array, "steps n"],
    fraction: float,
    key: jax.Array,
) -> Float[Array, ""]:
    """A function of theta whose gradient is, on average, that of the outer loss.

    Args:
      learned_opt: with `second_derivatives` off.
      theta: its weights.
      start: its state before the first step.
      gradients: inner gradients along the unroll.
      cotangents: dL/dparams after each step. Coordinates are drawn by their magnitude.
      fraction: share of the coordinates to draw, in (0, 1).
      key: of the draw.
    """
    importance = jnp.sum(jnp.abs(cotangents), axis=0)
    count = max(1, round(fraction * importance.size))
    index, weight = sample(importance, count, key)

    def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        hidden, params = carry
        gradient, cotangent = inputs
        updates, hidden = learned_opt.network(theta, hidden, gradient, params)
        params = params + updates
        return (hidden, params), cotangent @ params

    gradients = jax.vmap(learned_opt.scaled)(gradients)
    carry = jax.tree.map(lambda leaf: leaf[..., index], (start.hidden, flatten(start.params)))
    inputs = (gradients[:, index], weight * cotangents[:, index])
    return jnp.sum(jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, inputs)[1])
