"""The coordinate-wise LSTM optimizer of Andrychowicz et al. 2016, which the paper uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import leaves, preprocessing

Theta = dict[str, dict[str, jax.Array]]
Params = Any
Hidden = tuple[Any, ...]
"""Arrays [.., n], see `LSTMOptState.hidden`."""

_INPUTS = ("grad", "momentum", "params")


@flax.struct.dataclass
class LSTMOptState:
    """State of the LSTM optimizer: what a training loop carries from step to step.

    Attributes:
      params: the optimizee's weights, any pytree.
      state: the optimizee's non-trained state (`ModelState` upstream), or None.
      hidden: per layer (h, c), each of shape [hidden_size, n]; n counts all coordinates of
        `params`. Then, where momenta are among the inputs, those: [number of decays, n].
      iteration: inner steps taken, int32 scalar.
    """

    params: Params
    state: Any
    hidden: Hidden
    iteration: jax.Array


@configurable()
class LSTMLOpt(upstream.LearnedOptimizer):
    """A small LSTM, shared by all coordinates, that maps each coordinate's gradient to its update.

    Two layers of 20 units read the preprocessed gradient, a linear layer writes the update, and
    params <- params + output_scale * output. Each coordinate has its own hidden state, zero at the
    start. The gradient is an input, by default not differentiated through. Source: Andrychowicz et
    al. 2016; eq. 2 of arXiv 2510.08968 has the params among the inputs.

    What the hidden state can average are compressed gradients, in which the noise of batches hides
    the mean. Momenta, m <- decay m + (1 - decay) g, average before that, as inputs of later learned
    optimizers do (Metz et al. 2020, arXiv 2009.11243).

    All coordinates are laid side by side on the LAST axis (features x coordinates), so that matmuls
    and gates run over long contiguous rows.

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
                "LSTMLOpt.momentum_decays = (): give at least one, or no 'momentum' in "
                "LSTMLOpt.inputs."
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

    @property
    def needs_params(self) -> bool:
        """Whether the params are among the inputs."""
        return "params" in self._inputs

    @property
    def name(self) -> str:
        return f"LSTMLOpt_{self._num_layers}x{self._hidden_size}_{'_'.join(self._inputs)}"

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, float32.

        LSTM weights are [4 * hidden_size, features + hidden_size], gates in order i, g, f, o.

        Weights are truncated normal with deviation 1/sqrt(fan-in), biases zero but 1 for the forget
        gate (as in Sonnet and Haiku).
        """
        features = (2 if self._preprocess else 1) * (1 + len(self._decays)) + self.needs_params
        sizes = [features] + [self._hidden_size] * self._num_layers
        keys = jax.random.split(rng, self._num_layers + 1)
        forget_bias = jnp.zeros((4, self._hidden_size)).at[2].set(1.0).reshape(-1)
        theta: Theta = {}
        for layer in range(self._num_layers):
            shape = (4 * self._hidden_size, sizes[layer] + self._hidden_size)
            theta[f"lstm_{layer}"] = {"w": _truncated_normal(keys[layer], shape), "b": forget_bias}
        theta["linear"] = {
            "w": _truncated_normal(keys[-1], (1, self._hidden_size)),
            "b": jnp.zeros((1,)),
        }
        return theta

    def opt_fn(self, theta: Theta, is_training: bool = False) -> _LSTMOptimizer:
        """Returns the `Optimizer` that `theta` parameterizes."""
        return _LSTMOptimizer(self, theta)

    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Hidden:
        """Zeros; each an array of its own, so that a training loop may donate them.

        Momenta are never narrower than float32: a step moves them by a share of 1 - decay, which
        bfloat16 rounds away where that is small.
        """
        shape = (self._hidden_size, num_coordinates)
        layers = tuple(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(self._num_layers)
        )
        if not self._decays:
            return layers
        wide = jnp.promote_types(dtype, jnp.float32)
        return (*layers, jnp.zeros((len(self._decays), num_coordinates), wide))

    def network(
        self,
        theta: Theta,
        hidden: Hidden,
        gradient: Float[Array, n],
        params: Float[Array, n],
    ) -> tuple[Float[Array, n], Hidden]:
        """One step of the LSTM on n coordinates: (updates, next hidden state)."""
        hidden = self._with_momenta_of(hidden, gradient)
        return self._cells(theta, hidden, self._features(hidden, gradient, params))

    def update_fn(
        self,
        theta: Theta,
        opt_state: LSTMOptState,
        grad: Params,
        *,
        key: jax.Array,
        fraction: float = 1.0,
        space: str = "gradient",
    ) -> tuple[Callable[[jax.Array], Float[Array, n]], jax.Array, Float[Array, ""]]:
        """The optimizer as a function of its input alone, its state held fixed.

        Args:
          theta: weights of the optimizer.
          opt_state: where it stands.
          grad: the gradient it would read next, shaped like the params.
          key: draws the coordinates.
          fraction: share of the coordinates to take, drawn with replacement unless 1.
          space: "gradient": the input is the gradient [n]; "preprocessed": its features [f, n].

        Returns:
          (update_fn, its input here, the unit to measure the input in). The unit is the root mean
          square of the whole gradient, or 1 for features.
        """
        gradient, params = leaves.flatten(grad), leaves.flatten(opt_state.params)
        hidden = opt_state.hidden
        unit = jnp.sqrt(jnp.mean(gradient**2))
        if fraction < 1:
            count = max(1, round(fraction * gradient.size))
            index = jax.random.randint(key, (count,), 0, gradient.size)
            gradient, params, hidden = jax.tree.map(
                lambda leaf: leaf[..., index], (gradient, params, hidden)
            )
        if space == "preprocessed":
            hidden = self._with_momenta_of(hidden, gradient)
            features = self._features(hidden, gradient, params)
            return lambda x: self._cells(theta, hidden, x)[0], features, jnp.ones_like(unit)
        return lambda g: self.network(theta, hidden, g, params)[0], gradient, unit

    def _with_momenta_of(self, hidden: Hidden, gradient: Float[Array, n]) -> Hidden:
        """The hidden state with the gradient taken into its momenta."""
        if not self._decays:
            return hidden
        *layers, momenta = hidden
        decays = jnp.asarray(self._decays, momenta.dtype)[:, None]
        return (*layers, decays * momenta + (1 - decays) * gradient)

    def _features(
        self, hidden: Hidden, gradient: Float[Array, n], params: Float[Array, n]
    ) -> Float[Array, "features n"]:
        """What the first layer reads; the momenta are those at the end of `hidden`."""
        features = []
        for name in self._inputs:
            if name == "params":
                features.append(params[None])
                continue
            for values in hidden[-1] if name == "momentum" else (gradient,):
                features.append(
                    preprocessing.log_sign(values, self._preprocess_factor)
                    if self._preprocess
                    else values[None]
                )
        return jnp.concatenate(features) if len(features) > 1 else features[0]

    def _cells(
        self,
        theta: Theta,
        hidden: Hidden,
        x: Float[Array, "features n"],
    ) -> tuple[Float[Array, n], Hidden]:
        next_hidden = []
        for layer, (h, c) in enumerate(hidden[: self._num_layers]):
            x, next_c = _lstm_layer(theta[f"lstm_{layer}"], x, h, c)
            next_hidden.append((x, next_c))
        linear = jax.tree.map(lambda t: t.astype(x.dtype), theta["linear"])
        output = (linear["w"] @ x + linear["b"][:, None])[0]
        if self._output_bound is not None:
            output = self._output_bound * jnp.tanh(output / self._output_bound)
        return self._output_scale * output, (*next_hidden, *hidden[self._num_layers :])


def check_hidden(hidden: Hidden, shape: tuple[int, ...], whose: str) -> None:
    """Refuses hidden states of other coordinates.

    Args:
      hidden: see `LSTMOptState`.
      shape: of the coordinates, [n], or that of a leaf.
      whose: what the message calls them, e.g. "the params have".

    Raises:
      ValueError: they are of another shape.
    """
    for array in jax.tree.leaves(hidden):
        if array.shape[1:] != shape:
            raise ValueError(
                f"The state is of coordinates {list(array.shape[1:])}, {whose} {list(shape)}: make "
                "a new one, by init with these params."
            )


class _LSTMOptimizer(upstream.Optimizer):
    """`LSTMLOpt` with its weights: the interface of upstream's optimizers."""

    def __init__(self, lopt: LSTMLOpt, theta: Theta):
        self._lopt = lopt
        self._theta = theta

    @property
    def name(self) -> str:
        return self._lopt.name

    def init(
        self,
        params: Params,
        model_state: Any = None,
        num_steps: int | None = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> LSTMOptState:
        """Starts a run: zero hidden state. `num_steps` and `key` are accepted and not needed.

        Raises:
          ValueError: a leaf of the params could not be trained, see `leaves.check`.
        """
        del num_steps, key, kwargs
        leaves.check(params)
        return LSTMOptState(
            params=params,
            state=model_state,
            hidden=self._lopt.initial_hidden(leaves.size(params), leaves.common_dtype(params)),
            iteration=jnp.asarray(0, jnp.int32),
        )

    def set_params(self, state: LSTMOptState, params: Params) -> LSTMOptState:
        return state.replace(params=params)  # type: ignore[attr-defined]

    def update(
        self,
        opt_state: LSTMOptState,
        grad: Params,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> LSTMOptState:
        """One inner step: params <- params + network(grad); `grad` is shaped like the params.

        Raises:
          ValueError: it is not, or the state is of other params.
        """
        del loss, key, kwargs
        leaves.check_gradients(grad, opt_state.params)
        flat = leaves.flatten(opt_state.params)
        check_hidden(opt_state.hidden, flat.shape, "the params have")
        if flat.size == 0:
            updates, hidden = flat, opt_state.hidden
        else:
            trained = leaves.trained_gradients(grad, opt_state.params)
            gradient = leaves.flatten(trained).astype(flat.dtype)
            if not self._lopt.second_derivatives:
                gradient = jax.lax.stop_gradient(gradient)
            updates, hidden = self._lopt.network(self._theta, opt_state.hidden, gradient, flat)
        return LSTMOptState(
            params=leaves.add_flat(opt_state.params, updates),
            state=model_state,
            hidden=hidden,
            iteration=opt_state.iteration + 1,
        )


def _lstm_layer(
    weights: dict[str, jax.Array],
    x: Float[Array, "features n"],
    h: Float[Array, "hidden n"],
    c: Float[Array, "hidden n"],
) -> tuple[Float[Array, "hidden n"], Float[Array, "hidden n"]]:
    """One LSTM layer with forget gate on n coordinates: (next h, next c)."""
    w, b = weights["w"].astype(x.dtype), weights["b"].astype(x.dtype)
    gates = w @ jnp.concatenate([x, h]) + b[:, None]
    i, g, f, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _truncated_normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / jnp.sqrt(shape[1])
