"""The inner problem: how a trajectory starts, takes a step, ends, and is judged."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from regularized_lopt import devices, errors, regularizers, upstream
from regularized_lopt.estimators import input_update, rescaling
from regularized_lopt.estimators.states import UnrollState
from regularized_lopt.learned_optimizers import CoordinateWiseLOpt, leaves
from regularized_lopt.tasks import data as data_lib

Theta = Any
# The inner loss and its gradient under `jax.checkpoint`: small next to the optimizer's state,
# costly to repeat.
INNER_GRADIENT = "inner_gradient"


class InnerProblem:
    """Inner training of one task: `RegularizedTruncatedStep` without upstream's interface."""

    def __init__(
        self,
        task_family: upstream.TaskFamily,
        learned_opt: upstream.LearnedOptimizer,
        trunc_sched: upstream.TruncationSchedule | None = None,
        num_tasks: int = 1,
        regularizer: str | regularizers.Regularizer = "none",
        outer_data_split: str = "train",
        explosion_factor: float = 1e3,
        param_scale_bound: float = 0.0,
        input_scale_bound: float = 0.0,
    ):
        """Initializer.

        Args:
          task_family: the inner problems; must have parameters to train.
          learned_opt: the optimizer that is meta-trained.
          trunc_sched: upstream's `TruncationSchedule`: how long trajectories are. Default: 100
            steps.
          num_tasks: trajectories run side by side, > 0.
          regularizer: name or object of the regularizer in optimizee space.
          outer_data_split: upstream's split that fresh batches for the outer loss come from:
            "train", "inner_valid" or "outer_valid".
          explosion_factor: a trajectory whose outer loss is more than so many times its first inner
            loss (in absolute value, at least 1) ends, and another one is drawn; in (0, inf], inf
            for never while it is finite.

        Raises:
          ValueError: a parameter is out of range, or the task has no parameters, or some that are
            not trained.
        """
        errors.check_count("RegularizedTruncatedStep.num_tasks", num_tasks)
        errors.check_in("RegularizedTruncatedStep.explosion_factor", explosion_factor, "(0, inf]")
        errors.check_name(
            "outer_data_split", outer_data_split, ("train", "inner_valid", "outer_valid")
        )
        errors.check_in("RegularizedTruncatedStep.param_scale_bound", param_scale_bound, "[0, 10]")
        errors.check_in("RegularizedTruncatedStep.input_scale_bound", input_scale_bound, "[0, 10]")
        self.task_family = task_family
        self.learned_opt = learned_opt
        self.trunc_sched = trunc_sched or upstream.truncation_schedule.ConstantTruncationSchedule(
            100
        )
        self.num_tasks = num_tasks
        self.regularizer = regularizers.get(regularizer)
        self.outer_data_split = outer_data_split
        self.explosion_factor = explosion_factor
        self.param_scale_bound = param_scale_bound
        self.input_scale_bound = input_scale_bound
        data_lib.check_outer_split(task_family, outer_data_split)
        _check_params(task_family)
        if input_scale_bound:
            rescaling.check_images(task_family)

    def prepared(self, theta: Theta) -> tuple[InnerProblem, Theta]:
        """This with `CoordinateWiseLOpt.prepared`, for many inner steps with one theta."""
        if not isinstance(self.learned_opt, CoordinateWiseLOpt):
            return self, theta
        own = copy.copy(self)
        own.learned_opt, theta = self.learned_opt.prepared(theta)
        return own, theta

    # Data: resident on the device and sampled inside the jit, or pulled from the task's own
    # iterators.

    @property
    def _resident(self) -> data_lib.ResidentDatasets | None:
        datasets = self.task_family.datasets
        return datasets if isinstance(datasets, data_lib.ResidentDatasets) else None

    def unroll_data(self, num_steps: int, outer_split: str | None = None) -> dict[str, Any]:
        """What `batch_one` draws from, to be passed into a jitted unroll of `num_steps` steps.

        Args:
          num_steps: inner steps of the unroll.
          outer_split: upstream's split for the outer loss; default: `outer_data_split`.

        Returns:
          A dict of "train" and "outer", each a whole split, or for tasks with iterators batches
          with leading axes [num_steps, num_tasks], or () for tasks without data.
        """
        outer_split = outer_split or self.outer_data_split
        if self._resident is not None:
            return self._resident.unroll_data(outer_split)
        splits = {"train": "train", "outer": outer_split}
        return {use: self.pull(split, num_steps) for use, split in splits.items()}

    @property
    def data_axis(self) -> int | None:
        """Axis of `unroll_data` that counts tasks; None where all draw from the same arrays."""
        return None if self._resident is not None or self.task_family.datasets is None else 1

    @property
    def data_spec(self) -> PartitionSpec:
        """How `unroll_data` is laid out over a mesh: by tasks, or whole where they share it."""
        axis = self.data_axis
        return devices.REPLICATED if axis is None else PartitionSpec(*[None] * axis, devices.AXIS)

    def batch_one(self, data: Any, step: jax.Array, key: jax.Array) -> Any:
        """The batch of one task at one step of the unroll, from one entry of `unroll_data`."""
        if self._resident is not None:
            return self._resident.sample(data, key)
        return jax.tree.map(lambda leaf: leaf[step], data)

    def pull(self, split: str, num_steps: int) -> Any:
        """Batches from the task's iterators: [num_steps, num_tasks, ...]; () without data."""
        if self.task_family.datasets is None:
            return ()
        count, family = self.num_tasks, self.task_family
        batches = data_lib.pull(family.datasets, split, num_steps * count, family.name)
        return _stack([_stack(batches[i : i + count]) for i in range(0, len(batches), count)])

    def init_one(
        self,
        theta: Theta,
        outer_state: Any,
        key: jax.Array,
        num_steps: int | None = None,
        rescaled: bool = True,
    ) -> UnrollState:
        """Starts a trajectory on a freshly drawn task from freshly drawn params.

        The optimizer is told its length: `num_steps`, or what the truncation schedule says. Unless
        it is to be `rescaled`, bounds on scales have no part in it.
        """
        task_key, init_key, schedule_key, opt_key = jax.random.split(key, 4)
        task_param = self.task_family.sample(task_key)
        params, model_state = self.task_family.task_fn(task_param).init_with_state(init_key)
        scales = None
        if rescaled and (self.param_scale_bound or self.input_scale_bound):
            # A key beside those four, so that the others are what they are without scales.
            scale_key = jax.random.fold_in(key, 4)
            bounds = (self.param_scale_bound, self.input_scale_bound)
            scales = rescaling.draw(params, scale_key, *bounds)
            params = rescaling.divided(params, scales.params)
        truncation_state = self.trunc_sched.init(schedule_key, outer_state)
        opt_state = self.learned_opt.opt_fn(theta, is_training=True).init(
            params,
            model_state,
            num_steps=getattr(truncation_state, "length", None) if num_steps is None else num_steps,
            key=opt_key,
        )
        state = UnrollState(
            inner_opt_state=opt_state,
            inner_step=jnp.asarray(0, jnp.int32),
            truncation_state=truncation_state,
            task_param=task_param,
            is_done=jnp.asarray(False),
            first_loss=jnp.asarray(0.0, jnp.float32),
            scales=scales,
        )
        return jax.tree.map(jnp.asarray, state)

    def reset_one(
        self, theta: Theta, state: UnrollState, outer_state: Any, key: jax.Array
    ) -> UnrollState:
        """The same state, or a new trajectory where the old one is done."""
        return jax.lax.cond(
            state.is_done,
            lambda: jax.lax.stop_gradient(self.init_one(theta, outer_state, key)),
            lambda: state,
        )

    def step_one(
        self,
        theta: Theta,
        state: UnrollState,
        key: jax.Array,
        batch: Any,
        differentiable: bool = True,
    ) -> tuple[UnrollState, Float[Array, ""], Any]:
        """One inner step: (next state, inner loss before it, its gradient).

        If it need not be `differentiable` in theta, the optimizer may take it as at meta-test.
        """
        loss_key, opt_key = jax.random.split(key)
        opt = self.learned_opt.opt_fn(theta, is_training=differentiable)
        task = self.task_family.task_fn(state.task_param)
        params, model_state = opt.get_params_state(state.inner_opt_state)
        batch = rescaling.with_scaled_images(batch, state.scales)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            own = rescaling.own_params(params, state.scales)
            return task.loss_with_state(own, model_state, loss_key, batch)

        (loss, model_state), grad = jax.value_and_grad(loss_fn, has_aux=True)(params)
        loss, grad = checkpoint_name((loss, grad), INNER_GRADIENT)
        opt_state = opt.update(
            state.inner_opt_state, grad, loss=loss, model_state=model_state, key=opt_key
        )
        state = state.replace(inner_opt_state=opt_state, inner_step=state.inner_step + 1)  # type: ignore[attr-defined]
        return state, loss, grad

    def smoothing_one(
        self,
        smoothing: regularizers.Smoothing,
        theta: Theta,
        state: UnrollState,
        loss: Float[Array, ""],
        grad: Any,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Theta]:
        """(R, grad_theta R) of the smoothing term at one inner step, everything else constant.

        Args:
          smoothing: the term.
          theta: weights of the learned optimizer.
          state: the trajectory before the step.
          loss: the inner loss of the step.
          grad: its gradient.
          key: randomness of the term.
        """
        theta, opt_state, loss, grad = jax.lax.stop_gradient(
            (theta, state.inner_opt_state, loss, grad)
        )
        sample_key, start_key = jax.random.split(key)

        def update_fn(theta: Theta) -> Any:
            return input_update.function(
                self.learned_opt, smoothing, theta, opt_state, loss, grad, sample_key
            )

        u, inputs, unit = update_fn(theta)
        perturbed = smoothing.adversarial_input(u, inputs, unit, start_key)
        count = leaves.size(grad)
        return jax.value_and_grad(
            lambda theta: smoothing.penalty(update_fn(theta)[0], inputs, perturbed, count)
        )(theta)

    def finish_one(self, state: UnrollState, outer_state: Any, key: jax.Array) -> UnrollState:
        """Asks the schedule whether the trajectory ends here."""
        truncation_state, is_done = self.trunc_sched.next_state(
            state.truncation_state, state.inner_step, key, outer_state
        )
        return state.replace(truncation_state=truncation_state, is_done=jnp.asarray(is_done))  # type: ignore[attr-defined]

    def outer_loss_one(
        self, theta: Theta, state: UnrollState, key: jax.Array, batch: Any, outer_state: Any
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The outer loss at the state's params: (regularized in optimizee space, plain)."""
        opt = self.learned_opt.opt_fn(theta, is_training=True)
        params, model_state = opt.get_params_state(state.inner_opt_state)
        return self._outer_loss(state, params, model_state, key, batch, outer_state)

    def judge_one(
        self, theta: Theta, state: UnrollState, key: jax.Array, batch: Any
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(plain outer loss at the state's params, accuracy: NaN where the task has none)."""
        opt = self.learned_opt.opt_fn(theta, is_training=True)
        params, model_state = opt.get_params_state(state.inner_opt_state)
        params = rescaling.own_params(params, state.scales)
        batch = rescaling.with_scaled_images(batch, state.scales)
        task = self.task_family.task_fn(state.task_param)
        at = (params, model_state, jax.random.split(key)[0], batch)
        own = type(task).loss_with_state_and_aux is not upstream.Task.loss_with_state_and_aux
        if model_state is not None and not own:  # Upstream's does without a state.
            return task.loss_with_state(*at)[0], jnp.asarray(jnp.nan)
        loss, _, aux = task.loss_with_state_and_aux(*at)
        return loss, jnp.asarray(aux.get("accuracy", jnp.nan), jnp.float32)

    def outer_gradient_one(
        self, theta: Theta, state: UnrollState, key: jax.Array, batch: Any, outer_state: Any
    ) -> tuple[Float[Array, both], Float[Array, n]]:
        """(`outer_loss_one` stacked, gradient of its regularized loss w.r.t. the flat params)."""
        opt = self.learned_opt.opt_fn(theta, is_training=True)
        params, model_state = opt.get_params_state(state.inner_opt_state)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            losses = self._outer_loss(state, params, model_state, key, batch, outer_state)
            return losses[0], jnp.stack(losses)

        grad, losses = jax.grad(loss, has_aux=True)(params)
        return losses, leaves.flatten(grad)

    def _outer_loss(
        self,
        state: UnrollState,
        params: Any,
        model_state: Any,
        key: jax.Array,
        batch: Any,
        outer_state: Any,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        task = self.task_family.task_fn(state.task_param)
        params = rescaling.own_params(params, state.scales)
        batch = rescaling.with_scaled_images(batch, state.scales)
        loss_key, regularizer_key = jax.random.split(key)

        def loss_fn(at: Any) -> jax.Array:
            return task.loss_with_state(at, model_state, loss_key, batch)[0]

        step = outer_state.outer_iteration
        regularized = self.regularizer.value(loss_fn, params, key=regularizer_key, step=step)
        return regularized, loss_fn(params)


def _check_params(task_family: upstream.TaskFamily) -> None:
    """Refuses a task without params, or with such as have no gradient."""

    def init(key: jax.Array) -> Any:
        # Tasks with a model state may define this alone.
        return task_family.sample_task(key).init_with_state(key)[0]

    params = jax.eval_shape(init, jax.random.PRNGKey(0))
    leaves.check_all_trained(params, task_family.name)
    if leaves.size(params) == 0:
        raise ValueError(
            f"{task_family.name} has no parameters: there is nothing for an optimizer to train."
        )


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
