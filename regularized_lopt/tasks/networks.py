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
    """`hk.Conv2D`, as one matmul on patches: the same params, the same function.

    XLA's convolutions are slow on CPU inside a loop, and under vmap over the kernels anywhere: at
    28x28 pixels a training step takes ten times as long with them. The batch is the last axis, so
    that patches are copied in long contiguous rows.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        padding: str,
        stride: int = 1,
        name: str | None = None,
    ):
        """Initializer.

        Args:
          channels: of the output.
          kernel_size: height and width of the kernel.
          padding: "VALID" or "SAME".
          stride: pixels from one place of the kernel to the next.
          name: of the module.
        """
        super().__init__(name=name or "conv2_d")
        self._channels = channels
        self._size = kernel_size
        self._padding = padding
        self._stride = stride

    def __call__(self, x: Float[Array, "c h w batch"]) -> Float[Array, "channels h2 w2 batch"]:
        """Convolves."""
        size, stride, in_channels = self._size, self._stride, x.shape[0]
        shape = (size, size, in_channels, self._channels)
        deviation = 1 / math.sqrt(size * size * in_channels)
        w = hk.get_parameter("w", shape, x.dtype, hk.initializers.TruncatedNormal(deviation))
        b = hk.get_parameter("b", (self._channels,), x.dtype, jnp.zeros)
        if self._padding == "SAME":  # Every stride-th pixel; XLA pads the less at the start.
            short = [max(size - stride + -n % stride, 0) for n in x.shape[1:3]]
            margins = [(one // 2, one - one // 2) for one in short]
            x = jnp.pad(x, ((0, 0), *margins, (0, 0)))  # Channels and batch stay.
        height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
        down, right = stride * (height - 1) + 1, stride * (width - 1) + 1
        patches = [
            x[:, i : i + down : stride, j : j + right : stride]
            for i in range(size)
            for j in range(size)
        ]
        columns = jnp.concatenate(patches).reshape(size * size * in_channels, -1)
        out = w.reshape(-1, self._channels).T @ columns
        return out.reshape(self._channels, height, width, -1) + b[:, None, None, None]


def max_pool(x: Float[Array, "c h w batch"], size: int = 2) -> Float[Array, "c h2 w2 batch"]:
    """The maximum over squares of `size` pixels; rows and columns left over are dropped."""
    channels, height, width, batch = x.shape
    height, width = height // size, width // size
    x = x[:, : height * size, : width * size]
    return x.reshape(channels, height, size, width, size, batch).max(axis=(2, 4))


def cnn(
    layers: Sequence[tuple[int, int, bool]],
    padding: str,
    hidden_sizes: Sequence[int] = (),
    num_classes: int = 10,
) -> Network:
    """Convolutions with ReLU, some followed by a max-pool of 2x2, then an MLP with ReLU.

    Args:
      layers: (channels, kernel size, whether a max-pool follows) of each convolution.
      padding: of all convolutions, "VALID", or "SAME" for images that are too small for it.
      hidden_sizes: of the MLP.
      num_classes: size of the output.
    """

    def network(images: jax.Array) -> jax.Array:
        x = jnp.transpose(images, (3, 1, 2, 0))
        for channels, kernel_size, pooled in layers:
            x = Conv2D(channels, kernel_size, padding)(x)
            # Pooled first, a quarter is left for the ReLU; the two commute.
            x = jax.nn.relu(max_pool(x) if pooled else x)
        x = jnp.transpose(x, (3, 1, 2, 0)).reshape(images.shape[0], -1)
        for size in hidden_sizes:
            x = jax.nn.relu(hk.Linear(size)(x))
        return hk.Linear(num_classes)(x)

    return network


def strided_cnn(channels: Sequence[int], num_classes: int = 10) -> Network:
    """Convolutions of 3x3 with ReLU, the first of stride 2, then a mean over pixels, then dense.

    As upstream's `Conv_Cifar10_32x64x64` is made.

    Args:
      channels: of each convolution.
      num_classes: size of the output.
    """

    def network(images: jax.Array) -> jax.Array:
        x = jnp.transpose(images, (3, 1, 2, 0))
        for index, count in enumerate(channels):
            x = jax.nn.relu(Conv2D(count, 3, "SAME", stride=1 if index else 2)(x))
        return hk.Linear(num_classes)(jnp.mean(x, axis=(1, 2)).T)

    return network


def conv_16x32(padding: str) -> Network:
    """The paper's CNN: conv 16 of 3x3, ReLU, max-pool 2x2, conv 32 of 5x5, ReLU, dense.

    Without padding 28 pixels become 26, 13, 9, and 32 become 30, 15, 11.
    """
    return cnn([(16, 3, True), (32, 5, False)], padding)


def conv_32x32x32(padding: str) -> Network:
    """Three convolutions of 32 channels, 3x3, max-pools after the first two, dense."""
    return cnn([(32, 3, True), (32, 3, True), (32, 3, False)], padding)


def lenet(padding: str) -> Network:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pools: 6 and 16 of 5x5, dense 120, 84."""
    return cnn([(6, 5, True), (16, 5, True)], padding, [120, 84])
