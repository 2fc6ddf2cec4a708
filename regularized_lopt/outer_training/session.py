"""A run of outer training under way: its steps, and what follows from each of them."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

from regularized_lopt import devices, errors, run_files, zoo
from regularized_lopt import progress as progress_lib
from regularized_lopt.estimators.base import TruncatedEstimator
from regularized_lopt.interruption import Interrupted, StopRequest
from regularized_lopt.outer_training.loop import Asking, Event, Loop
from regularized_lopt.outer_training.requests import OuterStep
from regularized_lopt.outer_training.run_dir import RunDir


class DivergedError(RuntimeError):
    """Outer training met non-finite losses or gradients too often, lower learning rates or not."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long a run is, what it writes when, and when it gives up; may change on resuming.

    Attributes: those of `outer_train`.
    """

    num_outer_steps: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    max_nonfinite: int
    max_rollbacks: int
    rollback_factor: float

    def __post_init__(self) -> None:
        errors.check_count("outer_train.max_rollbacks", self.max_rollbacks, least=0)
        errors.check_in("outer_train.rollback_factor", self.rollback_factor, "(0, 1]")
        for name in (
            "num_outer_steps",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_nonfinite",
        ):
            errors.check_count(f"outer_train.{name}", getattr(self, name))


class Session:
    """Takes the steps of a run; logs, keeps the best theta, writes checkpoints, recovers, stops."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        run_dir: RunDir,
        metadata: dict[str, Any],
        config: Callable[[], str],
        shown: progress_lib.Part,
    ):
        """Goes on where the directory's last checkpoint stands.

        Args:
          loop: what to do.
          settings: see there.
          run_dir: where everything goes.
          metadata: of theta's file.
          config: says what the whole configuration is, for who reads the directory.
          shown: the run's part of a bar of progress.

        Raises:
          ValueError: it stands beyond `settings.num_outer_steps`.
        """
        self._loop = loop
        self._settings = settings
        self._run_dir = run_dir
        self._metadata = metadata
        self._shown = shown
        self._state, self._stage = self._loop.init_or_restore(run_dir.checkpoints)
        self._step = int(self._state.outer_iteration)
        if self._step > settings.num_outer_steps:
            raise ValueError(
                f"{run_dir.path} has {self._step} outer steps already, more than "
                f"outer_train.num_outer_steps = {settings.num_outer_steps}. Give as many or more, "
                "or another directory (launchers: --train_log_dir), or --overwrite."
            )
        shown.begin(self._step)
        self._log = run_dir.open_log(self._step)
        run_dir.write(run_files.CONFIG_FILE, config())
        self._accuracy: dict[str, str] = {}
        self._clock = time.monotonic() - self._log.seconds_before

    def next_step(self) -> OuterStep:
        """What the next update of theta needs, to time it by."""
        length = self._loop.curriculum.trajectory_length(self._stage)
        return self._loop.next_step(self._state, length)

    def run(self, stop: StopRequest) -> Asking[Any]:
        """Takes all steps that are left.

        Args:
          stop: hears of signals.

        Returns:
          The best theta.

        Raises:
          DivergedError: too many updates were not finite, too often.
          Interrupted: a signal came.
        """
        while self._step < self._settings.num_outer_steps and not self._stage.finished:
            event = yield from self._loop.step(self._state, self._stage)
            self._state, self._stage = event.state, event.stage
            self._step += 1
            if event.validation_loss is not None:
                self._keep_best(event)
            if self._log_due(event):
                self._write_log(event)
                if int(self._state.nonfinite_run) >= self._settings.max_nonfinite:
                    self._recover()
            signum = stop.heard(self._step % self._settings.log_every == 0)
            if (signum or self._checkpoint_due()) and int(self._state.nonfinite_run) == 0:
                self._save_checkpoint()
            if signum:
                self._stop(signum)
            self._shown.to(self._step)
        if self._step < self._settings.num_outer_steps:
            self._shown.tell(
                f"{self._run_dir.path}: the curriculum ended after outer step {self._step} of "
                f"{self._settings.num_outer_steps}, in stage {self._of_stages()}, after "
                f"{self._stage.num_validations} validation(s) of that stage."
            )
        self._state = yield from self._loop.finish(self._state, self._stage)
        self._save_theta()
        return self._state.best_theta

    def _keep_best(self, event: Event) -> None:
        self._save_theta()
        if event.is_best:
            state = self._loop.programs.on_host(self._state)
            self._run_dir.checkpoints.save_best(state, dataclasses.asdict(self._stage))

    def _save_theta(self) -> None:
        """The best theta so far, with how it was made."""
        if self._run_dir.writes:
            about = {
                **self._metadata,
                "experiment": self._run_dir.digest,
                "outer_steps": int(self._state.outer_iteration),
                "stage": dataclasses.asdict(self._stage),
            }
            path = self._run_dir.path / run_files.THETA_FILE
            zoo.save(path, self._loop.estimator.learned_opt, self._state.best_theta, about)

    def _log_due(self, event: Event) -> bool:
        last = self._step == self._settings.num_outer_steps
        validated = event.validation_loss is not None
        return self._step % self._settings.log_every == 0 or last or validated

    def _write_log(self, event: Event) -> None:
        scalars = _as_floats(event.scalars, self._loop.estimator, self._run_dir.path.name)
        if event.validation_loss is not None:
            scalars["validation_loss"] = event.validation_loss
        seconds = time.monotonic() - self._clock
        self._log.write(self._step, {**scalars, "seconds": seconds})
        if "validation_accuracy" in scalars:
            self._accuracy = {"accuracy": f"{scalars['validation_accuracy']:.1%}"}
        self._shown.say(loss=scalars["loss"], stage=self._of_stages(), **self._accuracy)

    def _of_stages(self) -> str:
        """The stage, counted from 1, of how many."""
        return f"{self._stage.stage + 1}/{len(self._loop.curriculum.train_lengths)}"

    def _recover(self) -> None:
        """Back to the last checkpoint, with a lower learning rate, or the end of it."""
        state, checkpoints = self._state, self._run_dir.checkpoints
        what = (
            f"{int(state.nonfinite_run)} updates in a row up to outer step "
            f"{int(state.outer_iteration)} on {self._metadata['task']} were not finite and were "
            "skipped"
        )
        checkpoints.wait()  # One may be on its way.
        devices.meet("roll back")
        last = checkpoints.last()
        if last is None or int(state.rollbacks) >= self._settings.max_rollbacks:
            where = f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
            raise DivergedError(
                f"Outer training diverged: {what}, after {int(state.rollbacks)} returns to a "
                f"checkpoint with a lower learning rate. {where}. Try a lower "
                "theta_learning_rate.learning_rate, a smaller radius or strength of the "
                "regularizer, or shorter trajectories at first; and see that the task's data are "
                "finite."
            )
        factor = self._settings.rollback_factor
        self._state, self._stage = self._loop.roll_back(state, checkpoints, factor)
        self._step = int(self._state.outer_iteration)
        progress_lib.say(
            f"{what}: back to outer step {self._step}, theta's learning rate times "
            f"{float(self._state.rate_scale):g}."
        )
        self._log.rewind(self._step)

    def _checkpoint_due(self) -> bool:
        last = self._step == self._settings.num_outer_steps or self._stage.finished
        return self._step % self._settings.checkpoint_every == 0 or last

    def _save_checkpoint(self) -> None:
        state = self._loop.programs.on_host(self._state)
        self._run_dir.checkpoints.save(self._step, state, dataclasses.asdict(self._stage))

    def _stop(self, signum: int) -> None:
        self._run_dir.checkpoints.wait()
        devices.meet("stop")
        raise Interrupted(signum, self._step, self._run_dir.checkpoints.last())


def _as_floats(
    scalars: dict[str, Any], estimator: TruncatedEstimator, run: str
) -> dict[str, float]:
    """The scalars of an outer step; warns, once, of a regularizer that changed nothing at it."""
    scalars = {name: float(value) for name, value in scalars.items()}
    for space, change, regularizer in (
        ("meta", "gradient_correction", estimator.regularizer),
        ("optimizee", "loss_correction", estimator.truncated_step.regularizer),
    ):
        if regularizer.name != "none" and scalars[change] == 0:
            warnings.warn(
                f"{run}: regularizer {regularizer.name} in {space} space changes nothing: see its "
                "weight, and its radius or strength.",
                stacklevel=2,
            )
    return scalars
