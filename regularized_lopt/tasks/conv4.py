"""The learner of few-shot classification: convolutions with batch normalization, in Haiku."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.tasks.networks import BatchNorm, Conv2D


def conv4(
    images: Float[Array, "batch h w c"],
    count: int | None,
    num_classes: int,
    channels: int = 32,
    blocks: int = 4,
    momentum: float = 0.95,
    epsilon: float = 1e-3,
) -> Float[Array, "batch classes"]:
    """Blocks of a 3x3 convolution, batch normalization, ReLU and a max-pool of 2x2; then dense.

    Ravi & Larochelle 2017 have four blocks of 32 channels, momentum 0.95 and epsilon 1e-3. Where a
    single row is left, no more is pooled.

    Args:
      images: to be classified.
      count: statistics of the normalization are those of so many images, the first ones; None: the
        running ones.
      num_classes: of the output.
      channels: of each convolution.
      blocks: how many there are.
      momentum: of the running statistics, in PyTorch's sense: the share of the batch's, in (0, 1].
      epsilon: of `BatchNorm`.
    """
    x = jnp.transpose(images, (3, 1, 2, 0))
    for _ in range(blocks):
        x = Conv2D(channels, 3, "SAME")(x)
        x = BatchNorm(0, 1 - momentum, epsilon)(x, count is not None, x[..., :count])
        x = jax.nn.relu(_max_pool(x) if min(x.shape[1:3]) > 1 else x)
    x = jnp.transpose(x, (3, 1, 2, 0)).reshape(images.shape[0], -1)
    return hk.Linear(num_classes)(x)


def _max_pool(x: Float[Array, "c h w batch"]) -> Float[Array, "c h2 w2 batch"]:
    """The maximum over squares of 2 pixels; its gradient goes to the first of equal ones.

    The derivative of `max` compares it with what it was taken over. XLA may compute that anew, by
    instructions that round otherwise: then none is equal, and the derivative 0 / 0. Choices have
    none.
    """
    for axis in (1, 2):
        size = x.shape[axis] // 2 * 2
        one, other = (jax.lax.slice_in_dim(x, at, size, 2, axis) for at in (0, 1))
        x = jnp.where(one >= other, one, other)
    return x
