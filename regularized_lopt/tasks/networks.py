"""The optimizees' networks, in Haiku."""

from __future__ import annotations

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


def conv_16x32(padding: str, num_classes: int = 10) -> Network:
    """The paper's CNN: conv 16 of 3x3, ReLU, max-pool 2x2, conv 32 of 5x5, ReLU, dense.

    Args:
      padding: of both convolutions: "VALID" (28 -> 26 -> 13 -> 9 and 32 -> 30 -> 15 -> 11), or
        "SAME" for images that are too small for it.
      num_classes: size of the output.
    """

    def network(images: jax.Array) -> jax.Array:
        x = jax.nn.relu(hk.Conv2D(16, 3, padding=padding)(images))
        x = hk.max_pool(x, window_shape=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="VALID")
        x = jax.nn.relu(hk.Conv2D(32, 5, padding=padding)(x))
        return hk.Linear(num_classes)(jnp.reshape(x, (x.shape[0], -1)))

    return network
