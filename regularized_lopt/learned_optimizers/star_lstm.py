"""An LSTM optimizer with STAR's pieces: normalized inputs, a nominal term, heads for magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import averages, coordinatewise, lstm_network

Theta = dict[str, dict[str, jax.Array]]
Hidden = tuple[Any, ...]

_DIRECTIONS = ("none", "adam", "adam_aggmo")
_HEADS = ("direction", "magnitude", "nominal_magnitude")
_LOG_UNIT = 10.0  # Logarithms are divided by it, so that they are of the order of the others.


@configurable()
class StarLSTMLOpt(coordinatewise.CoordinateWiseLOpt):
    """params <- params - (f_nominal + f_blackbox), by a small LSTM that all coordinates share.

    The LSTM reads, of each coordinate, its gradient and momenta divided by the root v of its own
    mean square, and how far v is below its peak; a linear layer writes d, m and n::

      f_nominal  = nominal_step e^n a       a: the last or the mean of m / sqrt(v)
      f_blackbox = blackbox_scale d e^m

    All of that is unchanged by a constant factor on the loss. Averages are corrected for their
    start at 0 by the steps since a coordinate's first gradient, before which it does not move.

    Source: the pieces are those of STAR (Harrison, Metz & Sohl-Dickstein 2022, arXiv 2209.11208),
    the network that of Andrychowicz et al. 2016.
    """

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        nominal: str = "adam_aggmo",
        nominal_step: float = 3e-3,
        blackbox_scale: float = 1e-3,
        controller: bool = True,
        head_scale: float = 0.1,
        second_derivatives: bool = False,
    ):
        """Initializer.

        Args:
          hidden_size: units per layer, > 0.
          num_layers: LSTM layers, 1 to 100.
          momentum_decays: each in (0, 1); at least one.
          second_moment_decay: in (0, 1).
          nominal: "none", "adam" or "adam_aggmo", see `learned_optimizers.nominal.direction`; the
            others have the scale of the loss.
          nominal_step: see above, >= 0.
          blackbox_scale: see above, >= 0.
          controller: whether the network scales the nominal term; if not, n = 0.
          head_scale: factor on the linear layer's weights at init, >= 0.
          second_derivatives: differentiate through the gradients, too.

        Raises:
          ValueError: an argument is out of its range; the message names the range.
        """
        owner = "StarLSTMLOpt"
        errors.check_count(f"{owner}.hidden_size", hidden_size)
        errors.check_count(f"{owner}.num_layers", num_layers, most=100)
        momentum_decays = averages.check_decays(f"{owner}.momentum_decays", momentum_decays)
        averages.check_decays(f"{owner}.second_moment_decay", [second_moment_decay])
        errors.check_name(f"{owner}.nominal", nominal, _DIRECTIONS)
        for key, value in {
            "nominal_step": nominal_step,
            "blackbox_scale": blackbox_scale,
            "head_scale": head_scale,
        }.items():
            errors.check_not_negative(f"{owner}.{key}", value)
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "momentum_decays": list(momentum_decays),
            "second_moment_decay": second_moment_decay,
            "nominal": nominal,
            "nominal_step": nominal_step,
            "blackbox_scale": blackbox_scale,
            "controller": controller,
            "head_scale": head_scale,
            "second_derivatives": second_derivatives,
        }
        self._hidden_size = hidden_size
        self._num_layers = num_layers
        self._momentum_decays = momentum_decays
        self._second_moment_decay = second_moment_decay
        self._nominal = nominal
        self._nominal_step = nominal_step
        self._blackbox_scale = blackbox_scale
        self._controller = controller
        self._head_scale = head_scale
        self.second_derivatives = second_derivatives

    @property
    def name(self) -> str:
        return f"StarLSTMLOpt_{self._num_layers}x{self._hidden_size}"

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, see `lstm_network.init`; the linear layer's weights times `head_scale`."""
        heads = len(_HEADS) if self._controller else len(_HEADS) - 1
        theta = lstm_network.init(
            rng, len(self._momentum_decays) + 2, self._hidden_size, self._num_layers, heads
        )
        theta["linear"]["w"] *= self._head_scale
        return theta

    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Hidden:
        """Zeros: (h, c) by layer, `averages.Moments`, and the largest v so far, [1, n]."""
        layers = lstm_network.initial(self._num_layers, self._hidden_size, num_coordinates, dtype)
        moments = averages.zeros_moments((num_coordinates,), len(self._momentum_decays), dtype)
        return (*layers, moments, jnp.zeros_like(moments.second))

    def with_gradient(self, hidden: Hidden, gradient: Float[Array, n]) -> Hidden:
        *layers, moments, peak = hidden
        decays = self._momentum_decays, self._second_moment_decay
        moments = averages.update_moments(moments, gradient, *decays)
        _, second = averages.corrected(moments, *decays)
        return (*layers, moments, jnp.maximum(peak, second))

    def features(
        self, hidden: Hidden, gradient: Float[Array, n], params: Float[Array, n]
    ) -> Float[Array, "features n"]:
        del params
        *_, moments, peak = hidden
        momenta, second = averages.corrected(
            moments, self._momentum_decays, self._second_moment_decay
        )
        inverse_rms, seen = averages.inverse_root(second), second > 0
        share = jnp.where(seen, second, 1) / jnp.where(seen, peak, 1)
        below_peak = jnp.log(share) / _LOG_UNIT
        return jnp.concatenate([gradient * inverse_rms, momenta * inverse_rms, below_peak])

    def updates(
        self, theta: Theta, hidden: Hidden, features: Float[Array, "features n"]
    ) -> tuple[Float[Array, n], Hidden]:
        *layers, moments, peak = hidden
        outputs, advanced = lstm_network.apply(theta, layers, features)
        descent = self._blackbox_scale * outputs[0] * jnp.exp(outputs[1])
        if self._nominal != "none":
            momenta = features[1 : 1 + len(self._momentum_decays)]
            ascent = momenta[-1] if self._nominal == "adam" else jnp.mean(momenta, axis=0)
            size = jnp.exp(outputs[2]) if self._controller else 1.0
            descent = descent + self._nominal_step * size * ascent
        return jnp.where(moments.second[0] > 0, -descent, 0), (*advanced, moments, peak)
