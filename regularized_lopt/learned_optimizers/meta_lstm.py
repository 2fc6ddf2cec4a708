"""The LSTM meta-learner of Ravi & Larochelle 2017, whose cell state is the learner's params."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import leaves, lstm_network, preprocessing

Theta = dict[str, Any]
Params = Any
_FORGET_BIAS, _INPUT_BIAS = (4.0, 6.0), (-5.0, -4.0)
"""Bounds that biases of the gates are drawn from: at first it is nearly gradient descent."""


@flax.struct.dataclass
class MetaLSTMState:
    """What an episode carries from one inner step to the next.

    Attributes:
      params: c, the learner's weights.
      state: the learner's state that is not trained.
      layers: (h, c) of the LSTM, each [hidden_size, n].
      gates: of the last step, forget and input gate before the sigmoid, [2, n].
      iteration: inner steps taken, int32.
    """

    params: Params
    state: Any
    layers: lstm_network.Layers
    gates: jax.Array
    iteration: jax.Array


@configurable()
class MetaLSTMLOpt(upstream.LearnedOptimizer):
    """Learns where a learner of given shape starts, and for each weight how to go on::

      h     = LSTM(log_sign(loss), log_sign(g))
      f     = sigmoid(w_f [h, c, f_before] + b_f)
      i     = sigmoid(w_i [h, c, i_before] + b_i)
      c     <- f c - i g

    c are the learner's params, which begin at params that are learned, too; g is their gradient.
    All coordinates share the weights. Loss and gradient are inputs that are not differentiated
    through (first order). Gates are carried before the sigmoid and begin at 0, as in the published
    code. Source: "Optimization as a Model for Few-Shot Learning" (Ravi & Larochelle 2017).

    Params at the start of a trajectory are theta's, whatever `init` is given, at every use of them,
    so that theta's gradient reaches them. For smoothing, g and the features made of it are inputs
    of their own: in space "gradient" g alone is perturbed (Xiong & Hsieh 2022), in "preprocessed"
    its two features. Both are measured as they are, not in units of the root mean square of g.

    Theta: "lstm_0" and "linear", see `lstm_network`; "memory", w_f and w_i of what is carried, [2]
    each; "initial", the params. Gates are in order f, i.
    """

    def __init__(
        self,
        shapes: Mapping[str, Mapping[str, Sequence[int]]],
        hidden_size: int = 20,
        preprocess_factor: float = 10.0,
    ):
        """Initializer.

        Args:
          shapes: of the learner's params, by module and name, see `FewShotFamily.param_shapes`.
          hidden_size: units of the LSTM, > 0.
          preprocess_factor: see `preprocessing.log_sign`, in (0, 80].

        Raises:
          ValueError: an argument is out of its range.
        """
        errors.check_count("MetaLSTMLOpt.hidden_size", hidden_size)
        errors.check_in("MetaLSTMLOpt.preprocess_factor", preprocess_factor, "(0, 80]")
        if not shapes or not all(shapes.values()):
            raise ValueError(
                f"MetaLSTMLOpt.shapes = {dict(shapes)}: give the shapes of a learner's params, "
                "none of its modules without any."
            )
        for size in jax.tree.leaves([tuple(one) for of in shapes.values() for one in of.values()]):
            errors.check_count("MetaLSTMLOpt.shapes", size)
        self._shapes = {
            module: {name: tuple(shape) for name, shape in of.items()}
            for module, of in shapes.items()
        }
        self._hidden_size = hidden_size
        self._factor = preprocess_factor
        self.config: dict[str, Any] = {
            "shapes": {
                module: {name: list(shape) for name, shape in of.items()}
                for module, of in self._shapes.items()
            },
            "hidden_size": hidden_size,
            "preprocess_factor": preprocess_factor,
        }

    @property
    def name(self) -> str:
        return f"MetaLSTMLOpt_{self._hidden_size}"

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, float32.

        The LSTM: see `lstm_network.init`; weights of the gates: uniform in +-0.01; their biases: in
        (4, 6) and (-5, -4). Params: weights truncated normal with deviation 1/sqrt(fan-in), "scale"
        of a normalization 1, the rest 0.
        """
        keys = jax.random.split(rng, 5)
        theta: Theta = dict(lstm_network.init(keys[0], 4, self._hidden_size, 1, 2))
        bounds = jnp.array([_FORGET_BIAS, _INPUT_BIAS])
        low, high = bounds[:, 0], bounds[:, 1]
        theta["linear"] = {
            "w": _small(keys[1], (2, self._hidden_size)),
            "b": low + (high - low) * jax.random.uniform(keys[2], (2,)),
        }
        params, gates = _small(keys[3], (2, 2))
        theta["memory"] = {"params": params, "gates": gates}
        theta["initial"] = self._initial(keys[4])
        return theta

    def _initial(self, key: jax.Array) -> Params:
        params = {}
        for place, module in enumerate(sorted(self._shapes)):
            params[module] = {
                name: _drawn(jax.random.fold_in(key, place), name, shape)
                for name, shape in self._shapes[module].items()
            }
        return params

    def opt_fn(self, theta: Theta, is_training: bool = False) -> _MetaLSTM:
        """Returns the `Optimizer` that `theta` parameterizes."""
        return _MetaLSTM(self, theta)

    def check_params(self, params: Params) -> None:
        """Raises ValueError unless params are shaped as theta's are."""
        found, wanted = map(_by_path, (jax.tree.map(jnp.shape, params), self._shapes))
        if found != wanted:
            path = next(one for one in {**wanted, **found} if found.get(one) != wanted.get(one))
            raise ValueError(
                f"MetaLSTMLOpt starts a learner of its own shape: at {path} it has "
                f"{wanted.get(path, 'nothing')}, and the params {found.get(path, 'nothing')}. Give "
                "MetaLSTMLOpt.shapes = FewShotFamily(...).param_shapes() of the family at hand."
            )

    def features(self, x: jax.Array) -> Float[Array, "2 n"]:
        """Of a gradient or a loss, see `preprocessing.log_sign`."""
        return preprocessing.log_sign(x, self._factor)

    def gates(
        self,
        theta: Theta,
        opt_state: MetaLSTMState,
        params: Float[Array, n],
        loss: Float[Array, ""],
        features: Float[Array, "2 n"],
    ) -> tuple[Float[Array, "2 n"], lstm_network.Layers]:
        """(forget and input gate before the sigmoid, next state of the LSTM)."""
        of_loss = jnp.broadcast_to(self.features(loss[None]).astype(params.dtype), features.shape)
        x = jnp.concatenate([of_loss, features])
        output, layers = lstm_network.apply(theta, opt_state.layers, x)
        memory = jax.tree.map(lambda leaf: leaf.astype(x.dtype)[:, None], theta["memory"])
        return output + memory["params"] * params + memory["gates"] * opt_state.gates, layers

    def update_fn(
        self,
        theta: Theta,
        opt_state: MetaLSTMState,
        grad: Params,
        *,
        loss: Float[Array, ""],
        key: jax.Array,
        fraction: float = 1.0,
        space: str = "gradient",
    ) -> tuple[Callable[[jax.Array], Float[Array, n]], jax.Array, Float[Array, ""]]:
        """The step as a function of one input, all else held fixed: `CoordinateWiseLOpt.update_fn`.

        The unit is 1 in both spaces.
        """
        gradient = leaves.flatten(grad)
        params = jax.lax.stop_gradient(leaves.flatten(self.opt_fn(theta).get_params(opt_state)))
        arrays = (gradient, params, opt_state.layers, opt_state.gates)
        gradient, params, layers, gates = leaves.drawn(arrays, gradient.size, fraction, key)
        opt_state = opt_state.replace(layers=layers, gates=gates)  # type: ignore[attr-defined]
        unit = jnp.ones((), gradient.dtype)

        def gates_of(features: jax.Array) -> Float[Array, "2 n"]:
            return jax.nn.sigmoid(self.gates(theta, opt_state, params, loss, features)[0])

        features = self.features(gradient)
        if space == "preprocessed":
            return (
                lambda x: _moved(gates_of(x), params, gradient) - params,
                features,
                unit,
            )
        found = gates_of(features)
        return lambda x: _moved(found, params, x) - params, gradient, unit


