"""Outer training: updates of theta, curriculum, checkpoints and curves around a jitted step."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import regularized_lopt
from regularized_lopt import errors, tasks, upstream, zoo
from regularized_lopt.learned_optimizers import LSTMLOpt
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training import run_dir as run_dir_lib
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer
from regularized_lopt.outer_training.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.outer_training.truncated_step import RegularizedTruncatedStep

AnyTask = str | upstream.Task | upstream.TaskFamily


class DivergedError(RuntimeError):
    """Outer training met non-finite losses or gradients too often in a row."""


@flax.struct.dataclass
class TrainState:
    """Everything the outer loop carries on the device.

    Attributes:
      theta: weights of the learned optimizer.
      opt_state: state of theta's optimizer.
      unroll_state: trajectories under way.
      outer_iteration: outer steps taken, int32.
      nonfinite_run: consecutive outer steps whose update was skipped, int32.
      best_theta: the stage's best theta by validation.
    """

    theta: Any
    opt_state: Any
    unroll_state: Any
    outer_iteration: jax.Array
    nonfinite_run: jax.Array
    best_theta: Any


@dataclasses.dataclass(frozen=True)
class OuterTrainResult:
    """What a finished run leaves: the learned optimizer, its best theta, and the run's curves."""

    learned_opt: upstream.LearnedOptimizer
    theta: Any
    metrics: list[dict[str, Any]]


@gin.configurable(denylist=["train_log_dir"])
def outer_train(
    train_log_dir: str | os.PathLike[str],
    task: AnyTask | Sequence[AnyTask] = gin.REQUIRED,
    learned_opt: LSTMLOpt | None = None,
    curriculum: curriculum_lib.Curriculum | None = None,
    optimizer: Callable[[], optax.GradientTransformation] = theta_optimizer,
    num_outer_steps: int = 10_000,
    seed: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 500,
    max_nonfinite: int = 20,
    progress: bool = True,
) -> OuterTrainResult:
    """Meta-trains a learned optimizer; continues where the directory's last checkpoint stands.

    The regularizer is a gin parameter of `RegularizedTruncatedGrad` (meta space) or
    `RegularizedTruncatedStep` (optimizee space). One seed fixes everything: the same configuration
    gives the same theta, also across a restart.

    Args:
      train_log_dir: where checkpoints, curves, and the result (theta.npz) go.
      task: what to meta-train on: the name of a task, a task, or a family; or several, which may
        differ in shape (`RegularizedTruncatedGrad.task_weights` weighs them).
      learned_opt: default: `LSTMLOpt()` with gin's parameters.
      curriculum: default: `Curriculum()` with gin's parameters.
      optimizer: makes the optimizer of theta.
      num_outer_steps: stop after so many updates of theta if the curriculum has not ended before.
      seed: of theta, tasks, params and batches.
      log_every: outer steps between entries of the curves.
      checkpoint_every: outer steps between checkpoints.
      max_nonfinite: stop after so many skipped updates in a row.
      progress: show a progress bar.

    Returns:
      The optimizer with the best theta by validation.

    Raises:
      DivergedError: see `max_nonfinite`; the message names the last good checkpoint.
      run_dir.OtherExperimentError: the directory holds another experiment; nothing was written.
      ValueError: a parameter is out of range.
    """
    for name, value in {
        "num_outer_steps": num_outer_steps,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "max_nonfinite": max_nonfinite,
    }.items():
        errors.check_positive(f"outer_train.{name}", value)
    learned_opt = learned_opt or LSTMLOpt()
    curriculum = curriculum or curriculum_lib.Curriculum()
    several = isinstance(task, Sequence) and not isinstance(task, str)
    families = [tasks.as_family(one, "meta_train") for one in (task if several else [task])]
    task_name = " + ".join(family.name for family in families)
    steps = [
        RegularizedTruncatedStep(family, learned_opt, curriculum_lib.CurriculumTruncationSchedule())
        for family in families
    ]
    estimator = RegularizedTruncatedGrad(steps if several else steps[0])
    curriculum.check(estimator.unroll_length)
    run_dir = run_dir_lib.RunDir(train_log_dir, _experiment(task_name, seed))
    loop = _Loop(estimator, curriculum, optimizer(), jax.random.PRNGKey(seed))

    state, stage = loop.init_or_restore(run_dir)
    start = int(state.outer_iteration)
    log = run_dir_lib.MetricsLog(run_dir, start)
    (run_dir.path / "config.gin").write_text(gin.operative_config_str())
    clock = time.monotonic() - log.seconds_before
    data = estimator.get_datas()

    def save_theta() -> None:
        metadata = {
            "task": task_name,
            "regularizer_meta_space": estimator.regularizer.describe(),
            "regularizer_optimizee_space": steps[0].regularizer.describe(),
            "smoothing": estimator.smoothing and estimator.smoothing.describe(),
            "seed": seed,
            "outer_steps": int(state.outer_iteration),
            "stage": dataclasses.asdict(stage),
            "version": regularized_lopt.__version__,
        }
        zoo.save(run_dir.path / zoo.THETA_FILE, learned_opt, state.best_theta, metadata)

    bar = tqdm.tqdm(
        total=num_outer_steps,
        initial=start,
        desc=run_dir.path.name,
        unit="step",
        disable=not progress,
    )
    with bar:
        for step in range(start + 1, num_outer_steps + 1):
            if stage.finished:
                break
            if curriculum.needs_baseline(stage):
                stage = curriculum.set_baseline(stage, loop.validate(state, stage))
            state, scalars = loop.outer_step(
                state, data, jnp.asarray(curriculum.trajectory_length(stage), jnp.int32)
            )
            stage = dataclasses.replace(stage, steps_in_stage=stage.steps_in_stage + 1)

            extra = {}
            if curriculum.validation_due(stage, estimator.unroll_length):
                extra["validation_loss"] = loop.validate(state, stage)
                state, stage = loop.apply(state, stage, extra["validation_loss"])
                save_theta()
            if step % log_every == 0 or step == num_outer_steps or extra:
                scalars = {name: float(value) for name, value in scalars.items()}
                seconds = time.monotonic() - clock
                log.write(step, {**scalars, **extra, "seconds": seconds})
                if int(state.nonfinite_run) >= max_nonfinite:
                    raise DivergedError(
                        _diverged(step, task_name, int(state.nonfinite_run), run_dir)
                    )
                bar.set_postfix(
                    loss=f"{scalars['loss']:.4f}",
                    stage=f"{stage.stage + 1}/{len(curriculum.train_lengths)}",
                    refresh=False,
                )
            due = step % checkpoint_every == 0 or step == num_outer_steps or stage.finished
            if due and int(state.nonfinite_run) == 0:
                run_dir.save_checkpoint(step, state, dataclasses.asdict(stage))
            bar.update()
    state = loop.finish(state, stage)
    save_theta()
    log.close()
    return OuterTrainResult(learned_opt, state.best_theta, run_dir_lib.read_metrics(run_dir.path))


