"""How gradients become inputs of a learned optimizer."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_sign(gradient: Float[Array, n], factor: float = 10.0) -> Float[Array, "2 n"]:
    """Splits each gradient into a magnitude on a log scale and a sign.

    Gradients span many orders of magnitude; a network cannot use them raw. With k = `factor`:
    (`log|g|` / k, sign g) where `|g|` >= e^-k, else (-1, e^k g). Source: Andrychowicz et al. 2016,
    appendix A.

    Args:
      gradient: gradients of n coordinates.
      factor: k > 0; magnitudes below e^-k are treated linearly.

    Returns:
      Two rows of features. Their derivative is finite everywhere, at 0 and at subnormal gradients
      too.
    """
    magnitude = jnp.abs(gradient)
    large = magnitude >= math.exp(-factor)
    # The inner `where` keeps log's derivative out of the branch that is not taken: 0 * inf would be
    # NaN.
    log_magnitude = jnp.log(jnp.where(large, magnitude, 1.0)) / factor
    return jnp.stack(
        [
            jnp.where(large, log_magnitude, -1.0),
            jnp.where(large, jnp.sign(gradient), math.exp(factor) * gradient),
        ]
    )
