"""ResNet-18 for small images, in Haiku."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.tasks import networks

_STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))


class Block(hk.Module):
    """Two convolutions of 3x3, added to what they are given (He et al. 2016, arXiv 1512.03385).

    Each is followed by BatchNorm. Where the shape changes, what passes by is convolved with 1x1 and
    normalized, too.
    """

    def __init__(self, channels: int, stride: int = 1, name: str | None = None):
        """Initializer.

        Args:
          channels: of the output.
          stride: of the first convolution, and of what passes by.
          name: of the module.
        """
        super().__init__(name=name or "block")
        self._channels = channels
        self._stride = stride

    def __call__(
        self, x: Float[Array, "c h w batch"], is_training: bool
    ) -> Float[Array, "channels h2 w2 batch"]:
        """The block's output, after the ReLU."""
        passed = x
        if self._stride != 1 or x.shape[0] != self._channels:
            passed = _convolved(x, self._channels, 1, self._stride, is_training)
        x = jax.nn.relu(_convolved(x, self._channels, 3, self._stride, is_training))
        return jax.nn.relu(_convolved(x, self._channels, 3, 1, is_training) + passed)


def resnet18(width: int = 64, num_classes: int = 10) -> networks.Network:
    """ResNet-18 in the form that is usual on images of 32 pixels, with BatchNorm.

    A convolution of 3x3 without a pool; four stages of two blocks, of `width`, 2, 4 and 8 times as
    many channels, the last three at half the size of the one before; a mean over pixels; dense. At
    width 64 and 10 classes there are 11,173,962 params.

    Args:
      width: channels of the first stage.
      num_classes: size of the output.
    """

    def network(images: jax.Array, is_training: bool) -> jax.Array:
        x = jnp.transpose(images, (3, 1, 2, 0))
        x = jax.nn.relu(_convolved(x, width, 3, 1, is_training))
        for factor, stride in _STAGES:
            for first in (stride, 1):
                x = Block(factor * width, first)(x, is_training)
        return hk.Linear(num_classes)(jnp.mean(x, axis=(1, 2)).T)

    return network


def _convolved(
    x: jax.Array, channels: int, kernel_size: int, stride: int, is_training: bool
) -> jax.Array:
    """Convolved without a bias, which BatchNorm would take away, and normalized."""
    x = networks.Conv2D(channels, kernel_size, "SAME", stride, with_bias=False)(x)
    return networks.BatchNorm(axis=0)(x, is_training)
