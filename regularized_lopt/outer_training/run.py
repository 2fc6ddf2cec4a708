"""Outer training: updates of theta, curriculum, checkpoints and curves around a jitted step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import optax

from regularized_lopt import (
    errors,
    gin_files,
    learned_optimizers,
    provenance,
    run_files,
    tasks,
    upstream,
    zoo,
)
from regularized_lopt import progress as progress_lib
from regularized_lopt.configurable import checked, configurable
from regularized_lopt.learned_optimizers import LSTMLOpt
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training import devices, unread
from regularized_lopt.outer_training import run_dir as run_dir_lib
from regularized_lopt.outer_training.interruption import Interrupted, StopRequest
from regularized_lopt.outer_training.loop import Loop, TrainState
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer
from regularized_lopt.outer_training.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.outer_training.truncated_step import RegularizedTruncatedStep

AnyTask = str | upstream.Task | upstream.TaskFamily


class DivergedError(RuntimeError):
    """Outer training met non-finite losses or gradients too often, lower learning rates or not."""


class OutOfMemoryError(RuntimeError):
    """An outer step, or a validation, did not fit into the device's memory."""


@dataclasses.dataclass(frozen=True)
class OuterTrainResult:
    """What a finished run leaves: the learned optimizer, its best theta, and the run's curves."""

    learned_opt: upstream.LearnedOptimizer
    theta: Any
    metrics: list[dict[str, Any]]


