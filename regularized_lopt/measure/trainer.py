"""Meta-test runs: unseen networks, trained by each optimizer from the same inits and batches."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from regularized_lopt import errors, tasks
from regularized_lopt import progress as progress_lib
from regularized_lopt.measure import convergence
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.training_curves import (
    LossLevels,
    SavedParams,
    TrainingCurves,
    eval_grid,
    loss_grid,
    trailing_mean,
)
from regularized_lopt.tasks import classification

_CHUNK = 100  # Inner steps between two looks at the progress bar.
_EVAL_BATCH = 1000
# What a run's key is folded with, so that no two uses of it share random numbers.
_PARAMS, _BATCHES, _LOSS, _UPDATE, _OPTIMIZER = range(5)
_TUNING_SEED = 1_000_000  # Added to the seed: rates are tuned on other runs than are reported.


@dataclasses.dataclass(frozen=True)
class Parallelism:
    """How the runs share the machine.

    Attributes:
      batch: runs side by side in one program (vmap), > 0.
      threads: programs at work at a time, > 0.
    """

    batch: int = 1
    threads: int = 1


class Trainer:
    """Trains networks on one task: run r has the same init and batches for every optimizer.

    Programs are compiled once per kind of optimizer and kept.
    """

    def __init__(
        self,
        task: tasks.ImageTask,
        num_runs: int,
        num_steps: int,
        seed: int = 0,
        eval_steps: Sequence[int] | None = None,
        parallelism: Parallelism = Parallelism(),
        programs: dict[str, _Program] | None = None,
        progress: bool = True,
    ):
        """Initializer.

        Args:
          task: an image task in phase "meta_test".
          num_runs: networks per optimizer, > 0.
          num_steps: inner steps, > 0.
          seed: run r starts from key (seed, r).
          eval_steps: when to evaluate the test set; default: `eval_grid(num_steps)`.
          parallelism: how runs share the machine.
          programs: those of another trainer on this task, so that none is compiled twice.
          progress: show progress bars.
        """
        errors.check_positive("num_runs", num_runs)
        errors.check_positive("num_steps", num_steps)
        errors.check_positive("Parallelism.batch", parallelism.batch)
        errors.check_positive("Parallelism.threads", parallelism.threads)
        self.task = task
        self.num_runs = num_runs
        self.num_steps = num_steps
        self.parallelism = parallelism
        self._grid = np.asarray(eval_grid(num_steps) if eval_steps is None else eval_steps)
        self._progress = progress
        self._keys = jax.vmap(lambda run: jax.random.fold_in(jax.random.PRNGKey(seed), run))(
            jnp.arange(num_runs)
        )
        self.programs = {} if programs is None else programs

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
        program = self.programs.setdefault(kinds.pop(), _Program(self.task, optimizers[0].make))
        runs = [(one.hyper, key) for one in optimizers for key in self._keys]
        width = min(self.parallelism.batch, len(runs))
        groups = [runs[i : i + width] for i in range(0, len(runs), width)]
        bar = progress_lib.bar(
            len(runs) * self.num_steps,
            label or ", ".join(one.label for one in optimizers),
            self._progress,
            unit_scale=True,
        )
        lock = threading.Lock()

        def report(steps: int, loss: float) -> None:
            with lock:
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(steps)

        run = functools.partial(
            program.run, num_steps=self.num_steps, grid=self._grid, report=report
        )
        with bar, concurrent.futures.ThreadPoolExecutor(self.parallelism.threads) as pool:
            finished = list(pool.map(run, groups))
        rows = [row for group in finished for row in group]
        return {
            optimizer.name: _stack(
                rows[i * self.num_runs : (i + 1) * self.num_runs], self.num_steps, self._grid
            )
            for i, optimizer in enumerate(optimizers)
        }

    def compile(self, optimizers: Sequence[EvaluatedOptimizer]) -> None:
        """Compiles what `train` runs, by one step of it, so that training can be timed."""
        trial = Trainer(
            self.task, self.num_runs, 1, 0, [1], self.parallelism, self.programs, progress=False
        )
        trial.train(optimizers)


class _Program:
    """The jitted parts of training with one kind of optimizer, on any number of runs."""

    def __init__(self, task: tasks.ImageTask, make: Any):
        self._task = task
        self._make = make

    def run(self, runs: Sequence[Any], num_steps: int, grid: Any, report: Any) -> list[Any]:
        """Trains a group of runs to the end: one dict of arrays per run."""
        datasets = self._task.datasets
        train, test = datasets.arrays("train"), datasets.arrays("test")
        hyper, keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
        carry = self._init(hyper, keys, _initial_params(self._task, keys), num_steps)
        evaluations: list[Any] = []
        losses: list[np.ndarray] = []
        done = 0
        for stop in [*grid, num_steps]:
            while done < stop:
                end = min(done + _CHUNK, int(stop))
                carry, chunk = self._advance(hyper, keys, carry, done, end, train)
                losses.append(np.asarray(chunk)[:, : end - done])
                report((end - done) * len(runs), float(losses[-1][:, -20:].mean()))
                done = end
            if len(evaluations) < len(grid):
                evaluations.append(self._evaluate(hyper, carry, test))
        opt_state, poc, levels, _ = carry
        # [runs, 4, evals]; tuning asks for no evaluations at all.
        columns = np.asarray(evaluations).reshape(len(evaluations), 4, len(runs)).T
        arrays = {
            "train_loss": trailing_mean(np.concatenate(losses, axis=1), loss_grid(num_steps)),
            **dict(
                zip(
                    ("test_loss", "test_accuracy", "param_norm", "update_norm"),
                    columns.transpose(1, 0, 2),
                    strict=True,
                )
            ),
            "poc_step": poc.step,
            "poc_declared": poc.declared,
            "best_step": poc.best_step,
            "level_step": levels.step,
            "level": levels.level,
            "saved_params": {
                "poc": poc.params,
                "final": self._params(hyper, opt_state),
                "level": jax.tree.map(lambda leaf: leaf[:, :-1], levels.params),
            },
        }
        arrays = jax.tree.map(np.asarray, arrays)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], arrays) for i in range(len(runs))]

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _init(self, hyper: Any, keys: jax.Array, params: Any, num_steps: int) -> Any:
        def one(hyper: Any, key: jax.Array, params: Any) -> Any:
            key = jax.random.fold_in(key, _OPTIMIZER)
            opt_state = self._make(hyper).init(params, num_steps=num_steps, key=key)
            return opt_state, convergence.start(params), LossLevels.start(params), jnp.zeros(())

        return _over_runs(one, hyper, keys, params)

    # Dynamic bounds: one program serves every stretch between evaluations, and any length.
    @functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
    def _advance(
        self, hyper: Any, keys: jax.Array, carry: Any, begin: int, end: int, train: Any
    ) -> tuple[Any, jax.Array]:
        """At most `_CHUNK` steps; their losses are the first of [runs, _CHUNK]."""

        def body(t: jax.Array, carry_and_losses: Any) -> Any:
            carry, losses = carry_and_losses
            carry, loss = _over_runs(
                lambda h, k, c: self._step(h, k, t, c, train), hyper, keys, carry
            )
            return carry, jax.lax.dynamic_update_slice(losses, loss[:, None], (0, t - begin))

        return jax.lax.fori_loop(begin, end, body, (carry, jnp.zeros((len(keys), _CHUNK))))

    def _step(
        self, hyper: Any, key: jax.Array, t: jax.Array, carry: Any, train: Any
    ) -> tuple[Any, jax.Array]:
        opt_state, poc, levels, _ = carry
        opt, task = self._make(hyper), self._task
        batch_key, loss_key, update_key = (
            jax.random.fold_in(jax.random.fold_in(key, use), t)
            for use in (_BATCHES, _LOSS, _UPDATE)
        )
        batch = task.datasets.sample(train, batch_key)
        params = opt.get_params(opt_state)
        loss, grad = jax.value_and_grad(task.loss)(params, loss_key, batch)
        # A second gradient on the same batch, for those that ask for it.
        extra = (
            {"grad_fn": lambda at: jax.grad(task.loss)(at, loss_key, batch)}
            if isinstance(opt, optimizers_lib.OptaxBaseline)
            else {}
        )
        opt_state = opt.update(opt_state, grad, loss=loss, key=update_key, **extra)
        after = opt.get_params(opt_state)
        poc = convergence.update(poc, t, loss, after)
        update_norm = optax.tree.norm(jax.tree.map(jnp.subtract, after, params))
        return (opt_state, poc, levels.update(t, poc.trailing_mean, after), update_norm), loss

    @functools.partial(jax.jit, static_argnums=0)
    def _evaluate(self, hyper: Any, carry: Any, test: Any) -> jax.Array:
        """[4, runs]: test loss and accuracy, norms of the params and of the last update."""

        def one(hyper: Any, carry: Any) -> jax.Array:
            opt_state, _, _, update_norm = carry
            params = self._make(hyper).get_params(opt_state)
            loss, accuracy = whole_split(self._task, params, test)
            return jnp.stack([loss, accuracy, optax.tree.norm(params), update_norm])

        return jax.lax.map(lambda args: one(*args), (hyper, carry)).T

    @functools.partial(jax.jit, static_argnums=0)
    def _params(self, hyper: Any, opt_state: Any) -> Any:
        return _over_runs(lambda h, s: self._make(h).get_params(s), hyper, opt_state)


# Jitted at module level: one compilation serves all optimizers of a task.
@functools.partial(jax.jit, static_argnums=0)
def _initial_params(task: tasks.ImageTask, keys: jax.Array) -> Any:
    return jax.lax.map(lambda key: task.init(jax.random.fold_in(key, _PARAMS)), keys)


def tune(
    name: str,
    task: tasks.ImageTask,
    num_steps: int,
    seed: int = 0,
    num_runs: int = 2,
    parallelism: Parallelism = Parallelism(),
    programs: dict[str, _Program] | None = None,
    progress: bool = True,
) -> EvaluatedOptimizer:
    """A baseline at the learning rate of its grid with the lowest final training loss.

    The loss is that on the meta-test train split; the test set is not looked at. The runs are not
    those that are reported.
    """
    rates = optimizers_lib.BASELINES[
        errors.check_name("baseline", name, optimizers_lib.BASELINES)
    ].learning_rates
    trainer = Trainer(
        task, num_runs, num_steps, seed + _TUNING_SEED, [], parallelism, programs, progress
    )
    grid = [
        dataclasses.replace(optimizers_lib.baseline(name, rate), name=str(rate)) for rate in rates
    ]
    curves = trainer.train(grid, label=f"tune {name}")
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
        candidates.append(Parallelism(1, min(_cores(), runs)))
    else:
        candidates.append(Parallelism(runs * len(optimizers), 1))
    speeds: dict[Parallelism, float] = {}
    for parallelism in dict.fromkeys(candidates):
        together = optimizers[: max(1, parallelism.batch // runs)]
        try:
            # Two steps first: one that is far behind is not measured any longer.
            for steps in (2, num_steps):
                trial = Trainer(
                    trainer.task, runs, steps, 0, [], parallelism, trainer.programs, progress=False
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


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Those that this process may use.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def whole_split(task: tasks.ImageTask, params: Any, split: Any) -> tuple[jax.Array, jax.Array]:
    """Mean loss and accuracy over a whole split, in batches; the last is padded and masked."""
    size = split["label"].shape[0]
    count = -(-size // _EVAL_BATCH)
    index = jnp.arange(count * _EVAL_BATCH).reshape(count, _EVAL_BATCH)

    def sums(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = task.datasets.normalize(
            {name: value[jnp.minimum(index, size - 1)] for name, value in split.items()}
        )
        logits = task.logits(params, batch["image"])
        loss = classification.cross_entropy(logits, batch["label"])
        correct = classification.is_correct(logits, batch["label"])
        inside = index < size
        return jnp.sum(loss * inside), jnp.sum(correct & inside)

    losses, correct = jax.lax.map(sums, index)
    return losses.sum() / size, correct.sum() / size


def _over_runs(function: Any, *args: Any) -> Any:
    """vmap, but plain for a single run: batched gathers and matmuls are slower on CPU."""
    if jax.tree.leaves(args)[0].shape[0] > 1:
        return jax.vmap(function)(*args)
    out = function(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], out)


def _stack(rows: Sequence[dict[str, Any]], num_steps: int, grid: np.ndarray) -> TrainingCurves:
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    saved = SavedParams(**stacked.pop("saved_params"))
    return TrainingCurves(
        loss_steps=loss_grid(num_steps), eval_steps=grid, saved_params=saved, **stacked
    )
