"""Outer training in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
import optax

from regularized_lopt import devices, errors, run_files, upstream
from regularized_lopt import progress as progress_lib
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.estimators.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.interruption import StopRequest
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training import parts as parts_lib
from regularized_lopt.outer_training import population as population_lib
from regularized_lopt.outer_training import runs as runs_lib
from regularized_lopt.outer_training.parts import AnyTask
from regularized_lopt.outer_training.run_dir import RunDir
from regularized_lopt.outer_training.session import Session, Settings
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer


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
    estimator: Callable[..., TruncatedEstimator] = RegularizedTruncatedGrad,
    num_outer_steps: int = 10_000,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    doses: Mapping[str, Sequence[float]] | None = None,
    parallelism: tuple[int, int] | None = None,
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
) -> OuterTrainResult | dict[str, OuterTrainResult]:
    """Meta-trains a learned optimizer; continues where the directory's last checkpoint stands.

    The regularizer is a gin parameter of the estimator (meta space) or of
    `RegularizedTruncatedStep` (optimizee space). One seed fixes everything: the same configuration
    gives the same theta, also across a restart.

    Args:
      train_log_dir: where checkpoints, curves, and the result (theta.npz) go.
      task: what to meta-train on: the name of a task, a task, or a family; or several, which may
        differ in shape (the estimator's `task_weights` weigh them).
      learned_opt: any `LearnedOptimizer`, e.g. upstream's; default: `LSTMLOpt()` with gin's
        parameters. Your own: see `learned_optimizers.register`.
      curriculum: default: `Curriculum()` with gin's parameters.
      optimizer: makes the optimizer of theta.
      estimator: makes the estimator of theta's gradient from the inner problem, or from several of
        them; its other parameters are gin's: `RegularizedTruncatedGrad` (backpropagation),
        `RegularizedTruncatedPES` or `RegularizedTruncatedES`.
      num_outer_steps: stop after so many updates of theta if the curriculum has not ended before,
        > 0.
      seed: of theta, tasks, params and batches, 0 to 2^32 - 1.
      seeds: of a population: one run per seed, in a directory of its own in `train_log_dir`, all of
        them by the same program; instead of `seed`. Each is the run that it would be alone, to
        rounding. One that diverges does not stop the others.
      doses: of a population: by gin name (e.g. "SAM.rho") one number per member, which takes the
        place of that parameter. It must be one that may be a schedule, so that shapes agree.
      parallelism: of a population: (members per program, programs at a time); None: the fastest of
        a few ways is found once, and kept in parallelism.json.
      log_every: outer steps between entries of the curves, > 0.
      checkpoint_every: outer steps between checkpoints, > 0.
      keep_checkpoints: how many of the last checkpoints to keep, beside the best, > 0.
      max_nonfinite: after so many skipped updates in a row, go back to the last checkpoint, > 0.
      max_rollbacks: stop if that happens more often, >= 0.
      rollback_factor: on theta's learning rate whenever it does, in (0, 1].
      num_devices: devices that share the tasks of an outer step, a divisor of their number, or the
        members of a population, if it divides theirs; None: as many as there are, of all
        processes. The result is the same to rounding.
      progress: show a progress bar.
      overwrite: if the directory holds another experiment of ours, delete that.
      warm_start: a trained optimizer (see `zoo.load`) whose theta to begin with.
      asked_for: gin bindings, such as a command line's, that are refused if nothing reads them; of
        others there is a warning.

    Returns:
      The optimizer with the best theta by validation; of a population, one by directory.

    Raises:
      DivergedError: see `max_rollbacks`; the message names the last good checkpoint. Of a
        population, after all others are done.
      OutOfMemoryError: the message names the parameters that need less.
      Interrupted: SIGTERM or Ctrl-C came; there is a checkpoint of that step, unless its update
        was skipped.
      run_dir.OtherExperimentError: the directory holds another experiment; nothing was written.
      run_dir.InUseError: another process writes to the directory.
      OSError: a file could not be written; the checkpoints there are load.
      gin_files.UnreadBindingError: see `asked_for`; nothing was compiled or written.
      ValueError: a parameter is out of range.
    """
    errors.check_seed("outer_train.seed", seed)
    how_often = (num_outer_steps, log_every, checkpoint_every, keep_checkpoints)
    settings = Settings(*how_often, max_nonfinite, max_rollbacks, rollback_factor)
    for count in parallelism or ():
        errors.check_count("outer_train.parallelism", count)
    members = population_lib.members(seeds, doses)
    seed = int(seed)  # It may be NumPy's, which JSON does not take.
    given = (task, learned_opt, curriculum, optimizer, estimator, seed, num_devices, warm_start)
    make_parts = functools.partial(parts_lib.make, *given)
    made, several = runs_lib.make(make_parts, seed, warm_start, members, asked_for)
    path = pathlib.Path(train_log_dir)
    with _memory_explained(made.estimator), contextlib.ExitStack() as stack:
        if members:
            stack.enter_context(population_lib.claimed(path, members, overwrite))
        opened = {
            name: stack.enter_context(
                RunDir(path / name, one.experiment, keep_checkpoints, overwrite)
            )
            for name, one in several.items()
        }
        stop = stack.enter_context(StopRequest())
        steps = num_outer_steps * len(several)
        bar = progress_lib.bar(steps, path.name, progress and devices.is_writer())
        shown = progress_lib.Shared(stack.enter_context(bar))
        devices.meet("the directory is claimed")
        sessions = {
            name: Session(one.loop, settings, opened[name], one.metadata, one.config, shown.part())
            for name, one in several.items()
        }
        thetas = population_lib.train(made.loop.programs, sessions, stop, path, parallelism)
    learned_opt = made.estimator.learned_opt
    found = {
        name: OuterTrainResult(learned_opt, theta, run_files.read_metrics(path / name))
        for name, theta in thetas.items()
    }
    return found if members else found[""]


@contextlib.contextmanager
def _memory_explained(estimator: TruncatedEstimator) -> Iterator[None]:
    """XLA's error says how many bytes were missing; this one, what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        num_tasks = ", ".join(str(step.num_tasks) for step in estimator.truncated_steps)
        raise OutOfMemoryError(
            f"Out of memory ({str(error).splitlines()[0]}). What is stored grows with "
            f"RegularizedTruncatedStep.num_tasks = {num_tasks} (on {estimator.num_devices} "
            f"devices: outer_train.num_devices), {type(estimator).__name__}.unroll_length = "
            f"{estimator.unroll_length}, Curriculum.num_validation_tasks and LSTMLOpt.hidden_size: "
            "lower one of them (steps are rematerialised already, so there is no remat to turn "
            "on). The last checkpoint is as it was."
        ) from error
