"""Penalties on the curvature of the loss (Yang et al. 2023, arXiv 2302.11085).

All by directional derivatives; no Hessian is ever formed. As a gradient, with v and u = H v held
fixed, grad_w u'H(w)v is the gradient of the loss's second derivative along u and v.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, tree
from regularized_lopt.regularizers.schedules import Scheduled, is_zero, value_at


class _Curvature(base.Regularizer):
    """L + strength R, R a curvature estimated from fresh random vectors at every call."""

    first_order = False

    def __init__(self, strength: Scheduled, weight: Scheduled):
        super().__init__(weight)
        self.strength = self._not_negative("strength", strength)

    def curvature(self, objective: base.Objective, point: Any, key: jax.Array) -> base.Scalar:
        """R at `point`; differentiable."""
        raise NotImplementedError

    def curvature_gradient(self, objective: base.Objective, point: Any, key: jax.Array) -> Any:
        """grad R at `point`."""
        raise NotImplementedError

    def gradient(self, query: base.Query) -> Any:
        if is_zero(self.strength):
            return query.grad
        key = self._need_key(query.key)
        correction = self.curvature_gradient(query.objective, query.point, key)
        return tree.add(query.grad, tree.scale(correction, value_at(self.strength, query.step)))

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        if is_zero(self.strength):
            return loss_fn(point)
        curvature = self.curvature(base.Objective.of(loss_fn), point, self._need_key(key))
        return base.plus(loss_fn(point), value_at(self.strength, step) * curvature)


class _Probed(_Curvature):
    """R as the mean over random probes."""

    def __init__(self, strength: Scheduled = 5e-4, num_probes: int = 10, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          strength: factor on R, >= 0 (Yang et al. 2023, for the trace: 5e-4 or 1e-4).
          num_probes: vectors v per estimate, > 0.
          weight: w in L + w (L_reg - L), >= 0.
        """
        errors.check_count(f"{type(self).__name__}.num_probes", num_probes)
        super().__init__(strength, weight)
        self.num_probes = num_probes

    def _mean(self, function: Any, key: jax.Array) -> Any:
        """Mean of function(key) over the probes, one after the other: memory is that of one."""
        values = jax.lax.map(function, jax.random.split(key, self.num_probes))
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values)


@configurable()
class HessianTrace(_Probed):
    """R = tr H, by Hutchinson's estimator: the mean of v'Hv over Rademacher vectors v."""

    name = "hessian_trace"

    def curvature(self, objective: base.Objective, point: Any, key: jax.Array) -> base.Scalar:
        """Estimate of tr H."""

        def quadratic_form(key: jax.Array) -> jax.Array:
            v = _rademacher(key, point)
            return objective.derivative(point, v, v)

        return self._mean(quadratic_form, key)

    def curvature_gradient(self, objective: base.Objective, point: Any, key: jax.Array) -> Any:
        """Estimate of grad tr H."""

        def one(key: jax.Array) -> Any:
            v = _rademacher(key, point)
            return objective.gradient_of_derivative(point, v, v)

        return self._mean(one, key)


@configurable()
class HessianFrobenius(_Probed):
    """R = ||H||_F^2, as the mean of ||Hv||^2 over Rademacher vectors v."""

    name = "hessian_frobenius"

    def curvature(self, objective: base.Objective, point: Any, key: jax.Array) -> base.Scalar:
        """Estimate of ||H||_F^2."""

        def one(key: jax.Array) -> jax.Array:
            product = objective.hessian_vector_product(point, _rademacher(key, point))
            return tree.vdot(product, product)

        return self._mean(one, key)

    def curvature_gradient(self, objective: base.Objective, point: Any, key: jax.Array) -> Any:
        """Estimate of grad ||H||_F^2: 2 grad u'Hv with u = Hv fixed."""

        def one(key: jax.Array) -> Any:
            v = _rademacher(key, point)
            u = objective.hessian_vector_product(point, v)
            return tree.scale(objective.gradient_of_derivative(point, u, v), 2.0)

        return self._mean(one, key)


@configurable()
class HessianTop(_Curvature):
    """R = the eigenvalue of H of largest magnitude, signed, by power iteration.

    R = v'Hv at the final vector v, which is held fixed in its derivative.
    """

    name = "hessian_top"

    def __init__(
        self, strength: Scheduled = 5e-4, num_iterations: int = 10, weight: Scheduled = 1.0
    ):
        """Initializer.

        Args:
          strength: factor on R, >= 0.
          num_iterations: Hessian-vector products from a random start, > 0.
          weight: w in L + w (L_reg - L), >= 0.
        """
        errors.check_count("HessianTop.num_iterations", num_iterations)
        super().__init__(strength, weight)
        self.num_iterations = num_iterations

    def curvature(self, objective: base.Objective, point: Any, key: jax.Array) -> base.Scalar:
        """Signed Rayleigh quotient of the last vector."""
        fixed = jax.lax.stop_gradient(point)
        v = jax.lax.stop_gradient(self._vector(objective, fixed, key))
        return objective.derivative(point, v, v)

    def curvature_gradient(self, objective: base.Objective, point: Any, key: jax.Array) -> Any:
        """Gradient of the Rayleigh quotient, the vector held fixed."""
        v = self._vector(objective, point, key)
        return objective.gradient_of_derivative(point, v, v)

    def _vector(self, objective: base.Objective, point: Any, key: jax.Array) -> Any:
        def iterate(_: Any, v: Any) -> Any:
            return tree.scale_to_norm(objective.hessian_vector_product(point, v), 1.0)

        start = tree.scale_to_norm(_random(jax.random.normal, key, point), 1.0)
        return jax.lax.fori_loop(0, self.num_iterations, iterate, start)


def _rademacher(key: jax.Array, like: Any) -> Any:
    return _random(jax.random.rademacher, key, like)


def _random(draw: Any, key: jax.Array, like: Any) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef,
        [draw(k, jnp.shape(x), jnp.result_type(x)) for k, x in zip(keys, leaves, strict=True)],
    )
