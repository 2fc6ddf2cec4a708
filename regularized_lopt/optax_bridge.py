"""A trained learned optimizer as an `optax.GradientTransformation`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors, upstream
from regularized_lopt.learned_optimizers import CoordinateWiseLOpt, StarMLPLOpt, leaves
from regularized_lopt.learned_optimizers import nominal as nominal_lib
from regularized_lopt.learned_optimizers.coordinatewise import check_hidden
from regularized_lopt.learned_optimizers.num_steps import WithNumSteps, name_of, works

MIXES = ("add", "graft")


class ByCoordinateState(NamedTuple):
    """State of a coordinate-wise optimizer as a gradient transformation.

    Attributes:
      iteration: updates taken, int32 scalar.
      hidden: arrays [.., n] over all n coordinates; with `per_leaf`, a tree like the params with,
        in place of each leaf, the same arrays with the leaf's shape in place of n.
    """

    iteration: jax.Array
    hidden: Any


class ByTensorState(NamedTuple):
    """State of `StarMLPLOpt` as a gradient transformation.

    Attributes:
      iteration: updates taken, int32 scalar.
      averages: see `StarMLPOptState`.
    """

    iteration: jax.Array
    averages: tuple[Any, ...]


class MixedState(NamedTuple):
    """State of `as_optax` with a nominal optimizer: the learned one's, and the nominal one's."""

    learned: Any
    nominal: Any


def as_optax(
    learned_opt: upstream.LearnedOptimizer,
    theta: Any,
    *,
    clip: float | None = None,
    nominal: optax.GradientTransformation | str | None = None,
    nominal_step: float | None = None,
    mix: str = "add",
    magnitude: float = 1.0,
    state_dtype: Any = None,
    chunk_size: int | None = None,
    per_leaf: bool = False,
    num_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The learned optimizer as a gradient transformation: it turns gradients into updates.

    The updates are to be added to the params as they are (`optax.apply_updates`): there is no
    learning rate. They have the structure, shapes and dtypes of the gradients; those of integers
    and booleans are zeros, in the param's dtype where the gradient is float0 (`jax.grad` with
    `allow_int`). Without options the params are those of the `Optimizer`
    (`learned_opt.opt_fn(theta)`), bit by bit in float32. `init` takes `jax.ShapeDtypeStruct`s, too.
    What is no float of 16 bits or more, integer or boolean, such as a complex leaf, is refused by
    `init` and `update`, as are gradients that are not of the params that `init` had.

    Args:
      learned_opt: the optimizer; one that is not coordinate-wise takes no `state_dtype`,
        `chunk_size` or `per_leaf`. One that is none of ours goes by `from_optimizer`.
      theta: its weights.
      clip: bound on each coordinate's update, > 0; None: none.
      nominal: an optimizer to lean on where the learned one was not trained for the problem, e.g.
        `optax.adam(1e-3)`, or one of `learned_optimizers.nominal.DIRECTIONS`, which makes it by
        `nominal.transformation`. It is bolted on after meta-training: theta knows nothing of it.
        The same term meta-trained together with theta is `learned_optimizers.Stabilized`.
      nominal_step: the step of one given by its name, >= 0. Default: 1e-3.
      mix: "add": the learned update plus `magnitude` times the nominal one (STAR, Harrison et al.
        2022, eq. 8); "graft": the learned update's direction, leaf by leaf, with `magnitude` times
        the l2 norm of the nominal one (Agarwal et al. 2020).
      magnitude: see `mix`, >= 0.
      state_dtype: dtype in which hidden states are kept, e.g. `jnp.bfloat16`; computations, and
        momenta among the inputs, are in float32 (float64 where the params are). Default: no
        conversion.
      chunk_size: coordinates to update at a time, > 0; bounds temporary memory. About 16,000 cost
        no time where there are a million; with `state_dtype`, nothing can be differentiated through
        the states. Default: all.
      per_leaf: keep hidden states leaf by leaf, so that they can be sharded like the params.
      num_steps: updates to come, > 0, for optimizers that need to know, such as upstream's NNAdam;
        those of ours do not.

    Raises:
      ValueError: an argument is out of its range, or one that this optimizer does not take.
    """
    if clip is not None:
        errors.check_positive("as_optax clip", clip)
    if chunk_size is not None:
        errors.check_count("as_optax chunk_size", chunk_size)
    if state_dtype is not None and not jnp.issubdtype(state_dtype, jnp.floating):
        raise ValueError(
            f"as_optax state_dtype = {jnp.dtype(state_dtype).name}: give a float, e.g. bfloat16."
        )
    errors.check_not_negative("as_optax magnitude", magnitude)
    errors.check_name("mix", mix, MIXES)
    if isinstance(learned_opt, CoordinateWiseLOpt):
        transformation = _coordinate_wise(learned_opt, theta, state_dtype, chunk_size, per_leaf)
    elif state_dtype is not None or chunk_size is not None or per_leaf:
        raise ValueError(
            "as_optax takes state_dtype, chunk_size and per_leaf for coordinate-wise optimizers "
            f"alone, such as LSTMLOpt and StarLSTMLOpt, not for {type(learned_opt).__name__}."
        )
    elif isinstance(learned_opt, StarMLPLOpt):
        transformation = _by_tensor(learned_opt, theta)
    else:
        opt = learned_opt.opt_fn(theta)
        transformation = from_optimizer(opt, num_steps, name_of(learned_opt))
    nominal = _nominal(nominal, nominal_step)
    _check_mixed(nominal, mix, magnitude)
    if nominal is not None:
        transformation = _mixed(transformation, nominal, mix, magnitude)
    if clip is not None:
        transformation = optax.chain(transformation, _clip(clip))
    return _of_trained(transformation)


