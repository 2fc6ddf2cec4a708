"""A learned optimizer's step as a function of its input alone, for the smoothing term."""

from __future__ import annotations

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from regularized_lopt import regularizers, upstream


def function(
    learned_opt: upstream.LearnedOptimizer,
    smoothing: regularizers.Smoothing,
    theta: Any,
    opt_state: Any,
    loss: jax.Array,
    grad: Any,
    key: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """`CoordinateWiseLOpt.update_fn`, or the same of any learned optimizer, on all coordinates.

    Args:
      learned_opt: the optimizer.
      smoothing: says which input, and the share of coordinates.
      theta: weights of the optimizer.
      opt_state: its state before the step.
      loss: the inner loss of the step.
      grad: its gradient.
      key: draws coordinates, and is the step's.

    Returns:
      (update as a function of the input, its input here, the unit to measure the input in).
    """
    if hasattr(learned_opt, "update_fn"):
        return learned_opt.update_fn(
            theta,
            opt_state,
            grad,
            loss=loss,
            key=key,
            fraction=smoothing.fraction,
            space=smoothing.space,
        )
    opt = learned_opt.opt_fn(theta, is_training=True)
    inputs, unflatten = jax.flatten_util.ravel_pytree(grad)

    def flat_params(state: Any) -> jax.Array:
        return jax.flatten_util.ravel_pytree(opt.get_params(state))[0]

    def update(inputs: jax.Array) -> jax.Array:
        moved = opt.update(opt_state, unflatten(inputs), loss=loss, key=key)
        return flat_params(moved) - flat_params(opt_state)

    return update, inputs, jnp.sqrt(jnp.mean(inputs**2))
