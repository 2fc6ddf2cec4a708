"""A task, a regularizer and a learned optimizer of one's own, for use from gin.

    cd examples
    python -m regularized_lopt.outer_train --gin_import=own_parts --config_file=own_parts.gin \\
        --train_log_dir=/tmp/own

docs/own_parts.md goes through this file.
"""

from collections.abc import Callable
from typing import Any

import flax
import gin
import jax
import jax.numpy as jnp

from regularized_lopt import learned_optimizers, regularizers, upstream


@gin.configurable
class SineRegression(upstream.Task):
    """A tanh network of 16 units learns one period of a sine."""

    datasets = None  # The data are drawn in `loss`, from its key.

    def __init__(self, batch_size: int = 32):
        self._batch_size = batch_size

    def init(self, key: jax.Array) -> Any:
        keys = jax.random.split(key)
        return {
            "hidden": {"w": jax.random.normal(keys[0], (16,)), "b": jnp.zeros(16)},
            "out": {"w": 0.1 * jax.random.normal(keys[1], (16,)), "b": jnp.zeros(())},
        }

    def loss(self, params: Any, key: jax.Array, data: Any = None) -> jax.Array:
        x = jax.random.uniform(key, (self._batch_size,), minval=-jnp.pi, maxval=jnp.pi)
        hidden = jnp.tanh(x[:, None] * params["hidden"]["w"] + params["hidden"]["b"])
        predicted = hidden @ params["out"]["w"] + params["out"]["b"]
        return jnp.mean((predicted - jnp.sin(x)) ** 2)


@regularizers.register("smoothed")
def smoothed(
    loss_fn: Callable[[Any], jax.Array],
    point: Any,
    *,
    key: jax.Array,
    step: jax.Array,
    deviation: float = 0.05,
) -> jax.Array:
    """The mean of the losses on both sides of the point, in a random direction."""
    leaves, treedef = jax.tree.flatten(point)
    keys = jax.random.split(key, len(leaves))
    noise = [deviation * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]

    def at(sign: float) -> Any:
        return jax.tree.unflatten(
            treedef, [x + sign * n for x, n in zip(leaves, noise, strict=True)]
        )

    return (loss_fn(at(1.0)) + loss_fn(at(-1.0))) / 2


@flax.struct.dataclass
class SoftSignState:
    """What the training loop carries."""

    params: Any
    state: Any  # The optimizee's non-trained state; this one has none.
    momentum: Any
    iteration: jax.Array


class SoftSignOptimizer(upstream.Optimizer):
    """params <- params - step * tanh(scale * momentum)."""

    def __init__(self, theta: Any):
        self._theta = theta

    def init(
        self,
        params: Any,
        model_state: Any = None,
        num_steps: int | None = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> SoftSignState:
        momentum = jax.tree.map(jnp.zeros_like, params)
        return SoftSignState(params, model_state, momentum, jnp.zeros((), jnp.int32))

    def update(
        self,
        opt_state: SoftSignState,
        grad: Any,
        loss: jax.Array | None = None,
        model_state: Any = None,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> SoftSignState:
        decay = jax.nn.sigmoid(self._theta["decay"])
        step, scale = jnp.exp(self._theta["log_step"]), jnp.exp(self._theta["log_scale"])
        momentum = jax.tree.map(
            lambda m, g: decay * m + (1 - decay) * jax.lax.stop_gradient(g),
            opt_state.momentum,
            grad,
        )
        params = jax.tree.map(
            lambda p, m: p - step * jnp.tanh(scale * m), opt_state.params, momentum
        )
        return SoftSignState(params, model_state, momentum, opt_state.iteration + 1)


@learned_optimizers.register
class SoftSignLOpt(upstream.LearnedOptimizer):
    """Three weights: the logit of the decay, and the logarithms of step and scale."""

    def __init__(self, initial_step: float = 0.01):
        self._initial_step = initial_step

    def init(self, rng: jax.Array) -> Any:
        return {
            "decay": jnp.asarray(2.0),
            "log_step": jnp.log(self._initial_step),
            "log_scale": jnp.asarray(1.0),
        }

    def opt_fn(self, theta: Any, is_training: bool = False) -> SoftSignOptimizer:
        return SoftSignOptimizer(theta)
