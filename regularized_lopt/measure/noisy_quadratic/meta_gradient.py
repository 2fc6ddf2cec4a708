"""How noisy the gradient of the meta-loss is: the left of the paper's Figure 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.measure.noisy_quadratic.problem import NoisyQuadratic


@configurable()
@dataclasses.dataclass(frozen=True)
class GradientVariance:
    """The gradient with respect to P, at P = 0, of one trajectory's mean loss; the paper's values.

    Attributes:
      num_nominals: nominal steps, evenly spaced in [0, 2 / lambda_max(H)], > 1.
      horizons: T of each meta-loss, > 0.
      num_seeds: trajectories, > 1.
      seed: 0 to 2^32 - 1.
    """

    num_nominals: int = 50
    horizons: Sequence[int] = (
        *(1, 2, 3, 4, 5, 10, 25, 50, 100, 150, 200, 250, 300),
        *(400, 500, 600, 700, 800, 900, 1000),
    )
    num_seeds: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        errors.check_count("GradientVariance.num_nominals", self.num_nominals, 2)
        errors.check_count("GradientVariance.num_seeds", self.num_seeds, 2)
        errors.check_seed("GradientVariance.seed", self.seed)
        if not self.horizons:
            raise ValueError("GradientVariance.horizons = (): give one or more.")
        for horizon in self.horizons:
            errors.check_count("GradientVariance.horizons: one", horizon)


@dataclasses.dataclass(frozen=True)
class Variance:
    """What was found; arrays are [nominal steps, horizons] but for the first two.

    Attributes:
      nominals: [nominal steps].
      horizons: [horizons].
      trace: of the variance over seeds, the sum over the entries of P.
      error: its standard error, as a share of it.
      signal: the squared norm of the expected gradient, in closed form.
    """

    nominals: np.ndarray
    horizons: np.ndarray
    trace: np.ndarray
    error: np.ndarray
    signal: np.ndarray


def gradient_variance(
    problem: NoisyQuadratic, what: GradientVariance, done: Callable[[], object] = lambda: None
) -> Variance:
    """The trace of the variance of the gradient; every nominal step meets the same noise.

    Args:
      problem: on which.
      what: nominal steps, horizons and seeds.
      done: called after each of the nominal steps.
    """
    nominals = np.linspace(0, 2 / problem.largest(), what.num_nominals)
    horizons = np.array(what.horizons)
    ends = jnp.asarray(horizons - 1)
    longest = int(horizons.max())
    starts, noise = draw(problem, jax.random.PRNGKey(what.seed), what.num_seeds, longest)
    origin = jnp.zeros((problem.size, problem.size))

    def at_horizons(losses: jax.Array) -> jax.Array:
        return (jnp.cumsum(losses) / jnp.arange(1, longest + 1))[ends]

    def sampled(
        black_box: jax.Array, nominal: jax.Array, start: jax.Array, noise: jax.Array
    ) -> jax.Array:
        dynamics = problem.dynamics(nominal, black_box)
        return at_horizons(problem.sampled_losses(dynamics, start, noise))

    def expected(black_box: jax.Array, nominal: jax.Array) -> jax.Array:
        return at_horizons(problem.expected_losses(problem.dynamics(nominal, black_box), longest))

    @jax.jit
    def at_nominal(nominal: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        each = jax.vmap(jax.jacfwd(sampled), (None, None, 0, 0))(origin, nominal, starts, noise)
        squares = jnp.sum((each - each.mean(axis=0)) ** 2, axis=(-2, -1))  # [seeds, horizons]
        signal = jnp.sum(jax.jacfwd(expected)(origin, nominal) ** 2, axis=(-2, -1))
        return squares.mean(axis=0), squares.std(axis=0), signal

    found = []
    for nominal in jnp.asarray(nominals):
        found.append([np.array(of) for of in at_nominal(nominal)])
        done()
    mean, std, signal = map(np.stack, zip(*found, strict=True))
    trace = mean * what.num_seeds / (what.num_seeds - 1)
    return Variance(nominals, horizons, trace, std / mean / what.num_seeds**0.5, signal)


def draw(
    problem: NoisyQuadratic, key: jax.Array, count: int, horizon: int
) -> tuple[jax.Array, jax.Array]:
    """p_0 [count, n] and xi_0, ..., xi_T [count, horizon + 1, n]."""
    first, second = jax.random.split(key)
    starts = jax.random.normal(first, (count, problem.size)) * problem.initial_variance**0.5
    return starts, jax.random.normal(second, (count, horizon + 1, problem.size))
