"""The noisy quadratic problem (Harrison, Metz & Sohl-Dickstein 2022, arXiv 2209.11208, Section 4).

    loss_t = (p_t - xi_t)' H (p_t - xi_t) / 2,  xi_t ~ N(0, I),  p_0 ~ N(0, initial_variance I)

An optimizer that subtracts (a I + P) times the gradient, a being a nominal step and P a linear
black box, makes of it a linear system:

    p_{t+1} = A p_t + (I - A) xi_t,  A = I - (a I + P) H

Arithmetic is that of the process; figures are made in float64, `with jax.enable_x64(True)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors
from regularized_lopt.configurable import configurable


@configurable()
@dataclasses.dataclass(frozen=True)
class NoisyQuadratic:
    """The problem; the values are the paper's.

    Attributes:
      hessian: H, [n, n], symmetric and positive definite.
      initial_variance: of every coordinate of p_0, >= 0.
    """

    hessian: Sequence[Sequence[float]] = ((1.11, 0.596), (0.596, 0.486))
    initial_variance: float = 10.0

    def __post_init__(self) -> None:
        given = f"NoisyQuadratic.hessian = {self.hessian!r}"
        lengths = {len(row) for row in self.hessian}
        if lengths != {len(self.hessian)}:
            raise ValueError(f"{given}: it must be a square matrix, a sequence of its rows.")
        finite = np.abs(self.H) <= np.finfo(np.float32).max
        if not finite.all() or not np.array_equal(self.H, self.H.T):
            raise ValueError(f"{given}: it must be symmetric, and finite in float32.")
        if not np.linalg.eigvalsh(self.H)[0] > 0:
            raise ValueError(f"{given}: it must be positive definite.")
        errors.check_not_negative("NoisyQuadratic.initial_variance", self.initial_variance)

    @property
    def H(self) -> np.ndarray:
        """The Hessian, [n, n], float64."""
        return np.array(self.hessian, np.float64)

    @property
    def size(self) -> int:
        """n, the number of params."""
        return len(self.hessian)

    @property
    def root(self) -> np.ndarray:
        """The symmetric square root of H, [n, n], float64."""
        values, vectors = np.linalg.eigh(self.H)
        return (vectors * np.sqrt(values)) @ vectors.T

    def largest(self, preconditioned: bool = False) -> float:
        """The largest eigenvalue of H, or of its root, which is what preconditioning leaves."""
        value = float(np.linalg.eigvalsh(self.H)[-1])
        return value**0.5 if preconditioned else value

    def dynamics(self, nominal: Any, black_box: Any, preconditioned: bool = False) -> jax.Array:
        """A, [..., n, n].

        Args:
          nominal: a, a number or [...].
          black_box: P, [..., n, n].
          preconditioned: the update is multiplied by H^(-1/2), so that H^(1/2) stands for H; the
            eigenvalues are the same on either side.

        Raises:
          ValueError: a shape does not match.
        """
        eye = jnp.eye(self.size)
        if jnp.shape(black_box)[-2:] != eye.shape:
            raise ValueError(
                f"P is of shape {jnp.shape(black_box)}: its last two must be {eye.shape}, the "
                "Hessian's."
            )
        if jnp.shape(nominal) not in ((), jnp.shape(black_box)[:-2]):
            raise ValueError(
                f"a is of shape {jnp.shape(nominal)} and P of shape {jnp.shape(black_box)}: a must "
                "be one number, or one for each matrix of P."
            )
        step = jnp.asarray(nominal)[..., None, None] * eye + jnp.asarray(black_box)
        return eye - step @ jnp.asarray(self.root if preconditioned else self.H)

    def sampled_losses(self, dynamics: Any, start: Any, noise: Any) -> jax.Array:
        """The losses of one trajectory at t = 1, ..., T, [T].

        Args:
          dynamics: A, [n, n].
          start: p_0, [n].
          noise: xi_0, ..., xi_T, [T + 1, n], T > 0.

        Raises:
          ValueError: a shape does not match.
        """
        self._check_dynamics(dynamics)
        start, noise = jnp.asarray(start), jnp.asarray(noise)
        if start.shape != (self.size,) or noise.ndim != 2 or noise.shape[1:] != start.shape:
            raise ValueError(
                f"start is of shape {start.shape} and noise of shape {noise.shape}: they must be "
                f"({self.size},) and (T + 1, {self.size})."
            )
        errors.check_count("T, the rows of noise less one,", len(noise) - 1)

        def step(params: jax.Array, pair: tuple[jax.Array, jax.Array]) -> Any:
            before, now = pair
            params = dynamics @ (params - before) + before
            error = params - now
            return params, error @ jnp.asarray(self.H) @ error / 2

        return jax.lax.scan(step, start, (noise[:-1], noise[1:]))[1]

    def expected_losses(self, dynamics: Any, horizon: int, start: Any = None) -> jax.Array:
        """E loss_t at t = 1, ..., horizon, in closed form, [horizon].

        That is tr(H (C_t + I)) / 2, where C_t = E p_t p_t' obeys C_{t+1} = A C_t A' + (I - A)
        (I - A)'. The paper's eq. 8 is twice that.

        Args:
          dynamics: A, [n, n].
          horizon: T, > 0.
          start: p_0, [n]; default: the expectation is over p_0, too.

        Raises:
          ValueError: the horizon is no count, or a shape does not match.
        """
        errors.check_count("horizon", horizon)
        self._check_dynamics(dynamics)
        eye = jnp.eye(self.size)
        if start is not None and jnp.shape(start) != (self.size,):
            raise ValueError(
                f"start is of shape {jnp.shape(start)}: it must be ({self.size},), the Hessian's."
            )
        second = self.initial_variance * eye if start is None else jnp.outer(start, start)
        drift = eye - dynamics

        def step(second: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            second = dynamics @ second @ dynamics.T + drift @ drift.T
            return second, jnp.trace(jnp.asarray(self.H) @ (second + eye)) / 2

        return jax.lax.scan(step, second, length=horizon)[1]

    def meta_loss(self, nominal: Any, black_box: Any, horizon: int) -> jax.Array:
        """The mean of the expected losses at t = 1, ..., horizon, over p_0, too: a scalar."""
        return self.expected_losses(self.dynamics(nominal, black_box), horizon).mean()

    def _check_dynamics(self, dynamics: Any) -> None:
        """Other shapes would broadcast, and give losses of nothing."""
        if jnp.shape(dynamics) != self.H.shape:
            raise ValueError(
                f"A is of shape {jnp.shape(dynamics)}: it must be {self.H.shape}, the Hessian's; "
                "jax.vmap takes several."
            )


def spectral_radius(matrices: Any) -> np.ndarray:
    """The largest absolute eigenvalue of each, [...], of [..., n, n]."""
    return np.abs(np.linalg.eigvals(np.asarray(matrices))).max(axis=-1)
