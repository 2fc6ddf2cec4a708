"""Running averages of gradients, which optimizers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors

FLOOR = 1e-9
"""Of second moments under a root, as upstream has it."""


class Factored(NamedTuple):
    """Second moments of a tensor by the two largest of its axes (Shazeer & Stern 2018).

    Attributes:
      rows: [decays, ...], mean square over the largest axis, kept as 1; of a vector or a scalar,
        the square itself.
      columns: the same over the second largest; of a vector or a scalar, empty.
    """

    rows: jax.Array
    columns: jax.Array


class Moments(NamedTuple):
    """Running averages by coordinate, which are corrected for their start at 0.

    Attributes:
      momenta: [decays, ...], m <- b m + (1 - b) g.
      second: [1, ...], v <- b v + (1 - b) g^2.
      age: [1, ...], steps since the coordinate's first gradient that was not 0.
    """

    momenta: jax.Array
    second: jax.Array
    age: jax.Array


def check_decays(name: str, decays: Sequence[float]) -> tuple[float, ...]:
    """Returns decays, of which there must be one, each in (0, 1).

    Raises:
      ValueError: they are not.
    """
    if not decays:
        raise ValueError(f"{name} = (): give at least one.")
    for decay in decays:
        errors.check_in(name, decay, "(0, 1)")
    return tuple(float(decay) for decay in decays)


def zeros_moments(shape: Sequence[int], count: int, dtype: jnp.dtype) -> Moments:
    """Zeros, for `count` momenta; float32 or wider, lest 1 - decay be rounded away."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return Moments(*(jnp.zeros((rows, *shape), wide) for rows in (count, 1, 1)))


def update_moments(
    old: Moments, gradient: jax.Array, momentum_decays: Sequence[float], second_decay: float
) -> Moments:
    """The averages with the gradient taken into them."""
    gradient = gradient.astype(old.second.dtype)
    second = second_decay * old.second + (1 - second_decay) * gradient**2
    return Moments(
        momenta=_decayed(old.momenta, gradient, jnp.asarray(momentum_decays)),
        second=second,
        # Of the average, not of the gradient: its square may be too small for a float.
        age=old.age + ((second > 0) | (old.age > 0)),
    )


def corrected(
    kept: Moments, momentum_decays: Sequence[float], second_decay: float
) -> tuple[jax.Array, jax.Array]:
    """(momenta [decays, ...], v [1, ...]) as if they had no zeros before the first gradient."""
    decays = _column(jnp.asarray(momentum_decays, kept.momenta.dtype), kept.momenta.ndim)
    momenta = kept.momenta / share_seen(decays, kept.age)
    return momenta, kept.second / share_seen(second_decay, kept.age)


def share_seen(decay: Any, age: jax.Array) -> jax.Array:
    """1 - decay^age, what an average of that age lacks to sum to 1; 1 where there is none."""
    return jnp.where(age > 0, 1 - decay ** jnp.maximum(age, 1), 1)


def inverse_root(second: jax.Array) -> jax.Array:
    """1 / sqrt(v), and 0 where v is; its derivative is finite there."""
    seen = second > 0
    return jnp.where(seen, jax.lax.rsqrt(jnp.where(seen, second, 1)), 0)


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """(second largest, largest) axis; None: a vector or a scalar, which is not factored."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def zeros_factored(shape: Sequence[int], count: int, dtype: jnp.dtype) -> Factored:
    """Zeros, for `count` decays."""
    axes = factored_axes(shape)
    if axes is None:
        return Factored(jnp.zeros((count, *shape), dtype), jnp.zeros((count, 0), dtype))
    second, first = axes
    rows = [1 if axis == first else size for axis, size in enumerate(shape)]
    columns = [1 if axis == second else size for axis, size in enumerate(shape)]
    return Factored(jnp.zeros((count, *rows), dtype), jnp.zeros((count, *columns), dtype))


def update_factored(
    old: Factored, square: jax.Array, decays: jax.Array
) -> tuple[Factored, jax.Array]:
    """(next averages, mean of the squares), given the squares of a gradient."""
    axes = factored_axes(square.shape)
    if axes is None:
        return Factored(_decayed(old.rows, square, decays), old.columns), jnp.mean(square)
    second, first = axes
    rows = jnp.mean(square, axis=first, keepdims=True)
    columns = jnp.mean(square, axis=second, keepdims=True)
    new = Factored(_decayed(old.rows, rows, decays), _decayed(old.columns, columns, decays))
    return new, jnp.mean(rows)


def inverse_roots(factored: Factored, floor: float = FLOOR) -> tuple[jax.Array, jax.Array]:
    """Two factors, [decays, ...], whose product approximates 1 / sqrt(v).

    Args:
      factored: second moments.
      floor: added to v of a vector or a scalar.
    """
    if not factored.columns.size:
        first = _safe_rsqrt(factored.rows + floor)
        return first, jnp.ones((first.shape[0], *[1] * (first.ndim - 1)), first.dtype)
    shape = jnp.broadcast_shapes(factored.rows.shape[1:], factored.columns.shape[1:])
    axes = factored_axes(shape)
    assert axes is not None
    means = jnp.mean(factored.rows, axis=1 + axes[0], keepdims=True)
    return _safe_rsqrt(factored.rows / (means + FLOOR)), _safe_rsqrt(factored.columns)


def learned_decays(initial: Sequence[float], offsets: jax.Array) -> jax.Array:
    """1 - (1 - initial) e^(10 offset): decays whose distance from 1 is learned on a log scale.

    Bounded to [0, 1], outside of which no average is one.
    """
    slack = 1 - jnp.asarray(initial, offsets.dtype)
    return jnp.clip(1 - slack * jnp.exp(10 * offsets), 0.0, 1.0)


def _decayed(old: jax.Array, new: jax.Array, decays: jax.Array) -> jax.Array:
    decays = _column(decays.astype(old.dtype), old.ndim)
    return decays * old + (1 - decays) * new


def _column(decays: jax.Array, ndim: int) -> jax.Array:
    return decays.reshape(-1, *[1] * (ndim - 1))


def _safe_rsqrt(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, FLOOR))
