"""Sharpness-aware minimization (Foret et al. 2020, arXiv 2010.01412)."""

from __future__ import annotations

from typing import Any

from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, tree
from regularized_lopt.regularizers.schedules import Scheduled, is_zero, value_at


@configurable()
class SAM(base.Regularizer):
    """The gradient, or the loss, at the worst point nearby: w + e, e = rho g / ||g||_2.

    Foret et al. 2020, eq. 2. e is a constant: nothing is differentiated through it. e = 0 where
    g = 0.
    """

    name = "sam"

    def __init__(self, rho: Scheduled = 0.05, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          rho: l2 radius of the neighbourhood, in units of the point (theta or params), >= 0; 0 is
            plain.
          weight: w in g + w (G_SAM - g), >= 0.
        """
        super().__init__(weight)
        self.rho = self._not_negative("rho", rho)

    def perturbation(self, point: Any, grad: Any, step: Any) -> Any:
        """e, from the gradient at the point."""
        del point
        return tree.scale_to_norm(grad, value_at(self.rho, step))

    def gradient(self, query: base.Query) -> Any:
        if is_zero(self.rho):
            return query.grad
        e = self.perturbation(query.point, query.ascent, query.step)
        return query.objective.gradient(tree.add(query.point, e))

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        del key
        if is_zero(self.rho):
            return loss_fn(point)
        return base.perturbed_loss(loss_fn, point, lambda at, g: self.perturbation(at, g, step))
