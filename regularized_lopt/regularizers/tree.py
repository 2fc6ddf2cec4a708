"""Vector algebra on pytrees, with norms and inner products accumulated in at least float32."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = Any
Scalar = Float[Array, ""]


def vdot(a: Tree, b: Tree) -> Scalar:
    """<a, b> over all leaves."""
    # Not jnp.vdot: it would round to the leaves' own dtype.
    products = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b))
    return functools.reduce(jnp.add, products) if products else jnp.zeros(())


def norm(tree: Tree) -> Scalar:
    """Global l2 norm; its derivative at 0 is 0, not NaN."""
    square = vdot(tree, tree)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def scale(tree: Tree, factor: Any) -> Tree:
    """factor * tree, in the leaves' dtypes."""
    return jax.tree.map(lambda leaf: (factor * _wide(leaf)).astype(leaf.dtype), tree)


def scale_to_norm(tree: Tree, length: Any) -> Tree:
    """The tree rescaled to the global l2 norm `length`; a tree of zeros stays zero."""
    current = norm(tree)
    # At norm 0 the direction is undefined and the perturbation is 0, not NaN.
    return scale(tree, length / jnp.where(current > 0, current, 1.0))


def add(a: Tree, b: Tree) -> Tree:
    """a + b, in the dtypes of a."""
    return jax.tree.map(lambda x, y: (x + y).astype(x.dtype), a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """a - b, in the dtypes of a."""
    return jax.tree.map(lambda x, y: (x - y).astype(x.dtype), a, b)


def interpolate(a: Tree, b: Tree, share: float) -> Tree:
    """share * a + (1 - share) * b, exactly a where they are equal."""
    return jax.tree.map(lambda x, y: (y + share * (x - y)).astype(x.dtype), a, b)


def orthogonal_part(a: Tree, b: Tree) -> Tree:
    """The part of a that is orthogonal to b: a - <a, b> / ||b||^2 b; a itself where b = 0."""
    square = vdot(b, b)
    along = vdot(a, b) / jnp.where(square > 0, square, 1.0)
    return subtract(a, scale(b, along))


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
