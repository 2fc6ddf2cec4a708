"""The small recurrent optimizer that Xiong & Hsieh 2022 smooth, their SimpleOptimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import averages, coordinatewise, spectral

Theta = dict[str, dict[str, jax.Array]]
Hidden = tuple[jax.Array, ...]

INPUTS = ("gradient", "state")


@configurable()
class SimpleLOpt(coordinatewise.CoordinateWiseLOpt):
    """One tanh layer without biases, shared by all coordinates, with a hidden state for each::

      h <- tanh(w_x x + w_h h),   params <- params + w h

    Source: "Learning to Learn with Smooth Regularization" (Xiong & Hsieh 2022), whose text and
    published code read different inputs x:

    * "gradient" (the code): g / sqrt(mean(g^2) + epsilon), the mean over all coordinates. Without
      biases a coordinate that has never had a gradient does not move. A constant factor on the loss
      changes nothing while the root mean square of g is far above sqrt(epsilon).
    * "state" (the text): (params, g, m, v) as they are, with m <- b1 m + (1 - b1) g and
      v <- b2 v + (1 - b2) g^2 from 0. The text names the moments; their decays are Adam's, here.

    Theta has 440 weights in the first form: w_x [hidden, inputs], w_h [hidden, hidden] and w
    [1, hidden]. The hidden state is (h,), [hidden, n], or (h, m, v), the moments [1, n].
    """

    def __init__(
        self,
        hidden_size: int = 20,
        inputs: str = "gradient",
        head_scale: float = 0.1,
        epsilon: float = 1e-5,
        momentum_decay: float = 0.9,
        second_moment_decay: float = 0.999,
        second_derivatives: bool = False,
        spectral_norm: Sequence[str] = (),
    ):
        """Initializer.

        Args:
          hidden_size: units, > 0.
          inputs: "gradient" or "state", see above.
          head_scale: factor on w at init, >= 0.
          epsilon: of "gradient" alone, > 0.
          momentum_decay: b1, of "state" alone, in (0, 1).
          second_moment_decay: b2, of "state" alone, in (0, 1).
          second_derivatives: differentiate through the gradients, too.
          spectral_norm: matrices of theta that are divided by their largest singular value, of
            "rnn/w_x", "rnn/w_h" and "linear/w", see `spectral`.

        Raises:
          ValueError: an argument is out of its range; the message names the range.
        """
        owner = "SimpleLOpt"
        errors.check_count(f"{owner}.hidden_size", hidden_size)
        errors.check_name(f"{owner}.inputs", inputs, INPUTS)
        errors.check_not_negative(f"{owner}.head_scale", head_scale)
        errors.check_positive(f"{owner}.epsilon", epsilon)
        averages.check_decays(f"{owner}.momentum_decay", [momentum_decay])
        averages.check_decays(f"{owner}.second_moment_decay", [second_moment_decay])
        # What matters alone, so that nothing else is part of what names an optimizer.
        read = {
            "gradient": {"epsilon": epsilon},
            "state": {"momentum_decay": momentum_decay, "second_moment_decay": second_moment_decay},
        }
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "inputs": inputs,
            "head_scale": head_scale,
            **read[inputs],
            "second_derivatives": second_derivatives,
            **({"spectral_norm": list(spectral_norm)} if spectral_norm else {}),
        }
        self._hidden_size = hidden_size
        self._reads_state = inputs == "state"
        self._head_scale = head_scale
        self._epsilon = epsilon
        self._decays = (momentum_decay, second_moment_decay)
        self.second_derivatives = second_derivatives
        self.spectral_norm = spectral.check(f"{owner}.spectral_norm", spectral_norm, self.init)

    @property
    def name(self) -> str:
        return f"SimpleLOpt_{self._hidden_size}_{self.config['inputs']}"

    @property
    def needs_params(self) -> bool:
        return self._reads_state

    def gradient_scale(self, gradient: Float[Array, n]) -> Float[Array, ""] | None:
        if self._reads_state:
            return None
        return jax.lax.rsqrt(jnp.mean(gradient**2) + self._epsilon)

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, float32: uniform in +-1/sqrt(hidden_size), as PyTorch does; w scaled."""
        size = self._hidden_size
        shapes = ((size, 4 if self._reads_state else 1), (size, size), (1, size))
        w_x, w_h, w = (
            jax.random.uniform(key, shape, minval=-(size**-0.5), maxval=size**-0.5)
            for key, shape in zip(jax.random.split(rng, len(shapes)), shapes, strict=True)
        )
        return {"rnn": {"w_x": w_x, "w_h": w_h}, "linear": {"w": self._head_scale * w}}

    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Hidden:
        wide = jnp.promote_types(dtype, jnp.float32)
        moments = [jnp.zeros((1, num_coordinates), wide) for _ in self._decays]
        h = jnp.zeros((self._hidden_size, num_coordinates), dtype)
        return (h, *moments) if self._reads_state else (h,)

    def with_gradient(self, hidden: Hidden, gradient: Float[Array, n]) -> Hidden:
        h, *moments = hidden
        averaged = zip(self._decays, moments, (gradient, gradient**2), strict=False)
        return (h, *(decay * old + (1 - decay) * new for decay, old, new in averaged))

    def features(
        self, hidden: Hidden, gradient: Float[Array, n], params: Float[Array, n]
    ) -> Float[Array, "features n"]:
        if not self._reads_state:
            return gradient[None]
        return jnp.concatenate([params[None], gradient[None], *hidden[1:]])

    def updates(
        self, theta: Theta, hidden: Hidden, features: Float[Array, "features n"]
    ) -> tuple[Float[Array, n], Hidden]:
        theta = jax.tree.map(lambda leaf: leaf.astype(features.dtype), theta)
        h, *moments = hidden
        h = jnp.tanh(theta["rnn"]["w_x"] @ features + theta["rnn"]["w_h"] @ h)
        return (theta["linear"]["w"] @ h)[0], (h, *moments)
