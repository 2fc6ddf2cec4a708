"""Surrogate-gap-guided SAM (Zhuang et al. 2022, arXiv 2203.08065)."""

from __future__ import annotations

from typing import Any

from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, sam, tree
from regularized_lopt.regularizers.schedules import Scheduled, is_zero, value_at


@configurable()
class GSAM(sam.SAM):
    """SAM that also narrows the surrogate gap h = L(w + e) - L(w).

    As a gradient (Zhuang et al. 2022, algorithm 1): g_p - alpha g_perp with g_p = grad L(w + e) and
    g_perp the part of g that is orthogonal to g_p. As a value: L(w + e) + alpha h. alpha = 0 is
    SAM. The authors tie rho to the learning rate: `proportional_schedule`.
    """

    name = "gsam"

    def __init__(self, rho: Scheduled = 0.1, alpha: Scheduled = 0.4, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          rho: l2 radius of the neighbourhood, >= 0; 0 is plain.
          alpha: weight of the surrogate gap, >= 0.
          weight: w in g + w (G_GSAM - g), >= 0.
        """
        super().__init__(rho, weight)
        self.alpha = self._not_negative("alpha", alpha)

    def gradient(self, query: base.Query) -> Any:
        if is_zero(self.rho):
            return query.grad
        perturbed = super().gradient(query)
        across = tree.orthogonal_part(query.grad, perturbed)
        return tree.subtract(perturbed, tree.scale(across, value_at(self.alpha, query.step)))

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        if is_zero(self.rho):
            return loss_fn(point)
        perturbed: Any = super().regularized_value(loss_fn, point, key=key, step=step)
        return perturbed + value_at(self.alpha, step) * (perturbed - loss_fn(point))
