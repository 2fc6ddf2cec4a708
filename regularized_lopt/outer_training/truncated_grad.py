"""Truncated backpropagation through time with regularizers: our `GradientEstimator`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import gin
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from regularized_lopt import errors, regularizers, upstream
from regularized_lopt.outer_training import truncated_step as truncated_step_lib

LOSSES = ("last", "mean", "weighted")


@flax.struct.dataclass
class Estimate:
    """What one unroll yields.

    Attributes:
      grad: gradient of the outer objective w.r.t. theta; zeros if anything in it was not finite.
      mean_loss: plain outer loss, averaged over tasks, of the unperturbed pass.
      unroll_state: where the next unroll continues, leading axis [num_tasks].
      inner_loss: inner losses along the unroll, [unroll_length, num_tasks].
      iteration: inner steps taken at each of them, [unroll_length, num_tasks].
      nonfinite: True if loss or gradient was not finite: the update is to be skipped. The unroll
        state is then the last finite one, marked done, so that a fresh trajectory follows.
    """

    grad: Any
    mean_loss: Float[Array, ""]
    unroll_state: truncated_step_lib.UnrollState
    inner_loss: Float[Array, "steps tasks"]
    iteration: jax.Array
    nonfinite: jax.Array


@gin.configurable
class RegularizedTruncatedGrad(upstream.GradientEstimator):
    """Gradient of a flatness-regularized outer objective by truncated BPTT.

    Each call unrolls `unroll_length` inner steps of every task, differentiates the outer loss
    through them w.r.t. theta, and leaves the trajectories where the next call continues. The
    regularizer given here acts in meta space (the paper's algorithm): it perturbs theta and re-runs
    the unroll from the same state with the same batches and keys. State and logged losses come from
    the unperturbed pass. A regularizer in optimizee space is a parameter of
    `RegularizedTruncatedStep`; both may be set.

    The estimate is one XLA program: batches are drawn in it, the unroll is a scan with
    rematerialised steps, tasks are vmapped, and the regularizer's passes are part of it.
    """

    def __init__(
        self,
        truncated_step: truncated_step_lib.RegularizedTruncatedStep | upstream.TaskFamily,
        learned_opt: upstream.LearnedOptimizer | None = None,
        *,
        unroll_length: int = 20,
        loss: str = "last",
        regularizer: str | regularizers.Regularizer = "none",
        per_task_perturbation: bool = False,
    ):
        """Initializer; its first arguments are those that upstream's builder passes.

        Args:
          truncated_step: a `RegularizedTruncatedStep` (upstream main), or the `TaskFamily` that one
            is made of with gin's parameters (the wheel, which passes `(task_family, learned_opt)`).
          learned_opt: the learned optimizer, in the second form.
          unroll_length: T, inner steps per estimate, > 0; must divide the length of trajectories.
          loss: outer loss from L(params_1..T), each on a fresh batch: "last": L(params_T) (the
            paper); "mean"; "weighted": weights rising linearly in t and summing to 1 (Xiong & Hsieh
            2022).
          regularizer: name or object of the regularizer in meta space.
          per_task_perturbation: regularize each task's gradient on its own (m-sharpness) instead of
            the mean.

        Raises:
          ValueError: a parameter is out of range; the message has the range or the nearest name.
        """
        if isinstance(truncated_step, upstream.TaskFamily):
            if learned_opt is None:
                raise ValueError("RegularizedTruncatedGrad(task_family) also needs a learned_opt.")
            truncated_step = truncated_step_lib.RegularizedTruncatedStep(
                truncated_step, learned_opt
            )
        errors.check_positive("RegularizedTruncatedGrad.unroll_length", unroll_length)
        self.truncated_step = truncated_step
        self.task_family = truncated_step.task_family
        self.learned_opt = truncated_step.learned_opt
        self.unroll_length = unroll_length
        self.loss = errors.check_name("loss", loss, LOSSES)
        self.regularizer = regularizers.get(regularizer)
        self.per_task_perturbation = per_task_perturbation
        _check_divides(unroll_length, truncated_step.trunc_sched)
        self._jitted_estimate = jax.jit(self.estimate)

    def init_worker_state(
        self, worker_weights: Any, key: jax.Array
    ) -> truncated_step_lib.UnrollState:
        """Starts the trajectories: `UnrollState` with leading axis [num_tasks]."""
        return jax.jit(self.truncated_step.init_step_state)(
            worker_weights.theta, worker_weights.outer_state, key
        )

    def get_datas(self) -> Any:
        """What `estimate` draws batches from; resident data are the same object on every call."""
        return self.truncated_step.unroll_data(self.unroll_length)

    def estimate(
        self,
        theta: Any,
        state: truncated_step_lib.UnrollState,
        key: jax.Array,
        data: Any,
        outer_state: Any,
    ) -> Estimate:
        """One regularized gradient estimate; pure, to be called inside a jitted outer step.

        Args:
          theta: weights of the learned optimizer.
          state: trajectories, from `init_worker_state` or the last estimate.
          key: all randomness of this estimate.
          data: from `get_datas`.
          outer_state: `outer_iteration` and what the truncation schedule reads.
        """
        num_tasks = self.truncated_step.num_tasks
        unroll_key, regularizer_key = jax.random.split(key)
        keys = jax.random.split(unroll_key, num_tasks)
        step = outer_state.outer_iteration

        def regularized(loss_fn: Any, theta: Any, key: jax.Array) -> tuple[Any, Any]:
            return self.regularizer.value_and_grad(loss_fn, theta, key=key, step=step, has_aux=True)

        def unroll(theta: Any, state: Any, key: jax.Array, data: Any) -> Any:
            return self._unroll(theta, state, key, data, outer_state)

        if self.per_task_perturbation:

            def task_grad(
                theta: Any, state: Any, key: jax.Array, data: Any, regularizer_key: jax.Array
            ) -> Any:
                return regularized(
                    lambda theta: unroll(theta, state, key, data), theta, regularizer_key
                )

            regularizer_keys = jax.random.split(regularizer_key, num_tasks)
            (_, aux), grads = self._vmap(task_grad, theta, state, keys, data, regularizer_keys)
            grad = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        else:

            def mean_loss(theta: Any) -> tuple[jax.Array, Any]:
                losses, aux = self._vmap(unroll, theta, state, keys, data)
                return jnp.mean(losses), aux

            (_, aux), grad = regularized(mean_loss, theta, regularizer_key)

        plain, next_state, inner_loss, iteration = aux
        plain = jnp.mean(plain)
        finite = jnp.isfinite(plain) & jnp.isfinite(optax.tree.norm(grad))
        redrawn = state.replace(is_done=jnp.ones_like(state.is_done))  # type: ignore[attr-defined]
        return Estimate(
            grad=jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grad),
            mean_loss=plain,
            unroll_state=jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), next_state, redrawn
            ),
            inner_loss=inner_loss.T,
            iteration=iteration.T,
            nonfinite=~finite,
        )

    def compute_gradient_estimate(
        self,
        worker_weights: Any,
        key: jax.Array,
        state: truncated_step_lib.UnrollState,
        with_summary: bool | None = False,
        datas_list: Any = None,
    ) -> tuple[Any, Mapping[str, jax.Array]]:
        """Upstream's form of `estimate`.

        Returns:
          `GradientEstimatorOut`, and metrics: with `with_summary` the norm of the gradient, and
          always a counter of estimates that were not finite (their gradient is zero, their unroll
          state the last finite one).
        """
        data = self.get_datas() if datas_list is None else datas_list
        result = self._jitted_estimate(
            worker_weights.theta, state, key, data, worker_weights.outer_state
        )
        task_param = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (self.unroll_length, *leaf.shape)),
            result.unroll_state.task_param,
        )
        out = upstream.GradientEstimatorOut(
            mean_loss=result.mean_loss,
            grad=result.grad,
            unroll_state=result.unroll_state,
            unroll_info=upstream.UnrollInfo(
                loss=result.inner_loss,
                iteration=result.iteration,
                task_param=task_param,
                is_done=jnp.zeros(result.iteration.shape, bool)
                .at[-1]
                .set(result.unroll_state.is_done),
            ),
        )
        metrics = {"mean||nonfinite": result.nonfinite.astype(jnp.float32)}
        if with_summary:
            metrics["mean||theta_grad_norm"] = optax.tree.norm(result.grad)
        return out, metrics

    def _vmap(
        self, per_task: Any, theta: Any, state: Any, keys: jax.Array, data: Any, *rest: jax.Array
    ) -> Any:
        """`per_task(theta, state, key, data, ...)` of all tasks: results lead with [num_tasks]."""
        data_axis = self.truncated_step.data_axis
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

    def _unroll(
        self,
        theta: Any,
        state: truncated_step_lib.UnrollState,
        key: jax.Array,
        data: Any,
        outer_state: Any,
    ) -> tuple[Float[Array, ""], tuple[Any, ...]]:
        """One task: (outer loss, (plain outer loss, next state, inner losses, iterations))."""
        step_lib = self.truncated_step
        length = self.unroll_length
        reset_key, scan_key, loss_key, finish_key = jax.random.split(key, 4)
        state = step_lib.reset_one(theta, state, outer_state, reset_key)

        def outer_loss(state: truncated_step_lib.UnrollState, t: jax.Array, key: jax.Array) -> Any:
            batch_key, key = jax.random.split(key)
            batch = step_lib.batch_one(data["outer"], t, batch_key)
            return jnp.stack(step_lib.outer_loss_one(theta, state, key, batch, outer_state))

        def inner_step(
            state: truncated_step_lib.UnrollState, inputs: tuple[jax.Array, jax.Array]
        ) -> Any:
            t, key = inputs
            batch_key, key, loss_key = jax.random.split(key, 3)
            state, loss = step_lib.step_one(
                theta, state, key, step_lib.batch_one(data["train"], t, batch_key)
            )
            outer = None if self.loss == "last" else outer_loss(state, t, loss_key)
            return state, (loss, state.inner_step, outer)

        # Rematerialised: memory is T x state instead of T x (state and everything that led to it).
        # The inner gradient is kept: it is 1/80 of an LSTM's state and saves the task's own work.
        policy = jax.checkpoint_policies.save_only_these_names(truncated_step_lib.INNER_GRADIENT)
        state, (inner_losses, iterations, outer_losses) = jax.lax.scan(
            jax.checkpoint(inner_step, prevent_cse=False, policy=policy),
            state,
            (jnp.arange(length), jax.random.split(scan_key, length)),
        )
        if self.loss == "last":
            regularized, plain = outer_loss(state, jnp.asarray(length - 1), loss_key)
        else:
            ramp = jnp.ones(length) if self.loss == "mean" else jnp.arange(1.0, length + 1)
            regularized, plain = (ramp / ramp.sum()) @ outer_losses
        state = step_lib.finish_one(state, outer_state, finish_key)
        return regularized, jax.lax.stop_gradient((plain, state, inner_losses, iterations))


def _check_divides(unroll_length: int, schedule: upstream.TruncationSchedule) -> None:
    """Trajectories end between unrolls, so unrolls must tile them."""
    if isinstance(schedule, upstream.truncation_schedule.ConstantTruncationSchedule):
        length = int(schedule.init(jax.random.PRNGKey(0), None).length)
        if length % unroll_length:
            raise ValueError(
                f"RegularizedTruncatedGrad.unroll_length = {unroll_length} does not divide the "
                f"trajectory of {length} inner steps. Choose a trajectory of "
                f"{max(1, round(length / unroll_length)) * unroll_length}, or an unroll_length "
                "that divides it."
            )
