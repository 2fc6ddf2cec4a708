"""The curriculum of outer training: trajectories grow longer as the learned optimizer gets better.

After Chen et al. 2020 (the paper follows it), with its two defects mended: validation uses held-out
data, and the last stage, which has no longer horizon to be validated at, is validated at its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable


@flax.struct.dataclass
class CurriculumOuterState:
    """Upstream's `OuterState`, with the length of trajectories that begin now.

    Attributes:
      outer_iteration: outer steps taken.
      trajectory_length: inner steps of a trajectory.
    """

    outer_iteration: jax.Array
    trajectory_length: jax.Array


class CurriculumTruncationSchedule(upstream.TruncationSchedule):
    """Trajectories of the length that the outer state says, i.e. that a `Curriculum` set."""

    def init(self, key: jax.Array, outer_state: CurriculumOuterState) -> Any:
        del key
        return upstream.truncation_schedule.ConstantTruncationState(
            length=outer_state.trajectory_length
        )

    def next_state(self, state: Any, step: Any, key: Any, outer_state: Any) -> tuple[Any, Any]:
        del key, outer_state
        return state, step >= state.length


@configurable()
class StagedTruncationSchedule(upstream.TruncationSchedule):
    """Trajectories whose length is a piecewise constant function of the outer step.

    For use with upstream's own outer training, where no validation steers a curriculum.
    """

    def __init__(
        self,
        lengths: Sequence[int] = (100, 200, 500, 1000),
        boundaries: Sequence[int] = (500, 1000, 2000),
    ):
        """Initializer.

        Args:
          lengths: inner steps of a trajectory, stage by stage, each > 0.
          boundaries: outer steps at which the next stage begins, each > 0, increasing; one fewer
            than `lengths`.

        Raises:
          ValueError: an argument is out of its range.
        """
        if not lengths:
            raise ValueError("StagedTruncationSchedule.lengths is empty: give one per stage.")
        for length in lengths:
            errors.check_count("StagedTruncationSchedule.lengths", length)
        for boundary in boundaries:
            errors.check_count("StagedTruncationSchedule.boundaries", boundary)
        if len(boundaries) != len(lengths) - 1 or list(boundaries) != sorted(set(boundaries)):
            raise ValueError(
                f"StagedTruncationSchedule.boundaries = {tuple(boundaries)}: {len(lengths)} "
                f"stages need {len(lengths) - 1} increasing boundaries."
            )
        self._lengths = jnp.asarray(lengths)
        self._boundaries = jnp.asarray(boundaries)

    def init(self, key: jax.Array, outer_state: Any) -> Any:
        del key
        stage = jnp.searchsorted(self._boundaries, outer_state.outer_iteration, side="right")
        return upstream.truncation_schedule.ConstantTruncationState(length=self._lengths[stage])

    def next_state(self, state: Any, step: Any, key: Any, outer_state: Any) -> tuple[Any, Any]:
        del key, outer_state
        return state, step >= state.length


@dataclasses.dataclass
class CurriculumState:
    """Where a run stands in its curriculum; JSON-serializable.

    Attributes:
      stage: index into `train_lengths`.
      steps_in_stage: outer steps taken in it.
      num_validations: validations made in it.
      best_loss: the stage's best validation loss so far.
      improved: whether any validation beat the stage's first.
      finished: outer training is over.
    """

    stage: int = 0
    steps_in_stage: int = 0
    num_validations: int = 0
    best_loss: float = float("inf")
    improved: bool = False
    finished: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a validation leads to.

    Attributes:
      is_best: keep the current theta as the stage's best.
      restore_best: put the stage's best theta back.
      next_stage: a new stage begins: trajectories start afresh and its best needs a first
        validation.
    """

    is_best: bool = False
    restore_best: bool = False
    next_stage: bool = False


