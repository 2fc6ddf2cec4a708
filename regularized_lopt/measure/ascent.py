"""How flat the surroundings of a minimum are: ascent in a ball around it, and curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regularized_lopt import errors
from regularized_lopt.regularizers import tree

RADII = (0.001, 0.005, 0.01, 0.05, 0.1)
NUM_STEPS = 10
DIRECTIONS = ("sign", "max")

Objective = Callable[[Any], jax.Array]


@flax.struct.dataclass
class Ascent:
    """The objective along an ascent.

    Attributes:
      centre: at the centre of the ball.
      values: [num_steps + 1], at the random start and after each step; NaN where the ball has no
        place among the floats around the centre (see `has_room`): not measured.
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
    objective: Objective,
    centre: Any,
    key: jax.Array,
    radius: Any,
    num_steps: int = NUM_STEPS,
    direction: str = "sign",
) -> Ascent:
    """Climbs `objective` inside the l_inf ball of `radius` around `centre` (PGA).

    Start: centre + N(0, (radius / 2)^2), clipped to the ball. Steps: radius / 4 * sign(gradient),
    clipped. Source: arXiv 2510.08968, supplement (10 steps).

    Args:
      objective: scalar function of a pytree like `centre`.
      centre: the minimum in question, a pytree.
      key: of the random start.
      radius: in units of the params, > 0: a number, maybe traced, or a tree of numbers or arrays
        that broadcast against the leaves of `centre` (see `filter_radii`).
      num_steps: ascent steps, > 0.
      direction: of a step: "sign" of the gradient, or the gradient over its "max" magnitude.

    Returns:
      The objective at the centre, the start and after each step.
    """
    errors.check_positive("ascend.num_steps", num_steps)
    errors.check_name("direction", direction, DIRECTIONS)
    leaves, treedef = jax.tree.flatten(centre)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
    if len(jax.tree.leaves(radius)) == 1:
        (everywhere,) = jax.tree.leaves(radius)
        radius = jax.tree.map(lambda _: everywhere, centre)

    def normal(key: jax.Array, leaf: jax.Array, r: Any) -> jax.Array:
        return jnp.clip(r / 2 * jax.random.normal(key, leaf.shape, leaf.dtype), -r, r)

    def climb(offset: jax.Array, g: jax.Array, r: Any) -> jax.Array:
        return jnp.clip(offset + r / 4 * g, -r, r)

    def unit(grad: Any) -> Any:
        if direction == "sign":
            return jax.tree.map(jnp.sign, grad)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grad)]))
        return jax.tree.map(lambda g: g / jnp.where(largest > 0, largest, 1), grad)

    value_and_grad = jax.value_and_grad(
        lambda offset: objective(jax.tree.map(jnp.add, centre, offset))
    )

    def step(offset: Any, _: None) -> tuple[Any, jax.Array]:
        value, grad = value_and_grad(offset)
        return jax.tree.map(climb, offset, unit(grad), radius), value

    offset = jax.tree.map(normal, keys, centre, radius)
    offset, values = jax.lax.scan(step, offset, length=num_steps)
    last = objective(jax.tree.map(jnp.add, centre, offset))
    values = jnp.where(has_room(centre, radius), jnp.append(values, last), jnp.nan)
    return Ascent(centre=objective(centre), values=values)


def has_room(centre: Any, radius: Any) -> Bool[Array, ""]:
    """Whether a ball holds more floats than its centre: else any function looks flat inside it.

    Args:
      centre: a pytree.
      radius: tree of radii that broadcast against its leaves; those that are 0 fix a coordinate.

    Returns:
      False where centre + radius rounds to the centre in some coordinate, or all are fixed.
    """

    def moves(leaf: jax.Array, r: Any) -> jax.Array:
        return jnp.all((leaf + r != leaf) | (jnp.asarray(r) == 0))

    everywhere = jax.tree.leaves(jax.tree.map(moves, centre, radius))
    anywhere = [jnp.any(jnp.asarray(r) > 0) for r in jax.tree.leaves(radius)]
    return jnp.all(jnp.stack(everywhere)) & jnp.any(jnp.stack(anywhere))


def filter_radii(params: Any, radius: float | jax.Array) -> Any:
    """`radius` in units of each filter's root mean square: a ball that rescaling leaves alone.

    An absolute radius reaches less far, relative to the weights, where the weights are larger. A
    filter is what feeds one output (all axes but the last); a bias is one filter as a whole. After
    the normalization of Li et al. 2018, arXiv 1712.09913.
    """

    def leaf(weights: jax.Array) -> jax.Array:
        axes = tuple(range(weights.ndim - 1)) if weights.ndim > 1 else None
        return radius * jnp.sqrt(jnp.mean(weights**2, axis=axes, keepdims=True))

    return jax.tree.map(leaf, params)


def gradient_norm(loss_fn: Objective) -> Objective:
    """‖∇L‖ as an objective to climb (GAM's property)."""
    return lambda params: tree.norm(jax.grad(loss_fn)(params))
