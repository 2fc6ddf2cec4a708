"""Which weights of a network its data can reach.

A weight whose input is zero on all data changes no loss, and nothing trains it: the first layer of
an MLP on MNIST has them at the pixels that are always black. They count in the norm of the params
and in the size of a filter, and tell nothing about either.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regularized_lopt import tasks
from regularized_lopt.tasks import data

_BATCH = 500
_FOUND: weakref.WeakKeyDictionary[tasks.ImageTask, Any] = weakref.WeakKeyDictionary()


def live_weights(task: tasks.ImageTask) -> Any:
    """Masks of the weights whose input is not zero on all training and test data of the task.

    A weight is live if its derivative of the sum of all logits is not zero at params that are all
    positive. There, images being nonnegative, a derivative is a sum of products of nonnegative
    factors, whatever the network is built of: weighted sums, activations that rise (sigmoid, ReLU),
    pooling. Nothing cancels, no ReLU is shut and, as a weight is one over the number of its inputs,
    no sigmoid saturates: it is zero only where the weight's input is. In other networks a weight
    that is called live is live, and one that is called dead may be live at other params.

    Args:
      task: an image task, whose masks are computed once.

    Returns:
      A tree like its params of boolean NumPy arrays, True where a weight is live.
    """
    if task not in _FOUND:
        _FOUND[task] = _computed(task)
    return _FOUND[task]


def _computed(task: tasks.ImageTask) -> Any:
    params = jax.tree.map(_positive, jax.eval_shape(task.init, jax.random.PRNGKey(0)))
    reach = jax.jit(jax.grad(lambda p, images: jnp.sum(task.logits(p, images))))
    live = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.bool_), params)
    for split in ("train", "test"):
        raw = task.datasets.host_arrays(split)
        count = data.num_examples(raw)
        for begin in range(0, count, _BATCH):
            # The last batch is filled up with the first examples: one shape, one compilation.
            chosen = np.arange(begin, begin + _BATCH) % count
            batch = task.datasets.normalize({name: of[chosen] for name, of in raw.items()})
            grads = reach(params, jnp.asarray(batch["image"]))
            live = jax.tree.map(lambda old, g: old | (np.asarray(g) != 0), live, grads)
            if all(leaf.all() for leaf in jax.tree.leaves(live)):
                return live
    return live


def _positive(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """One over the number of a weight's inputs; a bias is 1."""
    return jnp.full(leaf.shape, 1 / math.prod(leaf.shape[:-1]), leaf.dtype)
