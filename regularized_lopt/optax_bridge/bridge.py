"""`as_optax`: which transformation an optimizer becomes, and what is around it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from regularized_lopt import errors, upstream
from regularized_lopt.learned_optimizers import CoordinateWiseLOpt, StarMLPLOpt, leaves
from regularized_lopt.learned_optimizers.num_steps import name_of
from regularized_lopt.optax_bridge import mixing
from regularized_lopt.optax_bridge.any_optimizer import from_optimizer
from regularized_lopt.optax_bridge.by_coordinate import coordinate_wise
from regularized_lopt.optax_bridge.by_tensor import by_tensor


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
    errors.check_name("mix", mix, mixing.MIXES)
    if isinstance(learned_opt, CoordinateWiseLOpt):
        transformation = coordinate_wise(learned_opt, theta, state_dtype, chunk_size, per_leaf)
    elif state_dtype is not None or chunk_size is not None or per_leaf:
        raise ValueError(
            "as_optax takes state_dtype, chunk_size and per_leaf for coordinate-wise optimizers "
            f"alone, such as LSTMLOpt and StarLSTMLOpt, not for {type(learned_opt).__name__}."
        )
    elif isinstance(learned_opt, StarMLPLOpt):
        transformation = by_tensor(learned_opt, theta)
    else:
        opt = learned_opt.opt_fn(theta)
        transformation = from_optimizer(opt, num_steps, name_of(learned_opt))
    nominal = mixing.made_nominal(nominal, nominal_step)
    mixing.check(nominal, mix, magnitude)
    if nominal is not None:
        transformation = mixing.mixed(transformation, nominal, mix, magnitude)
    if clip is not None:
        transformation = optax.chain(transformation, mixing.clipped(clip))
    return _of_trained(transformation)


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
