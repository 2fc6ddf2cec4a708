"""Coordinate-wise optimizers as gradient transformations, over all coordinates or by leaf."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regularized_lopt.learned_optimizers import CoordinateWiseLOpt, leaves
from regularized_lopt.learned_optimizers.coordinatewise import check_hidden


class ByCoordinateState(NamedTuple):
    """State of a coordinate-wise optimizer as a gradient transformation.

    Attributes:
      iteration: updates taken, int32 scalar.
      hidden: arrays [.., n] over all n coordinates; with `per_leaf`, a tree like the params with,
        in place of each leaf, the same arrays with the leaf's shape in place of n.
    """

    iteration: jax.Array
    hidden: Any


def coordinate_wise(
    learned_opt: CoordinateWiseLOpt,
    theta: Any,
    state_dtype: Any,
    chunk_size: int | None,
    per_leaf: bool,
) -> optax.GradientTransformationExtraArgs:
    """A coordinate-wise optimizer; arguments as `as_optax` has them."""
    if chunk_size is not None and learned_opt.reads_tensors:
        raise ValueError(
            f"as_optax chunk_size = {chunk_size}: {learned_opt.name} reads features of whole "
            "tensors, which a chunk does not have. Use None, or per_leaf = True."
        )
    network = functools.partial(_network, *learned_opt.prepared(theta), chunk_size)

    def init(params: Any) -> ByCoordinateState:
        def zeros(count: int, shape: tuple[int, ...], dtype: Any) -> Any:
            hidden = learned_opt.initial_hidden(count, state_dtype or dtype)
            return jax.tree.map(lambda h: h.reshape(h.shape[0], *shape), hidden)

        def leaf_s(leaf: Any) -> Any:
            return zeros(leaves.size(leaf), jnp.shape(leaf), leaves.common_dtype(leaf))

        if per_leaf:
            hidden = jax.tree.map(leaf_s, params)
        else:
            count = leaves.size(params)
            hidden = zeros(count, (count,), leaves.common_dtype(params))
        return ByCoordinateState(jnp.zeros((), jnp.int32), hidden)

    def update(
        updates: Any, state: ByCoordinateState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ByCoordinateState]:
        del extra_args
        if learned_opt.needs_params and params is None:
            raise ValueError(
                f"{learned_opt.name} reads the params: call update(grads, state, params)."
            )
        grads: list[Any] = jax.tree.leaves(updates)
        treedef: Any = jax.tree.structure(updates)
        at = grads if params is None else jax.tree.leaves(params)
        read = _scaled(learned_opt, grads)
        if per_leaf:
            hidden = _leaf_by_leaf(treedef, state.hidden)
            parts: list[Any] = []
            for i, path in enumerate(leaves.paths(updates)):
                check_hidden(hidden[i], jnp.shape(grads[i]), f"the gradients' leaf {path} has")
                part, hidden[i] = network(hidden[i], read[i], jnp.asarray(at[i]), [read[i].size])
                parts.append(part)
            hidden = treedef.unflatten(hidden)
        else:
            check_hidden(state.hidden, (leaves.size(grads),), "the gradients have")
            flat = leaves.flatten(read), leaves.flatten(at)
            new, hidden = network(state.hidden, *flat, leaves.sizes(grads))
            parts = leaves.unflatten(new, grads)
        moved = [p.astype(leaves.dtype(g)) for p, g in zip(parts, grads, strict=True)]
        return treedef.unflatten(moved), ByCoordinateState(
            optax.safe_increment(state.iteration), hidden
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(learned_opt: CoordinateWiseLOpt, grads: list[Any]) -> list[Any]:
    """`CoordinateWiseLOpt.scaled`, leaf by leaf."""
    arrays = list(map(jnp.asarray, grads))
    scale = learned_opt.gradient_scale(leaves.flatten(arrays))
    return arrays if scale is None else [grad * scale for grad in arrays]


def _leaf_by_leaf(treedef: Any, hidden: Any) -> list[Any]:
    """The hidden state of each leaf."""
    try:
        return treedef.flatten_up_to(hidden)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ValueError(
            "The state's leaves are not those of the gradients: make a new one, by init with these "
            "params."
        ) from error


def _network(
    learned_opt: CoordinateWiseLOpt,
    theta: Any,
    chunk_size: int | None,
    hidden: Any,
    grads: jax.Array,
    params: jax.Array,
    sizes: Sequence[int],
) -> tuple[jax.Array, Any]:
    """Updates and next hidden state of an array of coordinates, of any shape."""
    shape, size = grads.shape, grads.size
    if not size:
        return grads, hidden
    dtype = jnp.promote_types(params.dtype, jnp.float32)
    kept = jax.tree.map(lambda h: h.dtype, hidden)
    grads, params = grads.reshape(-1).astype(dtype), params.reshape(-1).astype(dtype)
    hidden = jax.tree.map(lambda h: h.reshape(h.shape[0], -1), hidden)

    def run(hidden: Any, grads: jax.Array, params: jax.Array) -> tuple[jax.Array, Any]:
        wide = jax.tree.map(lambda h: h.astype(dtype), hidden)
        whole = sizes if grads.size == size else None
        updates, new = learned_opt.network(theta, wide, grads, params, whole)
        return updates, jax.tree.map(lambda h, to: h.astype(to), new, kept)

    if chunk_size is None or chunk_size >= size:
        updates, hidden = run(hidden, grads, params)
    else:
        updates, hidden = _in_chunks(run, chunk_size, hidden, grads, params)
    return updates.reshape(shape), jax.tree.map(lambda h: h.reshape(h.shape[0], *shape), hidden)


def _in_chunks(
    run: Any, chunk_size: int, hidden: Any, grads: jax.Array, params: jax.Array
) -> tuple[jax.Array, Any]:
    """`run`, so many coordinates at a time; the hidden state is replaced in place."""

    def advance(start: Any, length: int, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        def part(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, length, axis=-1)

        def put(array: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(array, new, start, axis=-1)

        def fenced(*args: Any) -> tuple[jax.Array, Any]:
            # A branch, always taken: if the reads of the state were fused with what follows them,
            # XLA on CPU would copy all of the state for every chunk.
            always = jax.lax.optimization_barrier(True)
            return jax.lax.cond(always, run, lambda hidden, grads, params: (grads, hidden), *args)

        old = jax.tree.map(_from_bits, jax.tree.map(part, carry[1]), hidden)
        updates, new = jax.lax.platform_dependent(
            old, part(grads), part(params), cpu=fenced, default=run
        )
        return jax.tree.map(put, carry, (updates, jax.tree.map(_to_bits, new)))

    whole, rest = divmod(grads.size, chunk_size)
    carry = jax.lax.fori_loop(
        0,
        whole,
        lambda i, carry: advance(i * chunk_size, chunk_size, carry),
        (jnp.zeros_like(grads), jax.tree.map(_to_bits, hidden)),
    )
    updates, new = advance(whole * chunk_size, rest, carry) if rest else carry
    return updates, jax.tree.map(_from_bits, new, hidden)


def _to_bits(array: jax.Array) -> jax.Array:
    """Floats of 16 bits as integers: on CPU, XLA would widen all of them to replace a part."""
    bits = 8 * array.dtype.itemsize
    return jax.lax.bitcast_convert_type(array, f"uint{bits}") if bits < 32 else array


def _from_bits(array: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_to_bits`."""
    if array.dtype == like.dtype:
        return array
    return jax.lax.bitcast_convert_type(array, like.dtype)
