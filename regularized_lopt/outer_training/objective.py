"""Whether the objective is learned: what a regularizer adds to the plain outer loss.

Theta that was trained with a regularizer should have a smaller L_reg - L than one trained without.
It is measured where a trajectory of validation ends: trajectories unroll with the theta at hand,
and their last `unroll_length` steps are those of outer training, on images of the meta-train half.
In optimizee space L is the outer loss as a function of params, in meta space as one of theta,
through those last steps. Beside the run's own regularizers, whose strengths differ between runs,
stands the rise at a reference radius, which all runs share: L(w + rho g / ||g||) - L(w), as in SAM.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import errors, regularizers
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators import loss_weights
from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.estimators.inner_problem import InnerProblem
from regularized_lopt.estimators.unroll import Unroll
from regularized_lopt.outer_training.curriculum import CurriculumOuterState
from regularized_lopt.regularizers import tree
from regularized_lopt.regularizers.base import perturbed_loss


@configurable()
@dataclasses.dataclass(frozen=True)
class ObjectiveCheck:
    """How L_reg - L is measured with every validation; nothing of it changes what is learned.

    Attributes:
      num_trajectories: whose ends it is measured at, >= 0; 0: not at all. Nor is it on tasks with
        iterators, from which it would take batches that outer training is to have.
      rho_theta: reference radius in meta space, > 0, l2.
      rho_params: reference radius in optimizee space, > 0, l2.
    """

    num_trajectories: int = 4
    rho_theta: float = 0.05
    rho_params: float = 0.5

    def __post_init__(self) -> None:
        errors.check_count("ObjectiveCheck.num_trajectories", self.num_trajectories, least=0)
        errors.check_positive("ObjectiveCheck.rho_theta", self.rho_theta)
        errors.check_positive("ObjectiveCheck.rho_params", self.rho_params)

    def rises(
        self,
        estimator: TruncatedEstimator,
        theta: Any,
        key: jax.Array,
        outer_state: CurriculumOuterState,
        datas: Sequence[Any],
    ) -> dict[str, jax.Array]:
        """L_reg - L, in nats, by column of metrics.csv.

        Args:
          estimator: of theta's gradient, with the run's regularizers.
          theta: weights of the learned optimizer.
          key: of trajectories, batches and the regularizers.
          outer_state: the outer step, and the length of the trajectories.
          datas: of the truncated steps, see `InnerProblem.unroll_data`.
        """
        trajectories_key, unroll_key, own_key = jax.random.split(key, 3)
        keys = jax.random.split(unroll_key, self.num_trajectories)
        steps = [_as_it_is(one) for one in estimator.truncated_steps]
        length = estimator.unroll_length
        starts = [
            _late(step, theta, trajectories_key, self.num_trajectories, length, outer_state, data)
            for step, data in zip(steps, datas, strict=True)
        ]

        def means(of: Sequence[InnerProblem], theta: Any) -> tuple[jax.Array, jax.Array]:
            """(objective in optimizee space, its rise over the plain loss)."""
            total = jnp.zeros(2)
            for weight, step, start, data in zip(
                estimator.task_weights, of, starts, datas, strict=True
            ):
                unroll = Unroll(step, length, estimator.loss)
                values, aux = jax.vmap(unroll.__call__, in_axes=(None, 0, 0, None, None))(
                    theta, start, keys, data, outer_state
                )
                # Of an outer loss that is a sum, the average: all starts are equally late.
                ramp = loss_weights.weights(estimator.loss, length, start.inner_step[0])
                value = values.mean() / loss_weights.total(estimator.loss, ramp)
                total += weight * jnp.stack([value, aux.loss_correction.mean()])
            return total[0], total[1]

        def objective(theta: Any) -> jax.Array:
            return means(steps, theta)[0]

        value, optimizee = means(steps, theta)
        at_reference = [_as_it_is(step, _Reference(self.rho_params)) for step in steps]
        step = outer_state.outer_iteration
        meta = jnp.zeros(())
        if estimator.regularizer.name != "none":
            meta = estimator.regularizer.value(objective, theta, key=own_key, step=step) - value
        return {
            "meta_rise": meta,
            "optimizee_rise": optimizee,
            "meta_rise_at_reference": _Reference(self.rho_theta).value(objective, theta) - value,
            "optimizee_rise_at_reference": means(at_reference, theta)[1],
        }


class _Reference(regularizers.Regularizer):
    """SAM's loss, without gin's parameters."""

    name = "reference"

    def __init__(self, rho: float):
        super().__init__()
        self.rho = rho

    def regularized_value(self, loss_fn: Any, point: Any, *, key: Any, step: Any) -> Any:
        del key, step
        return perturbed_loss(loss_fn, point, lambda _, g: tree.scale_to_norm(g, self.rho))


def _as_it_is(
    step: InnerProblem, regularizer: regularizers.Regularizer | None = None
) -> InnerProblem:
    """The inner problem without rescaling, maybe with another regularizer in optimizee space."""
    other = copy.copy(step)
    other.param_scale_bound = other.input_scale_bound = 0.0
    other.regularizer = regularizer or step.regularizer
    return other


def _late(
    step: InnerProblem,
    theta: Any,
    key: jax.Array,
    count: int,
    window: int,
    outer_state: CurriculumOuterState,
    data: Any,
) -> Any:
    """Trajectories of which `window` inner steps are left."""
    step, theta = step.prepared(theta)

    def one(key: jax.Array) -> Any:
        init_key, loop_key = jax.random.split(key)

        def body(t: jax.Array, state: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(loop_key, t))
            batch = step.batch_one(data["train"], t, keys[0])
            return step.step_one(theta, state, keys[1], batch)[0]

        start = step.init_one(theta, outer_state, init_key)
        return jax.lax.fori_loop(0, outer_state.trajectory_length - window, body, start)

    return jax.lax.stop_gradient(jax.vmap(one)(jax.random.split(key, count)))