@configurable(denylist=["train_log_dir", "overwrite", "warm_start", "asked_for"])
def outer_train(
    train_log_dir: str | os.PathLike[str],
    task: AnyTask | Sequence[AnyTask] = gin.REQUIRED,
    learned_opt: upstream.LearnedOptimizer | None = None,
    curriculum: curriculum_lib.Curriculum | None = None,
    optimizer: Callable[[], optax.GradientTransformation] = theta_optimizer,
    num_outer_steps: int = 10_000,
    seed: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    max_nonfinite: int = 20,
    max_rollbacks: int = 3,
    rollback_factor: float = 0.5,
    num_devices: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    warm_start: str | os.PathLike[str] | None = None,
    asked_for: Sequence[str] = (),
) -> OuterTrainResult:
    """Meta-trains a learned optimizer; continues where the directory's last checkpoint stands.

    The regularizer is a gin parameter of `RegularizedTruncatedGrad` (meta space) or
    `RegularizedTruncatedStep` (optimizee space). One seed fixes everything: the same configuration
    gives the same theta, also across a restart.

    Args:
      train_log_dir: where checkpoints, curves, and the result (theta.npz) go.
      task: what to meta-train on: the name of a task, a task, or a family; or several, which may
        differ in shape (`RegularizedTruncatedGrad.task_weights` weighs them).
      learned_opt: any `LearnedOptimizer`, e.g. upstream's; default: `LSTMLOpt()` with gin's
        parameters. Your own: see `learned_optimizers.register`.
      curriculum: default: `Curriculum()` with gin's parameters.
      optimizer: makes the optimizer of theta.
      num_outer_steps: stop after so many updates of theta if the curriculum has not ended before,
        > 0.
      seed: of theta, tasks, params and batches, 0 to 2^32 - 1.
      log_every: outer steps between entries of the curves, > 0.
      checkpoint_every: outer steps between checkpoints, > 0.
      keep_checkpoints: how many of the last checkpoints to keep, beside the best, > 0.
      max_nonfinite: after so many skipped updates in a row, go back to the last checkpoint, > 0.
      max_rollbacks: stop if that happens more often, >= 0.
      rollback_factor: on theta's learning rate whenever it does, in (0, 1].
      num_devices: devices that share the tasks of an outer step, a divisor of their number; None:
        as many as there are, of all processes. The result is the same to rounding.
      progress: show a progress bar.
      overwrite: if the directory holds another experiment of ours, delete that.
      warm_start: a trained optimizer (see `zoo.load`) whose theta to begin with.
      asked_for: gin bindings, such as a command line's, that are refused if nothing reads them; of
        others there is a warning.

    Returns:
      The optimizer with the best theta by validation.

    Raises:
      DivergedError: see `max_rollbacks`; the message names the last good checkpoint.
      OutOfMemoryError: the message names the parameters that need less.
      Interrupted: SIGTERM or Ctrl-C came; there is a checkpoint of that step, unless its update
        was skipped.
      run_dir.OtherExperimentError: the directory holds another experiment; nothing was written.
      run_dir.InUseError: another process writes to the directory.
      OSError: a file could not be written; the checkpoints there are load.
      gin_files.UnreadBindingError: see `asked_for`; nothing was compiled or written.
      ValueError: a parameter is out of range.
    """
    _check_ranges(
        seed,
        max_rollbacks,
        rollback_factor,
        num_outer_steps=num_outer_steps,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        max_nonfinite=max_nonfinite,
    )
    estimator, curriculum, loop, task_name = _parts(
        task, learned_opt, curriculum, optimizer, seed, num_devices, warm_start
    )
    learned_opt = estimator.learned_opt
    if devices.is_writer():
        unread.warn_if_shared(estimator)
    _check_read(_unread(loop), asked_for, estimator)
    metadata = {
        **_describe(estimator),
        "task": task_name,
        "seed": seed,
        zoo.LONGEST: max(curriculum.train_lengths),
    }
    with (
        _memory_explained(estimator),
        run_dir_lib.RunDir(
            train_log_dir,
            _experiment(task_name, seed, warm_start),
            keep_checkpoints,
            overwrite,
            writes=devices.is_writer(),
        ) as run_dir,
        StopRequest() as stop,
        progress_lib.bar(
            num_outer_steps, run_dir.path.name, progress and devices.is_writer()
        ) as bar,
    ):
        devices.meet("the directory is claimed")
        state, stage = loop.init_or_restore(run_dir.checkpoints)
        step = bar.initial = int(state.outer_iteration)
        log = run_dir.open_log(step)
        run_dir.write(run_files.CONFIG_FILE, gin.operative_config_str())
        clock = time.monotonic() - log.seconds_before

        while step < num_outer_steps and not stage.finished:
            if curriculum.needs_baseline(stage):
                stage = curriculum.set_baseline(stage, loop.validate(state, stage))
            length = jnp.asarray(curriculum.trajectory_length(stage), jnp.int32)
            state, scalars = loop.outer_step(state, estimator.get_datas(), length)
            step += 1
            stage = dataclasses.replace(stage, steps_in_stage=stage.steps_in_stage + 1)

            extra = {}
            if curriculum.validation_due(stage, estimator.unroll_length):
                extra["validation_loss"] = loop.validate(state, stage)
                state, stage, is_best = loop.apply(state, stage, extra["validation_loss"])
                _save_theta(run_dir, learned_opt, state, stage, metadata)
                if is_best:
                    run_dir.checkpoints.save_best(loop.on_host(state), dataclasses.asdict(stage))
            if step % log_every == 0 or step == num_outer_steps or extra:
                scalars = _as_floats(scalars, estimator)
                log.write(step, {**scalars, **extra, "seconds": time.monotonic() - clock})
                bar.set_postfix(
                    loss=f"{scalars['loss']:.4f}",
                    stage=f"{stage.stage + 1}/{len(curriculum.train_lengths)}",
                    refresh=False,
                )
                if int(state.nonfinite_run) >= max_nonfinite:
                    state, stage = _recover(
                        loop, state, run_dir, task_name, max_rollbacks, rollback_factor
                    )
                    step = int(state.outer_iteration)
                    log.rewind(step)
            signum = stop.heard(step % log_every == 0)
            due = step % checkpoint_every == 0 or step == num_outer_steps or stage.finished
            if (due or signum) and int(state.nonfinite_run) == 0:
                run_dir.checkpoints.save(step, loop.on_host(state), dataclasses.asdict(stage))
            if signum:
                run_dir.checkpoints.wait()
                devices.meet("stop")
                raise Interrupted(signum, step, run_dir.checkpoints.last())
            bar.update(step - bar.n)
        state = loop.finish(state, stage)
        _save_theta(run_dir, learned_opt, state, stage, metadata)
    return OuterTrainResult(learned_opt, state.best_theta, run_files.read_metrics(run_dir.path))


def check_bindings(asked_for: Sequence[str] = ()) -> dict[gin_files.Binding, str]:
    """Makes what `outer_train` would make with gin's parameters, and trains nothing.

    Warns of bindings that nothing reads.

    Returns:
      Of those in `asked_for` that nothing reads, what there is to say.

    Raises:
      ValueError, TypeError: a parameter is wrong.
    """
    given = gin.get_bindings("outer_train")
    if "task" not in given:
        raise ValueError("outer_train.task is missing: give the name of a task, or several.")
    make = checked(_parts, "outer_train")
    wanted = inspect.signature(_parts).parameters
    estimator, _, loop, _ = make(**{name: given[name] for name in given if name in wanted})
    # Its own parameters are read when it is called.
    found = _unread(loop, but="outer_train")
    named = gin_files.named_in(asked_for)
    _check_read([one for one in found if one not in named], (), estimator)
    advice = functools.partial(unread.advice, estimator=estimator)
    return {one: gin_files.explain(one, advice) for one in found if one in named}


