"""Adaptive SAM (Kwon et al. 2021, arXiv 2102.11600)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import sam, tree
from regularized_lopt.regularizers.schedules import Scheduled, value_at


@configurable()
class ASAM(sam.SAM):
    """SAM in a neighbourhood that scales with the weights.

    e = rho t^2 g / ||t g||, t = `|w|` + eta: Kwon et al. 2021, eq. 9 with p = 2, t on every leaf.
    """

    name = "asam"

    def __init__(self, rho: Scheduled = 0.5, eta: float = 0.01, weight: Scheduled = 1.0):
        """Initializer.

        Args:
          rho: radius relative to t, >= 0; 0 is plain.
          eta: keeps small weights perturbed, > 0.
          weight: w in g + w (G_ASAM - g), >= 0.
        """
        super().__init__(rho, weight)
        errors.check_positive("ASAM.eta", eta)
        self.eta = eta

    def perturbation(self, point: Any, grad: Any, step: Any) -> Any:
        """e, from the gradient at the point."""
        t = jax.tree.map(lambda w: jnp.abs(w) + jnp.asarray(self.eta, w.dtype), point)
        return jax.tree.map(
            jnp.multiply,
            t,
            tree.scale_to_norm(jax.tree.map(jnp.multiply, t, grad), value_at(self.rho, step)),
        )
