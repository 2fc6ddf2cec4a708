"""Sharpness-aware minimization (Foret et al. 2020, arXiv 2010.01412)."""

from __future__ import annotations

from typing import Any

import gin
import jax

from regularized_lopt import errors
from regularized_lopt.regularizers import base


@gin.configurable
class SAM(base.Regularizer):
    """The gradient, or the loss, at the worst point nearby: w + e, e = rho g / ||g||_2.

    Foret et al. 2020, eq. 2. e is a constant: nothing is differentiated through it. e = 0 where
    g = 0.
    """

    name = "sam"

    def __init__(self, rho: float = 0.05, weight: float = 1.0):
        """Initializer.

        Args:
          rho: l2 radius of the neighbourhood, in units of the point (theta or params), >= 0; 0 is
            plain.
          weight: w in g + w (G_SAM - g), >= 0.
        """
        super().__init__(weight)
        errors.check_not_negative("SAM.rho", rho)
        self.rho = rho

    def gradient(self, grad_fn: base.GradFn, point: Any, grad: Any, *, key: Any, step: Any) -> Any:
        del key, step
        if self.rho == 0:
            return grad
        return grad_fn(base.add(point, base.scale_to_norm(grad, self.rho)))

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        del key, step
        if self.rho == 0:
            return loss_fn(point)
        grad = jax.grad(loss_fn)(jax.lax.stop_gradient(point))
        # `loss_fn` may close over traced values (a batch, theta): cut the perturbation off from all
        # of them.
        perturbation = jax.lax.stop_gradient(base.scale_to_norm(grad, self.rho))
        return loss_fn(base.add(point, perturbation))
