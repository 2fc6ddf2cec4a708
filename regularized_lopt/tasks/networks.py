"""The optimizees' networks, in Haiku."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Network = Callable[[Float[Array, "batch h w c"]], Float[Array, "batch classes"]]


def mlp(
    hidden_sizes: Sequence[int], activation: Callable[[jax.Array], jax.Array], num_classes: int = 10
) -> Network:
    """A multilayer perceptron on flattened images."""

    def network(images: jax.Array) -> jax.Array:
        return hk.nets.MLP([*hidden_sizes, num_classes], activation=activation)(
            hk.Flatten()(images)
        )

    return network


class Conv2D(hk.Module):
    """`hk.Conv2D` at stride 1, as one matmul on patches: the same params, the same function.

    XLA's convolutions are slow on CPU inside a loop, and under vmap over the kernels anywhere: at
    28x28 pixels a training step takes ten times as long with them. The batch is the last axis, so
    that patches are copied in long contiguous rows.
    """

    def __init__(self, channels: int, kernel_size: int, padding: str, name: str | None = None):
        """Initializer.

        Args:
          channels: of the output.
          kernel_size: height and width of the kernel.
          padding: "VALID" or "SAME".
          name: of the module.
        """
        super().__init__(name=name or "conv2_d")
        self._channels = channels
        self._size = kernel_size
        self._padding = padding

    def __call__(self, x: Float[Array, "c h w batch"]) -> Float[Array, "channels h2 w2 batch"]:
        """Convolves."""
        size, in_channels = self._size, x.shape[0]
        shape = (size, size, in_channels, self._channels)
        deviation = 1 / math.sqrt(size * size * in_channels)
        w = hk.get_parameter("w", shape, x.dtype, hk.initializers.TruncatedNormal(deviation))
        b = hk.get_parameter("b", (self._channels,), x.dtype, jnp.zeros)
        if self._padding == "SAME":
            margin = ((size - 1) // 2, size // 2)
            x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))  # Channels and batch stay.
        height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
        patches = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
        columns = jnp.concatenate(patches).reshape(size * size * in_channels, -1)
        out = w.reshape(-1, self._channels).T @ columns
        return out.reshape(self._channels, height, width, -1) + b[:, None, None, None]


def max_pool(x: Float[Array, "c h w batch"], size: int = 2) -> Float[Array, "c h2 w2 batch"]:
    """The maximum over squares of `size` pixels; rows and columns left over are dropped."""
    channels, height, width, batch = x.shape
    height, width = height // size, width // size
    x = x[:, : height * size, : width * size]
    return x.reshape(channels, height, size, width, size, batch).max(axis=(2, 4))


def conv_16x32(padding: str, num_classes: int = 10) -> Network:
    """The paper's CNN: conv 16 of 3x3, ReLU, max-pool 2x2, conv 32 of 5x5, ReLU, dense.

    Args:
      padding: of both convolutions: "VALID" (28 -> 26 -> 13 -> 9 and 32 -> 30 -> 15 -> 11), or
        "SAME" for images that are too small for it.
      num_classes: size of the output.
    """

    def network(images: jax.Array) -> jax.Array:
        x = jnp.transpose(images, (3, 1, 2, 0))
        # Pooled first, a quarter is left for the ReLU; the two commute.
        x = jax.nn.relu(max_pool(Conv2D(16, 3, padding)(x)))
        x = jax.nn.relu(Conv2D(32, 5, padding)(x))
        x = jnp.transpose(x, (3, 1, 2, 0))
        return hk.Linear(num_classes)(jnp.reshape(x, (x.shape[0], -1)))

    return network
