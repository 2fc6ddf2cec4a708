"""Meta-test: train unseen networks with trained optimizers, and measure what they find.

All runs of one optimizer are one vmapped program. Run r of every optimizer has the same init and
the same batches, so that differences between optimizers are paired.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from regularized_lopt import errors, tasks, upstream
from regularized_lopt.evaluation import baselines as baselines_lib
from regularized_lopt.evaluation import convergence, sharpness
from regularized_lopt.tasks import data as data_lib

OptFn = Callable[[Any], upstream.Optimizer]
"""Makes an optimizer from a hyperparameter: a baseline's learning rate; others ignore it."""

_CHUNK = 100  # Inner steps between two looks at the progress bar.
_EVAL_BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Runs:
    """Curves and end points of the runs of one optimizer on one task; leading axis: runs.

    Attributes:
      train_loss: [runs, steps], on the batch of each step, before it.
      eval_steps: [evals], after how many steps the test set was evaluated.
      test_loss, test_accuracy: [runs, evals], on the whole test set.
      param_norm: [runs, evals], global l2 norm of the params.
      poc_step: [runs], step at which convergence was declared (the last one if never).
      poc_declared: [runs], whether it was.
      best_step: [runs], step of the lowest trailing mean of the training loss.
      poc_params, final_params: params at the PoC and at completion.
      learning_rate: of a baseline, else None.
    """

    train_loss: np.ndarray
    eval_steps: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    param_norm: np.ndarray
    poc_step: np.ndarray
    poc_declared: np.ndarray
    best_step: np.ndarray
    poc_params: Any
    final_params: Any
    learning_rate: float | None = None

    @property
    def final_train_loss(self) -> np.ndarray:
        """[runs], mean of the last `convergence.WINDOW` training losses."""
        return self.train_loss[:, -convergence.WINDOW :].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Maximum of the held-out loss near the params, by PGA.

    Attributes:
      centre: [runs], the loss there.
      values: [runs, radii, ascent steps + 1], the loss along the ascent.
      best: [runs, radii], the highest value met.
    """

    centre: np.ndarray
    values: np.ndarray
    best: np.ndarray


@dataclasses.dataclass(frozen=True)
class MetaTestResult:
    """All optimizers on one task."""

    task: str
    num_runs: int
    num_steps: int
    seed: int
    radii: tuple[float, ...]
    runs: Mapping[str, Runs]
    at_poc: Mapping[str, Sharpness]
    at_completion: Mapping[str, Sharpness]


def eval_grid(num_steps: int, points: int = 12) -> np.ndarray:
    """When the test set is evaluated: at 0, log-spaced, at a quarter of the run and at its end."""
    spaced = np.geomspace(1, num_steps, points).round().astype(int)
    return np.unique(np.concatenate([[0, max(1, num_steps // 4)], spaced]))


def train_runs(
    opt_fn: OptFn,
    task: tasks.ImageTask,
    num_runs: int,
    num_steps: int,
    seed: int = 0,
    hyper: jax.Array | None = None,
    eval_steps: Sequence[int] | None = None,
    label: str = "",
    progress: bool = True,
) -> Runs:
    """Trains `num_runs` networks side by side.

    Args:
      opt_fn: makes the optimizer.
      task: an image task in phase "meta_test".
      num_runs: networks, > 0.
      num_steps: inner steps, > 0.
      seed: run r starts from key (seed, r): the same init and batches for every optimizer.
      hyper: [num_runs] or None: what `opt_fn` is called with in each run.
      eval_steps: when to evaluate the test set; default: `eval_grid(num_steps)`.
      label: of the progress bar.
      progress: show it.
    """
    errors.check_positive("num_runs", num_runs)
    errors.check_positive("num_steps", num_steps)
    datasets = task.datasets
    train, test = datasets.arrays("train"), datasets.arrays("test")
    keys = jax.vmap(lambda run: jax.random.fold_in(jax.random.PRNGKey(seed), run))(
        jnp.arange(num_runs)
    )
    hyper = jnp.zeros(num_runs) if hyper is None else hyper

    def init(hyper: jax.Array, key: jax.Array) -> tuple[Any, convergence.Convergence]:
        params = task.init(jax.random.fold_in(key, 0))
        return opt_fn(hyper).init(params, num_steps=num_steps), convergence.start(params)

    def step(
        hyper: jax.Array, key: jax.Array, t: jax.Array, carry: Any, train: Any
    ) -> tuple[Any, jax.Array]:
        opt_state, poc = carry
        opt = opt_fn(hyper)
        batch = datasets.sample(train, jax.random.fold_in(jax.random.fold_in(key, 1), t))
        loss, grad = jax.value_and_grad(task.loss)(opt.get_params(opt_state), key, batch)
        opt_state = opt.update(opt_state, grad, loss=loss, key=key)
        return (opt_state, convergence.update(poc, t, loss, opt.get_params(opt_state))), loss

    # Dynamic bounds: one program serves every stretch between evaluations.
    @jax.jit
    def advance(
        carry: Any, losses: jax.Array, begin: int, end: int, train: Any
    ) -> tuple[Any, jax.Array]:
        def body(t: jax.Array, carry_and_losses: Any) -> Any:
            carry, losses = carry_and_losses
            carry, loss = jax.vmap(lambda h, k, c: step(h, k, t, c, train))(hyper, keys, carry)
            return carry, losses.at[:, t].set(loss)

        return jax.lax.fori_loop(begin, end, body, (carry, losses))

    carry = jax.jit(jax.vmap(init))(hyper, keys)
    losses = jnp.zeros((num_runs, num_steps))
    grid = np.asarray(eval_grid(num_steps) if eval_steps is None else eval_steps)
    evaluations, done = [], 0
    with tqdm.tqdm(total=num_steps, desc=label, unit="step", disable=not progress) as bar:
        for stop in grid:
            while done < stop:
                end = min(done + _CHUNK, int(stop))
                carry, losses = advance(carry, losses, done, end, train)
                bar.set_postfix(
                    loss=f"{float(losses[:, max(done, end - 20) : end].mean()):.4f}", refresh=False
                )
                bar.update(end - done)
                done = end
            params = opt_fn(hyper[0]).get_params(carry[0])
            evaluations.append(jax.tree.map(np.asarray, _evaluate(task, params, test)))
        carry, losses = advance(carry, losses, done, num_steps, train)
        bar.update(num_steps - done)
    # [evals, 3, runs]; tuning asks for no evaluations at all.
    columns = np.asarray(evaluations).reshape(len(evaluations), 3, num_runs)
    test_loss, test_accuracy, param_norm = (columns[:, i].T for i in range(3))
    opt_state, poc = carry
    return Runs(
        train_loss=np.asarray(losses),
        eval_steps=grid,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        param_norm=param_norm,
        poc_step=np.asarray(poc.step),
        poc_declared=np.asarray(poc.declared),
        best_step=np.asarray(poc.best_step),
        poc_params=poc.params,
        final_params=opt_fn(hyper[0]).get_params(opt_state),
    )


def measure_sharpness(
    task: tasks.ImageTask,
    params: Any,
    radii: Sequence[float] = sharpness.RADII,
    num_examples: int = 2048,
    seed: int = 0,
) -> Sharpness:
    """PGA on the held-out loss around the params of every run.

    Args:
      task: an image task in phase "meta_test".
      params: leading axis [runs].
      radii: of the l_inf balls, each > 0.
      num_examples: a fixed subset of the test set of (at most) this size is what the loss is taken
        on.
      seed: of the starting points.
    """
    for radius in radii:
        errors.check_positive("radius", radius)
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:num_examples]
    examples = {name: jnp.asarray(value[chosen]) for name, value in raw.items()}

    ascent = _ascend(task, params, jnp.asarray(radii), jax.random.PRNGKey(seed), examples)
    return Sharpness(
        centre=np.asarray(ascent.centre[:, 0]),
        values=np.asarray(ascent.values),
        best=np.asarray(ascent.best),
    )


def tune_baseline(
    name: str,
    task: tasks.ImageTask,
    num_steps: int,
    seed: int = 0,
    num_runs: int = 2,
    progress: bool = True,
) -> float:
    """The learning rate of the grid with the lowest final training loss.

    The loss is that on the meta-test train split; the test set is not looked at. All rates and runs
    are one program. The seeds are not those of the runs that are reported.
    """
    errors.check_name("baseline", name, baselines_lib.BASELINES)
    rates = baselines_lib.LEARNING_RATES[name]
    runs = train_runs(
        baselines_lib.BASELINES[name],
        task,
        len(rates) * num_runs,
        num_steps,
        seed=seed + 1_000_000,
        hyper=jnp.repeat(rates, num_runs),
        eval_steps=[],
        label=f"tune {name}",
        progress=progress,
    )
    final = runs.final_train_loss.reshape(len(rates), num_runs).mean(axis=1)
    return float(rates[int(np.argmin(np.nan_to_num(final, nan=np.inf)))])


@gin.configurable(denylist=["opts", "task"])
def meta_test(
    opts: Mapping[str, upstream.Optimizer],
    task: str | tasks.ImageTask,
    num_runs: int = 10,
    num_steps: int = 2000,
    seed: int = 0,
    baselines: Sequence[str] = ("SGD", "Adam"),
    radii: Sequence[float] = sharpness.RADII,
    progress: bool = True,
) -> MetaTestResult:
    """Trains and measures every optimizer on one task.

    Args:
      opts: the optimizers to test, by the name they are to have in tables and figures.
      task: an image task of ours (name or object).
      num_runs: paired runs per optimizer.
      num_steps: inner steps per run.
      seed: of inits and batches.
      baselines: of `baselines.BASELINES`, tuned first.
      radii: of the balls in which the maximum loss is sought.
      progress: show progress bars.

    Raises:
      ValueError: an unknown name or a parameter out of range.
      TypeError: the task is not an image task.
    """
    for name in baselines:
        errors.check_name("baseline", name, baselines_lib.BASELINES)
    built = tasks.get(task, "meta_test") if isinstance(task, str) else task
    if not isinstance(built, tasks.ImageTask) or not isinstance(
        built.datasets, data_lib.ResidentDatasets
    ):
        raise TypeError(f"meta_test needs an image task of regularized_lopt; {task!r} is none.")
    train = functools.partial(
        train_runs, task=built, num_runs=num_runs, num_steps=num_steps, seed=seed, progress=progress
    )
    runs = {name: train(lambda _, opt=opt: opt, label=name) for name, opt in opts.items()}
    for name in baselines:
        rate = tune_baseline(name, built, num_steps, seed, progress=progress)
        result = train(
            baselines_lib.BASELINES[name],
            hyper=jnp.full(num_runs, rate),
            label=f"{name} (lr {rate:.2g})",
        )
        runs[name] = dataclasses.replace(result, learning_rate=rate)
    measure = functools.partial(measure_sharpness, built, radii=radii, seed=seed)
    return MetaTestResult(
        task=built.name,
        num_runs=num_runs,
        num_steps=num_steps,
        seed=seed,
        radii=tuple(radii),
        runs=runs,
        at_poc={name: measure(result.poc_params) for name, result in runs.items()},
        at_completion={name: measure(result.final_params) for name, result in runs.items()},
    )


# Jitted at module level: one compilation serves all optimizers and points of a task.
@functools.partial(jax.jit, static_argnums=0)
def _ascend(
    task: tasks.ImageTask, params: Any, radii: jax.Array, key: jax.Array, examples: Any
) -> sharpness.Ascent:
    """PGA around the params of every run [runs] at every radius [radii], one after the other."""
    batch = task.datasets.normalize(examples)

    def one_run(params: Any) -> sharpness.Ascent:
        return jax.lax.map(
            lambda radius: sharpness.ascend(
                lambda p: task.loss(p, key, batch), params, key, radius
            ),
            radii,
        )

    return jax.lax.map(one_run, params)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(
    task: tasks.ImageTask, params: Any, split: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean loss and accuracy on a whole split, and the norm of the params, of every run."""
    losses, accuracies = jax.vmap(lambda p: _whole_split(task, p, split))(params)
    return losses, accuracies, jax.vmap(optax.tree.norm)(params)


def _whole_split(task: tasks.ImageTask, params: Any, split: Any) -> tuple[jax.Array, jax.Array]:
    """Mean loss and accuracy over a whole split, in batches; the last is padded and masked."""
    size = split["label"].shape[0]
    count = -(-size // _EVAL_BATCH)
    index = jnp.arange(count * _EVAL_BATCH).reshape(count, _EVAL_BATCH)

    def sums(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = task.datasets.normalize(
            {name: value[jnp.minimum(index, size - 1)] for name, value in split.items()}
        )
        logits = task.logits(params, batch["image"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        inside = index < size
        return jnp.sum(loss * inside), jnp.sum(correct & inside)

    losses, correct = jax.lax.map(sums, index)
    return losses.sum() / size, correct.sum() / size
