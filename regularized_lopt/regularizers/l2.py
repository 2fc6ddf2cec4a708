"""The squared l2 norm of the point: the paper's early evidence."""

from __future__ import annotations

from typing import Any

from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, tree
from regularized_lopt.regularizers.schedules import Scheduled, value_at


@configurable()
class L2(base.Regularizer):
    """L + strength ||w||^2."""

    name = "l2"

    def __init__(self, strength: Scheduled = 0.1, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          strength: factor on the squared norm, >= 0.
          weight: w in L + w (L_reg - L), >= 0.
        """
        super().__init__(weight)
        self.strength = self._not_negative("strength", strength)

    def gradient(self, query: base.Query) -> Any:
        strength = value_at(self.strength, query.step)
        return tree.add(query.grad, tree.scale(query.point, 2.0 * strength))

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        del key
        return base.plus(loss_fn(point), value_at(self.strength, step) * tree.vdot(point, point))
