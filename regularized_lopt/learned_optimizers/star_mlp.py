"""STAR's learned optimizer: a tiny MLP per coordinate, a nominal term, a preconditioned output."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers import averages, leaves
from regularized_lopt.learned_optimizers import nominal as nominal_lib

Theta = dict[str, Any]
Params = Any

_TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_FEATURE_FLOOR = 1e-5  # Added to a feature's mean square before it is normalized by it.
_ROOT_FLOOR = 1e-8  # Added to factored second moments under a root.
_HEADS = ("direction", "magnitude", "nominal_magnitude")


class Averages(NamedTuple):
    """What is kept for a tensor of the params: running averages of its gradient.

    Attributes:
      momenta: per decay, of the tensor's shape, float32 or wider.
      second: v, of the tensor's shape.
      mean_second: mean of v over the tensor, scalar.
      factored: see `averages.Factored`.
    """

    momenta: tuple[jax.Array, ...]
    second: jax.Array
    mean_second: jax.Array
    factored: averages.Factored


@flax.struct.dataclass
class StarMLPOptState:
    """State of the optimizer: what a training loop carries from step to step.

    Attributes:
      params: the optimizee's weights, any pytree.
      state: the optimizee's non-trained state (`ModelState` upstream), or None.
      averages: one `Averages` for every floating leaf of `params`, in order.
      iteration: inner steps taken, int32 scalar.
    """

    params: Params
    state: Any
    averages: tuple[Averages, ...]
    iteration: jax.Array


@configurable()
class StarMLPLOpt(upstream.LearnedOptimizer):
    """params <- params - (f_nominal + f_blackbox), with everything from a 2 x 4 MLP by coordinate.

    The MLP reads the gradient, the param, running averages of both moments, factored ones, their
    ratios (28 features, each divided by its root mean square over the tensor) and the step, and
    has three heads, d, m and n::

      f_nominal  = nominal_step e^(magnitude_scale n) a       a: see `nominal.direction`
      f_blackbox = blackbox_scale d e^(magnitude_scale m) / sqrt(v + epsilon)

    Source: Harrison, Metz & Sohl-Dickstein 2022, eqs. 20 to 22; the features are those of Metz et
    al. 2022 (arXiv 2203.11860). 203 weights by default, 20 bytes of state per coordinate.

    By default gradients are measured in units of their own tensor's root mean square, so that a
    constant factor on the loss changes nothing, and a coordinate that has never had a gradient does
    not move. The paper's own form has `scale_free = False` and `hold_unseen = False`.

    Attributes:
      config: the constructor's arguments as a JSON-serializable dict; `StarMLPLOpt(**config)` is
        the same optimizer.
    """

    def __init__(
        self,
        hidden_size: int = 4,
        num_layers: int = 2,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        nominal: str = "adam_aggmo",
        nominal_step: float = 1e-3,
        controller: bool = True,
        precondition: bool = True,
        blackbox_scale: float = 1e-3,
        magnitude_scale: float = 1e-3,
        epsilon: float = 1e-6,
        head_scale: float = 1.0,
        scale_free: bool = True,
        hold_unseen: bool = True,
        second_derivatives: bool = False,
    ):
        """Initializer.

        Args:
          hidden_size: units per hidden layer, > 0.
          num_layers: hidden layers, 1 to 100.
          momentum_decays: of the averages of gradients, each in (0, 1); at least one. They are
            where theta's decays start.
          second_moment_decay: of the average of squared gradients, in (0, 1).
          factored_decays: of its factored form, each in (0, 1); at least one.
          nominal: one of `learned_optimizers.nominal.DIRECTIONS`.
          nominal_step: see above, >= 0.
          controller: whether the MLP scales the nominal term.
          precondition: whether the black box's output is divided by sqrt(v + epsilon).
          blackbox_scale: see above, >= 0.
          magnitude_scale: see above, >= 0.
          epsilon: added to v under a root, > 0; with `scale_free` in units of v's mean.
          head_scale: factor on the heads' weights at init, >= 0.
          scale_free: measure gradients in units of their tensor's root mean square.
          hold_unseen: leave coordinates where they are as long as all their gradients were 0.
          second_derivatives: differentiate through the gradients, too.

        Raises:
          ValueError: an argument is out of its range; the message names the range.
        """
        name = "StarMLPLOpt"
        errors.check_count(f"{name}.hidden_size", hidden_size)
        errors.check_count(f"{name}.num_layers", num_layers, most=100)
        momentum_decays = averages.check_decays(f"{name}.momentum_decays", momentum_decays)
        factored_decays = averages.check_decays(f"{name}.factored_decays", factored_decays)
        if len(momentum_decays) != len(factored_decays):
            raise ValueError(
                f"{name} has {len(momentum_decays)} momentum_decays and {len(factored_decays)} "
                "factored_decays: momenta are divided by factored second moments one by one, so "
                "give as many of both."
            )
        averages.check_decays(f"{name}.second_moment_decay", [second_moment_decay])
        nominal_lib.check(name, nominal)
        for key, value in {
            "nominal_step": nominal_step,
            "blackbox_scale": blackbox_scale,
            "magnitude_scale": magnitude_scale,
            "head_scale": head_scale,
        }.items():
            errors.check_not_negative(f"{name}.{key}", value)
        errors.check_positive(f"{name}.epsilon", epsilon)
        self.config: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "momentum_decays": list(momentum_decays),
            "second_moment_decay": second_moment_decay,
            "factored_decays": list(factored_decays),
            "nominal": nominal,
            "nominal_step": nominal_step,
            "controller": controller,
            "precondition": precondition,
            "blackbox_scale": blackbox_scale,
            "magnitude_scale": magnitude_scale,
            "epsilon": epsilon,
            "head_scale": head_scale,
            "scale_free": scale_free,
            "hold_unseen": hold_unseen,
            "second_derivatives": second_derivatives,
        }
        self._sizes = [hidden_size] * num_layers
        self._momentum_decays = momentum_decays
        self._second_moment_decay = second_moment_decay
        self._factored_decays = factored_decays
        self._nominal = nominal
        self._nominal_step = nominal_step
        self._controller = controller
        self._precondition = precondition
        self._blackbox_scale = blackbox_scale
        self._magnitude_scale = magnitude_scale
        self._epsilon = epsilon
        self._head_scale = head_scale
        self._scale_free = scale_free
        self._hold_unseen = hold_unseen
        self.second_derivatives = second_derivatives

    @property
    def name(self) -> str:
        return "StarMLPLOpt_" + "x".join(map(str, self._sizes))

    @property
    def _num_features(self) -> int:
        return 4 + 3 * len(self._momentum_decays) + 5 * len(self._factored_decays)

    def init(self, rng: jax.Array) -> Theta:
        """Draws theta, float32.

        The MLP's weights are [inputs, outputs], truncated normal with deviation 1 / sqrt(inputs),
        its biases 0, as are the offsets of the decays and of the nominal step.
        """
        heads = len(_HEADS) if self._controller else len(_HEADS) - 1
        sizes = [self._num_features + len(_TIMESCALES), *self._sizes, heads]
        network = {}
        for layer, key in enumerate(jax.random.split(rng, len(sizes) - 1)):
            shape = (sizes[layer], sizes[layer + 1])
            weights = jax.random.truncated_normal(key, -2.0, 2.0, shape) / jnp.sqrt(shape[0])
            scale = self._head_scale if layer == len(sizes) - 2 else 1.0
            network[f"layer_{layer}"] = {"w": scale * weights, "b": jnp.zeros(shape[1])}
        return {
            "network": network,
            "decays": {
                "momentum": jnp.zeros(len(self._momentum_decays)),
                "second_moment": jnp.zeros(1),
                "factored": jnp.zeros(len(self._factored_decays)),
            },
            "nominal_scale": jnp.zeros(()),
        }

    def opt_fn(self, theta: Theta, is_training: bool = False) -> _StarMLPOptimizer:
        """Returns the `Optimizer` that `theta` parameterizes."""
        return _StarMLPOptimizer(self, theta, is_training)

    def initial_averages(self, leaf: Any) -> Averages:
        """Zeros, each an array of its own, so that a training loop may donate them."""
        shape, dtype = jnp.shape(leaf), leaves.common_dtype(leaf)
        return Averages(
            momenta=tuple(jnp.zeros(shape, dtype) for _ in self._momentum_decays),
            second=jnp.zeros(shape, dtype),
            mean_second=jnp.zeros((), dtype),
            factored=averages.zeros_factored(shape, len(self._factored_decays), dtype),
        )

    def update_tensor(
        self, theta: Theta, old: Averages, gradient: jax.Array, param: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Averages]:
        """One step of a tensor: (what is added to it, next averages), in the averages' dtype.

        Two passes over the coordinates: the first moves the averages and sums the features'
        squares, the second computes the update. Nothing else of the tensor's size is kept between
        them. To be differentiated through, take `update_tensors`.
        """
        theta, gradient, param = _as(old.second.dtype, (theta, gradient, param))
        new = self._averaged(theta["decays"], old, gradient)
        # The barrier keeps the two passes apart: features that both use are computed twice, which
        # costs less than to write and to read them.
        scales = _inverse_rms(self._features(new, gradient, param))
        new, gradient, param, scales = jax.lax.optimization_barrier((new, gradient, param, scales))
        features = self._features(new, gradient, param)
        heads = _unit_by_unit(theta["network"], features, scales, step)
        return self._update(theta, heads, new, gradient), new

    def update_tensors(
        self,
        theta: Theta,
        olds: Sequence[Averages],
        gradients: Sequence[jax.Array],
        params: Sequence[jax.Array],
        step: jax.Array,
    ) -> list[tuple[jax.Array, Averages]]:
        """The same of several tensors, whose features are one matrix: fast to differentiate."""
        tensors, matrices = [], []
        for old, *given in zip(olds, gradients, params, strict=True):
            cast, gradient, param = _as(old.second.dtype, (theta, *given))
            new = self._averaged(cast["decays"], old, gradient)
            features = self._features(new, gradient, param)
            rows = [x * scale for x, scale in zip(features, _inverse_rms(features), strict=True)]
            matrices.append(jnp.stack([jnp.broadcast_to(x, param.shape).ravel() for x in rows]))
            tensors.append((cast, new, gradient))
        heads = _as_matrices(theta["network"], jnp.concatenate(matrices, axis=1), step)
        ends = list(itertools.accumulate(gradient.size for _, _, gradient in tensors))
        return [
            (
                self._update(cast, [head.reshape(gradient.shape) for head in part], new, gradient),
                new,
            )
            for part, (cast, new, gradient) in zip(
                jnp.split(heads, ends[:-1], axis=1), tensors, strict=True
            )
        ]

    def _averaged(self, offsets: Theta, old: Averages, gradient: jax.Array) -> Averages:
        momentum_decays = averages.learned_decays(self._momentum_decays, offsets["momentum"])
        (decay,) = averages.learned_decays([self._second_moment_decay], offsets["second_moment"])
        factored_decays = averages.learned_decays(self._factored_decays, offsets["factored"])
        square = gradient * gradient
        factored, mean_square = averages.update_factored(old.factored, square, factored_decays)
        return Averages(
            momenta=tuple(
                b * m + (1 - b) * gradient
                for b, m in zip(momentum_decays, old.momenta, strict=True)
            ),
            second=decay * old.second + (1 - decay) * square,
            mean_second=decay * old.mean_second + (1 - decay) * mean_square,
            factored=factored,
        )

    def _unit(self, new: Averages) -> jax.Array:
        """1 over what gradients are measured in."""
        if not self._scale_free:
            return jnp.ones_like(new.mean_second)
        return jnp.where(new.mean_second > 0, averages.inverse_root(new.mean_second), 1)

    def _scaled(
        self, new: Averages, gradient: jax.Array
    ) -> tuple[jax.Array, list[jax.Array], jax.Array, averages.Factored, jax.Array]:
        """(g, momenta, v, factored second moments, 1 / sqrt(v + epsilon)), in those units."""
        unit = self._unit(new)
        second = unit**2 * new.second
        factored = averages.Factored(*(unit**2 * part for part in new.factored))
        momenta = [unit * m for m in new.momenta]
        return unit * gradient, momenta, second, factored, jax.lax.rsqrt(second + self._epsilon)

    def _features(self, new: Averages, gradient: jax.Array, param: jax.Array) -> list[jax.Array]:
        """What the MLP reads, each broadcastable to the tensor."""
        gradient, momenta, second, factored, inverse_root = self._scaled(new, gradient)
        # Upstream's two uses of a vector's second moments differ in what is added to them.
        gradient_roots = averages.inverse_roots(factored)
        momentum_roots = averages.inverse_roots(factored, floor=1e-6)
        rows = columns = list(factored.rows)
        if factored.columns.size:
            columns = list(factored.columns)
        return [
            gradient,
            param,
            *momenta,
            second,
            *(m * inverse_root for m in momenta),
            inverse_root,
            *(_product(gradient, roots) for roots in gradient_roots),
            *rows,
            *columns,
            *(jax.lax.rsqrt(row + _ROOT_FLOOR) for row in rows),
            *(jax.lax.rsqrt(column + _ROOT_FLOOR) for column in columns),
            *(_product(m, roots) for m, roots in zip(momenta, momentum_roots, strict=True)),
        ]

    def _update(
        self, theta: Theta, heads: Sequence[jax.Array], new: Averages, gradient: jax.Array
    ) -> jax.Array:
        gradient, momenta, _, _, inverse_root = self._scaled(new, gradient)
        blackbox = heads[0] * jnp.exp(self._magnitude_scale * heads[1]) * self._blackbox_scale
        if self._precondition:
            blackbox = blackbox * inverse_root
        update = -blackbox
        if self._nominal != "none" and self._nominal_step:
            ascent = nominal_lib.direction(self._nominal, gradient, momenta, inverse_root)
            size = self._nominal_step * jnp.exp(theta["nominal_scale"])
            if self._controller:
                size = size * jnp.exp(self._magnitude_scale * heads[2])
            update = update - size * ascent
        update = jnp.broadcast_to(update, gradient.shape)
        return jnp.where(new.second > 0, update, 0.0) if self._hold_unseen else update


class _StarMLPOptimizer(upstream.Optimizer):
    """`StarMLPLOpt` with its weights: the interface of upstream's optimizers."""

    def __init__(self, lopt: StarMLPLOpt, theta: Theta, is_training: bool):
        self._lopt = lopt
        self._theta = theta
        self._is_training = is_training

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
    ) -> StarMLPOptState:
        """Starts a run. `num_steps` and `key` are accepted and not needed."""
        del num_steps, key, kwargs
        leaves.check(params)
        trained = filter(leaves.is_trained, jax.tree.leaves(params))
        return StarMLPOptState(
            params=params,
            state=model_state,
            averages=tuple(map(self._lopt.initial_averages, trained)),
            iteration=jnp.asarray(0, jnp.int32),
        )

    def set_params(self, state: StarMLPOptState, params: Params) -> StarMLPOptState:
        return state.replace(params=params)  # type: ignore[attr-defined]

    def update(
        self,
        opt_state: StarMLPOptState,
        grad: Params,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> StarMLPOptState:
        """One inner step; `grad` is shaped like the params."""
        del loss, key, kwargs
        leaves.check_gradients(grad, opt_state.params)
        moved: list[Any] = jax.tree.leaves(opt_state.params)
        treedef: Any = jax.tree.structure(opt_state.params)
        trained = [index for index, leaf in enumerate(moved) if leaves.is_trained(leaf)]
        gradients = leaves.trained_gradients(grad, opt_state.params)
        params = [jnp.asarray(moved[index]) for index in trained]
        if not self._lopt.second_derivatives:
            gradients = jax.lax.stop_gradient(gradients)
        step = opt_state.iteration
        if self._is_training and trained:
            found = self._lopt.update_tensors(
                self._theta, opt_state.averages, gradients, params, step
            )
        else:
            tensors = zip(opt_state.averages, gradients, params, strict=True)
            found = [self._lopt.update_tensor(self._theta, *tensor, step) for tensor in tensors]
        for index, param, (update, _) in zip(trained, params, found, strict=True):
            moved[index] = leaves.added_to(param, update)
        return StarMLPOptState(
            params=treedef.unflatten(moved),
            state=model_state,
            averages=tuple(new for _, new in found),
            iteration=opt_state.iteration + 1,
        )


def _product(array: jax.Array, factors: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.multiply, factors, array)


def _inverse_rms(features: Sequence[jax.Array]) -> list[jax.Array]:
    """1 over the root mean square of each feature, scalars."""
    shape = jnp.broadcast_shapes(*(feature.shape for feature in features))
    whole = [index for index, feature in enumerate(features) if feature.shape == shape]
    squares = dict(zip(whole, _sums([features[i] ** 2 for i in whole]), strict=True))
    return [
        jax.lax.rsqrt(squares.get(i, jnp.sum(x**2)) / x.size + _FEATURE_FLOOR)
        for i, x in enumerate(features)
    ]


@jax.custom_jvp
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    """The sum of each of several arrays of one shape, in one pass over all."""
    zeros = [jnp.zeros((), x.dtype) for x in arrays]
    axes = tuple(range(arrays[0].ndim))

    def add(one: Any, other: Any) -> Any:
        return [a + b for a, b in zip(one, other, strict=True)]

    return list(jax.lax.reduce(arrays, zeros, add, axes))


@_sums.defjvp
def _sums_jvp(primals: Any, tangents: Any) -> Any:
    return _sums(*primals), [jnp.sum(t) for t in tangents[0]]


def _unit_by_unit(
    network: Theta, features: Sequence[jax.Array], scales: Sequence[jax.Array], step: jax.Array
) -> list[jax.Array]:
    """The heads, from arithmetic on one unit at a time, of which XLA makes a single loop."""
    count = len(features)
    (weights, bias), *rest = _layers(network, count, step)
    units = _layer(weights * jnp.stack(list(scales))[:, None], bias, features)
    for weights, bias in rest:
        units = _layer(weights, bias, [jax.nn.relu(unit) for unit in units])
    return units


def _layer(weights: jax.Array, bias: jax.Array, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    return [
        sum((w * x for w, x in zip(weights[:, j], inputs, strict=True)), start=bias[j])
        for j in range(weights.shape[1])
    ]


def _as_matrices(
    network: Theta, features: Float[Array, "features n"], step: jax.Array
) -> Float[Array, "heads n"]:
    """The heads, from normalized features."""
    (weights, bias), *rest = _layers(network, len(features), step)
    units = weights.T.astype(features.dtype) @ features + bias[:, None]
    for weights, bias in rest:
        units = weights.T.astype(features.dtype) @ jax.nn.relu(units) + bias[:, None]
    return units


def _layers(
    network: Theta, num_features: int, step: jax.Array
) -> list[tuple[jax.Array, jax.Array]]:
    """(weights, bias) by layer; what the step adds, the same for all coordinates, is in a bias."""
    layers = [network[f"layer_{i}"] for i in range(len(network))]
    pairs = [(layer["w"], layer["b"]) for layer in layers]
    weights, bias = pairs[0]
    clock = jnp.tanh(step / jnp.asarray(_TIMESCALES, weights.dtype) - 1).astype(weights.dtype)
    return [(weights[:num_features], bias + clock @ weights[num_features:]), *pairs[1:]]


def _as(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
