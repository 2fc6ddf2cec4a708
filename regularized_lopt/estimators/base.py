"""What estimators of theta's gradient share: inner problems, trajectories, data, and a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from regularized_lopt import devices, errors, regularizers, upstream
from regularized_lopt.estimators import checks
from regularized_lopt.estimators import unroll as unroll_lib
from regularized_lopt.estimators.truncated_step import (
    RegularizedTruncatedStep as TruncatedStep,
)
from regularized_lopt.regularizers import tree


@flax.struct.dataclass
class Estimate:
    """What one unroll yields.

    Attributes:
      grad: gradient of the outer objective w.r.t. theta; zeros if anything in it was not finite.
      mean_loss: plain outer loss, averaged over tasks, of the pass without a regularizer.
      gradient_correction: ‖G_reg - g‖ / ‖g‖ of the regularizer in meta space (of each task and
        averaged, with `per_task_perturbation`); exactly 0 where it changes nothing.
      loss_correction: `|L_reg - L| / |L|` of the regularizer in optimizee space, L averaged over
        tasks; exactly 0 where it changes nothing.
      unroll_state: where the next unroll continues, leading axis [num_tasks]; of a mixture, a
        tuple of these.
      inner_loss: inner losses along the unroll, [unroll_length, num_tasks].
      iteration: inner steps taken at each of them, [unroll_length, num_tasks].
      nonfinite: True if loss or gradient was not finite: the update is to be skipped.
      redrawn: trajectories that end here because they exploded, int32; fresh ones follow. If the
        gradient is not finite and none of them explains it, all end.
      smoothness: R of the smoothing term, averaged over steps and tasks; None without one.
    """

    grad: Any
    mean_loss: Float[Array, ""]
    gradient_correction: Float[Array, ""]
    loss_correction: Float[Array, ""]
    unroll_state: Any
    inner_loss: Float[Array, "steps tasks"]
    iteration: jax.Array
    nonfinite: jax.Array
    redrawn: jax.Array
    smoothness: Float[Array, ""] | None


class Problem(NamedTuple):
    """What an estimate does with one truncated step.

    Attributes:
      unroll: of one of its trajectories.
      inputs: what those of all tasks begin with.
    """

    unroll: unroll_lib.Unroll
    inputs: unroll_lib.Inputs


class TruncatedEstimator(upstream.GradientEstimator):
    """A `GradientEstimator` on `RegularizedTruncatedStep`; subclasses define `estimate`.

    Each call unrolls `unroll_length` inner steps of every task, and leaves the trajectories where
    the next call continues. An estimate is one XLA program: batches are drawn in it, the unroll is
    a scan, tasks are vmapped, and the regularizer's passes are part of it.

    Given several truncated steps, i.e. tasks of different shapes, the objective is the weighted
    mean of their outer losses; `state` and `data` are then tuples.

    Attributes:
      truncated_steps: the inner problems.
      task_weights: of their losses; they sum to 1.
      task_family, learned_opt: those of the first.
      unroll_length: inner steps per estimate.
      loss: one of `unroll.LOSSES`.
      regularizer: in meta space.
      smoothing: a smoothing term on the learned optimizer, or None.
      mesh: devices that share the tasks; None: one device.
    """

    def __init__(
        self,
        truncated_step: TruncatedStep | Sequence[TruncatedStep] | upstream.TaskFamily,
        learned_opt: upstream.LearnedOptimizer | None,
        unroll_length: int,
        loss: str,
        regularizer: str | regularizers.Regularizer,
        smoothing: regularizers.Smoothing | None,
        task_weights: Sequence[float] | None,
        mesh: Mesh | None,
        coordinate_fraction: float = 1.0,
        differentiable: bool = True,
    ):
        """Initializer; arguments are those of `RegularizedTruncatedGrad`, and of `Unroll`."""
        name = type(self).__name__
        if isinstance(truncated_step, upstream.TaskFamily):
            if learned_opt is None:
                raise ValueError(f"{name}(task_family) also needs a learned_opt.")
            truncated_step = TruncatedStep(truncated_step, learned_opt)
        errors.check_count(f"{name}.unroll_length", unroll_length)
        self._is_mixture = not isinstance(truncated_step, TruncatedStep)
        steps = tuple(truncated_step) if self._is_mixture else (truncated_step,)  # type: ignore[arg-type]
        if not steps:
            raise ValueError(f"{name}.truncated_step is empty: give at least one.")
        self.task_weights = checks.normalized(name, task_weights, len(steps))
        self.truncated_steps: tuple[TruncatedStep, ...] = steps  # type: ignore[assignment]
        self.task_family = self.truncated_steps[0].task_family
        self.learned_opt = self.truncated_steps[0].learned_opt
        self.unroll_length = unroll_length
        self.loss = errors.check_name("loss", loss, unroll_lib.LOSSES)
        self.regularizer = regularizers.get(regularizer)
        self.smoothing = smoothing
        self.mesh = mesh
        self._resident: dict[int, Any] = {}
        checks.check_smoothing(name, smoothing, self.learned_opt)
        for step_lib in self.truncated_steps:
            checks.check_divides(name, unroll_length, step_lib.trunc_sched)
        self._unrolls = [
            unroll_lib.Unroll(
                step_lib,
                unroll_length,
                self.loss,
                smoothing,
                coordinate_fraction,
                mesh,
                differentiable,
            )
            for step_lib in self.truncated_steps
        ]
        self._jitted_estimate = jax.jit(self.estimate)
        self._jitted_starts = [jax.jit(self.start(one)) for one in self.truncated_steps]

    @property
    def truncated_step(self) -> TruncatedStep:
        """The (first) inner problem."""
        return self.truncated_steps[0]

    @property
    def num_devices(self) -> int:
        """Devices that share the tasks."""
        return self.mesh.size if self.mesh is not None else 1

    def describe(self) -> dict[str, Any]:
        """Which estimator this is, for records of experiments (JSON-serializable)."""
        name = type(self).__name__
        return {"name": name, "unroll_length": int(self.unroll_length), "loss": self.loss}

    def start(self, step_lib: TruncatedStep) -> Any:
        """(theta, outer_state, key) -> the trajectories of one truncated step, to begin with."""
        return step_lib.init_step_state

    def estimate(
        self, theta: Any, state: Any, key: jax.Array, data: Any, outer_state: Any
    ) -> Estimate:
        """One regularized gradient estimate; pure, to be called inside a jitted outer step.

        Args:
          theta: weights of the learned optimizer.
          state: trajectories, from `init_worker_state` or the last estimate.
          key: all randomness of this estimate.
          data: from `get_datas`.
          outer_state: `outer_iteration` and what the truncation schedule reads.
        """
        raise NotImplementedError

    def init_worker_state(self, worker_weights: Any, key: jax.Array) -> Any:
        """Starts the trajectories: states with leading axis [num_tasks], or a tuple of these."""
        state = self._join(
            start(worker_weights.theta, worker_weights.outer_state, key)
            for start, key in zip(self._jitted_starts, self._split(key), strict=True)
        )
        return devices.place(state, self.mesh, devices.SHARED)

    def get_datas(self) -> Any:
        """What the next `estimate` draws batches from.

        Resident data are the same arrays on every call; a task's own iterators move on.
        """
        return self._join(self._data(index) for index in range(len(self.truncated_steps)))

    def _data(self, index: int) -> Any:
        if index in self._resident:
            return self._resident[index]
        step_lib = self.truncated_steps[index]
        data = devices.place(
            step_lib.unroll_data(self.unroll_length), self.mesh, step_lib.data_spec
        )
        if step_lib.data_axis is None:
            self._resident[index] = data
        return data

    def _problems(self, state: Any, key: jax.Array, data: Any, outer_state: Any) -> list[Problem]:
        """By truncated step."""
        return [
            Problem(unroll, unroll_lib.Inputs(state, keys, data, outer_state))
            for unroll, state, keys, data in zip(
                self._unrolls,
                self._tuple(state),
                self._task_keys(key),
                self._tuple(data),
                strict=True,
            )
        ]

    def _estimate(
        self, grad: Any, correction: jax.Array, auxes: Any, states: Any, step: Any
    ) -> Estimate:
        """What follows from the regularized gradient.

        Args:
          grad: that gradient.
          correction: `Estimate.gradient_correction`.
          auxes: `UnrollAux` of the plain pass, by truncated step, leading axis [num_tasks].
          states: trajectories before it, by truncated step.
          step: the outer step.
        """

        def mean(trees: Any) -> Any:
            """Over tasks, then over truncated steps by weight."""
            over_tasks = [jax.tree.map(lambda x: jnp.mean(x, axis=0), each) for each in trees]
            return self._weighted_sum(over_tasks)

        plain = mean([aux.loss for aux in auxes])
        smoothness = None
        if self.smoothing is not None:
            smoothness, smoothness_grad = mean([aux.smoothness for aux in auxes])
            strength = regularizers.value_at(self.smoothing.strength, step)
            grad = jax.tree.map(lambda g, r: g + strength * r, grad, smoothness_grad)
        finite = jnp.isfinite(plain) & jnp.isfinite(optax.tree.norm(grad))
        exploded = [aux.exploded for aux in auxes]
        unexplained = ~finite & ~jnp.any(jnp.concatenate(exploded))
        ended = [each | unexplained for each in exploded]
        return Estimate(
            grad=jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grad),
            mean_loss=plain,
            gradient_correction=correction,
            loss_correction=_relative(mean([aux.loss_correction for aux in auxes]), plain),
            unroll_state=self._join(
                unroll_lib.end(aux.state, state, ends)
                for aux, state, ends in zip(auxes, states, ended, strict=True)
            ),
            inner_loss=jnp.concatenate([aux.inner_loss.T for aux in auxes], axis=1),
            iteration=jnp.concatenate([aux.iteration.T for aux in auxes], axis=1),
            nonfinite=~finite,
            redrawn=jnp.sum(jnp.concatenate(ended), dtype=jnp.int32),
            smoothness=smoothness,
        )

    def compute_gradient_estimate(
        self,
        worker_weights: Any,
        key: jax.Array,
        state: Any,
        with_summary: bool | None = False,
        datas_list: Any = None,
    ) -> tuple[Any, Mapping[str, jax.Array]]:
        """Upstream's form of `estimate`.

        Returns:
          `GradientEstimatorOut`, and metrics: with `with_summary` the norm of the gradient, and
          always counters of estimates that were not finite (their gradient is zero) and of
          trajectories that exploded.
        """
        data = self.get_datas() if datas_list is None else datas_list
        result = self._jitted_estimate(
            worker_weights.theta, state, key, data, worker_weights.outer_state
        )
        states = self._tuple(result.unroll_state)
        task_param = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (self.unroll_length, *leaf.shape)),
            self._join(state.task_param for state in states),
        )
        is_done = jnp.concatenate([state.is_done for state in states])
        out = upstream.GradientEstimatorOut(
            mean_loss=result.mean_loss,
            grad=result.grad,
            unroll_state=result.unroll_state,
            unroll_info=upstream.UnrollInfo(
                loss=result.inner_loss,
                iteration=result.iteration,
                task_param=task_param,
                is_done=jnp.zeros(result.iteration.shape, bool).at[-1].set(is_done),
            ),
        )
        metrics = {
            "mean||nonfinite": result.nonfinite.astype(jnp.float32),
            "mean||redrawn": result.redrawn.astype(jnp.float32),
        }
        if result.smoothness is not None:
            metrics["mean||smoothness"] = result.smoothness
        if with_summary:
            metrics["mean||theta_grad_norm"] = optax.tree.norm(result.grad)
        return out, metrics

    def _tuple(self, joined: Any) -> Any:
        return joined if self._is_mixture else (joined,)

    def _join(self, parts: Any) -> Any:
        parts = tuple(parts)
        return parts if self._is_mixture else parts[0]

    def _weighted_sum(self, trees: Sequence[Any]) -> Any:
        """Over truncated steps."""
        return jax.tree.map(
            lambda *xs: sum(w * x for w, x in zip(self.task_weights, xs, strict=True)), *trees
        )

    def _task_keys(self, key: jax.Array) -> list[jax.Array]:
        """Of every truncated step, one per task."""
        return [
            jax.random.split(key, step_lib.num_tasks)
            for step_lib, key in zip(self.truncated_steps, self._split(key), strict=True)
        ]

    def _split(self, key: jax.Array) -> Any:
        return jax.random.split(key, len(self.truncated_steps)) if self._is_mixture else (key,)


def gradient_correction(regularized: Any, plain: Any) -> Float[Array, ""]:
    """‖G_reg - g‖ / ‖g‖; 0 where nothing changes."""
    return _relative(tree.norm(tree.subtract(regularized, plain)), tree.norm(plain))


def _relative(change: jax.Array, to: jax.Array) -> jax.Array:
    """|change| / |to|; 0 where nothing changes."""
    return jnp.where(change == 0, 0.0, jnp.abs(change) / jnp.abs(to))