def _unread(loop: Loop, but: str = "") -> list[gin_files.Binding]:
    """Bindings, but those of one configurable, that nothing reads."""

    def found() -> list[gin_files.Binding]:
        return [one for one in gin_files.unread() if one.configurable != but]

    if found():  # What is called inside of a step may read them.
        loop.trace()
    return found()


def _check_read(
    found: Sequence[gin_files.Binding],
    asked_for: Sequence[str],
    estimator: RegularizedTruncatedGrad,
) -> None:
    advice = functools.partial(unread.advice, estimator=estimator)
    gin_files.check_read(found, gin_files.named_in(asked_for), advice)


def _parts(
    task: AnyTask | Sequence[AnyTask],
    learned_opt: upstream.LearnedOptimizer | None = None,
    curriculum: curriculum_lib.Curriculum | None = None,
    optimizer: Callable[[], optax.GradientTransformation] = theta_optimizer,
    seed: int = 0,
    num_devices: int | None = None,
    warm_start: str | os.PathLike[str] | None = None,
) -> tuple[RegularizedTruncatedGrad, curriculum_lib.Curriculum, Loop, str]:
    """What a run needs, and the name of what it is meta-trained on."""
    learned_opt = learned_opt or LSTMLOpt()
    learned_optimizers.describe(learned_opt)  # Refuses what could not be saved.
    curriculum = curriculum or curriculum_lib.Curriculum()
    estimator, task_name = _estimator(task, learned_opt, num_devices)
    curriculum.check(estimator.unroll_length)
    theta = None if warm_start is None else _theta_of(warm_start, learned_opt)
    transformation = errors.call_checked(
        "outer_train.optimizer", optimizer, optax.GradientTransformation
    )
    loop = Loop(estimator, curriculum, transformation, jax.random.PRNGKey(seed), theta)
    return estimator, curriculum, loop, task_name


def _check_ranges(seed: int, max_rollbacks: int, rollback_factor: float, **counts: int) -> None:
    errors.check_seed("outer_train.seed", seed)
    errors.check_count("outer_train.max_rollbacks", max_rollbacks, least=0)
    errors.check_in("outer_train.rollback_factor", rollback_factor, "(0, 1]")
    for name, value in counts.items():
        errors.check_count(f"outer_train.{name}", value)


def _describe(estimator: RegularizedTruncatedGrad) -> dict[str, Any]:
    """What theta's file says of how it was made."""
    return {
        "regularizer_meta_space": estimator.regularizer.describe(),
        "regularizer_optimizee_space": estimator.truncated_step.regularizer.describe(),
        "smoothing": estimator.smoothing and estimator.smoothing.describe(),
        "devices": _num_devices(estimator),
        "made_with": provenance.versions(),
    }


def _estimator(
    task: AnyTask | Sequence[AnyTask],
    learned_opt: upstream.LearnedOptimizer,
    num_devices: int | None,
) -> tuple[RegularizedTruncatedGrad, str]:
    """The estimator of theta's gradient, and the name of what it is meta-trained on."""
    if isinstance(task, Sequence) and not task:
        raise ValueError("outer_train.task is empty: give the name of a task, or several.")
    several = isinstance(task, Sequence) and not isinstance(task, str)
    families = [tasks.as_family(one, "meta_train") for one in (task if several else [task])]
    schedule = curriculum_lib.CurriculumTruncationSchedule()
    steps = [RegularizedTruncatedStep(family, learned_opt, schedule) for family in families]
    mesh = devices.make_mesh(num_devices, [step.num_tasks for step in steps])
    estimator = RegularizedTruncatedGrad(steps if several else steps[0], mesh=mesh)
    return estimator, " + ".join(family.name for family in families)


def _as_floats(scalars: dict[str, Any], estimator: RegularizedTruncatedGrad) -> dict[str, float]:
    """The scalars of an outer step; warns, once, of a regularizer that changed nothing at it."""
    scalars = {name: float(value) for name, value in scalars.items()}
    for space, change, regularizer in (
        ("meta", "gradient_correction", estimator.regularizer),
        ("optimizee", "loss_correction", estimator.truncated_step.regularizer),
    ):
        if regularizer.name != "none" and scalars[change] == 0:
            warnings.warn(
                f"Regularizer {regularizer.name} in {space} space changes nothing: see its weight, "
                "and its radius or strength.",
                stacklevel=2,
            )
    return scalars


