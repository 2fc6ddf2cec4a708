"""How flat the surroundings of a minimum are: projected gradient ascent (PGA) in an l_inf ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors

RADII = (0.001, 0.005, 0.01, 0.05, 0.1)
NUM_STEPS = 10


@flax.struct.dataclass
class Ascent:
    """The objective along an ascent.

    Attributes:
      centre: at the centre of the ball.
      values: [num_steps + 1], at the random start and after each step.
    """

    centre: Float[Array, ""]
    values: Float[Array, steps]

    @property
    def last(self) -> Float[Array, ""]:
        """After the last step: what the paper reports."""
        return self.values[..., -1]

    @property
    def best(self) -> Float[Array, ""]:
        """The highest value met, centre included; more steps never lower it."""
        return jnp.maximum(self.centre, jnp.max(self.values, axis=-1))


def ascend(
    objective: Callable[[Any], jax.Array],
    centre: Any,
    key: jax.Array,
    radius: float | jax.Array,
    num_steps: int = NUM_STEPS,
) -> Ascent:
    """Climbs `objective` inside the l_inf ball of `radius` around `centre`.

    Start: centre + N(0, (radius / 2)^2), clipped to the ball. Steps: radius / 4 * sign(gradient),
      clipped. Source:
    arXiv 2510.08968, supplement (10 steps).

    Args:
      objective: scalar function of a pytree like `centre`.
      centre: the minimum in question, a pytree.
      key: of the random start.
      radius: in units of the params, > 0; may be traced.
      num_steps: ascent steps, > 0.

    Returns:
      The objective at the centre, the start and after each step.
    """
    errors.check_positive("ascend.num_steps", num_steps)
    leaves, treedef = jax.tree.flatten(centre)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))

    def clip(offset: jax.Array) -> jax.Array:
        return jnp.clip(offset, -radius, radius)

    offset = jax.tree.map(
        lambda k, leaf: clip(radius / 2 * jax.random.normal(k, leaf.shape, leaf.dtype)),
        keys,
        centre,
    )
    value_and_grad = jax.value_and_grad(
        lambda offset: objective(jax.tree.map(jnp.add, centre, offset))
    )

    def step(offset: Any, _: None) -> tuple[Any, jax.Array]:
        value, grad = value_and_grad(offset)
        return jax.tree.map(lambda o, g: clip(o + radius / 4 * jnp.sign(g)), offset, grad), value

    offset, values = jax.lax.scan(step, offset, length=num_steps)
    last = objective(jax.tree.map(jnp.add, centre, offset))
    return Ascent(centre=objective(centre), values=jnp.append(values, last))
