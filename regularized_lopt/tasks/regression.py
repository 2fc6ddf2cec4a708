"""Regression on random noisy cubic polynomials (arXiv 2510.08968, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable

Params = Any


@flax.struct.dataclass
class Cubic:
    """One polynomial and the noisy points drawn from it.

    Attributes:
      coefficients: [4], of 1, x, x^2, x^3, standard normal.
      x, y: [num_points] training points; x uniform on [-1, 1], y with noise.
      noise: standard deviation of the noise in y.
    """

    coefficients: Float[Array, 4]
    x: Float[Array, points]
    y: Float[Array, points]

    def value(self, x: Float[Array, points]) -> Float[Array, points]:
        """The polynomial without noise."""
        return jnp.polyval(self.coefficients[::-1], x)


class _CubicRegressionTask(upstream.Task):
    """Fits a `Cubic` with an MLP; batches are empty, the points are in the task."""

    datasets = None

    def __init__(self, cubic: Cubic, network: Any):
        self.cubic = cubic
        self._network = network

    @property
    def name(self) -> str:
        return "CubicRegression"

    def init(self, key: jax.Array) -> Params:
        return self._network.init(key, jnp.zeros((1, 1)))

    def predict(self, params: Params, x: Float[Array, points]) -> Float[Array, points]:
        return self._network.apply(params, x[:, None])[:, 0]

    def loss(self, params: Params, key: jax.Array, data: Any = ()) -> Float[Array, ""]:
        """Mean squared error on the noisy training points."""
        del key, data
        return jnp.mean((self.predict(params, self.cubic.x) - self.cubic.y) ** 2)

    def loss_and_aux(
        self, params: Params, key: jax.Array, data: Any = ()
    ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
        """The loss, and {"r2": R^2 against the noiseless polynomial on 100 held-out points}."""
        x = jnp.linspace(-1.0, 1.0, 100)
        truth = self.cubic.value(x)
        residual = jnp.mean((self.predict(params, x) - truth) ** 2)
        return self.loss(params, key, data), {"r2": 1.0 - residual / jnp.var(truth)}


@configurable()
class CubicRegressionFamily(upstream.TaskFamily):
    """Random noisy cubic polynomials, each fitted by the same small MLP."""

    datasets = None

    def __init__(self, num_points: int = 30, noise: float = 0.3, hidden_size: int = 20):
        """Initializer.

        Args:
          num_points: training points per polynomial, > 0.
          noise: standard deviation of the noise on them, >= 0.
          hidden_size: tanh units of the MLP, > 0.
        """
        errors.check_count("CubicRegressionFamily.num_points", num_points)
        errors.check_not_negative("CubicRegressionFamily.noise", noise)
        errors.check_count("CubicRegressionFamily.hidden_size", hidden_size)
        self._num_points = num_points
        self._noise = noise
        self._network = hk.without_apply_rng(
            hk.transform(lambda x: hk.nets.MLP([hidden_size, 1], activation=jnp.tanh)(x))
        )

    @property
    def name(self) -> str:
        return "CubicRegressionFamily"

    def sample(self, key: jax.Array) -> Cubic:
        coefficients_key, x_key, noise_key = jax.random.split(key, 3)
        coefficients = jax.random.normal(coefficients_key, (4,))
        x = jax.random.uniform(x_key, (self._num_points,), minval=-1.0, maxval=1.0)
        noise = self._noise * jax.random.normal(noise_key, x.shape)
        return Cubic(coefficients, x, Cubic(coefficients, x, x).value(x) + noise)

    def task_fn(self, cfg: Cubic) -> upstream.Task:
        return _CubicRegressionTask(cfg, self._network)

    eval_task_fn = task_fn


@configurable()
def CubicRegression(seed: int = 0) -> upstream.Task:
    """One task of `CubicRegressionFamily`, fixed by `seed`, 0 to 2^32 - 1."""
    errors.check_seed("CubicRegression.seed", seed)
    family = CubicRegressionFamily()
    return family.task_fn(family.sample(jax.random.PRNGKey(seed)))
