"""Regression on noisy cubic polynomials: the paper's early evidence (Figures 2 and 8 to 12).

Does an optimizer that was meta-trained with an L2 term in the outer loss act, on the plain loss, as
weight decay does?
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from regularized_lopt import errors, tasks, upstream
from regularized_lopt.measure.optimizers import EvaluatedOptimizer, OptaxBaseline

WEIGHT_DECAY = 0.1
_RATES = np.geomspace(1e-3, 1.0, 7)
_TUNING_SEED = 1_000_000
_GRID = np.linspace(-1.0, 1.0, 100)


@dataclasses.dataclass(frozen=True)
class Fits:
    """What one optimizer made of the polynomials; leading axis: polynomials.

    Attributes:
      r2: [n], against the noiseless polynomial on held-out points.
      norm: [n], global l2 norm of the params.
      train_loss: [n], mean squared error on the noisy points.
      stopped: [n], the step of the params that were kept.
      grid: [points], held-out x.
      fit: [n, points], prediction there.
    """

    r2: np.ndarray
    norm: np.ndarray
    train_loss: np.ndarray
    stopped: np.ndarray
    grid: np.ndarray
    fit: np.ndarray


@dataclasses.dataclass(frozen=True)
class EarlyEvidence:
    """All optimizers on the same polynomials.

    Attributes:
      x, y: [n, points], the noisy training points.
      grid, truth: [points] and [n, points], the polynomials themselves.
      fits: by optimizer.
    """

    x: np.ndarray
    y: np.ndarray
    grid: np.ndarray
    truth: np.ndarray
    fits: Mapping[str, Fits]


def sgd(weight_decay: float, learning_rate: float) -> EvaluatedOptimizer:
    """SGD on the loss + weight_decay / 2 ‖p‖²."""
    name = "SGD with weight decay" if weight_decay else "SGD"
    kind = f"{name} {weight_decay}"
    rate = float(learning_rate)
    return EvaluatedOptimizer(name, kind, _maker(name, weight_decay), jnp.float32(rate), 1, rate)


@functools.cache
def _maker(name: str, weight_decay: float) -> Callable[[Any], OptaxBaseline]:
    """The same function for all rates, so that they share a program."""
    return lambda rate: OptaxBaseline(
        name, optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate))
    )


def tuned_sgd(
    weight_decay: float, family: tasks.CubicRegressionFamily, num_steps: int, seed: int = 0
) -> EvaluatedOptimizer:
    """At the learning rate of the lowest training loss, on other polynomials."""
    losses = []
    for rate in _RATES:
        fits = fit(sgd(weight_decay, rate), family, 8, num_steps, seed=seed + _TUNING_SEED)
        losses.append(np.nan_to_num(fits.train_loss.mean(), nan=np.inf))
    return sgd(weight_decay, float(_RATES[int(np.argmin(losses))]))


def fit(
    optimizer: EvaluatedOptimizer,
    family: tasks.CubicRegressionFamily,
    num_polynomials: int = 50,
    num_steps: int = 5000,
    patience: int = 500,
    seed: int = 0,
) -> Fits:
    """Fits every polynomial from its own init, until its loss has not improved for a while.

    Args:
      optimizer: what to train with.
      family: of the polynomials.
      num_polynomials: how many, > 0.
      num_steps: full-batch steps at most.
      patience: steps without a lower training loss after which a fit ends; the params of the lowest
        are kept.
      seed: polynomial and init i are the same for every optimizer.
    """
    errors.check_positive("num_polynomials", num_polynomials)
    errors.check_positive("num_steps", num_steps)
    errors.check_positive("patience", patience)
    keys = _keys(seed, num_polynomials)
    found = _fit(optimizer.make, family, num_steps, patience, optimizer.hyper, keys)
    return Fits(grid=_GRID, **jax.tree.map(np.asarray, found))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fit(
    make: Callable[[Any], upstream.Optimizer],
    family: tasks.CubicRegressionFamily,
    num_steps: int,
    patience: int,
    hyper: Any,
    keys: jax.Array,
) -> dict[str, jax.Array]:
    opt = make(hyper)

    def one(key: jax.Array) -> dict[str, jax.Array]:
        cubic_key, init_key = jax.random.split(key)
        task: Any = family.task_fn(family.sample(cubic_key))
        params = task.init(init_key)
        loss_key, update_key, opt_key, test_key = (jax.random.fold_in(key, i) for i in range(4))
        opt_state = opt.init(params, num_steps=num_steps, key=opt_key)
        start = (opt_state, params, jnp.inf, jnp.asarray(0, jnp.int32))

        def step(t: jax.Array, carry: Any) -> Any:
            state, best, lowest, at = carry
            params = opt.get_params(state)
            loss, grad = jax.value_and_grad(task.loss)(params, jax.random.fold_in(loss_key, t), ())
            better = (loss < lowest) & (t - at <= patience)
            best = jax.tree.map(lambda old, new: jnp.where(better, new, old), best, params)
            state = opt.update(state, grad, loss=loss, key=jax.random.fold_in(update_key, t))
            return state, best, jnp.where(better, loss, lowest), jnp.where(better, t, at)

        _, best, lowest, at = jax.lax.fori_loop(0, num_steps, step, start)
        return {
            "r2": task.loss_and_aux(best, test_key, ())[1]["r2"],
            "norm": optax.tree.norm(best),
            "train_loss": lowest,
            "stopped": at,
            "fit": task.predict(best, _GRID),
        }

    return jax.vmap(one)(keys)


def early_evidence(
    learned: Mapping[str, EvaluatedOptimizer],
    num_polynomials: int = 50,
    num_steps: int = 5000,
    patience: int = 500,
    seed: int = 0,
) -> EarlyEvidence:
    """Learned optimizers, and SGD with and without weight decay, on the same polynomials."""
    family = tasks.CubicRegressionFamily()
    optimizers = dict(learned)
    for decay in (0.0, WEIGHT_DECAY):
        tuned = tuned_sgd(decay, family, num_steps, seed)
        optimizers[tuned.label] = tuned
    fits = {
        name: fit(optimizer, family, num_polynomials, num_steps, patience, seed)
        for name, optimizer in optimizers.items()
    }

    def data(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        cubic = family.sample(jax.random.split(key)[0])
        return cubic.x, cubic.y, cubic.value(jnp.asarray(_GRID))

    x, y, truth = jax.tree.map(np.asarray, jax.vmap(data)(_keys(seed, num_polynomials)))
    return EarlyEvidence(x, y, _GRID, truth, fits)


def _keys(seed: int, count: int) -> jax.Array:
    key = jax.random.PRNGKey(seed)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
