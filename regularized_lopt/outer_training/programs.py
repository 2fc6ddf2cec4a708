"""The compiled parts of outer training, which all members of a population share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from regularized_lopt import devices, upstream
from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.estimators.truncated_step import RegularizedTruncatedStep
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training.doses import Doses
from regularized_lopt.outer_training.objective import ObjectiveCheck
from regularized_lopt.outer_training.requests import (
    Check,
    Judgement,
    OuterStep,
    TrainState,
    Validation,
)


class Programs:
    """Steps of several members in one program, and their validations.

    Attributes:
      estimator: of theta's gradient.
      doses: parameters that members have values of their own for.
      mesh: devices that share the members; None: all of them are on one device, or those of the
        estimator's mesh share the tasks of each.
    """

    def __init__(
        self,
        estimator: TruncatedEstimator,
        optimizer: optax.GradientTransformation,
        num_validation_tasks: int,
        check: ObjectiveCheck | None = None,
        doses: Doses | None = None,
        mesh: Mesh | None = None,
        validation_window: int | None = None,
    ):
        """Initializer.

        Args:
          estimator: of theta's gradient.
          optimizer: of theta.
          num_validation_tasks: trajectories per validation, > 0.
          check: of the objective; None: it is not checked.
          doses: see above.
          mesh: see above.
          validation_window: steps at the end of a trajectory that validations are means over, > 0;
            default: `unroll_length`.
        """
        self.estimator = estimator
        self.optimizer = optimizer
        self.doses = doses or Doses()
        self.mesh = mesh
        self._num_validation_tasks = num_validation_tasks
        self._validation_window = validation_window or estimator.unroll_length
        self._check = check or ObjectiveCheck(num_trajectories=0)
        # Every member's state goes in and comes out by itself: nothing outside of the program
        # stacks them.
        self._outer_steps = jax.jit(self._of_all(self._outer_step), out_shardings=self._outs())
        self._judges = [
            jax.jit(self._of_all(functools.partial(self._judge, step)), out_shardings=self._outs())
            for step in estimator.truncated_steps
        ]
        self._checks = jax.jit(self._of_all(self._rises), out_shardings=self._outs())

    @property
    def num_devices(self) -> int:
        """Devices that share members, or tasks."""
        return self.estimator.num_devices if self.mesh is None else self.mesh.size

    def outer_steps(
        self, asked: Sequence[OuterStep], data: Any
    ) -> tuple[tuple[TrainState, dict[str, Any]], ...]:
        """One update of each member's theta; skipped, and counted, where it is not finite.

        Args:
          asked: by members whose states have equal shapes.
          data: of the estimator.
        """
        return self._outer_steps(tuple(asked), data)  # type: ignore[no-any-return]

    def judgements(self, asked: Sequence[Validation]) -> list[Judgement]:
        """Held-out losses at the end of fresh trajectories of one length, plain (no regularizer).

        The mean over `num_validation_tasks` trajectories and their last `validation_window` steps;
        so of accuracies, if all tasks have them.
        """
        length = jnp.asarray(asked[0].length, jnp.int32)
        judged = tuple((one.theta, one.key) for one in asked)
        totals = np.zeros((len(asked), 2))
        for weight, judge, data in zip(
            self.estimator.task_weights,
            self._judges,
            self._held_out(asked[0].length),
            strict=True,
        ):
            totals += weight * np.array([np.asarray(one) for one in judge(judged, (length, data))])
        return [
            Judgement(float(loss), None if np.isnan(accuracy) else float(accuracy))
            for loss, accuracy in totals
        ]

    @property
    def checks_objective(self) -> bool:
        """Whether members should ask for it."""
        return self._check.num_trajectories > 0 and not self.has_iterators

    @property
    def has_iterators(self) -> bool:
        """Whether batches come from a task's own iterators, which every use moves on."""
        return any(step.data_axis is not None for step in self.estimator.truncated_steps)

    def checks(self, asked: Sequence[Check]) -> list[dict[str, float]]:
        """What regularizers add to the outer loss, of trajectories of one length."""
        length = asked[0].length
        own = tuple(one._replace(length=jnp.asarray(length, jnp.int32)) for one in asked)
        found = jax.device_get(self._checks(own, self._held_out(length)))
        return [{name: float(value) for name, value in one.items()} for one in found]

    def trace(self, asked: OuterStep) -> None:
        """Calls, on shapes alone, whatever a run calls; compiles nothing."""
        data = self.estimator.get_datas()
        jax.eval_shape(self._outer_steps, (asked,), data)
        held_out, state = self._held_out(1), asked.state
        for judge, own in zip(self._judges, held_out, strict=True):
            jax.eval_shape(judge, ((state.theta, asked.key),), (asked.length, own))
        if self.checks_objective:
            check = Check(state.theta, asked.length, asked.key, state.outer_iteration, asked.doses)
            jax.eval_shape(self._checks, (check,), held_out)

    def _held_out(self, num_steps: int) -> tuple[Any, ...]:
        """What trajectories of so many steps draw from in validation, by truncated step."""
        steps = self.estimator.truncated_steps
        return tuple(step.unroll_data(num_steps, outer_split="outer_valid") for step in steps)

    def placed(self, state: TrainState) -> TrainState:
        """The same on the devices: trajectories shared out over them, the rest on each."""
        state = jax.tree.map(jnp.asarray, state)
        if self.mesh is not None:
            return devices.place(state, self.mesh, devices.REPLICATED)  # type: ignore[no-any-return]
        mesh = self.estimator.mesh
        unrolls = devices.place(state.unroll_state, mesh, devices.SHARED)
        rest = state.replace(unroll_state=None)  # type: ignore[attr-defined]
        return devices.place(rest, mesh, devices.REPLICATED).replace(unroll_state=unrolls)  # type: ignore[no-any-return]

    def on_host(self, state: TrainState) -> TrainState:
        """The whole of it, as NumPy arrays; every process has to call it."""
        mesh = self.mesh or self.estimator.mesh
        return jax.device_get(devices.place(state, mesh, devices.REPLICATED))

    def _outs(self) -> Any:
        if self.mesh is None:
            return None
        return jax.sharding.NamedSharding(self.mesh, devices.REPLICATED)

    def _of_all(self, of_one: Any) -> Any:
        """`of_one(member's, shared)` for a tuple of members; alone, a member has no batch axis."""

        @functools.wraps(getattr(of_one, "func", of_one))  # Its name is in XLA's logs.
        def of_all(own: tuple[Any, ...], shared: Any) -> tuple[Any, ...]:
            if len(own) == 1:
                return (of_one(own[0], shared),)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
            batched = jax.vmap(of_one, in_axes=(0, None))
            if self.mesh is not None and len(own) % self.mesh.size == 0:
                specs = (devices.SHARED, devices.REPLICATED)
                batched = devices.share(batched, self.mesh, specs)
            found = batched(stacked, shared)
            return tuple(
                jax.tree.map(lambda leaf, place=place: leaf[place], found)
                for place in range(len(own))
            )

        return of_all

    def _outer_step(self, asked: OuterStep, data: Any) -> tuple[TrainState, dict[str, Any]]:
        with self.doses.given(asked.doses):
            return self._update(asked.state, asked.length, asked.key, data)

    def _rises(self, asked: Check, datas: Any) -> dict[str, jax.Array]:
        outer_state = curriculum_lib.CurriculumOuterState(asked.outer_iteration, asked.length)
        with self.doses.given(asked.doses):
            return self._check.rises(self.estimator, asked.theta, asked.key, outer_state, datas)

    def _update(
        self, state: TrainState, trajectory_length: jax.Array, step_key: jax.Array, data: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        outer_state = curriculum_lib.CurriculumOuterState(state.outer_iteration, trajectory_length)
        # After a rollback the same steps see other batches.
        at = state.outer_iteration + 1_000_003 * state.rollbacks
        key = jax.random.fold_in(step_key, at)
        estimate = self.estimator.estimate(state.theta, state.unroll_state, key, data, outer_state)
        updates, opt_state = self.optimizer.update(estimate.grad, state.opt_state, state.theta)
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

    def _judge(
        self,
        step_lib: RegularizedTruncatedStep,
        judged: tuple[Any, jax.Array],
        shared: tuple[jax.Array, Any],
    ) -> jax.Array:
        (theta, key), (length, data) = judged, shared
        # Doses have no part in the plain loss.
        with self.doses.given([1.0] * len(self.doses.schedules)):
            return self._final(step_lib, theta, key, length, data)

    def _final(
        self,
        step_lib: RegularizedTruncatedStep,
        theta: Any,
        key: jax.Array,
        length: jax.Array,
        data: Any,
    ) -> jax.Array:
        window = self._validation_window
        outer_state = curriculum_lib.CurriculumOuterState(jnp.asarray(0, jnp.int32), length)

        def final(theta: Any, key: jax.Array, data: Any) -> jax.Array:
            own, theta = step_lib.prepared(theta)
            init_key, loop_key = jax.random.split(key)
            task_state = own.init_one(theta, outer_state, init_key, rescaled=False)

            def body(t: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
                task_state, total = carry
                keys = jax.random.split(jax.random.fold_in(loop_key, t), 4)
                task_state, _, _ = own.step_one(
                    theta, task_state, keys[0], step_lib.batch_one(data["train"], t, keys[1])
                )

                def judge() -> jax.Array:
                    batch = step_lib.batch_one(data["outer"], t, keys[2])
                    return jnp.stack(own.judge_one(theta, task_state, keys[3], batch))

                found = jax.lax.cond(t >= length - window, judge, lambda: jnp.zeros(2))
                return task_state, total + found

            return jax.lax.fori_loop(0, length, body, (task_state, jnp.zeros(2)))[1] / window

        keys = jax.random.split(key, self._num_validation_tasks)
        if (
            step_lib.data_axis is not None
        ):  # Pulled batches: all trajectories take those of the first task.
            data = jax.tree.map(lambda leaf: leaf[:, 0], data)
        judge = jax.vmap(final, in_axes=(None, 0, None))
        mesh = self.estimator.mesh
        if mesh is not None and len(keys) % mesh.size == 0:
            judge = devices.share(
                judge, mesh, (devices.REPLICATED, devices.SHARED, devices.REPLICATED)
            )
        return jnp.mean(judge(theta, keys, data), axis=0)

    def fresh_unrolls(self, theta: Any, length: int, key: jax.Array) -> Any:
        """Trajectories of a member that begin now."""
        outer_state = curriculum_lib.CurriculumOuterState(
            jnp.asarray(0, jnp.int32), jnp.asarray(length, jnp.int32)
        )
        fresh = self.estimator.init_worker_state(
            upstream.WorkerWeights(theta, None, outer_state), key
        )
        # Waited for: what did not fit into memory is to be an error here. As the input of a next
        # program it makes that wait for ever on CPU.
        return jax.block_until_ready(strongly_typed(fresh))


def strongly_typed(tree: Any) -> Any:
    """Without weak types, as of Python numbers: they would compile a step twice."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), tree)
