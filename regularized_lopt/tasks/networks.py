"""The optimizees' networks, in Haiku."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Network = Callable[[Float[Array, "batch h w c"], bool], Float[Array, "batch classes"]]
"""(images, whether the network is being trained) -> logits, inside Haiku's `transform`."""


def mlp(
    hidden_sizes: Sequence[int], activation: Callable[[jax.Array], jax.Array], num_classes: int = 10
) -> Network:
    """A multilayer perceptron on flattened images."""

    def network(images: jax.Array, is_training: bool) -> jax.Array:
        del is_training
        return hk.nets.MLP([*hidden_sizes, num_classes], activation=activation)(
            hk.Flatten()(images)
        )

    return network


def layer_norm_mlp(
    hidden_sizes: Sequence[int], activation: Callable[[jax.Array], jax.Array], num_classes: int = 10
) -> Network:
    """An MLP whose hidden units are normalized before the activation, each example's alone."""

    def network(images: jax.Array, is_training: bool) -> jax.Array:
        del is_training
        x = hk.Flatten()(images)
        for size in hidden_sizes:
            norm = hk.LayerNorm(-1, create_scale=True, create_offset=True)
            x = activation(norm(hk.Linear(size)(x)))
        return hk.Linear(num_classes)(x)

    return network


def normalized_mlp(
    hidden_sizes: Sequence[int], activation: Callable[[jax.Array], jax.Array], num_classes: int = 10
) -> Network:
    """The same with BatchNorm before each activation."""

    def network(images: jax.Array, is_training: bool) -> jax.Array:
        x = hk.Flatten()(images)
        for size in hidden_sizes:
            x = activation(BatchNorm(axis=-1)(hk.Linear(size, with_bias=False)(x), is_training))
        return hk.Linear(num_classes)(x)

    return network


class BatchNorm(hk.Module):
    """BatchNorm (Ioffe & Szegedy 2015), with PyTorch's running statistics, in Haiku's state.

    r <- decay r + (1 - decay) b, of the batch's mean from 0 and of its variance, n / (n - 1) times,
    from 1. Haiku's own variance starts from 0: a network that has taken no step, as is evaluated at
    the beginning of each curve, would multiply by 316 in each layer.
    """

    def __init__(
        self,
        axis: int,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        name: str | None = None,
    ):
        """Initializer.

        Args:
          axis: of the channels; the statistics are taken over the others.
          decay: of the running statistics, in [0, 1).
          epsilon: added to the variance.
          name: of the module.
        """
        super().__init__(name=name or "batch_norm")
        self._axis = axis
        self._decay = decay
        self._epsilon = epsilon

    def __call__(self, x: jax.Array, is_training: bool, of: jax.Array | None = None) -> jax.Array:
        """x with mean offset and deviation scale, in training those of the batch, else running.

        Args:
          x: to be normalized.
          is_training: whether by the batch's statistics, which then move the running ones.
          of: the batch, with as many axes; None: x.
        """
        shape = [x.shape[self._axis]]
        scale = hk.get_parameter("scale", shape, x.dtype, jnp.ones)
        offset = hk.get_parameter("offset", shape, x.dtype, jnp.zeros)
        mean = hk.get_state("mean", shape, x.dtype, jnp.zeros)
        variance = hk.get_state("variance", shape, x.dtype, jnp.ones)
        if is_training:
            batch = x if of is None else of
            count = batch.size // mean.size
            running = {"mean": mean, "variance": variance}
            others = [axis for axis in range(x.ndim) if axis != self._axis % x.ndim]
            mean, variance = jnp.mean(batch, others), jnp.var(batch, others)
            unbiased = {"mean": mean, "variance": variance * (count / max(1, count - 1))}
            for key, old in running.items():
                new = jax.lax.stop_gradient(unbiased[key])
                hk.set_state(key, self._decay * old + (1 - self._decay) * new)
        factor = scale * jax.lax.rsqrt(variance + self._epsilon)
        along = [-1 if axis == self._axis % x.ndim else 1 for axis in range(x.ndim)]
        mean, factor, offset = (of.reshape(along) for of in (mean, factor, offset))
        return (x - mean) * factor + offset


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
        with_bias: bool = True,
        name: str | None = None,
    ):
        """Initializer.

        Args:
          channels: of the output.
          kernel_size: height and width of the kernel.
          padding: "VALID" or "SAME".
          stride: pixels from one place of the kernel to the next.
          with_bias: whether a param of each channel is added.
          name: of the module.
        """
        super().__init__(name=name or "conv2_d")
        self._channels = channels
        self._size = kernel_size
        self._padding = padding
        self._stride = stride
        self._with_bias = with_bias

    def __call__(self, x: Float[Array, "c h w batch"]) -> Float[Array, "channels h2 w2 batch"]:
        """Convolves."""
        size, stride, in_channels = self._size, self._stride, x.shape[0]
        shape = (size, size, in_channels, self._channels)
        deviation = 1 / math.sqrt(size * size * in_channels)
        w = hk.get_parameter("w", shape, x.dtype, hk.initializers.TruncatedNormal(deviation))
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
        out = out.reshape(self._channels, height, width, -1)
        if not self._with_bias:
            return out
        b = hk.get_parameter("b", (self._channels,), x.dtype, jnp.zeros)
        return out + b[:, None, None, None]


