"""Leaves of an optimizee's params: which are trained, and all of these as one vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tree = Any
_TRAINED = "float16, bfloat16, float32 or float64"


def dtype(leaf: Any) -> Any:
    """Of an array, a `jax.ShapeDtypeStruct` or a Python number, as JAX holds it."""
    return jnp.result_type(leaf)


def is_trained(leaf: Any) -> bool:
    """Whether a leaf of the params is trained: a float of 16 bits or more."""
    kind = dtype(leaf)
    return bool(jnp.issubdtype(kind, jnp.floating)) and jnp.finfo(kind).bits >= 16


def is_float0(leaf: Any) -> bool:
    """Whether it is the gradient that `jax.grad` with `allow_int` gives of an integer or bool."""
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def check(tree: Tree, whose: str = "params") -> None:
    """Refuses leaves that are neither trained nor integers or booleans, which stay as they are.

    Raises:
      ValueError: there is one, e.g. a complex one; the message has its path.
    """
    for path, leaf in _by_path(tree).items():
        if not (_is_known(leaf) and (is_trained(leaf) or _stays(leaf))):
            raise ValueError(
                f"The leaf {_name(path)} of the {whose} is {_kind(leaf)}: a learned optimizer "
                f"trains {_TRAINED} and leaves integers and booleans as they are. {_advice(leaf)}"
            )


def check_all_trained(params: Tree, task: str) -> None:
    """Refuses leaves that are not trained, integers and booleans, too.

    Raises:
      ValueError: there is one; the message has its path and the task's name.
    """
    for path, leaf in _by_path(params).items():
        if not is_trained(leaf):
            raise ValueError(
                f"{task}: the leaf {_name(path)} of the params is {_kind(leaf)}; outer training "
                f"takes {_TRAINED}. Keep what is not trained in the model state (init_with_state)."
            )


def check_gradients(grads: Tree, params: Tree) -> None:
    """Refuses gradients that are not those of the params.

    Raises:
      ValueError: a leaf is missing on one side, has another shape, or is trained and its gradient
        is no float; the message has its path.
    """
    _check_gradients(_by_path(grads), _by_path(params))


def check_state(state: Tree, wanted: Tree) -> None:
    """Refuses the state of an optimizer of other params.

    Args:
      state: given.
      wanted: shaped as it has to be.

    Raises:
      ValueError: a leaf is missing on one side, or has another shape; the message has its path.
    """
    found, needed = _by_path(state), _by_path(wanted)
    for path in [*needed, *found]:
        one, other = found.get(path), needed.get(path)
        if one is None or other is None or np.shape(one) != np.shape(other):
            raise ValueError(
                f"The state's leaf {_name(path)} is {_kind(one)}, with these params it is "
                f"{_kind(other)}: make a new one, by init with these params."
            )


def aligned(params: Tree, grads: Tree) -> Tree:
    """The params in the structure of their gradients.

    None among the gradients stands for whatever the params have there (Equinox).

    Raises:
      ValueError: see `check_gradients`.
    """
    nothing = [path for path, leaf in _with_none(grads) if leaf is None]
    at = {
        path: leaf
        for path, leaf in _by_path(params).items()
        if not any(path[: len(one)] == one for one in nothing)
    }
    _check_gradients(_by_path(grads), at)
    return jax.tree_util.tree_map_with_path(lambda path, _: at[path], grads)


def paths(tree: Tree) -> list[str]:
    """What messages call the leaves."""
    return [_name(path) for path in _by_path(tree)]


def trained_gradients(grads: Tree, params: Tree) -> list[Any]:
    """The gradients of the leaves that are trained, in the order of the params."""
    found = _by_path(grads)
    return [found[path] for path, leaf in _by_path(params).items() if is_trained(leaf)]


def without_float0(grads: Tree, params: Tree = None) -> Tree:
    """Zeros in place of float0, in the param's dtype; without params bool, which adds to any."""
    at = {} if params is None else _by_path(params)

    def leaf(path: Any, grad: Any) -> Any:
        return jnp.zeros(np.shape(grad), dtype(at.get(path, False))) if is_float0(grad) else grad

    return jax.tree_util.tree_map_with_path(leaf, grads)


def trained(tree: Tree, params: Tree) -> Tree:
    """The tree, shaped like the params, with None in place of leaves that are not trained."""
    return jax.tree.map(lambda leaf, param: leaf if is_trained(param) else None, tree, params)


def with_zeros(tree: Tree, like: Tree) -> Tree:
    """The tree with zeros in place of None, where another has leaves; see `trained`."""

    def leaf(one: Any, other: Any) -> Any:
        return one if one is not None or other is None else jnp.zeros_like(other)

    return jax.tree.map(leaf, tree, like, is_leaf=lambda one: one is None)


def sizes(params: Tree) -> list[int]:
    """Coordinates of each leaf that is trained, in order."""
    return [int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(params) if is_trained(leaf)]


def size(params: Tree) -> int:
    """How many coordinates are trained."""
    return sum(sizes(params))


def common_dtype(params: Tree) -> Any:
    """That of `flatten`: float32, or float64 where a trained leaf is."""
    trained = [dtype(leaf) for leaf in jax.tree.leaves(params) if is_trained(leaf)]
    return jnp.result_type(jnp.float32, *trained)