class _Loop:
    """The jitted parts of outer training."""

    def __init__(
        self,
        estimator: RegularizedTruncatedGrad,
        curriculum: curriculum_lib.Curriculum,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
    ):
        self._estimator = estimator
        self._curriculum = curriculum
        self._optimizer = optimizer
        self._init_key, self._step_key, self._validation_key = jax.random.split(key, 3)

    def init_or_restore(
        self, run_dir: run_dir_lib.RunDir
    ) -> tuple[TrainState, curriculum_lib.CurriculumState]:
        """Where the run's last checkpoint stands, or the beginning."""
        fresh = self.init()
        restored = run_dir.restore(fresh)
        if restored is None:
            return fresh, curriculum_lib.CurriculumState()
        return jax.tree.map(jnp.asarray, restored[0]), curriculum_lib.CurriculumState(**restored[1])

    def init(self) -> TrainState:
        """The beginning: fresh theta, fresh trajectories."""
        theta_key, unroll_key = jax.random.split(self._init_key)
        theta = self._estimator.learned_opt.init(theta_key)
        zero = jnp.asarray(0, jnp.int32)
        return TrainState(
            theta=theta,
            opt_state=self._optimizer.init(theta),
            unroll_state=self._fresh_unrolls(theta, 0, unroll_key),
            outer_iteration=zero,
            nonfinite_run=zero,
            best_theta=theta,
        )

    @functools.partial(jax.jit, static_argnums=0)
    def outer_step(
        self, state: TrainState, data: Any, trajectory_length: jax.Array
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update of theta; skipped, and counted, where the estimate is not finite."""
        outer_state = curriculum_lib.CurriculumOuterState(state.outer_iteration, trajectory_length)
        key = jax.random.fold_in(self._step_key, state.outer_iteration)
        estimate = self._estimator.estimate(state.theta, state.unroll_state, key, data, outer_state)
        updates, opt_state = self._optimizer.update(estimate.grad, state.opt_state, state.theta)
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
        )
        scalars = {
            "loss": estimate.mean_loss,
            "grad_norm": optax.tree.norm(estimate.grad),
            "trajectory_length": trajectory_length,
            "nonfinite": state.nonfinite_run,
        }
        if estimate.smoothness is not None:
            scalars["smoothness"] = estimate.smoothness
        return state, scalars

    def apply(
        self, state: TrainState, stage: curriculum_lib.CurriculumState, validation_loss: float
    ) -> tuple[TrainState, curriculum_lib.CurriculumState]:
        """Carries out what the curriculum decides on a validation loss."""
        stage, decision = self._curriculum.on_validation(stage, validation_loss)
        if decision.is_best:
            state = state.replace(best_theta=state.theta)  # type: ignore[attr-defined]
        if decision.restore_best:
            state = state.replace(theta=state.best_theta)  # type: ignore[attr-defined]
        if decision.next_stage:
            key = jax.random.fold_in(self._init_key, stage.stage)
            length = self._curriculum.trajectory_length(stage)
            state = state.replace(unroll_state=self._fresh_unrolls(state.theta, length, key))  # type: ignore[attr-defined]
        return state, stage

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
        length = self._curriculum.validation_length(stage)
        key = jax.random.fold_in(self._validation_key, stage.stage)
        total = 0.0
        for index, weight in enumerate(self._estimator.task_weights):
            step_lib = self._estimator.truncated_steps[index]
            data = step_lib.unroll_data(length, outer_split="outer_valid")
            total += weight * float(
                self._validation_loss(index, state.theta, key, jnp.asarray(length, jnp.int32), data)
            )
        return total

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _validation_loss(
        self, index: int, theta: Any, key: jax.Array, length: jax.Array, data: Any
    ) -> jax.Array:
        step_lib = self._estimator.truncated_steps[index]
        window = self._estimator.unroll_length
        outer_state = curriculum_lib.CurriculumOuterState(jnp.asarray(0, jnp.int32), length)

        def final_loss(key: jax.Array, data: Any) -> jax.Array:
            init_key, loop_key = jax.random.split(key)
            task_state = step_lib.init_one(theta, outer_state, init_key)

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

        keys = jax.random.split(key, self._curriculum.num_validation_tasks)
        if (
            step_lib.data_axis is not None
        ):  # Pulled batches: all trajectories take those of the first task.
            data = jax.tree.map(lambda leaf: leaf[:, 0], data)
        return jnp.mean(jax.vmap(final_loss, in_axes=(0, None))(keys, data))

    def _fresh_unrolls(self, theta: Any, length: int, key: jax.Array) -> Any:
        length = length or self._curriculum.train_lengths[0]
        outer_state = curriculum_lib.CurriculumOuterState(
            jnp.asarray(0, jnp.int32), jnp.asarray(length, jnp.int32)
        )
        return self._estimator.init_worker_state(
            upstream.WorkerWeights(theta, None, outer_state), key
        )


def _experiment(task: str, seed: int) -> dict[str, Any]:
    """What makes a run this run: gin's configuration, less what may change on resuming."""
    free = (
        "outer_train.num_outer_steps",
        "outer_train.log_every",
        "outer_train.checkpoint_every",
        "outer_train.progress",
    )
    lines = [
        line
        for line in gin.config_str(max_line_length=10_000).splitlines()
        if line and not line.startswith(("#", "import", *free))
    ]
    return {"task": task, "seed": seed, "gin": sorted(lines)}


def _diverged(step: int, task: str, count: int, run_dir: run_dir_lib.RunDir) -> str:
    last = run_dir.last_checkpoint()
    return (
        f"Outer training diverged: {count} updates in a row up to outer step {step} on {task} "
        "were not finite and were skipped. "
        f"{'The last good checkpoint is ' + str(last) if last else 'There is no checkpoint yet'}. "
        "Try a lower theta_learning_rate.learning_rate, a smaller radius or strength of the "
        "regularizer, or shorter trajectories at first."
    )


def load_metrics(train_log_dir: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A run's curves as columns; missing values are NaN."""
    rows = run_dir_lib.read_metrics(train_log_dir)
    fields = run_dir_lib.MetricsLog.FIELDS
    return {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows])
        for name in fields
    }