def _coordinate_wise(
    learned_opt: CoordinateWiseLOpt,
    theta: Any,
    state_dtype: Any,
    chunk_size: int | None,
    per_leaf: bool,
) -> optax.GradientTransformationExtraArgs:
    if chunk_size is not None and learned_opt.reads_tensors:
        raise ValueError(
            f"as_optax chunk_size = {chunk_size}: {learned_opt.name} reads features of whole "
            "tensors, which a chunk does not have. Use None, or per_leaf = True."
        )
    network = functools.partial(_network, learned_opt, theta, chunk_size)

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
        if per_leaf:
            hidden = _leaf_by_leaf(treedef, state.hidden)
            parts: list[Any] = []
            for i, path in enumerate(leaves.paths(updates)):
                check_hidden(hidden[i], jnp.shape(grads[i]), f"the gradients' leaf {path} has")
                grad, param = jnp.asarray(grads[i]), jnp.asarray(at[i])
                part, hidden[i] = network(hidden[i], grad, param, [grad.size])
                parts.append(part)
            hidden = treedef.unflatten(hidden)
        else:
            check_hidden(state.hidden, (leaves.size(grads),), "the gradients have")
            flat = leaves.flatten(grads), leaves.flatten(at)
            new, hidden = network(state.hidden, *flat, leaves.sizes(grads))
            parts = leaves.unflatten(new, grads)
        moved = [p.astype(leaves.dtype(g)) for p, g in zip(parts, grads, strict=True)]
        return treedef.unflatten(moved), ByCoordinateState(
            optax.safe_increment(state.iteration), hidden
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _by_tensor(learned_opt: StarMLPLOpt, theta: Any) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> ByTensorState:
        averages = tuple(map(learned_opt.initial_averages, jax.tree.leaves(params)))
        return ByTensorState(jnp.zeros((), jnp.int32), averages)

    def update(
        updates: Any, state: ByTensorState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ByTensorState]:
        del extra_args
        if params is None:
            raise ValueError(
                f"{learned_opt.name} reads the params: call update(grads, state, params)."
            )
        leaves.check_state(state, jax.eval_shape(init, params))
        grads, at = ([jnp.asarray(leaf) for leaf in jax.tree.leaves(x)] for x in (updates, params))
        found = learned_opt.update(theta, state.averages, grads, at, state.iteration)
        moved = [part.astype(grad.dtype) for (part, _), grad in zip(found, grads, strict=True)]
        averages = tuple(new for _, new in found)
        state = ByTensorState(optax.safe_increment(state.iteration), averages)
        return jax.tree.unflatten(jax.tree.structure(updates), moved), state

    return optax.GradientTransformationExtraArgs(init, update)


def _leaf_by_leaf(treedef: Any, hidden: Any) -> list[Any]:
    """The hidden state of each leaf."""
    try:
        return treedef.flatten_up_to(hidden)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ValueError(
            "The state's leaves are not those of the gradients: make a new one, by init with these "
            "params."
        ) from error


def _of_trained(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same, given the leaves that are trained alone; updates of the others are zeros.

    Refuses leaves that it would not train, and gradients of other params.
    """
    transformation = optax.with_extra_args_support(transformation)

    def init(params: Any) -> Any:
        leaves.check(params)
        return transformation.init(leaves.trained(params, params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if params is None:
            leaves.check(updates, "gradients")
        else:
            params = leaves.aligned(params, updates)
            leaves.check(params)
        updates = leaves.without_float0(updates, params)
        at = updates if params is None else params
        own = None if params is None else leaves.trained(params, params)
        moved, state = transformation.update(leaves.trained(updates, at), state, own, **extra_args)
        return leaves.with_zeros(moved, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def from_optimizer(
    opt: upstream.Optimizer, num_steps: int | None = None, name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Any of upstream's `Optimizer`s whose state is a dataclass or a namedtuple with `params`.

    The update is the difference of its params, rounded as such. `update` needs the params; `value`
    (the loss) and `key`, where given, are passed on.

    Args:
      opt: the optimizer.
      num_steps: what `opt.init` is told, > 0.
      name: what messages call it; default: its own.

    Raises:
      ValueError: num_steps is out of its range; by `init`, where the optimizer needs it; by
        `update`, where it needs the params or the loss; the message says which.
    """
    name = opt.name if name is None else name
    told = WithNumSteps(opt, num_steps, name)

    def init(params: Any) -> Any:
        params = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
            params,
        )
        state = told.init(params, key=jax.random.PRNGKey(0))
        return _strongly_typed(upstream.with_params(state, ()))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        value: Any = None,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        if params is None:
            raise ValueError(f"{name} needs the params: call update(grads, state, params).")
        leaves.check_state(state, jax.eval_shape(init, params))
        new = _advance(opt, name, upstream.with_params(state, params), updates, value, key)
        moved = jax.tree.map(
            lambda after, at, u: jnp.subtract(after, at).astype(jnp.result_type(u)),
            opt.get_params(new),
            params,
            updates,
        )
        return moved, _strongly_typed(upstream.with_params(new, ()))

    return optax.GradientTransformationExtraArgs(init, update)


def _advance(
    opt: upstream.Optimizer, name: str, state: Any, grads: Any, value: Any, key: Any
) -> Any:
    """The optimizer's next state; one that fails for want of the loss says so."""
    loss = None if value is None else jnp.asarray(value)
    try:
        return opt.update(state, grads, loss=loss, key=key)
    except Exception as error:
        if loss is None and works(lambda: opt.update(state, grads, loss=jnp.zeros(()), key=key)):
            raise ValueError(
                f"{name} reads the loss: call update(grads, state, params, value=loss)."
            ) from error
        raise


def _strongly_typed(state: Any) -> Any:
    """Without weak types, as of Python numbers: they would compile a step twice."""
    arrays = jax.tree.map(jnp.asarray, state)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), arrays)


