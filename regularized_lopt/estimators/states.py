"""What estimators carry from one unroll to the next."""

from __future__ import annotations

from typing import Any

import flax
import jax
from jaxtyping import Array, Bool

from regularized_lopt.estimators import rescaling


@flax.struct.dataclass
class UnrollState:
    """One trajectory between two unrolls (the fields of upstream's class of this name).

    Attributes:
      inner_opt_state: state of the learned optimizer, params included.
      inner_step: steps since the trajectory began, int32.
      truncation_state: state of the truncation schedule; holds the trajectory's length.
      task_param: which task of the family this is.
      is_done: the next unroll begins a new trajectory.
      first_loss: the trajectory's first inner loss, 0 before (ours; upstream's estimators leave it
        0).
      scales: constant along the trajectory (ours), None: as the task has them.
    """

    inner_opt_state: Any
    inner_step: jax.Array
    truncation_state: Any
    task_param: Any
    is_done: jax.Array
    first_loss: jax.Array
    scales: rescaling.Scales | None = None

    def ended_where(self, ends: jax.Array) -> UnrollState:
        """The same, marked done where `ends`."""
        return self.replace(is_done=self.is_done | ends)  # type: ignore[attr-defined, no-any-return]


@flax.struct.dataclass
class PairState:
    """The trajectories of PES' pairs between two unrolls.

    Attributes:
      particles: positive and negative, leading axes [num_tasks, 2].
      accumulated: sum of the perturbations since the trajectory began, theta's leaves with leading
        axis [num_tasks].
    """

    particles: UnrollState
    accumulated: Any

    @property
    def is_done(self) -> Bool[Array, tasks]:
        """Whether the next unroll begins a new trajectory: of both particles."""
        return self.particles.is_done[..., 0]

    @property
    def task_param(self) -> Any:
        """Which task of the family the two share."""
        return jax.tree.map(lambda leaf: leaf[:, 0], self.particles.task_param)

    def ended_where(self, ends: jax.Array) -> PairState:
        """The same, marked done where `ends`."""
        return self.replace(particles=self.particles.ended_where(ends))  # type: ignore[attr-defined, no-any-return]
