"""The coordinate-wise LSTM optimizer of Andrychowicz et al. 2016, which the paper uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import (
    coordinatewise,
    lstm_network,
    preprocessing,
    spectral,
)

Theta = dict[str, dict[str, jax.Array]]
Hidden = tuple[Any, ...]

_INPUTS = ("grad", "momentum", "params")


@configurable()
class LSTMLOpt(coordinatewise.CoordinateWiseLOpt):
    """A small LSTM, shared by all coordinates, that maps each coordinate's gradient to its update.

    Two layers of 20 units read the preprocessed gradient, a linear layer writes the update, and
    params <- params + output_scale * output. Each coordinate has its own hidden state, zero at the
    start. The gradient is an input, by default not differentiated through. Source: Andrychowicz et
    al. 2016; eq. 2 of arXiv 2510.08968 has the params among the inputs.

    What the hidden state can average are compressed gradients, in which the noise of batches hides
    the mean. Momenta, m <- decay m + (1 - decay) g, average before that, as inputs of later learned
    optimizers do (Metz et al. 2020, arXiv 2009.11243).

    What it does depends on the scale of the loss: meta-trained on cross-entropies, it worked with
    0.01 to 1 times these, and failed with 1e-4 and 100 times (benchmarks/RESULTS.md).

    The hidden state is (h, c) by layer, each [hidden_size, n]; then, where momenta are among the
    inputs, those, [decays, n]; then, with `hold_unseen`, 1 where a gradient was not 0, [1, n].

    Attributes:
      config: the constructor's arguments as a JSON-serializable dict; `LSTMLOpt(**config)` is the
        same optimizer.
    """

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        inputs: str | Sequence[str] = ("grad",),
        momentum_decays: Sequence[float] = (0.9,),
        preprocess: bool = True,
        preprocess_factor: float = 10.0,
        output_scale: float = 0.1,
        output_bound: float | None = None,
        second_derivatives: bool = False,
        hold_unseen: bool = False,
        spectral_norm: Sequence[str] = (),
    ):
        """Initializer.

        Args:
          hidden_size: units per layer, > 0.
          num_layers: LSTM layers, 1 to 100.
          inputs: what each coordinate sees: "grad", and "momentum" and "params" if wanted.
          momentum_decays: of the averages of gradients among the inputs, each in (0, 1); each is
            an input of its own. They start at 0 and are not corrected for it.
          preprocess: split gradients and momenta into log-magnitude and sign (2 features) instead
            of the raw value (1).
          preprocess_factor: k of the split, see `preprocessing.log_sign`, in (0, 80], for
            e^k to be a float32.
          output_scale: factor on the network's output, > 0 (0.1 here, 0.01 in the 2016 code).
          output_bound: if given, outputs are squashed by tanh to +- this before scaling, > 0.
          second_derivatives: differentiate through the gradients that are the inputs, too: exact
            derivatives of an unroll w.r.t. theta, which need second derivatives of the loss.
          hold_unseen: leave coordinates where they are as long as all their gradients were 0, as in
            a layer that is frozen. A gradient of 0 is an input like any other, else.
          spectral_norm: matrices of theta that are divided by their largest singular value, e.g.
            ("lstm_0/w", "linear/w"), see `spectral`. The four gates' are one matrix.

        Raises:
          ValueError: an argument is out of its range; the message names the range.
        """
        errors.check_count("LSTMLOpt.hidden_size", hidden_size)
        errors.check_count("LSTMLOpt.num_layers", num_layers, most=100)
        errors.check_in("LSTMLOpt.preprocess_factor", preprocess_factor, "(0, 80]")
        errors.check_positive("LSTMLOpt.output_scale", output_scale)
        if output_bound is not None:
            errors.check_positive("LSTMLOpt.output_bound", output_bound)
        inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        for name in inputs:
            errors.check_name("LSTMLOpt.inputs", name, _INPUTS)
        if "grad" not in inputs or len(set(inputs)) != len(inputs):
            raise ValueError(
                f"LSTMLOpt.inputs = {inputs!r}: give 'grad', and of 'momentum' and 'params' what "
                "is wanted, each once."
            )
        momentum_decays = tuple(float(decay) for decay in momentum_decays)
        for decay in momentum_decays:
            errors.check_in("LSTMLOpt.momentum_decays", decay, "(0, 1)")
        if "momentum" in inputs and not momentum_decays:
            raise ValueError(
                "LSTMLOpt.momentum_decays = (): give at least one, or inputs without 'momentum'."
            )
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "inputs": list(inputs),
            # Named where it matters alone, so that it is no part of what names the others.
            **({"momentum_decays": list(momentum_decays)} if "momentum" in inputs else {}),
            "preprocess": preprocess,
            "preprocess_factor": preprocess_factor,
            "output_scale": output_scale,
            "output_bound": output_bound,
            "second_derivatives": second_derivatives,
            **({"hold_unseen": True} if hold_unseen else {}),
            **({"spectral_norm": list(spectral_norm)} if spectral_norm else {}),
        }
        self._hidden_size = hidden_size
        self._num_layers = num_layers
        self._inputs = inputs
        self._decays = momentum_decays if "momentum" in inputs else ()
        self._preprocess = preprocess
        self._preprocess_factor = preprocess_factor
        self._output_scale = output_scale
        self._output_bound = output_bound
        self.second_derivatives = second_derivatives
        self._hold_unseen = hold_unseen
        self.spectral_norm = spectral.check("LSTMLOpt.spectral_norm", spectral_norm, self.init)

    @property
    def needs_params(self) -> bool:
        """Whether the params are among the inputs."""
        return "params" in self._inputs

    @property
    def name(self) -> str:
        return f"LSTMLOpt_{self._num_layers}x{self._hidden_size}_{'_'.join(self._inputs)}"

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, float32: see `lstm_network.init`."""
        features = (2 if self._preprocess else 1) * (1 + len(self._decays)) + self.needs_params
        return lstm_network.init(rng, features, self._hidden_size, self._num_layers, 1)

    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Hidden:
        """Zeros; each an array of its own, so that a training loop may donate them.

        Momenta are never narrower than float32: a step moves them by a share of 1 - decay, which
        bfloat16 rounds away where that is small.
        """
        layers = lstm_network.initial(self._num_layers, self._hidden_size, num_coordinates, dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        averages = [len(self._decays)] if self._decays else []
        seen = [1] if self._hold_unseen else []
        rows = (jnp.zeros((count, num_coordinates), wide) for count in averages + seen)
        return (*layers, *rows)

    def with_gradient(self, hidden: Hidden, gradient: Float[Array, n]) -> Hidden:
        layers, rows = hidden[: self._num_layers], list(hidden[self._num_layers :])
        if self._decays:
            decays = jnp.asarray(self._decays, rows[0].dtype)[:, None]
            rows[0] = decays * rows[0] + (1 - decays) * gradient
        if self._hold_unseen:
            rows[-1] = jnp.maximum(rows[-1], gradient != 0)
        return (*layers, *rows)

    def features(
        self, hidden: Hidden, gradient: Float[Array, n], params: Float[Array, n]
    ) -> Float[Array, "features n"]:
        features = []
        for name in self._inputs:
            if name == "params":
                features.append(params[None])
                continue
            momenta = hidden[self._num_layers] if name == "momentum" else (gradient,)
            for values in momenta:
                features.append(
                    preprocessing.log_sign(values, self._preprocess_factor)
                    if self._preprocess
                    else values[None]
                )
        return jnp.concatenate(features) if len(features) > 1 else features[0]

    def updates(
        self, theta: Theta, hidden: Hidden, features: Float[Array, "features n"]
    ) -> tuple[Float[Array, n], Hidden]:
        (output,), layers = lstm_network.apply(theta, hidden[: self._num_layers], features)
        if self._output_bound is not None:
            output = self._output_bound * jnp.tanh(output / self._output_bound)
        if self._hold_unseen:
            output = jnp.where(hidden[-1][0] > 0, output, 0)
        return self._output_scale * output, (*layers, *hidden[self._num_layers :])