def _clip(bound: float) -> optax.GradientTransformation:
    """`optax.clip`, but dtypes are kept, if the bound is an array, too."""

    def clip(update: jax.Array) -> jax.Array:
        return jnp.clip(update, -bound, bound).astype(update.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _mixed(
    learned: optax.GradientTransformation,
    nominal: optax.GradientTransformation,
    mix: str,
    magnitude: float,
) -> optax.GradientTransformationExtraArgs:
    transformations = [optax.with_extra_args_support(t) for t in (learned, nominal)]

    def init(params: Any) -> MixedState:
        return MixedState(*(t.init(params) for t in transformations))

    def update(
        updates: Any, state: MixedState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MixedState]:
        (first, new), (second, nominal_new) = (
            t.update(updates, s, params, **extra_args)
            for t, s in zip(transformations, state, strict=True)
        )
        combine = functools.partial(_mix, mix, magnitude)
        return jax.tree.map(combine, first, second), MixedState(new, nominal_new)

    return optax.GradientTransformationExtraArgs(init, update)


def _nominal(
    nominal: optax.GradientTransformation | str | None, step: float | None
) -> optax.GradientTransformation | None:
    if isinstance(nominal, str):
        made = nominal_lib.transformation(nominal, 1e-3 if step is None else step)
        return None if nominal == "none" else made
    if step is not None:
        raise ValueError(
            f"as_optax nominal_step = {step}: it is the step of a nominal term given by its name "
            f"({', '.join(nominal_lib.DIRECTIONS)}); an optax optimizer has its own."
        )
    return nominal


def _check_mixed(nominal: Any, mix: str, magnitude: float) -> None:
    """Refuses what nothing would read."""
    if nominal is not None:
        return
    for name, value, default in (("mix", mix, MIXES[0]), ("magnitude", magnitude, 1.0)):
        if not errors.is_traced(value) and value != default:
            raise ValueError(
                f"as_optax {name} = {value!r} says how to lean on another optimizer, and there is "
                'none: give nominal, e.g. nominal="adam_aggmo".'
            )


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


def _mix(mix: str, magnitude: float, learned: jax.Array, nominal: jax.Array) -> jax.Array:
    if mix == "add":
        return (learned + magnitude * nominal).astype(learned.dtype)
    norm = optax.tree.norm(learned.astype(jnp.float32))
    wanted = magnitude * optax.tree.norm(nominal.astype(jnp.float32))
    return (learned * (wanted / jnp.where(norm > 0, norm, 1.0))).astype(learned.dtype)
