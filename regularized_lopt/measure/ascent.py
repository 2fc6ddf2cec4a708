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
NORMS = ("linf", "l2")

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
    norm: str = "linf",
) -> Ascent:
    """Climbs `objective` inside the ball of `radius` around `centre` (PGA).

    In l_inf: start at centre + N(0, (radius / 2)^2), clipped to the ball; steps of radius / 4 *
    sign(gradient), clipped. Source: arXiv 2510.08968, supplement (10 steps). In l2: start half-way
    to the edge in a random direction; steps of radius / 4 along the gradient, projected.

    Args:
      objective: scalar function of a pytree like `centre`.
      centre: the minimum in question, a pytree.
      key: of the random start.
      radius: in units of the params, > 0: a number, maybe traced, or a tree of numbers or arrays
        that broadcast against the leaves of `centre` (see `filter_radii`); 0 fixes a coordinate.
        Radii that differ make a box of the l_inf ball, an ellipsoid of the l2 ball.
      num_steps: ascent steps, > 0.
      direction: of a step in l_inf: "sign" of the gradient, or the gradient over its "max"
        magnitude.
      norm: of the ball, "linf" or "l2".

    Returns:
      The objective at the centre, the start and after each step.
    """
    errors.check_positive("ascend.num_steps", num_steps)
    errors.check_name("direction", direction, DIRECTIONS)
    errors.check_name("norm", norm, NORMS)
    leaves, treedef = jax.tree.flatten(centre)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
    if len(jax.tree.leaves(radius)) == 1:
        (everywhere,) = jax.tree.leaves(radius)
        radius = jax.tree.map(lambda _: everywhere, centre)
    normal = jax.tree.map(lambda k, x: jax.random.normal(k, x.shape, x.dtype), keys, centre)
    ball = _Ellipsoid(centre, radius) if norm == "l2" else _Box(radius, direction)
    value_and_grad = jax.value_and_grad(
        lambda offset: objective(jax.tree.map(jnp.add, centre, offset))
    )

    def step(offset: Any, _: None) -> tuple[Any, jax.Array]:
        value, grad = value_and_grad(offset)
        return ball.climb(offset, grad), value

    offset, values = jax.lax.scan(step, ball.start(normal), length=num_steps)
    last = objective(jax.tree.map(jnp.add, centre, offset))
    room = has_room(centre, ball.reach)
    return Ascent(
        centre=objective(centre), values=jnp.where(room, jnp.append(values, last), jnp.nan)
    )


class _Box:
    """The l_inf ball."""

    def __init__(self, radius: Any, direction: str):
        """Of radii, in each coordinate; `reach`: how far each can go."""
        self.reach = radius
        self._direction = direction

    def start(self, normal: Any) -> Any:
        """An offset, of standard normal numbers."""
        return jax.tree.map(lambda z, r: jnp.clip(r / 2 * z, -r, r), normal, self.reach)

    def climb(self, offset: Any, grad: Any) -> Any:
        """The next offset."""
        return jax.tree.map(
            lambda x, g, r: jnp.clip(x + r / 4 * g, -r, r), offset, self._unit(grad), self.reach
        )

    def _unit(self, grad: Any) -> Any:
        if self._direction == "sign":
            return jax.tree.map(jnp.sign, grad)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grad)]))
        return jax.tree.map(lambda g: g / jnp.where(largest > 0, largest, 1), grad)


class _Ellipsoid:
    """The l2 ball: offsets radius * u with ||u|| <= 1, in the coordinates whose radius is not 0."""

    def __init__(self, centre: Any, radius: Any):
        """`reach`: how far a coordinate goes where all go equally far, in units of its radius."""
        self._radius = jax.tree.map(
            lambda x, r: jnp.broadcast_to(jnp.asarray(r, x.dtype), x.shape), centre, radius
        )
        free = sum(jnp.sum(r > 0) for r in jax.tree.leaves(self._radius))
        self.reach = jax.tree.map(lambda r: r / jnp.sqrt(jnp.maximum(free, 1)), self._radius)

    def start(self, normal: Any) -> Any:
        """An offset, of standard normal numbers."""
        free = jax.tree.map(lambda z, r: jnp.where(r > 0, z, 0), normal, self._radius)
        return self._offset(tree.scale_to_norm(free, 0.5))

    def climb(self, offset: Any, grad: Any) -> Any:
        """The next offset."""
        u = jax.tree.map(lambda x, r: x / jnp.where(r > 0, r, 1), offset, self._radius)
        # The gradient in u.
        uphill = tree.scale_to_norm(jax.tree.map(jnp.multiply, grad, self._radius), 0.25)
        u = tree.add(u, uphill)
        return self._offset(tree.scale(u, 1 / jnp.maximum(tree.norm(u), 1)))

    def _offset(self, u: Any) -> Any:
        return jax.tree.map(jnp.multiply, u, self._radius)


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


def filter_radii(params: Any, radius: float | jax.Array, live: Any = None) -> Any:
    """`radius` in units of each filter's root mean square: a ball that rescaling leaves alone.

    An absolute radius reaches less far, relative to the weights, where the weights are larger. A
    filter is what feeds one output (all axes but the last); a bias is one filter as a whole. After
    the normalization of Li et al. 2018, arXiv 1712.09913.

    Args:
      params: a pytree.
      radius: relative to the filters.
      live: masks like `params`, see `live_weights`: the mean is over these weights alone, and the
        others have a radius of 0; None: all are.
    """

    def size(weights: jax.Array, live: Any = None) -> jax.Array:
        axes = tuple(range(weights.ndim - 1)) if weights.ndim > 1 else None
        if live is None:
            return jnp.sqrt(jnp.mean(weights**2, axis=axes, keepdims=True))
        count = jnp.maximum(jnp.sum(live, axis=axes, keepdims=True), 1)
        square = jnp.sum(jnp.where(live, weights, 0) ** 2, axis=axes, keepdims=True) / count
        return jnp.where(live, jnp.sqrt(square), 0)

    sizes = jax.tree.map(size, params) if live is None else jax.tree.map(size, params, live)
    return jax.tree.map(lambda of: radius * of, sizes)


def l2_radii(params: Any, radius: float | jax.Array, live: Any) -> Any:
    """`radius` in units of the l2 norm of all live weights, the same for each; 0 for the others."""
    norm = tree.norm(jax.tree.map(lambda w, of: jnp.where(of, w, 0), params, live))
    return jax.tree.map(lambda w, of: jnp.where(of, radius * norm, 0).astype(w.dtype), params, live)


def gradient_norm(loss_fn: Objective) -> Objective:
    """‖∇L‖ as an objective to climb (GAM's property)."""
    return lambda params: tree.norm(jax.grad(loss_fn)(params))