@configurable()
class Curriculum:
    """Decides trajectory lengths and when to validate, keep, restore, advance and stop.

    An epoch is one trajectory. Every `validation_period` epochs theta is validated at the NEXT
    stage's length. Better than the stage's best: it becomes the best. Not better, at least
    `min_validations` made, and the stage has improved: restore its best theta and advance; never
    improved: stop. The first stage starts from no best at all, a later one from a validation of the
    theta it starts with.
    """

    def __init__(
        self,
        train_lengths: Sequence[int] = (100, 200, 500, 1000, 1500, 2000, 2500, 3000),
        validation_period: int | Sequence[int] = 100,
        num_validation_tasks: int = 20,
        min_validations: int = 3,
        max_validations: int | None = None,
        validation_window: int | None = None,
    ):
        """Initializer.

        Args:
          train_lengths: inner steps of a trajectory, stage by stage, each > 0.
          validation_period: epochs between validations, one number or one per stage, each > 0.
          num_validation_tasks: trajectories per validation, > 0.
          min_validations: validations in a stage before it may end, > 0.
          max_validations: validations after which a stage ends in any case, > 0 (None: no limit).
            Bounds the run.
          validation_window: steps at the end of a trajectory that a validation is the mean over, >
            0; None: an unroll.

        Raises:
          ValueError: an argument is out of its range.
        """
        periods = (
            validation_period
            if isinstance(validation_period, Sequence)
            else [validation_period] * len(train_lengths)
        )
        if not train_lengths:
            raise ValueError("Curriculum.train_lengths is empty: give one per stage.")
        if len(periods) != len(train_lengths):
            raise ValueError(
                f"Curriculum.validation_period has {len(periods)} entries for "
                f"{len(train_lengths)} train_lengths: give one number, or one per stage."
            )
        for name, values in (
            ("train_lengths", train_lengths),
            ("validation_period", periods),
            ("num_validation_tasks", [num_validation_tasks]),
            ("min_validations", [min_validations]),
            ("max_validations", [] if max_validations is None else [max_validations]),
            ("validation_window", [] if validation_window is None else [validation_window]),
        ):
            for value in values:
                errors.check_count(f"Curriculum.{name}", value)
        if validation_window is not None and validation_window > min(train_lengths):
            raise ValueError(
                f"Curriculum.validation_window = {validation_window}: trajectories have "
                f"{min(train_lengths)} steps. Give that many or fewer."
            )
        self.train_lengths = tuple(train_lengths)
        self.num_validation_tasks = num_validation_tasks
        self.validation_window = validation_window
        self._periods = tuple(periods)
        self._min_validations = min_validations
        self._max_validations = max_validations

    def check(self, unroll_length: int) -> None:
        """Raises ValueError unless unrolls tile the trajectories of every stage."""
        for length in self.train_lengths:
            if length % unroll_length:
                raise ValueError(
                    f"unroll_length = {unroll_length} does not divide the trajectory of {length} "
                    f"inner steps in Curriculum.train_lengths = {self.train_lengths}."
                )

    def trajectory_length(self, state: CurriculumState) -> int:
        """Inner steps of a training trajectory in this stage."""
        return self.train_lengths[state.stage]

    def validation_length(self, state: CurriculumState) -> int:
        """Inner steps of a validation trajectory: the next stage's; in the last stage its own."""
        return self.train_lengths[min(state.stage + 1, len(self.train_lengths) - 1)]

    def needs_baseline(self, state: CurriculumState) -> bool:
        """Whether the stage begins with a validation of the theta it starts from."""
        return state.stage > 0 and state.steps_in_stage == 0 and state.best_loss == float("inf")

    def validation_due(self, state: CurriculumState, unroll_length: int) -> bool:
        """Whether the outer step just taken ends a validation period."""
        period = self._periods[state.stage] * (self.trajectory_length(state) // unroll_length)
        return state.steps_in_stage > 0 and state.steps_in_stage % period == 0

    def set_baseline(self, state: CurriculumState, loss: float) -> CurriculumState:
        """Records the validation that a stage begins with."""
        return dataclasses.replace(state, best_loss=_orderable(loss))

    def on_validation(
        self, state: CurriculumState, loss: float
    ) -> tuple[CurriculumState, Decision]:
        """Applies the rules above to a validation loss (a NaN counts as infinitely bad)."""
        loss = _orderable(loss)
        is_best = loss < state.best_loss
        state = dataclasses.replace(
            state,
            num_validations=state.num_validations + 1,
            best_loss=min(loss, state.best_loss),
            improved=state.improved or is_best,
        )
        at_limit = (
            self._max_validations is not None and state.num_validations >= self._max_validations
        )
        if not at_limit and (is_best or state.num_validations < self._min_validations):
            return state, Decision(is_best=is_best)
        last = state.stage == len(self.train_lengths) - 1
        if last or not (state.improved or at_limit):
            return dataclasses.replace(state, finished=True), Decision(
                is_best=is_best, restore_best=True
            )
        return CurriculumState(stage=state.stage + 1), Decision(
            is_best=is_best, restore_best=True, next_stage=True
        )


def _orderable(loss: float) -> float:
    return float("inf") if math.isnan(loss) else loss