def _save_theta(
    run_dir: run_dir_lib.RunDir,
    learned_opt: upstream.LearnedOptimizer,
    state: TrainState,
    stage: curriculum_lib.CurriculumState,
    metadata: dict[str, Any],
) -> None:
    """The best theta so far, with how it was made."""
    if run_dir.writes:
        about = {
            **metadata,
            "experiment": run_dir.digest,
            "outer_steps": int(state.outer_iteration),
            "stage": dataclasses.asdict(stage),
        }
        zoo.save(run_dir.path / run_files.THETA_FILE, learned_opt, state.best_theta, about)


@contextlib.contextmanager
def _memory_explained(estimator: RegularizedTruncatedGrad) -> Iterator[None]:
    """XLA's error says how many bytes were missing; this one, what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        num_tasks = ", ".join(str(step.num_tasks) for step in estimator.truncated_steps)
        raise OutOfMemoryError(
            f"Out of memory ({str(error).splitlines()[0]}). What is stored grows with "
            f"RegularizedTruncatedStep.num_tasks = {num_tasks} (on {_num_devices(estimator)} "
            f"devices: outer_train.num_devices), RegularizedTruncatedGrad.unroll_length = "
            f"{estimator.unroll_length}, Curriculum.num_validation_tasks and LSTMLOpt.hidden_size: "
            "lower one of them (steps are rematerialised already, so there is no remat to turn "
            "on). The last checkpoint is as it was."
        ) from error


def _num_devices(estimator: RegularizedTruncatedGrad) -> int:
    return estimator.mesh.size if estimator.mesh is not None else 1


def _theta_of(path: str | os.PathLike[str], learned_opt: upstream.LearnedOptimizer) -> Any:
    """Of a trained optimizer, if it is one of this kind."""
    loaded = zoo.load(path)
    wanted, found = map(learned_optimizers.describe, (learned_opt, loaded.learned_opt))
    if wanted != found:
        raise ValueError(
            f"warm_start: {path} holds a {found['learned_opt']} with {found['config']}; this run "
            f"trains a {wanted['learned_opt']} with {wanted['config']}."
        )
    return loaded.theta


def _experiment(task: str, seed: int, warm_start: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What makes a run this run: gin's configuration, less what may change on resuming."""
    begins = {} if warm_start is None else {"warm_start": str(warm_start)}
    return {"task": task, "seed": seed, "gin": configuration(), **begins}


def configuration() -> list[str]:
    """Gin's bindings, less those that may change on resuming: "gin" in a run's experiment.json."""
    free = tuple(
        f"outer_train.{name} ="
        for name in (
            "num_outer_steps",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_nonfinite",
            "max_rollbacks",
            "rollback_factor",
            "num_devices",
            "progress",
        )
    )
    return sorted(
        line
        for line in gin.config_str(max_line_length=10_000).splitlines()
        if line and not line.startswith(("#", "import", *free))
    )


def _recover(
    loop: Loop,
    state: TrainState,
    run_dir: run_dir_lib.RunDir,
    task: str,
    max_rollbacks: int,
    factor: float,
) -> tuple[TrainState, curriculum_lib.CurriculumState]:
    """Back to the last checkpoint, with a lower learning rate, or the end of it."""
    what = (
        f"{int(state.nonfinite_run)} updates in a row up to outer step "
        f"{int(state.outer_iteration)} on {task} were not finite and were skipped"
    )
    run_dir.checkpoints.wait()  # One may be on its way.
    devices.meet("roll back")
    last = run_dir.checkpoints.last()
    if last is None or int(state.rollbacks) >= max_rollbacks:
        where = f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
        raise DivergedError(
            f"Outer training diverged: {what}, after {int(state.rollbacks)} returns to a "
            f"checkpoint with a lower learning rate. {where}. Try a lower "
            "theta_learning_rate.learning_rate, a smaller radius or strength of the regularizer, "
            "or shorter trajectories at first; and see that the task's data are finite."
        )
    state, stage = loop.roll_back(state, run_dir.checkpoints, factor)
    progress_lib.say(
        f"{what}: back to outer step {int(state.outer_iteration)}, theta's learning rate times "
        f"{float(state.rate_scale):g}."
    )
    return state, stage
