"""Nominal terms: the hand-designed descent direction that a stable learned optimizer leans on.

STAR (Harrison, Metz & Sohl-Dickstein 2022, arXiv 2209.11208, Section 5) adds to a learned update
one that is known to work. All terms are made of running averages of the gradient, momenta
m_k <- b_k m_k + (1 - b_k) g and the second moment v <- b v + (1 - b) g^2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regularized_lopt import errors
from regularized_lopt.learned_optimizers import averages, leaves

DIRECTIONS = ("none", "sgd", "sgdm", "adam", "aggmo", "adam_aggmo")


def check(owner: str, name: str) -> str:
    """Returns the name of a direction.

    Raises:
      errors.UnknownNameError: it is none of `DIRECTIONS`.
    """
    return errors.check_name(f"{owner}.nominal", name, DIRECTIONS)


def direction(
    name: str, gradient: jax.Array, momenta: Sequence[jax.Array], inverse_rms: jax.Array
) -> jax.Array:
    """The direction of ascent, to be subtracted from the params times a step.

    Args:
      name: "sgd": g; "sgdm": m of the slowest decay, the last; "aggmo": the mean of all m_k
        (Lucas et al. 2019); "adam" and "adam_aggmo": the same two divided by the root of v.
      gradient: g, of any shape.
      momenta: m_k, each of that shape, of which "sgd" needs none.
      inverse_rms: 1 / sqrt(v), of that shape; 0 where v is.
    """
    if name == "none":
        return jnp.zeros_like(gradient)
    if name == "sgd":
        return gradient
    averaged = momenta[-1]
    if name in ("aggmo", "adam_aggmo"):
        averaged = functools.reduce(jnp.add, momenta) / len(momenta)
    return averaged * inverse_rms if name in ("adam", "adam_aggmo") else averaged


def transformation(
    name: str,
    step: float = 1e-3,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    second_moment_decay: float = 0.999,
) -> optax.GradientTransformation:
    """The nominal term alone: updates are -step times the direction; nothing of it is learned.

    Averages are corrected for their start at 0, coordinate by coordinate, as `Stabilized` has them.

    Args:
      name: one of `DIRECTIONS`.
      step: >= 0.
      momentum_decays: each in (0, 1); at least one. With (0.9,), "adam" is Adam.
      second_moment_decay: in (0, 1).

    Raises:
      ValueError: an argument is out of its range; the message names the range.
    """
    owner = "nominal"
    errors.check_name(owner, name, DIRECTIONS)
    errors.check_not_negative(f"{owner} step", step)
    averages.check_decays(f"{owner} momentum_decays", momentum_decays)
    averages.check_decays(f"{owner} second_moment_decay", [second_moment_decay])
    decays = momentum_decays, second_moment_decay

    def zeros(leaf: Any) -> averages.Moments:
        return averages.zeros_moments(jnp.shape(leaf), len(momentum_decays), leaves.dtype(leaf))

    def init(params: Any) -> list[averages.Moments]:
        return [zeros(leaf) for leaf in jax.tree.leaves(params) if leaves.is_trained(leaf)]

    def update(updates: Any, state: list[averages.Moments], params: Any = None) -> tuple[Any, Any]:
        del params
        grads, treedef = jax.tree.flatten(updates)
        moved = [jnp.zeros_like(grad) for grad in grads]
        trained = [index for index, grad in enumerate(grads) if leaves.is_trained(grad)]
        new = []
        for index, old in zip(trained, state, strict=True):
            grad = jnp.asarray(grads[index])
            kept = averages.update_moments(old, grad, *decays)
            momenta, second = averages.corrected(kept, *decays)
            wide = grad.astype(second.dtype)
            ascent = direction(name, wide, list(momenta), averages.inverse_root(second[0]))
            moved[index] = (-step * ascent).astype(grad.dtype)
            new.append(kept)
        return jax.tree.unflatten(treedef, moved), new

    return optax.GradientTransformation(init, update)
