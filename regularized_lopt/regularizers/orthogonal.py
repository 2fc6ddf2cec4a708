"""Soft orthogonality of weight matrices: Bansal, Chen & Wang 2018, arXiv 1810.09102, eq. 2."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, tree
from regularized_lopt.regularizers.schedules import Scheduled, value_at


@configurable()
class Orthogonal(base.Regularizer):
    """L + strength sum over matrices W of the point of ||W'W - I||_F^2.

    Of W'W and WW' the smaller is taken: their terms differ by a constant, and that of the smaller
    is 0 where W is orthogonal. A kernel of more axes is the matrix [rest, last axis], as there;
    vectors and scalars have no part in it.
    """

    name = "orthogonal"

    def __init__(self, strength: Scheduled = 0.01, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          strength: factor on the sum, >= 0.
          weight: w in L + w (L_reg - L), >= 0.
        """
        super().__init__(weight)
        self.strength = self._not_negative("strength", strength)

    def gradient(self, query: base.Query) -> Any:
        strength = value_at(self.strength, query.step)
        return tree.add(query.grad, tree.scale(jax.grad(_distance)(query.point), strength))

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        del key
        return base.plus(loss_fn(point), value_at(self.strength, step) * _distance(point))


def _distance(point: Any) -> Float[Array, ""]:
    """The sum of ||W'W - I||_F^2; 0 without matrices."""
    matrices = [
        leaf.reshape(-1, leaf.shape[-1]) for leaf in jax.tree.leaves(point) if leaf.ndim > 1
    ]
    grams = [w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T for w in matrices]
    return sum((jnp.sum((gram - jnp.eye(len(gram))) ** 2) for gram in grams), jnp.zeros(()))
