"""Running averages of gradients, which optimizers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import errors

_FLOOR = 1e-9  # Of second moments under a root, as upstream has it.


class Factored(NamedTuple):
    """Second moments of a tensor by the two largest of its axes (Shazeer & Stern 2018).

    Attributes:
      rows: [decays, ...], mean square over the largest axis, kept as 1; of a vector or a scalar,
        the square itself.
      columns: the same over the second largest; of a vector or a scalar, empty.
    """

    rows: jax.Array
    columns: jax.Array


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


def inverse_roots(factored: Factored, floor: float = _FLOOR) -> list[tuple[jax.Array, ...]]:
    """Per decay, factors whose product approximates 1 / sqrt(v).

    Args:
      factored: second moments.
      floor: added to v of a vector or a scalar.
    """
    if not factored.columns.size:
        return [(_safe_rsqrt(v + floor),) for v in factored.rows]
    shape = jnp.broadcast_shapes(factored.rows.shape[1:], factored.columns.shape[1:])
    axes = factored_axes(shape)
    assert axes is not None
    means = jnp.mean(factored.rows, axis=1 + axes[0], keepdims=True)
    row_factors = _safe_rsqrt(factored.rows / (means + _FLOOR))
    return list(zip(row_factors, _safe_rsqrt(factored.columns), strict=True))


def learned_decays(initial: Sequence[float], offsets: jax.Array) -> jax.Array:
    """1 - (1 - initial) e^(10 offset): decays whose distance from 1 is learned on a log scale.

    Bounded to [0, 1], outside of which no average is one.
    """
    slack = 1 - jnp.asarray(initial, offsets.dtype)
    return jnp.clip(1 - slack * jnp.exp(10 * offsets), 0.0, 1.0)


def _decayed(old: jax.Array, new: jax.Array, decays: jax.Array) -> jax.Array:
    decays = decays.astype(old.dtype).reshape(-1, *[1] * new.ndim)
    return decays * old + (1 - decays) * new


def _safe_rsqrt(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(x, _FLOOR))
