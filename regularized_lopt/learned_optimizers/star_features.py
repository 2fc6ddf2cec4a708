"""What the network of `StarMLPLOpt` reads of a tensor.

Features come in two forms with the same result: one tensor at a time, in passes over its
coordinates with nothing of their size in between, and all tensors side by side, as matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.learned_optimizers import averages, leaves

_FLOOR = 1e-5  # Added to a feature's mean square before it is normalized by it.
_MOMENTUM_FLOOR = 1e-6  # Added to a vector's; for gradients upstream has another.
_ROOT_FLOOR = 1e-8  # Added to factored second moments under a root.
_LOG_UNIT = 5.0  # Logarithms are divided by it, so that they are of the order of the others.
_LEAST_SHARE = 1e-6  # Of an average's weights that have been given out; a decay may become 1.


class Averages(NamedTuple):
    """What is kept for a tensor of the params: running averages of its gradient.

    Attributes:
      momenta: per decay, of the tensor's shape, float32 or wider.
      second: v, of the tensor's shape.
      mean_second: mean of v over the tensor, scalar.
      factored: see `averages.Factored`.
    """

    momenta: tuple[jax.Array, ...]
    second: jax.Array
    mean_second: jax.Array
    factored: averages.Factored


class Decays(NamedTuple):
    """Of the running averages: momenta [k], second moment [1], factored ones [k]."""

    momentum: jax.Array
    second_moment: jax.Array
    factored: jax.Array


class Form(NamedTuple):
    """How averages are read: see the arguments of `StarMLPLOpt` with the same names."""

    scale_free: bool
    bias_correction: bool
    epsilon: float
    hold_unseen: bool


class Inputs(NamedTuple):
    """What features are made of, in the unit of the gradient.

    Of one tensor, arrays are of its shape or broadcastable to it, and those by decay one each; of
    tensors side by side all are [n], and those by decay a single [decays, n].

    Attributes:
      gradient: as it came.
      param: the params.
      momenta: by decay.
      second: v.
      inverse_root: 1 / sqrt(v + epsilon).
      gradient_roots: by decay of the factored second moments, two factors whose product
        approximates 1 / sqrt(v).
      momentum_roots: the same with another floor.
      rows: by decay, factored second moments.
      columns: the same.
      moves: whether the tensor has a gradient at this step, scalar or by coordinate.
    """

    gradient: jax.Array
    param: jax.Array
    momenta: tuple[jax.Array, ...]
    second: jax.Array
    inverse_root: jax.Array
    gradient_roots: tuple[tuple[jax.Array, jax.Array], ...]
    momentum_roots: tuple[tuple[jax.Array, jax.Array], ...]
    rows: tuple[jax.Array, ...]
    columns: tuple[jax.Array, ...]
    moves: jax.Array


def count(num_decays: int) -> int:
    """How many features there are."""
    return 4 + 8 * num_decays


def count_of_tensor(num_decays: int) -> int:
    """How many features of the whole tensor there are."""
    return 1 + num_decays


def of_tensor(scales: jax.Array, num_decays: int) -> jax.Array:
    """Features of the whole tensor: how large params are, and how much noise is in gradients.

    Args:
      scales: [features, ...], 1 over the root mean square of each feature of a tensor.
      num_decays: k.

    Returns:
      [1 + k, ...], logarithms of the root mean squares of the params and of every m / sqrt(v).
    """
    chosen = [1, *range(3 + num_decays, 3 + 2 * num_decays)]
    return -jnp.log(scales[jnp.asarray(chosen)]) / _LOG_UNIT


def averaged(
    old: Averages, gradient: jax.Array, decays: Decays, form: Form
) -> tuple[Averages, jax.Array]:
    """(averages with a gradient taken into them, whether the tensor moves, a scalar)."""
    square = gradient * gradient
    mean_second, factored, moves = _of_tensor(old, square, decays, form)
    momentum, (decay,), _ = jax.tree.map(lambda one: jnp.where(moves, one, 1), decays)
    new = Averages(
        momenta=tuple(
            b * m + (1 - b) * gradient for b, m in zip(momentum, old.momenta, strict=True)
        ),
        second=decay * old.second + (1 - decay) * square,
        mean_second=mean_second,
        factored=factored,
    )
    return new, moves


def _of_tensor(
    old: Averages, square: jax.Array, decays: Decays, form: Form
) -> tuple[jax.Array, averages.Factored, jax.Array]:
    """(next mean of v, factored averages, whether the tensor moves).

    Without any gradient a tensor waits, with its averages. They would fade, and the second moment
    before the slow momenta: their ratio, and with it the steps that the tensor takes, would grow
    without bound.
    """
    factored, mean_square = averages.update_factored(old.factored, square, decays.factored)
    (decay,) = decays.second_moment
    mean = decay * old.mean_second + (1 - decay) * mean_square
    if not form.hold_unseen:
        return mean, factored, jnp.asarray(True)
    moves = mean_square > 0
    kept = (old.mean_second, old.factored)
    held = jax.tree.map(lambda new, one: jnp.where(moves, new, one), (mean, factored), kept)
    return (*held, moves)


def inputs(
    new: Averages,
    gradient: jax.Array,
    param: jax.Array,
    decays: Decays,
    step: jax.Array,
    form: Form,
    moves: jax.Array,
) -> Inputs:
    """Of a tensor whose averages have the gradient in them; `step` counts those before it."""
    corrections = _corrections(decays, step, form)
    unit = _unit(new.mean_second, corrections, form)
    second = unit**2 * corrections.second_moment[0] * new.second
    factored = _factored(new.factored, unit, corrections)
    rows, columns = factored.rows, factored.columns
    return Inputs(
        gradient=unit * gradient,
        param=param,
        momenta=tuple(unit * c * m for c, m in zip(corrections.momentum, new.momenta, strict=True)),
        second=second,
        inverse_root=jax.lax.rsqrt(second + form.epsilon),
        gradient_roots=tuple(zip(*averages.inverse_roots(factored), strict=True)),
        momentum_roots=tuple(zip(*averages.inverse_roots(factored, _MOMENTUM_FLOOR), strict=True)),
        rows=tuple(rows),
        columns=tuple(columns if columns.size else rows),
        moves=moves,
    )


def side_by_side(
    olds: Sequence[Averages],
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    decays: Decays,
    step: jax.Array,
    form: Form,
) -> tuple[list[Averages], Inputs]:
    """`averaged` and `inputs` of several tensors, whose coordinates are one axis of all arrays."""
    tensors = leaves.SideBySide([gradient.shape for gradient in gradients])
    gradient = tensors.join(gradients)
    square = gradient * gradient
    scalars = [
        _of_tensor(old, squares, decays, form)
        for old, squares in zip(olds, tensors.split(square), strict=True)
    ]
    moves = tensors.join([moving for _, _, moving in scalars])
    b = jnp.where(moves, decays.momentum[:, None], 1)
    c = jnp.where(moves, decays.second_moment[0], 1)
    stacks = [
        tensors.join(of_decay) for of_decay in zip(*(old.momenta for old in olds), strict=True)
    ]
    momenta = b * jnp.stack(stacks) + (1 - b) * gradient
    second = c * tensors.join([old.second for old in olds]) + (1 - c) * square
    news = [
        Averages(tuple(of_decays), seconds, mean, factored)
        for of_decays, seconds, (mean, factored, _) in zip(
            tensors.split(momenta), tensors.split(second), scalars, strict=True
        )
    ]

    corrections = _corrections(decays, step, form)
    units = [_unit(new.mean_second, corrections, form) for new in news]
    unit = tensors.join(units)
    second = unit**2 * corrections.second_moment[0] * second
    factors = [
        _factored(new.factored, one, corrections) for new, one in zip(news, units, strict=True)
    ]
    rows = [one.rows for one in factors]
    columns = [one.columns if one.columns.size else one.rows for one in factors]

    def roots(floor: float) -> tuple[tuple[jax.Array, jax.Array], ...]:
        pairs = (averages.inverse_roots(one, floor) for one in factors)
        first, other = zip(*pairs, strict=True)
        return ((tensors.join(first), tensors.join(other)),)

    given = Inputs(
        gradient=unit * gradient,
        param=tensors.join(params),
        momenta=(unit * corrections.momentum[:, None] * momenta,),
        second=second,
        inverse_root=jax.lax.rsqrt(second + form.epsilon),
        gradient_roots=roots(averages.FLOOR),
        momentum_roots=roots(_MOMENTUM_FLOOR),
        rows=(tensors.join(rows),),
        columns=(tensors.join(columns),),
        moves=moves,
    )
    return news, given


def _corrections(decays: Decays, step: jax.Array, form: Form) -> Decays:
    """1 over the share of an average's weights that has been given out, by decay."""
    if not form.bias_correction:
        return Decays(*map(jnp.ones_like, decays))
    times = (step + 1).astype(decays.momentum.dtype)
    return Decays(*(1 / jnp.maximum(1 - decay**times, _LEAST_SHARE) for decay in decays))


