"""Several regularizers as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, registry
from regularized_lopt.regularizers.schedules import Scheduled, value_at


@configurable()
class Sum(base.Regularizer):
    """Several regularizers at once: g + sum_i w_i (G_i - g), the plain gradient evaluated once.

    With `mode="additive"`, eq. 21 of arXiv 2510.08968 read literally: g + sum_i w_i G_i.
    """

    name = "sum"

    def __init__(
        self,
        terms: Sequence[tuple[Scheduled, str | base.Regularizer]],
        mode: str = "correction",
        weight: Scheduled = 1.0,
    ):
        """Initializer.

        Args:
          terms: pairs (w_i, regularizer), at least one; w_i >= 0, each regularizer an object or a
            registered name.
          mode: "correction" or "additive".
          weight: of the whole sum, >= 0.
        """
        super().__init__(weight)
        self.terms = tuple(
            (self._not_negative("terms", w), registry.get(term)) for w, term in terms
        )
        if not self.terms:
            raise ValueError("Sum.terms is empty: give pairs (weight, regularizer).")
        self.mode = errors.check_name("Sum.mode", mode, ("correction", "additive"))
        self.first_order = all(term.first_order for _, term in self.terms)

    def gradient(self, query: base.Query) -> base.Point:
        grad = query.grad
        start = grad if self.mode == "correction" else jax.tree.map(jnp.zeros_like, grad)
        corrections = [
            base.mix_difference(
                start,
                term.regularized_gradient(dataclasses.replace(query, key=_fold(query.key, i))),
                value_at(weight, query.step),
            )
            for i, (weight, term) in enumerate(self.terms)
        ]
        return jax.tree.map(lambda g, *ds: sum(ds, start=g), grad, *corrections)

    def regularized_value(
        self, loss_fn: base.LossFn, point: base.Point, *, key: Any, step: Any
    ) -> base.Scalar:
        plain = loss_fn(point)
        start = plain if self.mode == "correction" else jnp.zeros_like(plain)
        corrections = (
            base.mix_difference(
                start,
                term.value(loss_fn, point, key=_fold(key, i), step=step),
                value_at(weight, step),
            )
            for i, (weight, term) in enumerate(self.terms)
        )
        return sum(corrections, start=plain)


def _fold(key: Any, index: int) -> Any:
    return None if key is None else jax.random.fold_in(key, index)
