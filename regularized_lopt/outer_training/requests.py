"""What members of outer training ask for, and the state that they carry."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax
import jax


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


class OuterStep(NamedTuple):
    """A member asks for one update of its theta; the answer is (state, scalars).

    Attributes:
      state: before the update.
      length: inner steps of its trajectories, int32.
      key: of all its outer steps.
      doses: its own values, float32.
    """

    state: TrainState
    length: jax.Array
    key: jax.Array
    doses: tuple[Any, ...] = ()


class Judgement(NamedTuple):
    """What theta is worth on held-out data.

    Attributes:
      loss: plain.
      accuracy: None where the task has none.
    """

    loss: float
    accuracy: float | None


class Validation(NamedTuple):
    """A member asks how good theta is on held-out data; the answer is a `Judgement`.

    Attributes:
      theta: to be judged.
      length: inner steps of a trajectory.
      key: of the trajectories.
    """

    theta: Any
    length: int
    key: jax.Array


class Check(NamedTuple):
    """A member asks for what its regularizers add to the outer loss; the answer is by column.

    Attributes:
      theta: to be judged.
      length: inner steps of a trajectory.
      key: of the trajectories.
      outer_iteration: outer steps taken, int32.
      doses: its own values, float32.
    """

    theta: Any
    length: Any
    key: jax.Array
    outer_iteration: jax.Array
    doses: tuple[Any, ...] = ()
