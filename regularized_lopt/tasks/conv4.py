"""The learner of few-shot classification: convolutions with batch normalization, in Haiku."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.tasks.networks import Conv2D


class BatchNorm(hk.Module):
    """Batch normalization (Ioffe & Szegedy 2015), by statistics that the caller names.

    Running statistics follow PyTorch's convention, m <- (1 - momentum) m + momentum batch, from 0
    and 1, the variance without bias.
    """

    def __init__(self, momentum: float, epsilon: float, name: str | None = None):
        """Initializer.

        Args:
          momentum: of the running statistics, in [0, 1].
          epsilon: added to variances, > 0.
          name: of the module.
        """
        super().__init__(name=name)
        self._momentum = momentum
        self._epsilon = epsilon

    def __call__(
        self, x: Float[Array, "c h w batch"], count: int | None
    ) -> Float[Array, "c h w batch"]:
        """Normalizes by the statistics of the first `count` images; None: by the running ones."""
        size = x.shape[:1]
        running_mean = hk.get_state("mean", size, x.dtype, jnp.zeros)
        running_variance = hk.get_state("variance", size, x.dtype, jnp.ones)
        if count is None:
            mean, variance = running_mean, running_variance
        else:
            of = x[..., :count].reshape(*size, -1)
            mean, variance = of.mean(axis=1), of.var(axis=1)
            unbiased = variance * of.shape[1] / max(1, of.shape[1] - 1)
            for name, old, new in (
                ("mean", running_mean, mean),
                ("variance", running_variance, unbiased),
            ):
                moved = (1 - self._momentum) * old + self._momentum * new
                hk.set_state(name, jax.lax.stop_gradient(moved))
        scale = hk.get_parameter("scale", size, x.dtype, jnp.ones)
        offset = hk.get_parameter("offset", size, x.dtype, jnp.zeros)
        scale = scale * jax.lax.rsqrt(variance + self._epsilon)
        return x * scale[:, None, None, None] + (offset - mean * scale)[:, None, None, None]


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
      momentum, epsilon: of `BatchNorm`.
    """
    x = jnp.transpose(images, (3, 1, 2, 0))
    for _ in range(blocks):
        x = BatchNorm(momentum, epsilon)(Conv2D(channels, 3, "SAME")(x), count)
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
