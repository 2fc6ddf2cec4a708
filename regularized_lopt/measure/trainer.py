"""Meta-test runs: unseen networks, trained by each optimizer from the same inits and batches."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import devices, errors, tasks
from regularized_lopt import progress as progress_lib
from regularized_lopt.devices import Parallelism
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.programs import Programs
from regularized_lopt.measure.training_curves import (
    SavedParams,
    TrainingCurves,
    eval_grid,
    loss_grid,
)

_ALONE = Parallelism()
_TUNING_SEED = 1_000_000  # Added to the seed: rates are tuned on other runs than are reported.


class Trainer:
    """Trains networks on one task: run r has the same init and batches for every optimizer.

    Programs are compiled once per kind of optimizer and kept.
    """

    def __init__(
        self,
        task: tasks.ResidentTask,
        num_runs: int,
        num_steps: int,
        seed: int = 0,
        eval_steps: Sequence[int] | None = None,
        parallelism: Parallelism = _ALONE,
        progress: bool = True,
        budget: str = "steps",
    ):
        """Initializer.

        Args:
          task: in phase "meta_test".
          num_runs: networks per optimizer, > 0.
          num_steps: inner steps, > 0; see `budget`.
          seed: run r starts from key (seed, r).
          eval_steps: when to evaluate the test set; default: `eval_grid(num_steps)`.
          parallelism: how runs share the machine.
          progress: show progress bars.
          budget: "steps": every optimizer takes `num_steps` steps; "gradients": it takes as many
            gradients, so that one with two per step stops half-way, and its params and curves stay
            as they are there, see `optimizers.steps_within`.
        """
        errors.check_positive("num_runs", num_runs)
        errors.check_positive("num_steps", num_steps)
        errors.check_positive("Parallelism.batch", parallelism.batch)
        errors.check_positive("Parallelism.threads", parallelism.threads)
        errors.check_name("budget", budget, optimizers_lib.BUDGETS)
        self.task = task
        self.num_runs = num_runs
        self.num_steps = num_steps
        self.seed = seed
        self.parallelism = parallelism
        self.budget = budget
        self._grid = np.asarray(eval_grid(num_steps) if eval_steps is None else eval_steps)
        self._progress = progress
        self._keys = jax.vmap(lambda run: jax.random.fold_in(jax.random.PRNGKey(seed), run))(
            jnp.arange(num_runs)
        )
        self._programs = Programs(task)

    def like(self, **changes: Any) -> Trainer:
        """Another trainer on this task, whose programs are shared: none is compiled twice.

        Args:
          **changes: arguments of `Trainer`; the others are as here, `eval_steps` by default.
        """
        arguments: dict[str, Any] = {
            "num_runs": self.num_runs,
            "num_steps": self.num_steps,
            "seed": self.seed,
            "parallelism": self.parallelism,
            "progress": self._progress,
            "budget": self.budget,
        }
        other = Trainer(self.task, **{**arguments, **changes})
        other._programs = self._programs
        return other

    def steps_of(self, optimizer: EvaluatedOptimizer) -> int:
        """The steps that an optimizer takes."""
        return optimizers_lib.steps_within(
            self.budget, self.num_steps, optimizer.gradients_per_step
        )

    def train(
        self, optimizers: Sequence[EvaluatedOptimizer], label: str = ""
    ) -> dict[str, TrainingCurves]:
        """Trains `num_runs` networks with each optimizer; all are of one kind.

        Args:
          optimizers: what to train with; names differ.
          label: of the progress bar; default: their names.
        """
        kinds = {optimizer.kind for optimizer in optimizers}
        if len(kinds) != 1:
            raise ValueError(f"Trainer.train takes optimizers of one kind, got {sorted(kinds)}.")
        program, num_steps = self._programs.of(optimizers[0]), self.steps_of(optimizers[0])
        runs = [(one.hyper, key) for one in optimizers for key in self._keys]
        width = min(self.parallelism.batch, len(runs))
        groups = [runs[i : i + width] for i in range(0, len(runs), width)]
        bar = progress_lib.bar(
            len(runs) * num_steps,
            label or ", ".join(one.label for one in optimizers),
            self._progress,
            unit_scale=True,
        )
        lock, stopped = threading.Lock(), threading.Event()

        def report(steps: int, loss: float) -> None:
            if stopped.is_set():
                raise concurrent.futures.CancelledError
            with lock:
                bar.set_postfix(loss=progress_lib.loss_text(loss), refresh=False)
                bar.update(steps)

        run = functools.partial(
            program.run,
            num_steps=num_steps,
            loss_steps=loss_grid(self.num_steps),
            grid=self._grid,
            report=report,
        )
        with bar, concurrent.futures.ThreadPoolExecutor(self.parallelism.threads) as pool:
            try:
                finished = list(pool.map(run, groups))
            except BaseException:  # Ctrl-C, too: the pool ends when its runs do.
                stopped.set()
                raise
        rows = [row for group in finished for row in group]
        return {
            optimizer.name: _stack(
                rows[i * self.num_runs : (i + 1) * self.num_runs], self.num_steps, self._grid
            )
            for i, optimizer in enumerate(optimizers)
        }

    def compile(self, optimizers: Sequence[EvaluatedOptimizer]) -> None:
        """Compiles what `train` runs, by one step of it, so that training can be timed."""
        self.like(num_steps=1, seed=0, eval_steps=[1], progress=False).train(optimizers)


def tune(
    name: str, trainer: Trainer, num_steps: int | None = None, num_runs: int = 2
) -> EvaluatedOptimizer:
    """A baseline at the learning rate of its grid with the lowest final training loss.

    The loss is that on the meta-test train split; the test set is not looked at. The runs are not
    those that are reported.

    Args:
      name: of `optimizers.BASELINES`.
      trainer: on the task in question, of the runs that are reported.
      num_steps: inner steps, > 0; default: the trainer's.
      num_runs: networks per rate, > 0.
    """
    rates = optimizers_lib.BASELINES[
        errors.check_name("baseline", name, optimizers_lib.BASELINES)
    ].learning_rates
    trial = trainer.like(
        num_runs=num_runs,
        num_steps=trainer.num_steps if num_steps is None else num_steps,
        seed=trainer.seed + _TUNING_SEED,
        eval_steps=[],
    )
    grid = [
        dataclasses.replace(optimizers_lib.baseline(name, rate), name=str(rate)) for rate in rates
    ]
    curves = trial.train(grid, label=f"tune {name}")
    final = np.array([curves[str(rate)].final_train_loss.mean() for rate in rates])
    return optimizers_lib.baseline(name, rates[int(np.argmin(np.nan_to_num(final, nan=np.inf)))])


def measure_parallelism(
    trainer: Trainer, optimizers: Sequence[EvaluatedOptimizer], num_steps: int = 20
) -> dict[Parallelism, float]:
    """Inner steps per second of every parallelism worth trying on this machine, after compiling.

    Args:
      trainer: of the task and runs in question.
      optimizers: to be trained with, of one kind; side by side where that may pay.
      num_steps: inner steps to time.
    """
    runs = trainer.num_runs
    candidates = [Parallelism(1, 1), Parallelism(runs, 1)]
    if jax.default_backend() == "cpu":
        # Wide programs mostly move more memory there; several narrow ones share the cores.
        candidates.append(Parallelism(1, min(devices.cores(), runs)))
    else:
        candidates.append(Parallelism(runs * len(optimizers), 1))
    speeds: dict[Parallelism, float] = {}
    for parallelism in dict.fromkeys(candidates):
        together = optimizers[: max(1, parallelism.batch // runs)]
        try:
            # Two steps first: one that is far behind is not measured any longer.
            for steps in (2, num_steps):
                trial = trainer.like(
                    num_steps=steps, seed=0, eval_steps=[], parallelism=parallelism, progress=False
                )
                trial.train(together)
                start = time.monotonic()
                trial.train(together)
                speed = len(together) * runs * steps / (time.monotonic() - start)
                if speed < 0.3 * max(speeds.values(), default=0.0):
                    break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or not speeds:
                raise
            continue  # Too wide for this device's memory.
        speeds[parallelism] = speed
    return speeds


def _stack(rows: Sequence[dict[str, Any]], num_steps: int, grid: np.ndarray) -> TrainingCurves:
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    saved = SavedParams(**stacked.pop("saved_params"))
    return TrainingCurves(
        loss_steps=loss_grid(num_steps), eval_steps=grid, saved_params=saved, **stacked
    )
