"""Meta-training of the black box by evolution strategies: the right of the paper's Figure 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import optimize

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.measure.noisy_quadratic.meta_gradient import draw
from regularized_lopt.measure.noisy_quadratic.problem import NoisyQuadratic


@configurable()
@dataclasses.dataclass(frozen=True)
class MetaTraining:
    """Antithetic evolution strategies and Adam on P. Marked (ours): what the paper leaves out.

    Attributes:
      nominals: nominal steps, >= 0, as the paper's 2 a / lambda_max(H): each is a over
        lambda_max(H) / 2. That is no share of the stable range, whose end is 2 / lambda_max(H).
      horizon: T of a trajectory, > 0.
      num_seeds: meta-trainings of each nominal step, > 1.
      num_steps: outer steps (ours), > 0.
      num_pairs: perturbations and their opposites, each on a trajectory of its own (ours), > 0.
      sigma: standard deviation of a perturbation (STAR's), > 0.
      learning_rate: Adam's (ours), > 0.
      initial_std: of the entries of P at the start (ours), >= 0.
      ema: decay of the average over outer steps that figures show, in [0, 1).
      seed: 0 to 2^32 - 1.
    """

    nominals: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4)
    horizon: int = 50
    num_seeds: int = 5
    num_steps: int = 2000
    num_pairs: int = 1
    sigma: float = 0.01
    learning_rate: float = 1e-2
    initial_std: float = 0.01
    ema: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.nominals:
            raise ValueError("MetaTraining.nominals = (): give one or more.")
        for nominal in self.nominals:
            errors.check_not_negative("MetaTraining.nominals: one", nominal)
        for name, least in {"horizon": 1, "num_seeds": 2, "num_steps": 1, "num_pairs": 1}.items():
            errors.check_count(f"MetaTraining.{name}", getattr(self, name), least)
        errors.check_std("MetaTraining.sigma", self.sigma, np.float64)
        errors.check_positive("MetaTraining.learning_rate", self.learning_rate)
        errors.check_not_negative("MetaTraining.initial_std", self.initial_std)
        errors.check_in("MetaTraining.ema", self.ema, "[0, 1)")
        errors.check_seed("MetaTraining.seed", self.seed)


@dataclasses.dataclass(frozen=True)
class MetaTrained:
    """Courses of meta-training; arrays are [nominal steps, seeds, outer steps] but for the first.

    Attributes:
      shares: [nominal steps], 2 a / lambda_max(H).
      nominals: [nominal steps], a.
      observed: the mean loss of the trajectories of an outer step, averaged over outer steps.
      expected: the meta-loss at P, in closed form.
      radius: the spectral radius of A.
      eigenvalues: [..., n], of A, complex.
      optimum: the lowest meta-loss that any P has; the same for every nominal step.
    """

    shares: np.ndarray
    nominals: np.ndarray
    observed: np.ndarray
    expected: np.ndarray
    radius: np.ndarray
    eigenvalues: np.ndarray
    optimum: float


def meta_train(problem: NoisyQuadratic, what: MetaTraining) -> MetaTrained:
    """Meta-trains P at every nominal step, from the same starts and with the same noise."""
    shares = np.array(what.nominals, float)
    nominals = shares * problem.largest() / 2
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.PRNGKey(what.seed), i))(
        jnp.arange(what.num_seeds)
    )

    @jax.jit
    def all_of_them(nominals: jax.Array, keys: jax.Array) -> Any:
        def one(nominal: jax.Array, key: jax.Array) -> Any:
            black_boxes, losses = _train(problem, what, nominal, key)
            meta_loss = jax.vmap(lambda P: problem.meta_loss(nominal, P, what.horizon))
            dynamics = problem.dynamics(nominal, black_boxes)
            return _average(losses, what.ema), meta_loss(black_boxes), dynamics

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(nominals, keys)

    observed, expected, dynamics = map(np.asarray, all_of_them(jnp.asarray(nominals), keys))
    eigenvalues = np.linalg.eigvals(dynamics).astype(complex)
    return MetaTrained(
        shares,
        nominals,
        observed,
        expected,
        np.abs(eigenvalues).max(axis=-1),
        eigenvalues,
        best(problem, what.horizon)[1],
    )


def _train(
    problem: NoisyQuadratic, what: MetaTraining, nominal: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """P before each outer step, [steps, n, n], and the mean loss that it saw, [steps]."""
    adam = optax.adam(what.learning_rate)
    shape = (problem.size, problem.size)

    def loss(black_box: jax.Array, start: jax.Array, noise: jax.Array) -> jax.Array:
        return problem.sampled_losses(problem.dynamics(nominal, black_box), start, noise).mean()

    def step(carry: Any, key: jax.Array) -> Any:
        black_box, state = carry
        noise_key, task_key = jax.random.split(key)
        directions = jax.random.normal(noise_key, (what.num_pairs, *shape))
        tasks = draw(problem, task_key, what.num_pairs, what.horizon)

        def losses(sign: int) -> jax.Array:
            return jax.vmap(loss)(black_box + sign * what.sigma * directions, *tasks)

        up, down = losses(1), losses(-1)
        slopes = (up - down)[:, None, None] / (2 * what.sigma)
        updates, state = adam.update((slopes * directions).mean(axis=0), state)
        return (optax.apply_updates(black_box, updates), state), (black_box, (up + down).mean() / 2)

    first, rest = jax.random.split(key)
    black_box = what.initial_std * jax.random.normal(first, shape)
    carry = (black_box, adam.init(black_box))
    return jax.lax.scan(step, carry, jax.random.split(rest, what.num_steps))[1]


def _average(values: jax.Array, decay: float) -> jax.Array:
    """The exponential moving average along the first axis, without bias towards zero."""

    def step(carry: Any, value: jax.Array) -> Any:
        total, weight = carry
        total, weight = decay * total + (1 - decay) * value, decay * weight + 1 - decay
        return (total, weight), total / weight

    return jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), values)[1]


def best(problem: NoisyQuadratic, horizon: int) -> tuple[np.ndarray, float]:
    """The a I + P of the lowest meta-loss, [n, n], and that loss.

    A depends on a I + P alone, so that a nominal step moves where P starts and nothing else.
    """
    shape = (problem.size, problem.size)
    function = jax.jit(jax.value_and_grad(lambda step: problem.meta_loss(0.0, step, horizon)))

    def flat(step: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = function(jnp.asarray(step.reshape(shape)))
        return float(value), np.asarray(grad, np.float64).ravel()

    start = np.eye(problem.size).ravel() / problem.largest()
    found = optimize.minimize(flat, start, jac=True, method="BFGS")
    return found.x.reshape(shape), float(found.fun)
