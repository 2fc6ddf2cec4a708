"""Slices through the loss around a minimum (Li et al. 2018, arXiv 1712.09913)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import tasks
from regularized_lopt.measure import ascent, flatness, points


@dataclasses.dataclass(frozen=True)
class LossSlices:
    """The held-out loss on a line and on a plane.

    Attributes:
      at: [n], positions along a direction; 1 is as long as the filters themselves.
      line: [n], along the first direction.
      plane: [n, n], along both.
    """

    at: np.ndarray
    line: np.ndarray
    plane: np.ndarray


def loss_slices(
    task: tasks.ResidentTask,
    point: Any,
    seed: int = 0,
    reach: float = 1.0,
    num_points: int = 25,
    num_examples: int = 512,
) -> LossSlices:
    """The loss around the params of a point, in two random directions normalized by filter.

    Each direction is drawn from a normal distribution and scaled so that each of its filters has
    the norm of that filter of the params, so that slices of networks with differently scaled
    weights compare.

    Args:
      task: in phase "meta_test".
      point: of one run: params, of a task with a model state with it, see `points`.
      seed: of the directions; the same for networks of the same shape.
      reach: positions go from -reach to reach, > 0.
      num_points: odd, so that the centre is one of them.
      num_examples: size of the fixed subset of the test set.
    """
    examples = flatness.held_out(task, num_examples)
    at = np.linspace(-reach, reach, num_points)
    key = jax.random.PRNGKey(seed)
    params, model_state = points.parted(task, point)
    plane = np.asarray(_plane(task, params, model_state, key, jnp.asarray(at), examples))
    return LossSlices(at, plane[:, num_points // 2], plane)


@functools.partial(jax.jit, static_argnums=0)
def _plane(
    task: tasks.ResidentTask,
    params: Any,
    model_state: Any,
    key: jax.Array,
    at: jax.Array,
    examples: Any,
) -> jax.Array:
    batch = task.datasets.normalize(examples)
    first, second = (filter_direction(params, k) for k in jax.random.split(key))
    loss_fn = points.loss_around(task, model_state, jax.random.fold_in(key, 2), batch)

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda p, u, v: p + a * u + b * v, params, first, second)
        return loss_fn(moved)

    return jax.lax.map(lambda a: jax.lax.map(lambda b: loss(a, b), at), at)


def filter_direction(params: Any, key: jax.Array) -> Any:
    """A random direction whose filters have the norms of those of `params`."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
    random = jax.tree.map(lambda k, x: jax.random.normal(k, x.shape, x.dtype), keys, params)
    own, wanted = ascent.filter_radii(random, 1.0), ascent.filter_radii(params, 1.0)
    return jax.tree.map(lambda r, o, w: r * w / jnp.where(o > 0, o, 1), random, own, wanted)
