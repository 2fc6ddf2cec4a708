"""Truncated backpropagation through time with regularizers: our `GradientEstimator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from regularized_lopt import regularizers, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators import checks
from regularized_lopt.estimators.base import Estimate, TruncatedEstimator, gradient_correction
from regularized_lopt.estimators.truncated_step import (
    RegularizedTruncatedStep as TruncatedStep,
)


@configurable()
class RegularizedTruncatedGrad(TruncatedEstimator):
    """Gradient of a flatness-regularized outer objective by truncated BPTT.

    Each call unrolls `unroll_length` inner steps of every task, differentiates the outer loss
    through them w.r.t. theta, and leaves the trajectories where the next call continues. The
    regularizer given here acts in meta space (the paper's algorithm): it perturbs theta and re-runs
    the unroll from the same state with the same batches and keys. State and logged losses come from
    the unperturbed pass. A regularizer in optimizee space is a parameter of
    `RegularizedTruncatedStep`; both may be set.

    Given several truncated steps, i.e. tasks of different shapes, the objective is the weighted
    mean of their outer losses; `state` and `data` are then tuples.

    The estimate is one XLA program: batches are drawn in it, the unroll is a scan with
    rematerialised steps, tasks are vmapped, and the regularizer's passes are part of it.
    """

    def __init__(
        self,
        truncated_step: TruncatedStep | Sequence[TruncatedStep] | upstream.TaskFamily,
        learned_opt: upstream.LearnedOptimizer | None = None,
        *,
        unroll_length: int = 20,
        loss: str = "last",
        regularizer: str | regularizers.Regularizer = "none",
        per_task_perturbation: bool = False,
        smoothing: regularizers.Smoothing | None = None,
        coordinate_fraction: float = 1.0,
        task_weights: Sequence[float] | None = None,
        mesh: Mesh | None = None,
    ):
        """Initializer; its first arguments are those that upstream's builder passes.

        Args:
          truncated_step: a `RegularizedTruncatedStep` (upstream main), or several, or the
            `TaskFamily` that one is made of with gin's parameters (the wheel, which passes
            `(task_family, learned_opt)`).
          learned_opt: the learned optimizer, in the last form.
          unroll_length: T, inner steps per estimate, > 0; must divide the length of trajectories.
          loss: outer loss from L(params_1..T), each on a fresh batch: "last": L(params_T) (the
            paper); "mean"; "weighted": weights rising linearly in t and summing to 1; or one of the
            sums of Xiong & Hsieh 2022, "ramp", "periodic" and "by_unroll": see `loss_weights`.
          regularizer: name or object of the regularizer in meta space.
          per_task_perturbation: regularize each task's gradient on its own (m-sharpness) instead of
            the mean.
          smoothing: a smoothing term on the learned optimizer, added to the gradient once, at the
            unperturbed theta.
          coordinate_fraction: share of the coordinates that theta's gradient is taken through, in
            (0, 1], drawn by the magnitude of dL/dparams. Below 1 the gradient is exact on average
            and up to three times cheaper; the unroll is the same. Needs a `CoordinateWiseLOpt`, and
            in meta space a regularizer that takes first derivatives only. See `coordinates`.
          task_weights: weight of each truncated step's loss, >= 0; scaled to sum to 1. Default:
            equal.
          mesh: devices that share the tasks, see `devices.make_mesh`; None: one device.

        Raises:
          ValueError: a parameter is out of range; the message has the range or the nearest name.
        """
        super().__init__(
            truncated_step,
            learned_opt,
            unroll_length,
            loss,
            regularizer,
            smoothing,
            task_weights,
            mesh,
            coordinate_fraction,
        )
        self.per_task_perturbation = per_task_perturbation
        self.coordinate_fraction = coordinate_fraction
        checks.check_fraction(coordinate_fraction, self.learned_opt, self.regularizer)

    def estimate(
        self, theta: Any, state: Any, key: jax.Array, data: Any, outer_state: Any
    ) -> Estimate:
        """See `TruncatedEstimator.estimate`."""
        unroll_key, regularizer_key = jax.random.split(key)
        step = outer_state.outer_iteration
        problems = self._problems(state, unroll_key, data, outer_state)

        def regularized(loss_fn: Any, theta: Any, key: jax.Array) -> tuple[Any, Any, Any]:
            value, plain, grad = self.regularizer.value_and_gradients(
                loss_fn, theta, key=key, step=step, has_aux=True
            )
            return value, grad, gradient_correction(grad, plain)

        if self.per_task_perturbation:
            keys = self._split(regularizer_key)
            results = [
                unroll.per_task_gradient(regularized, theta, inputs, key)
                for (unroll, inputs), key in zip(problems, keys, strict=True)
            ]
            auxes = tuple(aux for aux, *_ in results)
            grad = self._weighted_sum([grad for _, grad, _ in results])
            correction = jnp.mean(jnp.concatenate([each for *_, each in results]))
        else:

            def objective(theta: Any) -> tuple[jax.Array, Any]:
                found = [unroll.mean_loss(theta, inputs) for unroll, inputs in problems]
                losses, auxes = zip(*found, strict=True)
                return self._weighted_sum(losses), auxes

            (_, auxes), grad, correction = regularized(objective, theta, regularizer_key)
        return self._estimate(grad, correction, auxes, self._tuple(state), step)