def _unit(mean_second: jax.Array, corrections: Decays, form: Form) -> jax.Array:
    """1 over what the gradients of a tensor are measured in."""
    if not form.scale_free:
        return jnp.ones_like(mean_second)
    mean = corrections.second_moment[0] * mean_second
    return jnp.where(mean > 0, averages.inverse_root(mean), 1)


def _factored(
    factored: averages.Factored, unit: jax.Array, corrections: Decays
) -> averages.Factored:
    factors = unit**2 * corrections.factored
    return averages.Factored(
        *(factors.reshape(-1, *[1] * (part.ndim - 1)) * part for part in factored)
    )


def features(given: Inputs) -> list[jax.Array]:
    """What the network reads, each broadcastable to the tensor."""
    return [
        given.gradient,
        given.param,
        *given.momenta,
        given.second,
        *(m * given.inverse_root for m in given.momenta),
        given.inverse_root,
        *(given.gradient * one * other for one, other in given.gradient_roots),
        *given.rows,
        *given.columns,
        *(jax.lax.rsqrt(row + _ROOT_FLOOR) for row in given.rows),
        *(jax.lax.rsqrt(column + _ROOT_FLOOR) for column in given.columns),
        *(
            m * one * other
            for m, (one, other) in zip(given.momenta, given.momentum_roots, strict=True)
        ),
    ]


