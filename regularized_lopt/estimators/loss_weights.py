"""How the losses along an unroll are weighed: the outer loss is sum_t w_t l_t.

l_t is the loss after the t-th inner step of the trajectory, T the length of an unroll.

Of averages, weights sum to 1: "last" (w_T = 1), "mean" and "weighted" (rising linearly in t, anew
with each unroll). Of sums they are whole numbers, as in "Learning to Learn with Smooth
Regularization" (Xiong & Hsieh 2022), whose text and published code differ:

* "ramp": 1, ..., T within each unroll, T (T + 1) / 2 times "weighted";
* "periodic": t mod (T + 1), literally the text: 1, ..., T in the first unroll, 0, ..., T - 1 in
  the second, T, 0, ..., T - 2 in the third;
* "by_unroll": T k throughout unroll k = 0, 1, ... of a trajectory, the published code: the first
  unroll has no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

AVERAGES = ("last", "mean", "weighted")
SUMS = ("ramp", "periodic", "by_unroll")
LOSSES = AVERAGES + SUMS


def weights(loss: str, length: int, before: jax.Array) -> Float[Array, steps]:
    """w_t of the steps of an unroll.

    Args:
      loss: one of `LOSSES`.
      length: T.
      before: inner steps of the trajectory before the unroll, a multiple of T.
    """
    t = jnp.arange(1, length + 1)
    found = {
        "last": lambda: jnp.zeros(length).at[-1].set(1.0),
        "mean": lambda: jnp.ones(length),
        "weighted": lambda: t,
        "ramp": lambda: t,
        "periodic": lambda: (before + t) % (length + 1),
        "by_unroll": lambda: jnp.full(length, before),
    }[loss]()
    found = found.astype(jnp.zeros(()).dtype)
    return found / found.sum() if loss in AVERAGES else found


def total(loss: str, weights: Float[Array, steps]) -> Float[Array, ""] | float:
    """The sum of the weights, or 1 where all are 0: what the outer loss is an average times."""
    if loss in AVERAGES:
        return 1.0
    found = weights.sum()
    return jnp.where(found > 0, found, 1)


def shares(loss: str, weights: Float[Array, steps]) -> Float[Array, steps]:
    """The weights of what is logged and judged, which sum to 1: equal where all w_t are 0."""
    if loss in AVERAGES:
        return weights
    return jnp.where(weights.sum() > 0, weights / total(loss, weights), 1 / weights.size)
