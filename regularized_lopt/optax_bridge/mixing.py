"""What is bolted on after meta-training: a nominal optimizer to lean on, and a bound."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors
from regularized_lopt.learned_optimizers import nominal as nominal_lib

MIXES = ("add", "graft")


class MixedState(NamedTuple):
    """State of `as_optax` with a nominal optimizer: the learned one's, and the nominal one's."""

    learned: Any
    nominal: Any


def made_nominal(
    nominal: optax.GradientTransformation | str | None, step: float | None
) -> optax.GradientTransformation | None:
    """The nominal optimizer, made if it is given by its name; None: there is none."""
    if isinstance(nominal, str):
        made = nominal_lib.transformation(nominal, 1e-3 if step is None else step)
        return None if nominal == "none" else made
    if step is not None:
        raise ValueError(
            f"as_optax nominal_step = {step}: it is the step of a nominal term given by its name "
            f"({', '.join(nominal_lib.DIRECTIONS)}); an optax optimizer has its own."
        )
    return nominal


def check(nominal: Any, mix: str, magnitude: float) -> None:
    """Refuses what nothing would read."""
    if nominal is not None:
        return
    for name, value, default in (("mix", mix, MIXES[0]), ("magnitude", magnitude, 1.0)):
        if not errors.is_traced(value) and value != default:
            raise ValueError(
                f"as_optax {name} = {value!r} says how to lean on another optimizer, and there is "
                'none: give nominal, e.g. nominal="adam_aggmo".'
            )


def mixed(
    learned: optax.GradientTransformation,
    nominal: optax.GradientTransformation,
    mix: str,
    magnitude: float,
) -> optax.GradientTransformationExtraArgs:
    """Both at once, mixed as `as_optax` says."""
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


def clipped(bound: float) -> optax.GradientTransformation:
    """`optax.clip`, but dtypes are kept, if the bound is an array, too."""

    def clip(update: jax.Array) -> jax.Array:
        return jnp.clip(update, -bound, bound).astype(update.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _mix(mix: str, magnitude: float, learned: jax.Array, nominal: jax.Array) -> jax.Array:
    if mix == "add":
        return (learned + magnitude * nominal).astype(learned.dtype)
    norm = optax.tree.norm(learned.astype(jnp.float32))
    wanted = magnitude * optax.tree.norm(nominal.astype(jnp.float32))
    return (learned * (wanted / jnp.where(norm > 0, norm, 1.0))).astype(learned.dtype)