def max_pool(x: Float[Array, "c h w batch"], size: int = 2) -> Float[Array, "c h2 w2 batch"]:
    """The maximum over squares of `size` pixels; rows and columns left over are dropped."""
    return _squares(x, size).max(axis=(2, 4))


def avg_pool(x: Float[Array, "c h w batch"], size: int = 2) -> Float[Array, "c h2 w2 batch"]:
    """The mean over squares of `size` pixels; rows and columns left over are dropped."""
    return _squares(x, size).mean(axis=(2, 4))


def _squares(x: jax.Array, size: int) -> jax.Array:
    channels, height, width, batch = x.shape
    height, width = height // size, width // size
    x = x[:, : height * size, : width * size]
    return x.reshape(channels, height, size, width, size, batch)


class Conv(NamedTuple):
    """A layer of a CNN.

    Attributes:
      channels: of the output.
      kernel_size: height and width of the kernel.
      stride: in both directions.
      pool: of 2x2, "max" or "avg", or "" for none.
    """

    channels: int
    kernel_size: int
    stride: int = 1
    pool: str = ""


def cnn(
    layers: Sequence[Conv],
    padding: str,
    hidden_sizes: Sequence[int] = (),
    num_classes: int = 10,
    dropout_rate: float = 0.0,
) -> Network:
    """Convolutions with ReLU, some followed by a pool of 2x2, then an MLP with ReLU.

    Args:
      layers: the convolutions.
      padding: of all convolutions, "VALID", or "SAME" for images that are too small for it.
      hidden_sizes: of the MLP.
      num_classes: size of the output.
      dropout_rate: the probability with which an input of the last layer is dropped in training.
    """

    def network(images: jax.Array, is_training: bool) -> jax.Array:
        x = jnp.transpose(images, (3, 1, 2, 0))
        for layer in layers:
            x = Conv2D(layer.channels, layer.kernel_size, padding, layer.stride)(x)
            # Pooled first, a quarter is left for the ReLU; with the maximum the two commute.
            x = jax.nn.relu(max_pool(x) if layer.pool == "max" else x)
            x = avg_pool(x) if layer.pool == "avg" else x
        x = jnp.transpose(x, (3, 1, 2, 0)).reshape(images.shape[0], -1)
        for size in hidden_sizes:
            x = jax.nn.relu(hk.Linear(size)(x))
        if is_training and dropout_rate:
            x = hk.dropout(hk.next_rng_key(), dropout_rate, x)
        return hk.Linear(num_classes)(x)

    return network


def strided_cnn(channels: Sequence[int], num_classes: int = 10) -> Network:
    """Convolutions of 3x3 with ReLU, the first of stride 2, then a mean over pixels, then dense.

    As upstream's `Conv_Cifar10_32x64x64` is made.

    Args:
      channels: of each convolution.
      num_classes: size of the output.
    """

    def network(images: jax.Array, is_training: bool) -> jax.Array:
        del is_training
        x = jnp.transpose(images, (3, 1, 2, 0))
        for index, count in enumerate(channels):
            x = jax.nn.relu(Conv2D(count, 3, "SAME", stride=1 if index else 2)(x))
        return hk.Linear(num_classes)(jnp.mean(x, axis=(1, 2)).T)

    return network


def conv_16x32(padding: str) -> Network:
    """The paper's CNN: conv 16 of 3x3, ReLU, max-pool 2x2, conv 32 of 5x5, ReLU, dense.

    Without padding 28 pixels become 26, 13, 9, and 32 become 30, 15, 11.
    """
    return cnn([Conv(16, 3, pool="max"), Conv(32, 5)], padding)


def conv_32x32x32(padding: str) -> Network:
    """Three convolutions of 32 channels, 3x3, max-pools after the first two, dense."""
    return cnn([Conv(32, 3, pool="max"), Conv(32, 3, pool="max"), Conv(32, 3)], padding)


def twice_strided_conv_32x32x32(padding: str, num_classes: int = 10) -> Network:
    """The smoothing paper's CNN: three convolutions of 32 channels, 3x3, the last with a mean-pool.

    The first two have stride 2: without padding 32 pixels become 15, 7, 5, 2, and 28 become 13, 6,
    4, 2; 128 features in both cases. The layers are those of the published code.
    """
    layers = [Conv(32, 3, stride=2), Conv(32, 3, stride=2), Conv(32, 3, pool="avg")]
    return cnn(layers, padding, num_classes=num_classes)


def lenet(padding: str) -> Network:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pools: 6 and 16 of 5x5, dense 120, 84."""
    return cnn([Conv(6, 5, pool="max"), Conv(16, 5, pool="max")], padding, [120, 84])


def lenet_10x20x50(padding: str, dropout_rate: float = 0.0) -> Network:
    """The smoothing paper's LeNet: 10 and 20 of 5x5, ReLU and max-pools, dense 50.

    In the published code half of the 50 units are dropped in training, which is `dropout_rate`.
    """
    layers = [Conv(10, 5, pool="max"), Conv(20, 5, pool="max")]
    return cnn(layers, padding, [50], dropout_rate=dropout_rate)
