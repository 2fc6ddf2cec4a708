"""The truncated unroll as a differentiable function of theta."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from regularized_lopt import regularizers
from regularized_lopt.learned_optimizers import leaves
from regularized_lopt.outer_training import coordinates, devices
from regularized_lopt.outer_training import truncated_step as truncated_step_lib

LOSSES = ("last", "mean", "weighted")


class UnrollAux(NamedTuple):
    """What an unroll yields beside its outer loss; constants, of the plain objective.

    Attributes:
      loss: plain outer loss.
      loss_correction: what a regularizer in optimizee space adds to it; 0 without one.
      state: where the next unroll continues.
      inner_loss: inner losses, [T].
      iteration: inner steps taken at each of them, [T].
      exploded: whether the trajectory is beyond rescue: its plain outer loss is not finite, or more
        than `RegularizedTruncatedStep.explosion_factor` times its first inner loss (at least 1).
      smoothness: (R, grad_theta R) of the smoothing term, mean over the unroll; None without one.
    """

    loss: Float[Array, ""]
    loss_correction: Float[Array, ""]
    state: truncated_step_lib.UnrollState
    inner_loss: Float[Array, steps]
    iteration: jax.Array
    exploded: Bool[Array, ""]
    smoothness: Any


class Unroll(NamedTuple):
    """T inner steps of one trajectory, and the outer loss along them.

    Attributes:
      step_lib: the inner problem.
      length: T.
      loss: one of `LOSSES`.
      smoothing: smoothing term of the learned optimizer, or None.
      coordinate_fraction: share of the coordinates that theta's gradient is taken through.
    """

    step_lib: truncated_step_lib.RegularizedTruncatedStep
    length: int
    loss: str = "last"
    smoothing: regularizers.Smoothing | None = None
    coordinate_fraction: float = 1.0

    def __call__(
        self,
        theta: Any,
        state: truncated_step_lib.UnrollState,
        key: jax.Array,
        data: Any,
        outer_state: Any,
    ) -> tuple[Float[Array, ""], UnrollAux]:
        """One task: (outer loss, aux)."""
        step_lib, length, sampled = self.step_lib, self.length, self.coordinate_fraction < 1
        reset_key, scan_key, loss_key, finish_key = jax.random.split(key, 4)
        state = start = step_lib.reset_one(theta, state, outer_state, reset_key)
        # Sampled, theta's gradient comes from the surrogate below alone.
        weights = jax.lax.stop_gradient(theta) if sampled else theta

        def outer_loss(state: truncated_step_lib.UnrollState, t: jax.Array, key: jax.Array) -> Any:
            """([regularized, plain], gradient of the former w.r.t. params if it is needed)."""
            batch_key, key = jax.random.split(key)
            batch = step_lib.batch_one(data["outer"], t, batch_key)
            if sampled:
                return step_lib.outer_gradient_one(weights, state, key, batch, outer_state)
            losses = step_lib.outer_loss_one(weights, state, key, batch, outer_state)
            return jnp.stack(losses), None

        def inner_step(
            before: truncated_step_lib.UnrollState, inputs: tuple[jax.Array, jax.Array]
        ) -> Any:
            t, key = inputs
            batch_key, key, loss_key = jax.random.split(key, 3)
            state, loss, grad = step_lib.step_one(
                weights, before, key, step_lib.batch_one(data["train"], t, batch_key)
            )
            outer = None if self.loss == "last" else outer_loss(state, t, loss_key)
            smoothness = None
            if self.smoothing is not None:
                smoothing_key = jax.random.fold_in(key, 1)
                smoothness = step_lib.smoothing_one(
                    self.smoothing, weights, before, grad, smoothing_key
                )
            inner_grad = leaves.flatten(grad) if sampled else None
            return state, (loss, state.inner_step, inner_grad, outer, smoothness)

        # Rematerialised: memory is T x state instead of T x (state and everything that led to it).
        # The inner gradient is kept: it is 1/80 of an LSTM's state and saves the task's own work.
        policy = jax.checkpoint_policies.save_only_these_names(truncated_step_lib.INNER_GRADIENT)
        fresh = state.inner_step == 0
        state, (inner_losses, iterations, inner_grads, outer, smoothness) = jax.lax.scan(
            jax.checkpoint(inner_step, prevent_cse=False, policy=policy),
            state,
            (jnp.arange(length), jax.random.split(scan_key, length)),
        )
        ramp = self._ramp()
        if self.loss == "last":
            (regularized, plain), cotangent = outer_loss(state, jnp.asarray(length - 1), loss_key)
        else:
            outer_losses, cotangent = outer
            regularized, plain = ramp @ outer_losses
        loss_correction = regularized - plain
        if sampled:
            surrogate = coordinates.surrogate(
                step_lib.learned_opt,
                theta,
                jax.lax.stop_gradient(start.inner_opt_state),
                inner_grads,
                ramp[:, None] * cotangent,
                self.coordinate_fraction,
                jax.random.fold_in(loss_key, 1),
            )
            regularized += surrogate - jax.lax.stop_gradient(surrogate)
        state = state.replace(  # type: ignore[attr-defined]
            first_loss=jnp.where(fresh, inner_losses[0], state.first_loss).astype(jnp.float32)
        )
        # A first loss of 0, or of rounding error, is no scale to judge a loss by.
        scale = jnp.maximum(jnp.abs(state.first_loss), 1.0)
        aux = UnrollAux(
            loss=plain,
            loss_correction=loss_correction,
            state=step_lib.finish_one(state, outer_state, finish_key),
            inner_loss=inner_losses,
            iteration=iterations,
            exploded=~(plain <= step_lib.explosion_factor * scale),
            smoothness=jax.tree.map(lambda x: jnp.mean(x, axis=0), smoothness),
        )
        return regularized, jax.lax.stop_gradient(aux)

    def _ramp(self) -> Float[Array, steps]:
        """The outer loss's weight on each step."""
        ramp = {
            "last": jnp.zeros(self.length).at[-1].set(1.0),
            "mean": jnp.ones(self.length),
            "weighted": jnp.arange(1.0, self.length + 1),
        }[self.loss]
        return ramp / ramp.sum()


