"""Nominal terms: the hand-designed descent direction that a stable learned optimizer leans on.

STAR (Harrison, Metz & Sohl-Dickstein 2022, arXiv 2209.11208, Section 5) adds to a learned update
one that is known to work. All terms are made of running averages of the gradient, momenta
m_k <- b_k m_k + (1 - b_k) g and the second moment v <- b v + (1 - b) g^2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from regularized_lopt import errors

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