def normalized(
    rows: Sequence[jax.Array], tensors: leaves.SideBySide
) -> tuple[Float[Array, "features n"], Float[Array, "features tensors"]]:
    """Features of vectors side by side, each over its root mean square in each; 1 over these."""
    matrix = jnp.concatenate([row.reshape(-1, row.shape[-1]) for row in rows])
    means = [jnp.mean(part, axis=1, keepdims=True) for part in tensors.split(matrix**2)]
    scales = [jax.lax.rsqrt(mean + _FLOOR) for mean in means]
    return matrix * tensors.join(scales), jnp.concatenate(scales, axis=1)


def inverse_rms(rows: Sequence[jax.Array]) -> Float[Array, features]:
    """1 over the root mean square of each feature of a tensor."""
    shape = jnp.broadcast_shapes(*(row.shape for row in rows))
    whole = [index for index, row in enumerate(rows) if row.shape == shape]
    squares = dict(zip(whole, _sums([rows[i] ** 2 for i in whole]), strict=True))
    means = [squares.get(i, jnp.sum(row**2)) / row.size for i, row in enumerate(rows)]
    return jax.lax.rsqrt(jnp.stack(means) + _FLOOR)


@jax.custom_jvp
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    """The sum of each of several arrays of one shape, in one pass over all."""
    zeros = [jnp.zeros((), x.dtype) for x in arrays]
    axes = tuple(range(arrays[0].ndim))

    def add(one: Any, other: Any) -> Any:
        return [a + b for a, b in zip(one, other, strict=True)]

    return list(jax.lax.reduce(arrays, zeros, add, axes))


@_sums.defjvp
def _sums_jvp(primals: Any, tangents: Any) -> Any:
    return _sums(*primals), [jnp.sum(t) for t in tangents[0]]
