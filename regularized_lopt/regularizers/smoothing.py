"""The smoothing term (Xiong & Hsieh 2022): a learned optimizer's updates vary little nearby.

It regularizes the learned optimizer alone, whatever its loss, and so composes with any flatness
term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.regularizers import base
from regularized_lopt.regularizers.schedules import Scheduled, check

SPACES = ("gradient", "preprocessed")
REDUCTIONS = ("mean", "sum")
STEPS = ("mean", "sum", "as_loss")


@configurable()
class Smoothing:
    """R = max_{s' in the l_inf ball around s} ||u(s) - u(s')||^2, hidden state held fixed.

    u is the update, s the learned optimizer's input, and the square a mean over coordinates (the
    authors' published code) or a sum (their text). The maximum is sought by projected sign ascent:
    s' starts at s + noise N(0, I) and takes `num_steps` steps of
    s' <- clip(s' + step_size sign(grad_s' ||u(s) - u(s')||^2)). s and the final s' are constants
    in the gradient w.r.t. theta, as is the hidden state: R is a term on the learned optimizer as a
    function, at the states that the unroll visits. (The authors' code also differentiates through
    the hidden state.) Outer training adds strength times the mean or the sum of R over the unroll,
    or sum_t w_t R_t with the weights of the outer loss, once, at the unperturbed theta.

    Lengths are in units of the root mean square of the gradient over all coordinates (space
    "gradient"), which the authors normalise by, or of the preprocessed features themselves.
    """

    def __init__(
        self,
        strength: Scheduled = 1.0,
        epsilon: float = 1.0,
        num_steps: int = 10,
        step_size: float | None = None,
        noise: float = 0.05,
        fraction: float = 1.0,
        space: str = "gradient",
        over_coordinates: str = "mean",
        over_steps: str = "mean",
    ):
        """Initializer.

        Args:
          strength: lambda_1, a number >= 0 or a schedule of the outer step.
          epsilon: radius of the ball, > 0.
          num_steps: K, steps of ascent, >= 0.
          step_size: of the ascent, > 0; default: epsilon / 5.
          noise: deviation of the start, >= 0.
          fraction: share of the coordinates that the term is taken on, drawn anew each step, in
            (0, 1]: bounds its cost. Needs a coordinate-wise optimizer of ours unless 1.
          space: "gradient": s is the gradient; "preprocessed": the features made of it.
          over_coordinates: "mean" or "sum" of (u(s) - u(s'))^2.
          over_steps: "mean" or "sum" of R over the unroll, or "as_loss": weighed as the outer
            losses are, see `RegularizedTruncatedGrad.loss`.

        Raises:
          ValueError: an argument is out of its range.
        """
        errors.check_positive("Smoothing.epsilon", epsilon)
        errors.check_count("Smoothing.num_steps", num_steps, least=0)
        errors.check_not_negative("Smoothing.noise", noise)
        if step_size is not None:
            errors.check_positive("Smoothing.step_size", step_size)
        errors.check_in("Smoothing.fraction", fraction, "(0, 1]")
        self.strength = check("Smoothing.strength", strength)
        self.epsilon = epsilon
        self.num_steps = num_steps
        self.step_size = epsilon / 5 if step_size is None else step_size
        self.noise = noise
        self.fraction = fraction
        self.space = errors.check_name("Smoothing.space", space, SPACES)
        self.over_coordinates = errors.check_name(
            "Smoothing.over_coordinates", over_coordinates, REDUCTIONS
        )
        self.over_steps = errors.check_name("Smoothing.over_steps", over_steps, STEPS)

    def describe(self) -> dict[str, Any]:
        """Parameters, for records of experiments (JSON-serializable)."""
        return base.describe(vars(self))

    def adversarial_input(
        self,
        update_fn: Callable[[Any], Float[Array, n]],
        inputs: Float[Array, "*features n"],
        unit: Any,
        key: jax.Array,
    ) -> Float[Array, "*features n"]:
        """s': the input in the ball whose update differs most, as far as the ascent finds it.

        Args:
          update_fn: u, updates of n coordinates as a function of their inputs.
          inputs: s.
          unit: what epsilon, step_size and noise are multiples of.
          key: randomness of the start.
        """
        inputs, unit = jax.lax.stop_gradient((inputs, unit))
        centre = jax.lax.stop_gradient(update_fn(inputs))
        radius = self.epsilon * unit

        def difference(perturbed: Any) -> Any:
            # The sum, not the mean: only the sign of the gradient counts, and 1/n may underflow.
            return jnp.sum((update_fn(perturbed) - centre) ** 2)

        def ascend(_: Any, perturbed: Any) -> Any:
            step = self.step_size * unit * jnp.sign(jax.grad(difference)(perturbed))
            return jnp.clip(perturbed + step, inputs - radius, inputs + radius)

        start = inputs + self.noise * unit * jax.random.normal(key, inputs.shape, inputs.dtype)
        start = jnp.clip(start, inputs - radius, inputs + radius)
        return jax.lax.stop_gradient(jax.lax.fori_loop(0, self.num_steps, ascend, start))

    def penalty(
        self,
        update_fn: Callable[[Any], Float[Array, n]],
        inputs: Float[Array, "*features n"],
        perturbed: Float[Array, "*features n"],
        num_coordinates: int | None = None,
    ) -> Float[Array, ""]:
        """R at given s and s': mean or sum over coordinates of (u(s) - u(s'))^2.

        Args:
          update_fn: see `adversarial_input`.
          inputs: s.
          perturbed: s'.
          num_coordinates: that the n are a sample of, for the sum; default: n.
        """
        squares = (update_fn(inputs) - update_fn(perturbed)) ** 2
        mean = jnp.mean(squares)
        if self.over_coordinates == "mean":
            return mean
        return mean * (squares.size if num_coordinates is None else num_coordinates)

    def over_unroll(self, by_step: Any, weights: Float[Array, steps]) -> Any:
        """What counts of the unroll, of a tree of arrays [steps, ...].

        Args:
          by_step: gradients of R.
          weights: of the outer losses.
        """
        if self.over_steps != "as_loss":
            over = jnp.mean if self.over_steps == "mean" else jnp.sum
            return jax.tree.map(lambda leaf: over(leaf, axis=0), by_step)
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), by_step)
