"""What one member of outer training does: its state, its stage, and what follows from losses.

Whatever is to be computed is asked for by `yield`, so that the same requests of several members can
be computed by one program; see `population`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training.checkpoint import Checkpoints
from regularized_lopt.outer_training.programs import Programs, strongly_typed
from regularized_lopt.outer_training.requests import Check, OuterStep, TrainState, Validation

_T = TypeVar("_T")
Request: TypeAlias = OuterStep | Validation | Check
Asking: TypeAlias = Generator[Request, Any, _T]
"""Yields requests, is sent their answers, and returns the rest."""


class Event(NamedTuple):
    """What a step of outer training led to.

    Attributes:
      state, stage: after it.
      scalars: of the update, on the device; after a validation, the accuracy, and what regularizers
        add to the loss.
      validation_loss: of the theta that the update made; None: no validation was due.
      is_best: whether that theta is the stage's best.
    """

    state: TrainState
    stage: curriculum_lib.CurriculumState
    scalars: dict[str, Any]
    validation_loss: float | None = None
    is_best: bool = False


class Loop:
    """What outer training does with the state of one member.

    Attributes:
      programs: compute what it asks for.
      curriculum: lengths of trajectories, and when to stop.
      doses: the member's values of the programs' doses.
      warm_theta: to begin with; None: drawn.
    """

    def __init__(
        self,
        programs: Programs,
        curriculum: curriculum_lib.Curriculum,
        key: jax.Array,
        theta: Any = None,
        doses: tuple[float, ...] = (),
    ):
        """Initializer.

        Args:
          programs: see above.
          curriculum: see above.
          key: all randomness of the run.
          theta: `warm_theta`.
          doses: see above.
        """
        self.programs = programs
        self.curriculum = curriculum
        self.doses = doses
        self.warm_theta = theta
        self._init_key, self._step_key, self._validation_key = jax.random.split(key, 3)

    @property
    def estimator(self) -> TruncatedEstimator:
        """Of theta's gradient."""
        return self.programs.estimator

    def init_or_restore(
        self, checkpoints: Checkpoints
    ) -> tuple[TrainState, curriculum_lib.CurriculumState]:
        """Where the last checkpoint stands, or the beginning."""
        fresh = self.init()
        restored = checkpoints.restore(fresh)
        if restored is None:
            return fresh, curriculum_lib.CurriculumState()
        state = self.programs.placed(restored[0])
        return state, curriculum_lib.CurriculumState(**restored[1])

    def init(self) -> TrainState:
        """The beginning: fresh theta, fresh trajectories."""
        theta_key, unroll_key = jax.random.split(self._init_key)
        theta = self.warm_theta
        if theta is None:
            theta = self.estimator.learned_opt.init(theta_key)
        zero = jnp.asarray(0, jnp.int32)
        state = TrainState(
            theta=theta,
            opt_state=self.programs.optimizer.init(theta),
            unroll_state=self._fresh_unrolls(theta, self.curriculum.train_lengths[0], unroll_key),
            outer_iteration=zero,
            nonfinite_run=zero,
            nonfinite_total=zero,
            redrawn_total=zero,
            rollbacks=zero,
            rate_scale=jnp.asarray(1.0, jnp.float32),
            best_theta=theta,
        )
        return self.programs.placed(strongly_typed(state))

    def trace(self) -> None:
        """Calls, on shapes alone, whatever a run calls; compiles nothing."""
        state = jax.eval_shape(self.init)
        length = jnp.asarray(1, jnp.int32)
        self.programs.trace(OuterStep(state, length, self._step_key, self.doses))

    def next_step(self, state: TrainState, length: int) -> OuterStep:
        """What the next update of theta needs, with trajectories of a length."""
        return OuterStep(state, jnp.asarray(length, jnp.int32), self._step_key, self.doses)

    def step(self, state: TrainState, stage: curriculum_lib.CurriculumState) -> Asking[Event]:
        """One update of theta, and the validations that the curriculum wants before and after."""
        if self.curriculum.needs_baseline(stage):
            found = yield self.validation(state, stage)
            stage = self.curriculum.set_baseline(stage, found.loss)
        state, scalars = yield self.next_step(state, self.curriculum.trajectory_length(stage))
        stage = dataclasses.replace(stage, steps_in_stage=stage.steps_in_stage + 1)
        if not self.curriculum.validation_due(stage, self.estimator.unroll_length):
            return Event(state, stage, scalars)
        found = yield self.validation(state, stage)
        if found.accuracy is not None:
            scalars |= {"validation_accuracy": found.accuracy}
        if self.programs.checks_objective:
            scalars |= yield self.check(state, stage)
        state, stage, is_best = self.apply(state, stage, found.loss)
        return Event(state, stage, scalars, found.loss, is_best)

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

    def finish(
        self, state: TrainState, stage: curriculum_lib.CurriculumState
    ) -> Asking[TrainState]:
        """Gives what was learned since the last validation its chance."""
        if stage.finished or not stage.steps_in_stage:
            return state
        found = yield self.validation(state, stage)
        if found.loss < stage.best_loss:
            return state.replace(best_theta=state.theta)  # type: ignore[attr-defined, no-any-return]
        return state

    def validation(self, state: TrainState, stage: curriculum_lib.CurriculumState) -> Validation:
        """Held-out loss of theta at the length that the curriculum validates at.

        Trajectories of a stage are the same at every validation of it, so that thetas are compared
        on equal terms.
        """
        key = jax.random.fold_in(self._validation_key, stage.stage)
        return Validation(state.theta, self.curriculum.validation_length(stage), key)

    def check(self, state: TrainState, stage: curriculum_lib.CurriculumState) -> Check:
        """What the regularizers add to the outer loss, on trajectories of validation."""
        asked = self.validation(state, stage)
        return Check(*asked, state.outer_iteration, self.doses)

    def _fresh_unrolls(self, theta: Any, length: int, key: jax.Array) -> Any:
        return self.programs.fresh_unrolls(theta, length, key)
