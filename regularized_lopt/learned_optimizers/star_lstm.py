"""An LSTM optimizer with STAR's pieces: normalized inputs, a nominal term, heads for magnitudes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import averages, coordinatewise, leaves, lstm_network

Theta = dict[str, dict[str, jax.Array]]
Hidden = tuple[Any, ...]

_DIRECTIONS = ("none", "adam", "adam_aggmo")
_HEADS = ("direction", "magnitude", "nominal_magnitude")
_LOG_UNIT = 10.0  # Logarithms are divided by it, so that they are of the order of the others.
_RMS_FLOOR = 1e-8  # Added to root mean squares before their logarithm is taken.


class Tensors(NamedTuple):
    """What a coordinate is told of the tensor that it is part of, each [1, n].

    Attributes:
      update: what was added to the coordinate last.
      rms_params: root mean square of the tensor's params.
      rms_updates: of its last updates.
    """

    update: jax.Array
    rms_params: jax.Array
    rms_updates: jax.Array


@configurable()
class StarLSTMLOpt(coordinatewise.CoordinateWiseLOpt):
    """params <- params - (f_nominal + f_blackbox), by a small LSTM that all coordinates share.

    The LSTM reads, of each coordinate, its gradient and momenta divided by the root v of its own
    mean square, and how far v is below its peak; a linear layer writes d, m and n::

      f_nominal  = nominal_step e^(magnitude_scale n) a       a: last or mean of m / sqrt(v)
      f_blackbox = blackbox_scale d e^(magnitude_scale m)

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
        blackbox_scale: float = 3e-4,
        magnitude_scale: float = 1.0,
        controller: bool = True,
        head_scale: float = 0.1,
        bounded: bool = True,
        tensor_features: bool = False,
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
          magnitude_scale: see above, >= 0.
          controller: whether the network scales the nominal term; if not, n = 0.
          head_scale: factor on the linear layer's weights at init, >= 0.
          bounded: bound d, m and n to (-1, 1) by `jax.nn.soft_sign`.
          tensor_features: whether the LSTM reads the logarithms of the root mean squares of the
            tensor's params and of its last updates, too. It then takes no
            `coordinate_fraction`, and in optax no chunks.
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
            "magnitude_scale": magnitude_scale,
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
            "magnitude_scale": magnitude_scale,
            "controller": controller,
            "head_scale": head_scale,
            "bounded": bounded,
            "tensor_features": tensor_features,
            "second_derivatives": second_derivatives,
        }
        self._hidden_size = hidden_size
        self._num_layers = num_layers
        self._momentum_decays = momentum_decays
        self._second_moment_decay = second_moment_decay
        self._nominal = nominal
        self._nominal_step = nominal_step
        self._blackbox_scale = blackbox_scale
        self._magnitude_scale = magnitude_scale
        self._controller = controller
        self._head_scale = head_scale
        self._bounded = bounded
        self._tensor_features = tensor_features
        self.second_derivatives = second_derivatives

    @property
    def name(self) -> str:
        return f"StarLSTMLOpt_{self._num_layers}x{self._hidden_size}"

    @property
    def reads_tensors(self) -> bool:
        return self._tensor_features

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, see `lstm_network.init`; the linear layer's weights times `head_scale`."""
        heads = len(_HEADS) if self._controller else len(_HEADS) - 1
        inputs = len(self._momentum_decays) + (4 if self._tensor_features else 2)
        theta = lstm_network.init(rng, inputs, self._hidden_size, self._num_layers, heads)
        theta["linear"]["w"] *= self._head_scale
        return theta

    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Hidden:
        """Zeros: (h, c) by layer, `averages.Moments`, the largest v so far, [1, n], `Tensors`."""
        layers = lstm_network.initial(self._num_layers, self._hidden_size, num_coordinates, dtype)
        moments = averages.zeros_moments((num_coordinates,), len(self._momentum_decays), dtype)
        tensors = [Tensors(*(jnp.zeros_like(moments.second) for _ in Tensors._fields))]
        peak = jnp.zeros_like(moments.second)
        return (*layers, moments, peak, *(tensors if self._tensor_features else ()))

    def with_tensors(self, hidden: Hidden, params: Float[Array, n], sizes: Sequence[int]) -> Hidden:
        if not self._tensor_features:
            return hidden
        *kept, tensors = hidden
        rms = functools.partial(_rms_by_tensor, sizes=tuple(sizes))
        return (*kept, Tensors(tensors.update, rms(params), rms(tensors.update[0])))

    def with_gradient(self, hidden: Hidden, gradient: Float[Array, n]) -> Hidden:
        layers, moments, peak, tensors = self._parts(hidden)
        decays = self._momentum_decays, self._second_moment_decay
        moments = averages.update_moments(moments, gradient, *decays)
        _, second = averages.corrected(moments, *decays)
        return (*layers, moments, jnp.maximum(peak, second), *tensors)

    def features(
        self, hidden: Hidden, gradient: Float[Array, n], params: Float[Array, n]
    ) -> Float[Array, "features n"]:
        del params
        _, moments, peak, tensors = self._parts(hidden)
        momenta, second = averages.corrected(
            moments, self._momentum_decays, self._second_moment_decay
        )
        inverse_rms, seen = averages.inverse_root(second), second > 0
        share = jnp.where(seen, second, 1) / jnp.where(seen, peak, 1)
        logs = [jnp.log(share)]
        for one in tensors:
            logs += [jnp.log(one.rms_params + _RMS_FLOOR), jnp.log(one.rms_updates + _RMS_FLOOR)]
        normalized = [gradient * inverse_rms, momenta * inverse_rms]
        return jnp.concatenate([*normalized, *(log / _LOG_UNIT for log in logs)])

    def updates(
        self, theta: Theta, hidden: Hidden, features: Float[Array, "features n"]
    ) -> tuple[Float[Array, n], Hidden]:
        layers, moments, peak, tensors = self._parts(hidden)
        outputs, advanced = lstm_network.apply(theta, layers, features)
        if self._bounded:
            outputs = jax.nn.soft_sign(outputs)
        sizes = jnp.exp(self._magnitude_scale * outputs[1:])
        descent = self._blackbox_scale * outputs[0] * sizes[0]
        if self._nominal != "none":
            momenta = features[1 : 1 + len(self._momentum_decays)]
            ascent = momenta[-1] if self._nominal == "adam" else jnp.mean(momenta, axis=0)
            step = self._nominal_step * (sizes[1] if self._controller else 1.0)
            descent = descent + step * ascent
        update = jnp.where(moments.second[0] > 0, -descent, 0)
        kept = [one._replace(update=update[None].astype(one.update.dtype)) for one in tensors]
        return update, (*advanced, moments, peak, *kept)

    def _parts(self, hidden: Hidden) -> tuple[Any, averages.Moments, jax.Array, Any]:
        """((h, c) by layer, averages, peak, `Tensors` if any)."""
        layers = hidden[: self._num_layers]
        moments, peak, *tensors = hidden[self._num_layers :]
        return layers, moments, peak, tensors


def _rms_by_tensor(array: Float[Array, n], sizes: tuple[int, ...]) -> Float[Array, "1 n"]:
    """The root mean square of the part that a coordinate is in; finite derivatives at 0."""
    tensors = leaves.SideBySide([(size,) for size in sizes])
    means = [jnp.mean(part**2) for part in tensors.split(array)]
    return tensors.join([mean * averages.inverse_root(mean) for mean in means])[None]
