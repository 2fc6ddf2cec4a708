"""The jitted parts of outer training: a step of theta, and a validation."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from regularized_lopt import devices, upstream
from regularized_lopt.estimators.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training.checkpoint import Checkpoints


@flax.struct.dataclass
class TrainState:
    """Everything the outer loop carries on the device.

    Attributes:
      theta: weights of the learned optimizer.
      opt_state: state of theta's optimizer.
      unroll_state: trajectories under way.
      outer_iteration: outer steps taken, int32.
      nonfinite_run: consecutive outer steps whose update was skipped, int32.
      nonfinite_total: all of them, int32.
      redrawn_total: trajectories that exploded and were drawn anew, int32.
      rollbacks: how often training went back to a checkpoint, int32.
      rate_scale: factor on theta's learning rate, lowered by rollbacks, float32.
      best_theta: the stage's best theta by validation.
    """

    theta: Any
    opt_state: Any
    unroll_state: Any
    outer_iteration: jax.Array
    nonfinite_run: jax.Array
    nonfinite_total: jax.Array
    redrawn_total: jax.Array
    rollbacks: jax.Array
    rate_scale: jax.Array
    best_theta: Any


class Event(NamedTuple):
    """What a step of outer training led to.

    Attributes:
      state, stage: after it.
      scalars: of the update, on the device.
      validation_loss: of the theta that the update made; None: no validation was due.
      is_best: whether that theta is the stage's best.
    """

    state: TrainState
    stage: curriculum_lib.CurriculumState
    scalars: dict[str, Any]
    validation_loss: float | None = None
    is_best: bool = False


class Loop:
    """What outer training does with its state.

    Attributes:
      estimator: of theta's gradient.
      curriculum: lengths of trajectories, and when to stop.
      outer_step: (state, data, trajectory_length) -> (state, scalars), jitted: one update of theta;
        skipped, and counted, where the estimate is not finite.
    """

    def __init__(
        self,
        estimator: RegularizedTruncatedGrad,
        curriculum: curriculum_lib.Curriculum,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        theta: Any = None,
    ):
        """Initializer.

        Args:
          estimator: of theta's gradient.
          curriculum: lengths of trajectories, and when to stop.
          optimizer: of theta.
          key: all randomness of the run.
          theta: to begin with; None: drawn.
        """
        self.estimator = estimator
        self.curriculum = curriculum
        self._optimizer = optimizer
        self._theta = theta
        self._init_key, self._step_key, self._validation_key = jax.random.split(key, 3)
        self.outer_step = jax.jit(self._outer_step)
        self._validation_loss = jax.jit(self._final_loss, static_argnums=0)

    def init_or_restore(
        self, checkpoints: Checkpoints
    ) -> tuple[TrainState, curriculum_lib.CurriculumState]:
        """Where the last checkpoint stands, or the beginning."""
        fresh = self.init()
        restored = checkpoints.restore(fresh)
        if restored is None:
            return fresh, curriculum_lib.CurriculumState()
        return self._placed(restored[0]), curriculum_lib.CurriculumState(**restored[1])

    def init(self) -> TrainState:
        """The beginning: fresh theta, fresh trajectories."""
        theta_key, unroll_key = jax.random.split(self._init_key)
        theta = self._theta
        if theta is None:
            theta = self.estimator.learned_opt.init(theta_key)
        zero = jnp.asarray(0, jnp.int32)
        state = TrainState(
            theta=theta,
            opt_state=self._optimizer.init(theta),
            unroll_state=self._fresh_unrolls(theta, 0, unroll_key),
            outer_iteration=zero,
            nonfinite_run=zero,
            nonfinite_total=zero,
            redrawn_total=zero,
            rollbacks=zero,
            rate_scale=jnp.asarray(1.0, jnp.float32),
            best_theta=theta,
        )
        # Weak types, as of a theta made from Python numbers, would compile everything twice.
        return self._placed(jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state))

    def trace(self) -> None:
        """Calls, on shapes alone, whatever a run calls; compiles nothing."""
        estimator, length = self.estimator, jnp.asarray(1, jnp.int32)
        data = estimator.get_datas()
        state = jax.eval_shape(self.init)
        jax.eval_shape(self.outer_step, state, data, length)
        for index, step_lib in enumerate(estimator.truncated_steps):
            held_out = step_lib.unroll_data(1, outer_split="outer_valid")
            validation = functools.partial(self._validation_loss, index)
            jax.eval_shape(validation, state.theta, self._validation_key, length, held_out)

    def on_host(self, state: TrainState) -> TrainState:
        """The whole of it, as NumPy arrays; every process has to call it."""
        return jax.device_get(devices.place(state, self.estimator.mesh, devices.REPLICATED))

    def _placed(self, state: TrainState) -> TrainState:
        """Trajectories shared out over the devices, the rest on each of them."""
        mesh = self.estimator.mesh
        state = jax.tree.map(jnp.asarray, state)
        unrolls = devices.place(state.unroll_state, mesh, devices.SHARED)
        rest = state.replace(unroll_state=None)  # type: ignore[attr-defined]
        return devices.place(rest, mesh, devices.REPLICATED).replace(unroll_state=unrolls)  # type: ignore[no-any-return]

    def step(self, state: TrainState, stage: curriculum_lib.CurriculumState) -> Event:
        """One update of theta, and the validations that the curriculum wants before and after."""
        if self.curriculum.needs_baseline(stage):
            stage = self.curriculum.set_baseline(stage, self.validate(state, stage))
        length = jnp.asarray(self.curriculum.trajectory_length(stage), jnp.int32)
        state, scalars = self.outer_step(state, self.estimator.get_datas(), length)
        stage = dataclasses.replace(stage, steps_in_stage=stage.steps_in_stage + 1)
        if not self.curriculum.validation_due(stage, self.estimator.unroll_length):
            return Event(state, stage, scalars)
        loss = self.validate(state, stage)
        state, stage, is_best = self.apply(state, stage, loss)
        return Event(state, stage, scalars, loss, is_best)

    def _outer_step(
        self, state: TrainState, data: Any, trajectory_length: jax.Array
    ) -> tuple[TrainState, dict[str, Any]]:
        outer_state = curriculum_lib.CurriculumOuterState(state.outer_iteration, trajectory_length)
        # After a rollback the same steps see other batches.
        at = state.outer_iteration + 1_000_003 * state.rollbacks
        key = jax.random.fold_in(self._step_key, at)
        estimate = self.estimator.estimate(state.theta, state.unroll_state, key, data, outer_state)
        updates, opt_state = self._optimizer.update(estimate.grad, state.opt_state, state.theta)
        updates = jax.tree.map(lambda u: (state.rate_scale * u).astype(u.dtype), updates)
        updated = (optax.apply_updates(state.theta, updates), opt_state)
        theta, opt_state = jax.tree.map(
            lambda new, old: jnp.where(estimate.nonfinite, old, new),
            updated,
            (state.theta, state.opt_state),
        )
        state = state.replace(  # type: ignore[attr-defined]
            theta=theta,
            opt_state=opt_state,
            unroll_state=estimate.unroll_state,
            outer_iteration=state.outer_iteration + 1,
            nonfinite_run=jnp.where(estimate.nonfinite, state.nonfinite_run + 1, 0),
            nonfinite_total=state.nonfinite_total + estimate.nonfinite,
            redrawn_total=state.redrawn_total + estimate.redrawn,
        )
        scalars = {
            "loss": estimate.mean_loss,
            "grad_norm": optax.tree.norm(estimate.grad),
            "gradient_correction": estimate.gradient_correction,
            "loss_correction": estimate.loss_correction,
            "trajectory_length": trajectory_length,
            "nonfinite": state.nonfinite_total,
            "redrawn": state.redrawn_total,
            "rollbacks": state.rollbacks,
        }
        if estimate.smoothness is not None:
            scalars["smoothness"] = estimate.smoothness
        return state, scalars

    def roll_back(
        self, state: TrainState, checkpoints: Checkpoints, factor: float
    ) -> tuple[TrainState, curriculum_lib.CurriculumState]:
        """The last checkpoint, with a lower learning rate of theta and fresh trajectories.

        Counters go on from `state`.
        """
        restored, stage = self.init_or_restore(checkpoints)
        rollbacks = state.rollbacks + 1
        key = jax.random.fold_in(self._init_key, -rollbacks)
        length = self.curriculum.trajectory_length(stage)
        restored = restored.replace(  # type: ignore[attr-defined]
            unroll_state=self._fresh_unrolls(restored.theta, length, key),
            nonfinite_run=jnp.zeros_like(state.nonfinite_run),
            nonfinite_total=state.nonfinite_total,
            redrawn_total=state.redrawn_total,
            rollbacks=rollbacks,
            rate_scale=state.rate_scale * factor,
        )
        return restored, stage

    def apply(
        self, state: TrainState, stage: curriculum_lib.CurriculumState, validation_loss: float
    ) -> tuple[TrainState, curriculum_lib.CurriculumState, bool]:
        """Carries out what the curriculum decides; the last value: whether theta is the best."""
        stage, decision = self.curriculum.on_validation(stage, validation_loss)
        if decision.is_best:
            state = state.replace(best_theta=state.theta)  # type: ignore[attr-defined]
        if decision.restore_best:
            state = state.replace(theta=state.best_theta)  # type: ignore[attr-defined]
        if decision.next_stage:
            key = jax.random.fold_in(self._init_key, stage.stage)
            length = self.curriculum.trajectory_length(stage)
            state = state.replace(unroll_state=self._fresh_unrolls(state.theta, length, key))  # type: ignore[attr-defined]
        return state, stage, decision.is_best

    def finish(self, state: TrainState, stage: curriculum_lib.CurriculumState) -> TrainState:
        """Gives what was learned since the last validation its chance."""
        if stage.finished or not stage.steps_in_stage:
            return state
        if self.validate(state, stage) < stage.best_loss:
            return state.replace(best_theta=state.theta)  # type: ignore[attr-defined]
        return state

    def validate(self, state: TrainState, stage: curriculum_lib.CurriculumState) -> float:
        """Held-out loss at the end of fresh trajectories, plain (no regularizer).

        The mean over `num_validation_tasks` trajectories and their last `unroll_length` steps.
        Trajectories of a stage are the same at every validation of it, so that thetas are compared
        on equal terms.
        """
        length = self.curriculum.validation_length(stage)
        key = jax.random.fold_in(self._validation_key, stage.stage)
        total = 0.0
        for index, weight in enumerate(self.estimator.task_weights):
            step_lib = self.estimator.truncated_steps[index]
            data = step_lib.unroll_data(length, outer_split="outer_valid")
            total += weight * float(
                self._validation_loss(index, state.theta, key, jnp.asarray(length, jnp.int32), data)
            )
        return total

    def _final_loss(
        self, index: int, theta: Any, key: jax.Array, length: jax.Array, data: Any
    ) -> jax.Array:
        step_lib = self.estimator.truncated_steps[index]
        window = self.estimator.unroll_length
        outer_state = curriculum_lib.CurriculumOuterState(jnp.asarray(0, jnp.int32), length)

        def final_loss(theta: Any, key: jax.Array, data: Any) -> jax.Array:
            init_key, loop_key = jax.random.split(key)
            task_state = step_lib.init_one(theta, outer_state, init_key, rescaled=False)

            def body(t: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
                task_state, total = carry
                keys = jax.random.split(jax.random.fold_in(loop_key, t), 4)
                task_state, _, _ = step_lib.step_one(
                    theta, task_state, keys[0], step_lib.batch_one(data["train"], t, keys[1])
                )

                def outer_loss() -> jax.Array:
                    batch = step_lib.batch_one(data["outer"], t, keys[2])
                    return step_lib.outer_loss_one(theta, task_state, keys[3], batch, outer_state)[
                        1
                    ]

                loss = jax.lax.cond(t >= length - window, outer_loss, lambda: 0.0)
                return task_state, total + loss

            return jax.lax.fori_loop(0, length, body, (task_state, 0.0))[1] / window

        keys = jax.random.split(key, self.curriculum.num_validation_tasks)
        if (
            step_lib.data_axis is not None
        ):  # Pulled batches: all trajectories take those of the first task.
            data = jax.tree.map(lambda leaf: leaf[:, 0], data)
        judge = jax.vmap(final_loss, in_axes=(None, 0, None))
        mesh = self.estimator.mesh
        if mesh is not None and len(keys) % mesh.size == 0:
            judge = devices.share(
                judge, mesh, (devices.REPLICATED, devices.SHARED, devices.REPLICATED)
            )
        return jnp.mean(judge(theta, keys, data))

    def _fresh_unrolls(self, theta: Any, length: int, key: jax.Array) -> Any:
        length = length or self.curriculum.train_lengths[0]
        outer_state = curriculum_lib.CurriculumOuterState(
            jnp.asarray(0, jnp.int32), jnp.asarray(length, jnp.int32)
        )
        # Waited for: what did not fit into memory is to be an error here. As the input of a next
        # program it makes that wait for ever on CPU.
        return jax.block_until_ready(
            self.estimator.init_worker_state(upstream.WorkerWeights(theta, None, outer_state), key)
        )
