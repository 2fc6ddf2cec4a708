"""What a regularizer is: a correction to a plain gradient, or to a plain value.

A regularizer measures flatness of a loss around a point and pulls the gradient (or the value)
towards flat regions. It knows neither optimizers nor tasks; the same object serves in both spaces:

* meta space: the point is theta and the loss is a whole unroll. `value_and_grad` returns the
  regularized gradient next to the PLAIN value and aux, which come from the unperturbed pass.
* optimizee space: the point is the optimizee's params. `value` returns a flatness-aware loss, which
  is differentiable; perturbations are constants in it.

With D = G_reg - g (or L_reg - L), `weight` w gives g + w D: w = 1 is exactly the regularizer's own
gradient, w = 0 exactly the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from regularized_lopt import errors

Point = Any
Scalar = Float[Array, ""]
LossFn = Callable[[Point], Scalar]
GradFn = Callable[[Point], Point]


class Regularizer:
    """Base class: no regularizer at all. Subclasses define `gradient` and `regularized_value`."""

    name = "none"

    def __init__(self, weight: float = 1.0):
        """Initializer.

        Args:
          weight: w in g + w (G_reg - g), >= 0.
        """
        errors.check_not_negative(f"{type(self).__name__}.weight", weight)
        self.weight = weight

    def gradient(self, grad_fn: GradFn, point: Point, grad: Point, *, key: Any, step: Any) -> Point:
        """G_reg, the regularizer's own gradient.

        Args:
          grad_fn: gradient of the plain loss at any point.
          point: where to take it, a pytree.
          grad: grad_fn(point), already evaluated.
          key: randomness for regularizers that sample.
          step: outer step, for schedules.
        """
        del grad_fn, point, key, step
        return grad

    def regularized_value(self, loss_fn: LossFn, point: Point, *, key: Any, step: Any) -> Scalar:
        """L_reg, the flatness-aware loss at `point`."""
        del key, step
        return loss_fn(point)

    def value_and_grad(
        self,
        loss_fn: Callable[[Point], Any],
        point: Point,
        *,
        key: Any = None,
        step: Any = 0,
        has_aux: bool = False,
    ) -> tuple[Any, Point]:
        """Like `jax.value_and_grad`: the PLAIN value (and aux), but the regularized gradient."""
        value, grad = jax.value_and_grad(loss_fn, has_aux=has_aux)(point)
        if self.weight == 0:
            return value, grad

        def grad_fn(at: Point) -> Point:
            result = jax.grad(loss_fn, has_aux=has_aux)(at)
            return result[0] if has_aux else result

        # A computation of its own: only then does XLA let its passes reuse the memory of the plain
        # one. It is skipped where the plain gradient is of no use.
        regularized = jax.lax.cond(
            jnp.isfinite(optax.tree.norm(grad)),
            lambda: self.gradient(grad_fn, point, grad, key=key, step=step),
            lambda: grad,
        )
        return value, jax.tree.map(lambda g, r: mix(g, r, self.weight), grad, regularized)

    def value(self, loss_fn: LossFn, point: Point, *, key: Any = None, step: Any = 0) -> Scalar:
        """L + w (L_reg - L); differentiable in `point` and in what `loss_fn` closes over."""
        if self.weight == 0:
            return loss_fn(point)
        regularized = self.regularized_value(loss_fn, point, key=key, step=step)
        return regularized if self.weight == 1 else mix(loss_fn(point), regularized, self.weight)


def mix(plain: jax.Array, regularized: jax.Array, weight: float) -> jax.Array:
    """plain + weight * (regularized - plain), exact at weights 0 and 1."""
    return regularized if weight == 1 else plain + weight * (regularized - plain)


def scale_to_norm(tree: Point, norm: jax.Array | float) -> Point:
    """The tree rescaled to the global l2 norm `norm`; a tree of zeros stays zero."""
    current = optax.tree.norm(tree)
    # At norm 0 the direction is undefined and the perturbation is 0, not NaN.
    factor = norm / jnp.where(current > 0, current, 1.0)
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def add(point: Point, perturbation: Point) -> Point:
    """point + perturbation, leaf by leaf."""
    return jax.tree.map(jnp.add, point, perturbation)
