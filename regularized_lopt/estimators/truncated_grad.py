"""Truncated backpropagation through time with regularizers: our `GradientEstimator`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from regularized_lopt import devices, errors, regularizers, upstream
from regularized_lopt.configurable import configurable
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
      mean_loss: plain outer loss, averaged over tasks, of the unperturbed pass.
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


@configurable()
class RegularizedTruncatedGrad(upstream.GradientEstimator):
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
            paper); "mean"; "weighted": weights rising linearly in t and summing to 1 (Xiong & Hsieh
            2022).
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
        if isinstance(truncated_step, upstream.TaskFamily):
            if learned_opt is None:
                raise ValueError("RegularizedTruncatedGrad(task_family) also needs a learned_opt.")
            truncated_step = TruncatedStep(truncated_step, learned_opt)
        errors.check_count("RegularizedTruncatedGrad.unroll_length", unroll_length)
        self._is_mixture = not isinstance(truncated_step, TruncatedStep)
        steps = tuple(truncated_step) if self._is_mixture else (truncated_step,)  # type: ignore[arg-type]
        if not steps:
            raise ValueError("RegularizedTruncatedGrad.truncated_step is empty: give at least one.")
        self.task_weights = checks.normalized(task_weights, len(steps))
        self.truncated_steps: tuple[TruncatedStep, ...] = steps  # type: ignore[assignment]
        self.task_family = self.truncated_steps[0].task_family
        self.learned_opt = self.truncated_steps[0].learned_opt
        self.unroll_length = unroll_length
        self.loss = errors.check_name("loss", loss, unroll_lib.LOSSES)
        self.regularizer = regularizers.get(regularizer)
        self.per_task_perturbation = per_task_perturbation
        self.smoothing = smoothing
        self.coordinate_fraction = coordinate_fraction
        self.mesh = mesh
        self._resident: dict[int, Any] = {}
        checks.check_smoothing(smoothing, self.learned_opt)
        checks.check_fraction(coordinate_fraction, self.learned_opt, self.regularizer)
        for step_lib in self.truncated_steps:
            checks.check_divides(unroll_length, step_lib.trunc_sched)
        self._unrolls = [
            unroll_lib.Unroll(
                step_lib, unroll_length, self.loss, smoothing, coordinate_fraction, mesh
            )
            for step_lib in self.truncated_steps
        ]
        self._jitted_estimate = jax.jit(self.estimate)
        self._jitted_inits = [jax.jit(one.init_step_state) for one in self.truncated_steps]

    @property
    def truncated_step(self) -> TruncatedStep:
        """The (first) inner problem."""
        return self.truncated_steps[0]

    @property
    def num_devices(self) -> int:
        """Devices that share the tasks."""
        return self.mesh.size if self.mesh is not None else 1

    def init_worker_state(self, worker_weights: Any, key: jax.Array) -> Any:
        """Starts the trajectories: `UnrollState` with leading axis [num_tasks], or a tuple."""
        state = self._join(
            init(worker_weights.theta, worker_weights.outer_state, key)
            for init, key in zip(self._jitted_inits, self._split(key), strict=True)
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
        unroll_key, regularizer_key = jax.random.split(key)
        step = outer_state.outer_iteration
        problems = [
            (unroll, unroll_lib.Inputs(state, keys, data, outer_state))
            for unroll, state, keys, data in zip(
                self._unrolls,
                self._tuple(state),
                self._task_keys(unroll_key),
                self._tuple(data),
                strict=True,
            )
        ]

        def regularized(loss_fn: Any, theta: Any, key: jax.Array) -> tuple[Any, Any, Any]:
            value, plain, grad = self.regularizer.value_and_gradients(
                loss_fn, theta, key=key, step=step, has_aux=True
            )
            return value, grad, _relative(tree.norm(tree.subtract(grad, plain)), tree.norm(plain))

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

    def _estimate(
        self, grad: Any, correction: jax.Array, auxes: Any, states: Any, step: Any
    ) -> Estimate:
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


def _relative(change: jax.Array, to: jax.Array) -> jax.Array:
    """|change| / |to|; 0 where nothing changes."""
    return jnp.where(change == 0, 0.0, jnp.abs(change) / jnp.abs(to))
