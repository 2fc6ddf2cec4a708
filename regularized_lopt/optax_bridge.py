"""A trained learned optimizer as an `optax.GradientTransformation`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors
from regularized_lopt.learned_optimizers import LSTMLOpt
from regularized_lopt.learned_optimizers.lstm import flatten, is_trained, unflatten

MIXES = ("add", "graft")


class LSTMState(NamedTuple):
    """State of `as_optax`.

    Attributes:
      iteration: updates taken, int32 scalar.
      hidden: per layer (h, c), each [hidden_size, n] over all n coordinates; with `per_leaf`, a
        tree like the params with, in place of each leaf, per layer (h, c) of shape [hidden_size,
        *leaf.shape].
      nominal: state of the nominal optimizer; None without one.
    """

    iteration: jax.Array
    hidden: Any
    nominal: Any


def as_optax(
    learned_opt: LSTMLOpt,
    theta: Any,
    *,
    clip: float | None = None,
    nominal: optax.GradientTransformation | None = None,
    mix: str = "add",
    magnitude: float = 1.0,
    state_dtype: Any = None,
    chunk_size: int | None = None,
    per_leaf: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The learned optimizer as a gradient transformation: it turns gradients into updates.

    The updates are to be added to the params as they are (`optax.apply_updates`): there is no
    learning rate. They have the structure, shapes and dtypes of the gradients. Without options the
    params are those of the `Optimizer` (`learned_opt.opt_fn(theta)`), bit by bit in float32.

    Args:
      learned_opt: the optimizer.
      theta: its weights.
      clip: bound on each coordinate's update, > 0; None: none.
      nominal: an optimizer to lean on where the learned one was not trained for the problem, e.g.
        `optax.adam(1e-3)`.
      mix: "add": the learned update plus `magnitude` times the nominal one (STAR, Harrison et al.
        2022, eq. 8); "graft": the learned update's direction, leaf by leaf, with `magnitude` times
        the l2 norm of the nominal one (Agarwal et al. 2020).
      magnitude: see `mix`, >= 0.
      state_dtype: dtype in which hidden states are kept, e.g. `jnp.bfloat16`; computations are in
        float32 (float64 where the params are). Default: no conversion.
      chunk_size: coordinates to update at a time, > 0; bounds temporary memory. Default: all.
      per_leaf: keep hidden states leaf by leaf, so that they can be sharded like the params.

    Raises:
      ValueError: an argument is out of its range.
    """
    for name, value in (("clip", clip), ("chunk_size", chunk_size)):
        if value is not None:
            errors.check_positive(f"as_optax {name}", value)
    errors.check_not_negative("as_optax magnitude", magnitude)
    errors.check_name("mix", mix, MIXES)
    network = functools.partial(_network, learned_opt, theta, state_dtype, chunk_size)
    combined = nominal and optax.with_extra_args_support(nominal)

    def init(params: Any) -> LSTMState:
        def zeros(leaf: Any) -> Any:
            leaf = jnp.asarray(leaf)
            dtype = state_dtype or jnp.promote_types(leaf.dtype, jnp.float32)
            hidden = learned_opt.initial_hidden(leaf.size, dtype)
            return jax.tree.map(lambda h: h.reshape(h.shape[0], *leaf.shape), hidden)

        if per_leaf:
            hidden = jax.tree.map(lambda leaf: zeros(leaf) if is_trained(leaf) else (), params)
        else:
            hidden = zeros(flatten(params))
        return LSTMState(
            jnp.zeros((), jnp.int32), hidden, combined.init(params) if combined else None
        )

    def update(
        updates: Any, state: LSTMState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LSTMState]:
        if learned_opt.needs_params and params is None:
            raise ValueError(
                f"{learned_opt.name} reads the params: call update(grads, state, params)."
            )
        treedef: Any = jax.tree.structure(updates)
        grads = jax.tree.leaves(updates)
        at = grads if params is None else treedef.flatten_up_to(params)
        parts: list[jax.Array | None]
        if per_leaf:
            hidden, parts = treedef.flatten_up_to(state.hidden), [None] * len(grads)
            for i, (grad, param) in enumerate(zip(grads, at, strict=True)):
                if is_trained(grad):
                    parts[i], hidden[i] = network(hidden[i], jnp.asarray(grad), jnp.asarray(param))
            hidden = treedef.unflatten(hidden)
        else:
            new, hidden = network(state.hidden, flatten(grads), flatten(at))
            parts = unflatten(new, grads)
        moved = [
            jnp.zeros_like(grad) if part is None else part.astype(jnp.result_type(grad))
            for grad, part in zip(grads, parts, strict=True)
        ]
        learned = treedef.unflatten(moved)
        nominal_state = None
        if combined is not None:
            other, nominal_state = combined.update(updates, state.nominal, params, **extra_args)
            learned = jax.tree.map(functools.partial(_mix, mix, magnitude), learned, other)
        if clip is not None:
            learned = jax.tree.map(lambda u: jnp.clip(u, -clip, clip).astype(u.dtype), learned)
        return learned, LSTMState(optax.safe_increment(state.iteration), hidden, nominal_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _network(
    learned_opt: LSTMLOpt,
    theta: Any,
    state_dtype: Any,
    chunk_size: int | None,
    hidden: Any,
    grads: jax.Array,
    params: jax.Array,
) -> tuple[jax.Array, Any]:
    """Updates and next hidden state of an array of coordinates, of any shape."""
    shape, size = grads.shape, grads.size
    dtype = jnp.promote_types(params.dtype, jnp.float32)
    kept = jax.tree.map(lambda h: h.dtype, hidden)
    grads, params = grads.reshape(-1).astype(dtype), params.reshape(-1).astype(dtype)
    hidden = jax.tree.map(lambda h: h.reshape(h.shape[0], -1), hidden)
    if not size:
        return grads.reshape(shape), hidden

    def run(hidden: Any, grads: jax.Array, params: jax.Array) -> tuple[jax.Array, Any]:
        wide = jax.tree.map(lambda h: h.astype(dtype), hidden)
        updates, new = learned_opt.network(theta, wide, grads, params)
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
        updates, hidden = carry

        def part(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, length, axis=-1)

        def put(array: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(array, new, start, axis=-1)

        new, new_hidden = run(jax.tree.map(part, hidden), part(grads), part(params))
        return put(updates, new), jax.tree.map(put, hidden, new_hidden)

    whole, rest = divmod(grads.size, chunk_size)
    carry = jax.lax.fori_loop(
        0,
        whole,
        lambda i, carry: advance(i * chunk_size, chunk_size, carry),
        (jnp.zeros_like(grads), hidden),
    )
    return advance(whole * chunk_size, rest, carry) if rest else carry


def _mix(mix: str, magnitude: float, learned: jax.Array, nominal: jax.Array) -> jax.Array:
    if mix == "add":
        return (learned + magnitude * nominal).astype(learned.dtype)
    norm = optax.tree.norm(learned.astype(jnp.float32))
    wanted = magnitude * optax.tree.norm(nominal.astype(jnp.float32))
    return (learned * (wanted / jnp.where(norm > 0, norm, 1.0))).astype(learned.dtype)
