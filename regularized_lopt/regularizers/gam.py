"""Gradient norm aware minimization (Zhang et al. 2023, arXiv 2303.03108)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base, tree
from regularized_lopt.regularizers.schedules import Scheduled, is_zero, value_at

FORMS = ("difference", "hvp")


@configurable()
class GAM(base.Regularizer):
    """First-order flatness: R = rho max_{||w' - w|| <= rho} ||grad L(w')||, by one ascent step.

    `form="hvp"`: f = H g / ||g||, w_adv = w + rho f / ||f||, and the loss is L + strength R with
    grad R = rho H(w_adv) g_adv / ||g_adv|| (Hessian-vector products, never a Hessian).

    `form="difference"`: the authors' published algorithm, four gradients in all and no second
    derivative: g0 at w; g1 at w + r g0/||g0||; d = rho (g1 - g0)/||g1 - g0||; g2 at w + d; g3 at
    w + d + r g2/||g2||. The gradient is n - gamma (part of m orthogonal to n), with
    n = beta_1 g1 + (1 - beta_1) g3 and m = beta_0 g0 + (1 - beta_0) g2. As a value, the same points
    give R = rho (L(w + d + r g2/||g2||) - L(w + d)) / r.

    Where the inner gradients of an unroll are inputs that are not differentiated through, the two
    differ: a Hessian-vector product sees the unroll with its gradients frozen, a difference sees
    them change. On ordinary functions they agree as r goes to 0. The default is therefore
    "difference" for gradients (meta space) and "hvp" for values (optimizee space).
    """

    name = "gam"

    def __init__(
        self,
        rho: Scheduled = 0.2,
        strength: Scheduled = 1.0,
        form: str | None = None,
        r: Scheduled = 0.03,
        beta_0: float = 0.1,
        beta_1: float = 0.1,
        gamma: float = 0.05,
        weight: Scheduled = 1.0,
    ):
        """Initializer.

        Args:
          rho: l2 radius of the neighbourhood, >= 0; 0 is plain ("difference": if r is 0 too).
          strength: lambda in L + lambda R, where that form is used, >= 0.
          form: "hvp" or "difference" in both spaces; None: see above.
          r: length of the differences, >= 0.
          beta_0: see above, in [0, 1].
          beta_1: see above, in [0, 1].
          gamma: see above, >= 0. Defaults as published for a ResNet on CIFAR-10.
          weight: w in g + w (G_GAM - g), >= 0.
        """
        super().__init__(weight)
        self.rho = self._not_negative("rho", rho)
        self.strength = self._not_negative("strength", strength)
        self.r = self._not_negative("r", r)
        self.gamma = self._not_negative("gamma", gamma)
        for name, value in (("beta_0", beta_0), ("beta_1", beta_1)):
            errors.check_in(f"GAM.{name}", value, "[0, 1]")
        self.beta_0, self.beta_1 = beta_0, beta_1
        self.form = form if form is None else errors.check_name("GAM.form", form, FORMS)
        self.first_order = form != "hvp"

    def gradient(self, query: base.Query) -> Any:
        if is_zero(self.rho) and (self.form == "hvp" or is_zero(self.r)):
            return query.grad
        if self.form == "hvp":
            strength = value_at(self.strength, query.step)
            return tree.add(query.grad, tree.scale(self._flatness_gradient_hvp(query), strength))
        g1, g2, g3 = self._gradients(query)
        n = tree.interpolate(g1, g3, self.beta_1)
        m = tree.interpolate(query.grad, g2, self.beta_0)
        return tree.subtract(n, tree.scale(tree.orthogonal_part(m, n), self.gamma))

    def flatness_gradient(self, query: base.Query) -> Any:
        """grad R alone, in either form: what the two agree on as r goes to 0."""
        if self.form == "hvp":
            return self._flatness_gradient_hvp(query)
        _, g2, g3 = self._gradients(query)
        rho, r = value_at(self.rho, query.step), value_at(self.r, query.step)
        return tree.scale(tree.subtract(g3, g2), rho / r)

    def regularized_value(
        self, loss_fn: base.LossFn, point: Any, *, key: Any, step: Any
    ) -> base.Scalar:
        del key
        if is_zero(self.rho):
            return loss_fn(point)
        rho, r = value_at(self.rho, step), value_at(self.r, step)
        grad_fn = jax.grad(loss_fn)
        fixed = jax.lax.stop_gradient(point)
        grad = grad_fn(fixed)
        if self.form == "difference":
            g1 = grad_fn(tree.add(fixed, tree.scale_to_norm(grad, r)))
            ascent = tree.subtract(g1, grad)
        else:
            unit = tree.scale_to_norm(grad, 1.0)
            ascent = base.Objective.of(loss_fn).hessian_vector_product(fixed, unit)
        d = jax.lax.stop_gradient(tree.scale_to_norm(ascent, rho))
        adversarial = tree.add(point, d)
        if self.form == "difference":
            g2 = grad_fn(jax.lax.stop_gradient(adversarial))
            along = jax.lax.stop_gradient(tree.scale_to_norm(g2, r))
            there: Any = loss_fn(tree.add(adversarial, along))
            flatness: Any = (there - loss_fn(adversarial)) / jnp.where(r > 0, r, 1.0)
        else:
            flatness = tree.norm(grad_fn(adversarial))
        return base.plus(loss_fn(point), value_at(self.strength, step) * rho * flatness)

    def _flatness_gradient_hvp(self, query: base.Query) -> Any:
        objective, rho = query.objective, value_at(self.rho, query.step)
        f = objective.hessian_vector_product(query.point, tree.scale_to_norm(query.ascent, 1.0))
        adversarial = tree.add(query.point, tree.scale_to_norm(f, rho))
        direction = tree.scale_to_norm(objective.gradient(adversarial), 1.0)
        return tree.scale(objective.hessian_vector_product(adversarial, direction), rho)

    def _gradients(self, query: base.Query) -> tuple[Any, Any, Any]:
        """g1, g2, g3."""
        grad_fn, r = query.objective.gradient, value_at(self.r, query.step)
        g1 = grad_fn(tree.add(query.point, tree.scale_to_norm(query.ascent, r)))
        d = tree.scale_to_norm(tree.subtract(g1, query.grad), value_at(self.rho, query.step))
        adversarial = tree.add(query.point, d)
        g2 = grad_fn(adversarial)
        g3 = grad_fn(tree.add(adversarial, tree.scale_to_norm(g2, r)))
        return g1, g2, g3