class _MetaLSTM(upstream.Optimizer):
    """A `MetaLSTMLOpt` with its weights: the interface of upstream's optimizers."""

    def __init__(self, lopt: MetaLSTMLOpt, theta: Theta):
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
    ) -> MetaLSTMState:
        """Starts an episode, from theta's params; those given say the shapes alone.

        Raises:
          ValueError: they have others.
        """
        del num_steps, key, kwargs
        self._lopt.check_params(params)
        count, dtype = leaves.size(params), leaves.common_dtype(params)
        return MetaLSTMState(
            params=self._theta["initial"],
            state=model_state,
            layers=lstm_network.initial(1, self._lopt.config["hidden_size"], count, dtype),
            gates=jnp.zeros((2, count), dtype),
            iteration=jnp.asarray(0, jnp.int32),
        )

    def get_params(self, state: MetaLSTMState) -> Params:
        """The learner's: of theta at the start, so that its gradient reaches them."""
        return jax.tree.map(
            lambda own, now: jnp.where(state.iteration == 0, own.astype(now.dtype), now),
            self._theta["initial"],
            state.params,
        )

    def update(
        self,
        opt_state: MetaLSTMState,
        grad: Params,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> MetaLSTMState:
        """One inner step.

        Raises:
          ValueError: there is no loss, or it is not one number, or the gradient is not shaped like
            the params.
        """
        del key, kwargs
        if loss is None:
            raise ValueError("MetaLSTMLOpt reads the loss: give update(..., loss=...).")
        if jnp.shape(loss):
            raise ValueError(
                f"MetaLSTMLOpt.update: loss has shape {jnp.shape(loss)}: give one number, such as "
                "the mean over the batch."
            )
        params = self.get_params(opt_state)
        leaves.check_gradients(grad, params)
        flat = leaves.flatten(params)
        gradient, loss = jax.lax.stop_gradient((leaves.flatten(grad).astype(flat.dtype), loss))
        features = self._lopt.features(gradient)
        gates, layers = self._lopt.gates(self._theta, opt_state, flat, loss, features)
        return MetaLSTMState(
            params=leaves.replace_flat(params, _moved(jax.nn.sigmoid(gates), flat, gradient)),
            state=model_state,
            layers=layers,
            gates=gates,
            iteration=opt_state.iteration + 1,
        )


def _moved(
    gates: Float[Array, "2 n"], params: Float[Array, n], gradient: Float[Array, n]
) -> Float[Array, n]:
    return gates[0] * params - gates[1] * gradient


def _small(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-0.01, maxval=0.01)


def _drawn(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    if len(shape) < 2:
        return jnp.ones(shape) if name == "scale" else jnp.zeros(shape)
    deviation = 1 / math.sqrt(math.prod(shape[:-1]))
    return deviation * jax.random.truncated_normal(key, -2.0, 2.0, shape)


def _by_path(shapes: Any) -> dict[str, tuple[int, ...]]:
    found = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda one: isinstance(one, tuple))
    return {jax.tree_util.keystr(path): shape for path, shape in found}
