"""The truncated unroll as a differentiable function of theta."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from regularized_lopt import devices, regularizers
from regularized_lopt.estimators import coordinates, loss_weights
from regularized_lopt.estimators.inner_problem import INNER_GRADIENT, InnerProblem
from regularized_lopt.estimators.states import UnrollState
from regularized_lopt.learned_optimizers import leaves

LOSSES = loss_weights.LOSSES


class UnrollAux(NamedTuple):
    """What an unroll yields beside its outer loss; constants, of the plain objective.

    Attributes:
      loss: plain outer loss, an average, see `loss_weights.shares`.
      loss_correction: what a regularizer in optimizee space adds to it; 0 without one.
      state: where the next unroll continues.
      inner_loss: inner losses, [T].
      iteration: inner steps taken at each of them, [T].
      exploded: whether the trajectory is beyond rescue: its plain outer loss is not finite, or more
        than `RegularizedTruncatedStep.explosion_factor` times its first inner loss (at least 1).
      smoothness: (R, mean over the unroll, and what is added to theta's gradient for it) of the
        smoothing term; None without one.
    """

    loss: Float[Array, ""]
    loss_correction: Float[Array, ""]
    state: UnrollState
    inner_loss: Float[Array, steps]
    iteration: jax.Array
    exploded: Bool[Array, ""]
    smoothness: Any


class Inputs(NamedTuple):
    """What the unrolls of all tasks begin with, beside theta.

    Attributes:
      state: trajectories, leading axis [num_tasks].
      keys: one per task.
      data: what batches are drawn from, see `InnerProblem.unroll_data`.
      outer_state: `outer_iteration` and what the truncation schedule reads.
    """

    state: Any
    keys: jax.Array
    data: Any
    outer_state: Any


class _Path(NamedTuple):
    """What inner steps yield, by step.

    Attributes:
      inner_loss: before the step.
      iteration: inner steps taken.
      inner_grad: flat; None where it is not needed.
      outer: `Unroll._outer_loss` after the step; None where the last one alone counts.
      smoothness: (R, grad_theta R) of the smoothing term; None without one.
    """

    inner_loss: jax.Array
    iteration: jax.Array
    inner_grad: Any
    outer: Any
    smoothness: Any


class Unroll(NamedTuple):
    """T inner steps of one trajectory, and the outer loss along them.

    Attributes:
      step_lib: the inner problem.
      length: T.
      loss: one of `LOSSES`.
      smoothing: smoothing term of the learned optimizer, or None.
      coordinate_fraction: share of the coordinates that theta's gradient is taken through.
      mesh: devices that share the tasks; None: one device.
      differentiable: whether it will be differentiated in theta.
    """

    step_lib: InnerProblem
    length: int
    loss: str = "last"
    smoothing: regularizers.Smoothing | None = None
    coordinate_fraction: float = 1.0
    mesh: Mesh | None = None
    differentiable: bool = True

    def __call__(
        self,
        theta: Any,
        state: UnrollState,
        key: jax.Array,
        data: Any,
        outer_state: Any,
    ) -> tuple[Float[Array, ""], UnrollAux]:
        """One task: (outer loss, aux)."""
        step_lib, prepared = self.step_lib.prepared(theta)
        own = self._replace(step_lib=step_lib)
        loss, aux = own._of_prepared(prepared, state, key, data, outer_state)
        if self.smoothing is not None:
            # The term's gradient is one in the prepared weights.
            constant = jax.lax.stop_gradient(theta)
            _, pull_back = jax.vjp(lambda theta: self.step_lib.prepared(theta)[1], constant)
            value, grad = aux.smoothness
            aux = aux._replace(smoothness=(value, *pull_back(grad)))
        return loss, aux

    def _of_prepared(
        self, theta: Any, state: UnrollState, key: jax.Array, data: Any, outer_state: Any
    ) -> tuple[Float[Array, ""], UnrollAux]:
        step_lib = self.step_lib
        reset_key, scan_key, loss_key, finish_key = jax.random.split(key, 4)
        start = step_lib.reset_one(theta, state, outer_state, reset_key)
        # Sampled, theta's gradient comes from the surrogate below alone.
        weights = jax.lax.stop_gradient(theta) if self._is_sampled else theta
        outer_loss = functools.partial(self._outer_loss, weights, data["outer"], outer_state)
        state, path = self._inner_steps(weights, start, scan_key, data["train"], outer_loss)
        ramp = loss_weights.weights(self.loss, self.length, start.inner_step)
        if self.loss == "last":
            t = jnp.asarray(self.length - 1)
            (regularized, plain), cotangent = outer_loss(state, t, loss_key)
        else:
            outer_losses, cotangent = path.outer
            regularized, plain = loss_weights.shares(self.loss, ramp) @ outer_losses
        loss_correction = regularized - plain
        if self.loss in loss_weights.SUMS:
            regularized = ramp @ outer_losses[:, 0]
        if self._is_sampled:
            surrogate = coordinates.surrogate(
                step_lib.learned_opt,
                theta,
                jax.lax.stop_gradient(start.inner_opt_state),
                path.inner_grad,
                ramp[:, None] * cotangent,
                self.coordinate_fraction,
                jax.random.fold_in(loss_key, 1),
            )
            regularized += surrogate - jax.lax.stop_gradient(surrogate)
        first_loss = jnp.where(start.first_loss == 0, path.inner_loss[0], start.first_loss)
        state = state.replace(first_loss=first_loss.astype(jnp.float32))  # type: ignore[attr-defined]
        # A first loss of 0, or of rounding error, is no scale to judge a loss by.
        scale = jnp.maximum(jnp.abs(state.first_loss), 1.0)
        aux = UnrollAux(
            loss=plain,
            loss_correction=loss_correction,
            state=step_lib.finish_one(state, outer_state, finish_key),
            inner_loss=path.inner_loss,
            iteration=path.iteration,
            exploded=~(plain <= step_lib.explosion_factor * scale),
            smoothness=self._smoothness(path, ramp),
        )
        return regularized, jax.lax.stop_gradient(aux)

    @property
    def _is_sampled(self) -> bool:
        return self.coordinate_fraction < 1

    def _outer_loss(
        self,
        theta: Any,
        data: Any,
        outer_state: Any,
        state: UnrollState,
        t: jax.Array,
        key: jax.Array,
    ) -> Any:
        """([regularized, plain], gradient of the former w.r.t. params if it is needed)."""
        batch_key, key = jax.random.split(key)
        batch = self.step_lib.batch_one(data, t, batch_key)
        if self._is_sampled:
            return self.step_lib.outer_gradient_one(theta, state, key, batch, outer_state)
        losses = self.step_lib.outer_loss_one(theta, state, key, batch, outer_state)
        return jnp.stack(losses), None

    def _inner_steps(
        self, theta: Any, start: UnrollState, key: jax.Array, data: Any, outer_loss: Any
    ) -> tuple[UnrollState, _Path]:
        """The state after all steps, and what was met on the way."""
        step_lib = self.step_lib

        def inner_step(
            before: UnrollState, inputs: tuple[jax.Array, jax.Array]
        ) -> tuple[UnrollState, _Path]:
            t, key = inputs
            batch_key, key, loss_key = jax.random.split(key, 3)
            batch = step_lib.batch_one(data, t, batch_key)
            state, loss, grad = step_lib.step_one(theta, before, key, batch, self.differentiable)
            outer = None if self.loss == "last" else outer_loss(state, t, loss_key)
            smoothness = None
            if self.smoothing is not None:
                smoothing_key = jax.random.fold_in(key, 1)
                smoothness = step_lib.smoothing_one(
                    self.smoothing, theta, before, loss, grad, smoothing_key
                )
            inner_grad = leaves.flatten(grad) if self._is_sampled else None
            return state, _Path(loss, state.inner_step, inner_grad, outer, smoothness)

        # Rematerialised: memory is T x state instead of T x (state and everything that led to it).
        # The inner gradient is kept: it is 1/80 of an LSTM's state and saves the task's own work.
        policy = jax.checkpoint_policies.save_only_these_names(INNER_GRADIENT)
        inputs = (jnp.arange(self.length), jax.random.split(key, self.length))
        return jax.lax.scan(
            jax.checkpoint(inner_step, prevent_cse=False, policy=policy), start, inputs
        )

    def _smoothness(self, path: _Path, ramp: Float[Array, steps]) -> Any:
        """See `UnrollAux`."""
        if self.smoothing is None:
            return None
        values, grads = path.smoothness
        return jnp.mean(values), self.smoothing.over_unroll(grads, ramp)

    def mean_loss(self, theta: Any, inputs: Inputs) -> tuple[Float[Array, ""], UnrollAux]:
        """(mean outer loss, aux of every task)."""

        def one(theta: Any, state: Any, key: jax.Array, data: Any) -> Any:
            return self(theta, state, key, data, inputs.outer_state)

        losses, aux = self._over_tasks(one, theta, inputs)
        return jnp.mean(losses), aux

    def per_task_gradient(
        self, regularized: Any, theta: Any, inputs: Inputs, key: jax.Array
    ) -> tuple[UnrollAux, Any, Float[Array, tasks]]:
        """(aux of every task, mean of their own regularized gradients, corrections).

        Args:
          regularized: (loss_fn, theta, key) -> ((loss, aux), gradient, correction).
          theta: weights of the learned optimizer.
          inputs: of the unrolls.
          key: randomness of the regularizer.
        """

        def one(theta: Any, state: Any, key: jax.Array, data: Any, regularizer_key: Any) -> Any:
            (_, aux), grad, correction = regularized(
                lambda theta: self(theta, state, key, data, inputs.outer_state),
                theta,
                regularizer_key,
            )
            return aux, grad, correction

        keys = jax.random.split(key, len(inputs.keys))
        aux, grads, corrections = self._over_tasks(one, theta, inputs, keys)
        return aux, jax.tree.map(lambda g: jnp.mean(g, axis=0), grads), corrections

    def _over_tasks(self, per_task: Any, theta: Any, inputs: Inputs, *rest: jax.Array) -> Any:
        return over_tasks(
            self.step_lib,
            per_task,
            theta,
            inputs.state,
            inputs.keys,
            inputs.data,
            *rest,
            mesh=self.mesh,
        )


def over_tasks(
    step_lib: InnerProblem,
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


def end(new: Any, old: Any, ends: jax.Array) -> Any:
    """The new trajectories; where one ends, the old one (it is finite), marked done."""

    def one(new: Any, old: Any, ends: jax.Array) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(ends, o, n), new, old).ended_where(ends)

    return jax.vmap(one)(new, old, ends)
