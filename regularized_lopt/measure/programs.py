"""Compiled programs that train networks: one per task and kind of optimizer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from regularized_lopt import tasks
from regularized_lopt.measure import convergence, points
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.training_curves import LossLevels, trailing_mean
from regularized_lopt.tasks import data

_CHUNK = 100  # Inner steps between two looks at the progress bar.
_EVAL_BATCH = 1000
# What a run's key is folded with, so that no two uses of it share random numbers.
_PARAMS, _BATCHES, _LOSS, _UPDATE, _OPTIMIZER = range(5)


class Programs:
    """Those of one task; each is compiled when it is first used, and kept."""

    def __init__(self, task: tasks.ResidentTask):
        """Of a task."""
        self._task = task
        self._by_kind: dict[str, Program] = {}

    def of(self, optimizer: EvaluatedOptimizer) -> Program:
        """That of an optimizer's kind."""
        if optimizer.kind not in self._by_kind:
            self._by_kind[optimizer.kind] = Program(self._task, optimizer.make)
        return self._by_kind[optimizer.kind]


class Program:
    """The jitted parts of training with one kind of optimizer, on any number of runs."""

    def __init__(self, task: tasks.ResidentTask, make: Any):
        self._task = task
        self._make = make
        accuracy = ("test_accuracy",) if task.has_accuracy else ()
        self._evaluated = ("test_loss", *accuracy, "param_norm", "update_norm")
        self._init = jax.jit(self._start, static_argnums=3)
        # Dynamic bounds: one program serves every stretch between evaluations, and any length.
        self._advance = jax.jit(self._steps, donate_argnums=2)
        self._evaluate = jax.jit(self._evaluation)
        self._params = jax.jit(self._params_of)

    def run(
        self, runs: Sequence[Any], num_steps: int, loss_steps: Any, grid: Any, report: Any
    ) -> list[Any]:
        """Trains a group of runs to the end: one dict of arrays per run.

        Of curves' steps, those beyond the end read what there is at the end: params stay there.
        """
        loss_steps, grid = np.minimum(loss_steps, num_steps - 1), np.minimum(grid, num_steps)
        datasets = self._task.datasets
        train, test = datasets.arrays("train"), datasets.arrays("test")
        hyper, keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
        carry = self._init(hyper, keys, _initial(self._task, keys), num_steps)
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
        arrays = {
            "train_loss": trailing_mean(np.concatenate(losses, axis=1), loss_steps),
            # [runs, evals]; tuning asks for no evaluations at all.
            **{
                name: np.reshape([one[name] for one in evaluations], (-1, len(runs))).T
                for name in self._evaluated
            },
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

    def _start(self, hyper: Any, keys: jax.Array, start: Any, num_steps: int) -> Any:
        def one(hyper: Any, key: jax.Array, start: Any) -> Any:
            key = jax.random.fold_in(key, _OPTIMIZER)
            params, model_state = start
            opt_state = self._make(hyper).init(params, model_state, num_steps=num_steps, key=key)
            point = points.joined(params, model_state)
            return opt_state, convergence.start(point), LossLevels.start(point), jnp.zeros(())

        return _over_runs(one, hyper, keys, start)

    def _steps(
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
        params, model_state = opt.get_params_state(opt_state)

        def loss_fn(at: Any) -> tuple[jax.Array, Any]:
            return task.loss_with_state(at, model_state, loss_key, batch)

        (loss, next_state), grad = jax.value_and_grad(loss_fn, has_aux=True)(params)
        # A second gradient on the same batch, for those that ask for it.
        extra = (
            {"grad_fn": lambda at: jax.grad(loss_fn, has_aux=True)(at)[0]}
            if isinstance(opt, optimizers_lib.OptaxBaseline)
            else {}
        )
        opt_state = opt.update(
            opt_state, grad, loss=loss, model_state=next_state, key=update_key, **extra
        )
        after, point = opt.get_params(opt_state), points.joined(*opt.get_params_state(opt_state))
        poc = convergence.update(poc, t, loss, point)
        update_norm = optax.tree.norm(jax.tree.map(jnp.subtract, after, params))
        return (opt_state, poc, levels.update(t, poc.trailing_mean, point), update_norm), loss

    def _evaluation(self, hyper: Any, carry: Any, test: Any) -> dict[str, jax.Array]:
        """By name in `_evaluated`, [runs]; norms are of the params and of the last update."""

        def one(hyper: Any, carry: Any) -> dict[str, jax.Array]:
            opt_state, _, _, update_norm = carry
            params, model_state = self._make(hyper).get_params_state(opt_state)
            of_test = whole_split(self._task, params, test, model_state)
            found = {f"test_{name}": of for name, of in of_test.items()}
            found |= {"param_norm": optax.tree.norm(params), "update_norm": update_norm}
            return {name: found[name] for name in self._evaluated}

        return jax.lax.map(lambda args: one(*args), (hyper, carry))

    def _params_of(self, hyper: Any, opt_state: Any) -> Any:
        def one(hyper: Any, opt_state: Any) -> Any:
            return points.joined(*self._make(hyper).get_params_state(opt_state))

        return _over_runs(one, hyper, opt_state)


# Jitted at module level: one compilation serves all optimizers of a task.
@functools.partial(jax.jit, static_argnums=0)
def _initial(task: tasks.ResidentTask, keys: jax.Array) -> Any:
    return jax.lax.map(lambda key: task.init_with_state(jax.random.fold_in(key, _PARAMS)), keys)


def whole_split(
    task: tasks.ResidentTask, params: Any, split: Any, model_state: Any = None
) -> dict[str, jax.Array]:
    """Means over a whole split of what `task.judged` has, such as "loss" and "accuracy".

    It is gone through in batches; the last is padded and masked.
    """
    size = data.num_examples(split)
    count = -(-size // _EVAL_BATCH)
    index = jnp.arange(count * _EVAL_BATCH).reshape(count, _EVAL_BATCH)

    def sums(index: jax.Array) -> dict[str, jax.Array]:
        batch = task.datasets.normalize(
            {name: value[jnp.minimum(index, size - 1)] for name, value in split.items()}
        )
        inside, found = index < size, task.judged(params, model_state, batch)
        return {name: jnp.sum(of * inside) for name, of in found.items()}

    return {name: of.sum() / size for name, of in jax.lax.map(sums, index).items()}


def _over_runs(function: Any, *args: Any) -> Any:
    """vmap, but plain for a single run: batched gathers and matmuls are slower on CPU."""
    if jax.tree.leaves(args)[0].shape[0] > 1:
        return jax.vmap(function)(*args)
    out = function(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], out)
