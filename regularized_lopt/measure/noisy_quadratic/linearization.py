"""Any optimizer on the noisy quadratic, linearized at the minimum: what stands for the paper's A.

A learned optimizer is not linear and has a state, so that it has no A. What is computed instead:

1. The optimizer trains on the problem from the minimum, where noise moves it, until its running
   averages have seen the noise. Its params are then put back to the minimum; its state is kept.
2. The *expected* next (params, state), over the noise of the gradient, is differentiated: by the
   state, and by params as a difference between two sides of the minimum, half a deviation of the
   noise away. For a linear optimizer without a state that is A. The derivative at the minimum
   itself would tell of gradients, and params, far smaller than any that the optimizer meets, and
   of none where the update is a sign.

The state is where one trajectory left it, and no fixed point: what grows or decays after this step
is told for as long as the state stays as it is. `Linearized.predicted` and `measured` say how well
that foretells the steps that follow. Integers and keys in the state, such as a count of steps, are
held fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.measure.noisy_quadratic.problem import NoisyQuadratic, spectral_radius


@configurable()
@dataclasses.dataclass(frozen=True)
class Linearization:
    """How an optimizer is linearized.

    Attributes:
      warmup: steps before, > 0.
      num_states: trajectories, each of which gives a state, > 0.
      num_draws: of the noise, > 1.
      offset: of a param to either side of the minimum, > 0; noise has a deviation of 1.
      horizon: steps whose response is foretold and measured, > 0.
      seed: 0 to 2^32 - 1.
    """

    warmup: int = 500
    num_states: int = 5
    num_draws: int = 1024
    offset: float = 0.5
    horizon: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"warmup": 1, "num_states": 1, "num_draws": 2, "horizon": 1}.items():
            errors.check_count(f"Linearization.{name}", getattr(self, name), least)
        errors.check_positive("Linearization.offset", self.offset)
        errors.check_seed("Linearization.seed", self.seed)


@dataclasses.dataclass(frozen=True)
class Linearized:
    """Leading axis: states.

    Attributes:
      params: [states, n, n], the derivative of the expected next params by params: A.
      joint: [states, m], complex, eigenvalues of the same with the state, the largest first. What
        the optimizer carries along unchanged is left out: its eigenvalue is 1, and says nothing.
      predicted: [states, n, n], what is left of an offset of the params after `horizon` steps, by
        powers of the joint derivative.
      measured: the same, measured.
      error: [states], the standard error of an entry of `measured`.
    """

    params: np.ndarray
    joint: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray
    error: np.ndarray

    @property
    def params_radius(self) -> np.ndarray:
        """[states], of params alone."""
        return spectral_radius(self.params)

    @property
    def joint_radius(self) -> np.ndarray:
        """[states], of params and state."""
        return np.abs(self.joint[:, 0])

    @property
    def disagreement(self) -> np.ndarray:
        """[states], the spectral norm of predicted - measured."""
        return np.linalg.norm(self.predicted - self.measured, 2, axis=(1, 2))


def linearize(
    opt: upstream.Optimizer,
    problem: NoisyQuadratic,
    what: Linearization,
    done: Callable[[], object] = lambda: None,
) -> Linearized:
    """The optimizer's linear part on the problem.

    Args:
      opt: the optimizer.
      problem: on which.
      what: how.
      done: called after each of the states.

    Raises:
      TypeError: it is none of upstream's kind, or its state has no params that can be set, see
        `upstream.with_params`.
      ValueError: it diverges before it is linearized.
    """
    _check_kind(opt)
    one = jax.jit(lambda key: _linearize(opt, problem, what, key))
    keys = jax.random.split(jax.random.PRNGKey(what.seed), what.num_states)
    found = []
    for key in keys:
        found.append([np.asarray(of) for of in one(key)])
        done()
    params, joint, carried, *rest = (np.stack(of) for of in zip(*found, strict=True))
    if not np.isfinite(joint).all():
        raise ValueError(
            f"There is nothing to linearize: after {what.warmup} steps the optimizer's state, or "
            "its next one, is not finite. Lower its learning rate, or Linearization.warmup."
        )
    moves = ~carried.all(axis=0)
    eigenvalues = np.linalg.eigvals(joint[:, moves][:, :, moves]).astype(complex)
    order = np.argsort(-np.abs(eigenvalues), axis=1)
    return Linearized(params, np.take_along_axis(eigenvalues, order, axis=1), *rest)


def _check_kind(opt: upstream.Optimizer) -> None:
    if not isinstance(opt, upstream.Optimizer):
        raise TypeError(
            f"{type(opt).__name__} is no Optimizer of upstream's: give load(...).opt(), a learned "
            "optimizer's opt_fn(theta), or optimizers.OptaxBaseline(name, transformation)."
        )


def check(opt: upstream.Optimizer, problem: NoisyQuadratic, what: Linearization) -> None:
    """Raises what `linearize` would, but for divergence; traces it, and compiles nothing."""
    _check_kind(opt)
    jax.eval_shape(lambda key: _linearize(opt, problem, what, key), jax.random.PRNGKey(what.seed))


def _linearize(
    opt: upstream.Optimizer, problem: NoisyQuadratic, what: Linearization, key: jax.Array
) -> tuple[jax.Array, ...]:
    """A, the joint derivative, what is carried along unchanged, and both responses."""
    warm_key, draw_key, update_key = jax.random.split(key, 3)
    origin = jnp.zeros(problem.size)
    step = _step(opt, problem, update_key)
    start = opt.init(origin, num_steps=what.warmup + what.horizon, key=update_key)
    noise = jax.random.normal(warm_key, (what.warmup, problem.size))
    state = upstream.with_params(_after(step, start, noise), origin)

    vector, unravel = _ravel_floats(state)

    def flat(of: Any) -> jax.Array:
        return _ravel_floats(of)[0]

    reads = jax.jacfwd(lambda z: opt.get_params(unravel(z)))(vector)  # [n, m]
    writes = jax.jacfwd(lambda p: flat(upstream.with_params(state, p)))(origin)  # [m, n]
    offsets = what.offset * jnp.eye(problem.size)

    def response(read: Callable[[Any], jax.Array], noise: jax.Array) -> jax.Array:
        """Of what is read after steps with this noise, to params: [..., n]."""

        def after(params: jax.Array) -> jax.Array:
            return read(_after(step, upstream.with_params(state, params), noise))

        up, down = (jax.vmap(after)(sign * offsets) for sign in (1, -1))
        return (up - down).T / (2 * what.offset)

    def one(noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        by_params = response(flat, noise[:1])
        by_state = jax.jacfwd(lambda z: flat(step(unravel(z), noise[0])))(vector)
        return by_params, by_state, response(opt.get_params, noise)

    def add(total: Any, noise: jax.Array) -> tuple[Any, None]:
        found = one(noise)
        moments = (*found, found[-1] ** 2)
        return jax.tree.map(jnp.add, total, moments), None

    draws = jax.random.normal(draw_key, (what.num_draws, what.horizon, problem.size))
    shapes = jax.eval_shape(one, draws[0])
    zeros = jax.tree.map(lambda of: jnp.zeros(of.shape), (*shapes, shapes[-1]))
    total, _ = jax.lax.scan(add, zeros, draws)
    by_params, by_state, measured, square = jax.tree.map(lambda of: of / what.num_draws, total)
    eye = jnp.eye(len(vector))
    joint = by_state @ (eye - writes @ reads) + by_params @ reads
    carried = (joint == eye).all(axis=1) & ~(reads != 0).any(axis=0)
    predicted = reads @ jnp.linalg.matrix_power(joint, what.horizon) @ writes
    error = jnp.sqrt(jnp.maximum(square - measured**2, 0).max() / what.num_draws)
    return reads @ by_params, joint, carried, predicted, measured, error


def _after(step: Callable[[Any, jax.Array], Any], state: Any, noise: jax.Array) -> Any:
    return jax.lax.scan(lambda state, xi: (step(state, xi), None), state, noise)[0]


def _step(
    opt: upstream.Optimizer, problem: NoisyQuadratic, key: jax.Array
) -> Callable[[Any, jax.Array], Any]:
    """(state, xi) -> the next state."""

    def step(state: Any, xi: jax.Array) -> Any:
        grad = jnp.asarray(problem.H) @ (opt.get_params(state) - xi)
        return _update(opt, problem, state, grad, key)

    return step


def _update(
    opt: upstream.Optimizer, problem: NoisyQuadratic, state: Any, grad: jax.Array, key: jax.Array
) -> Any:
    """The loss is that of this gradient."""
    loss = grad @ jnp.linalg.solve(jnp.asarray(problem.H), grad) / 2
    return opt.update(state, grad, loss=loss, key=key)


def _ravel_floats(state: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The floats of a state as a vector, and the way back, which leaves all else as it is."""
    leaves, structure = jax.tree.flatten(state)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    vector, unravel = flatten_util.ravel_pytree(
        [leaf for leaf, float_ in zip(leaves, is_float, strict=True) if float_]
    )

    def back(z: jax.Array) -> Any:
        floats = iter(unravel(z))
        filled = [
            next(floats) if float_ else leaf for leaf, float_ in zip(leaves, is_float, strict=True)
        ]
        return jax.tree.unflatten(structure, filled)

    return vector, back