def over_tasks(
    step_lib: truncated_step_lib.RegularizedTruncatedStep,
    per_task: Any,
    theta: Any,
    state: Any,
    keys: jax.Array,
    data: Any,
    *rest: jax.Array,
    mesh: Mesh | None = None,
) -> Any:
    """`per_task(theta, state, key, data, ...)` of all tasks: results lead with [num_tasks].

    Given a mesh, each of its devices takes its share of the tasks.
    """
    data_axis = step_lib.data_axis
    if mesh is not None:
        shared = devices.SHARED
        specs = (devices.REPLICATED, shared, shared, step_lib.data_spec, *[shared] * len(rest))
        own = functools.partial(over_tasks, step_lib, per_task)
        return devices.share(own, mesh, specs)(theta, state, keys, data, *rest)
    if len(keys) == 1:
        # Without a batch axis the matmuls of theta and the state need no transposes: 1.7x
        # faster on CPU.
        state, keys, rest = jax.tree.map(lambda leaf: leaf[0], (state, keys, rest))
        data = data if data_axis is None else jax.tree.map(lambda leaf: leaf[:, 0], data)
        return jax.tree.map(lambda leaf: leaf[None], per_task(theta, state, keys, data, *rest))
    # Theta is repeated for the same reason: [tasks, ...] times [tasks, ...] is a plain batched
    # matmul.
    thetas = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(keys), *leaf.shape)), theta)
    return jax.vmap(per_task, in_axes=(0, 0, 0, data_axis, *[0] * len(rest)))(
        thetas, state, keys, data, *rest
    )