def flatten(tree: Tree) -> Float[Array, n]:
    """All trained leaves in one vector of their common dtype."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_trained(leaf)]
    wide = common_dtype(tree)
    if not leaves:
        return jnp.zeros((0,), wide)
    return jnp.concatenate([leaf.reshape(-1).astype(wide) for leaf in leaves])


def unflatten(flat: Float[Array, n], leaves: Sequence[Any]) -> list[jax.Array | None]:
    """The inverse of `flatten`: each leaf's part in its shape; None for those not trained."""
    parts: list[jax.Array | None] = []
    offset = 0
    for leaf in leaves:
        if not is_trained(leaf):
            parts.append(None)
            continue
        count = jnp.size(leaf)
        parts.append(flat[offset : offset + count].reshape(jnp.shape(leaf)))
        offset += count
    return parts


def drawn(arrays: Tree, num_coordinates: int, fraction: float, key: jax.Array) -> Tree:
    """A share of the coordinates, drawn with replacement; all of them where it is 1.

    Args:
      arrays: each [..., n].
      num_coordinates: n.
      fraction: the share, in (0, 1].
      key: of the draw.
    """
    if fraction == 1:
        return arrays
    count = max(1, round(fraction * num_coordinates))
    index = jax.random.randint(key, (count,), 0, num_coordinates)
    return jax.tree.map(lambda leaf: leaf[..., index], arrays)


class SideBySide:
    """Tensors of given shapes whose coordinates are laid side by side on the last axis."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self._shapes = shapes
        self._ends = list(itertools.accumulate(map(math.prod, shapes)))

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Arrays `[..., *shape]`, or broadcastable to that, as one, [..., n]."""
        flat = []
        for part, shape in zip(parts, self._shapes, strict=True):
            batch = part.shape[: max(0, part.ndim - len(shape))]
            flat.append(jnp.broadcast_to(part, (*batch, *shape)).reshape(*batch, math.prod(shape)))
        return jnp.concatenate(flat, axis=-1)

    def split(self, joined: jax.Array) -> list[jax.Array]:
        """The inverse of `join`."""
        parts = jnp.split(joined, self._ends[:-1], axis=-1)
        batch = joined.shape[:-1]
        return [x.reshape(*batch, *shape) for x, shape in zip(parts, self._shapes, strict=True)]


def added_to(leaf: Any, update: jax.Array) -> jax.Array:
    """leaf + update in the leaf's dtype; added in the update's, which is no narrower.

    So small updates are rounded once.
    """
    old = jnp.asarray(leaf)
    return (old.astype(update.dtype) + update).astype(old.dtype)


def add_flat(params: Tree, updates: Float[Array, n]) -> Tree:
    """params + updates, each leaf in its own dtype; leaves that are not trained are kept."""
    leaves, treedef = jax.tree.flatten(params)
    added = []
    for leaf, update in zip(leaves, unflatten(updates, leaves), strict=True):
        if update is None:
            added.append(leaf)
            continue
        added.append(added_to(leaf, update))
    return jax.tree.unflatten(treedef, added)


def replace_flat(params: Tree, flat: Float[Array, n]) -> Tree:
    """The inverse of `flatten`, each leaf in its own dtype; those that are not trained are kept."""
    leaves, treedef = jax.tree.flatten(params)
    parts = zip(leaves, unflatten(flat, leaves), strict=True)
    new = [leaf if part is None else part.astype(dtype(leaf)) for leaf, part in parts]
    return jax.tree.unflatten(treedef, new)


def _check_gradients(found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    for path in [*wanted, *found]:
        grad, param = found.get(path), wanted.get(path)
        if grad is None or param is None:
            raise ValueError(
                f"The leaf {_name(path)} is {_kind(grad)} in the gradients and {_kind(param)} in "
                "the params: give update the gradients of the params that init had."
            )
        wrong = is_trained(param) and not (_is_known(grad) and is_trained(grad))
        if wrong or np.shape(grad) != np.shape(param):
            raise ValueError(
                f"The leaf {_name(path)} is {_kind(grad)} in the gradients and {_kind(param)} in "
                f"the params: it must have one shape, and a float's gradient must be {_TRAINED}."
            )


def _stays(leaf: Any) -> bool:
    kind = dtype(leaf)
    return is_float0(leaf) or any(jnp.issubdtype(kind, of) for of in (jnp.integer, jnp.bool_))


def _is_known(leaf: Any) -> bool:
    """Whether it is anything that JAX computes with."""
    try:
        dtype(leaf)
    except TypeError:
        return False
    return True


def _kind(leaf: Any) -> str:
    """Such as "float32[2, 3]"; None stands for no leaf."""
    if leaf is None:
        return "missing"
    if not _is_known(leaf):
        return f"a {type(leaf).__name__}"
    kind = "float0" if is_float0(leaf) else str(dtype(leaf))
    return f"{kind}[{', '.join(map(str, np.shape(leaf)))}]"


def _advice(leaf: Any) -> str:
    if _is_known(leaf) and jnp.issubdtype(dtype(leaf), jnp.complexfloating):
        return (
            "Give it real and imaginary parts, in optax by "
            "optax.contrib.split_real_and_imaginary(...)."
        )
    return "Convert it, or keep it out of the params (optax.masked, equinox.filter)."


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "[] (the only one)"


def _by_path(tree: Tree) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _with_none(tree: Tree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)
