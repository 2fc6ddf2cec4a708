"""The network of `StarMLPLOpt`, on one tensor at a time and on all of them side by side."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt.learned_optimizers import leaves

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


def init(rng: jax.Array, sizes: Sequence[int], head_scale: float) -> dict[str, Any]:
    """Draws weights and biases by layer.

    Args:
      rng: key.
      sizes: of the inputs, without those of the step, of hidden layers and of the heads.
      head_scale: factor on the weights of the last layer.
    """
    sizes = [sizes[0] + len(TIMESCALES), *sizes[1:]]
    network = {}
    for layer, key in enumerate(jax.random.split(rng, len(sizes) - 1)):
        shape = (sizes[layer], sizes[layer + 1])
        weights = jax.random.truncated_normal(key, -2.0, 2.0, shape) / jnp.sqrt(shape[0])
        scale = head_scale if layer == len(sizes) - 2 else 1.0
        network[f"layer_{layer}"] = {"w": scale * weights, "b": jnp.zeros(shape[1])}
    return network


def unit_by_unit(
    network: Any,
    rows: Sequence[jax.Array],
    scales: jax.Array,
    step: jax.Array,
    context: jax.Array,
) -> list[jax.Array]:
    """The heads, from arithmetic on one unit at a time, of which XLA makes a single loop.

    Args:
      network: weights and biases by layer.
      rows: features, each broadcastable to the tensor.
      scales: [features], what they are multiplied with.
      step: steps taken.
      context: [c], features of the whole tensor.
    """
    (weights, bias), *rest = _layers(network, len(rows), step, context)
    units = _layer(weights * scales[:, None], bias, rows)
    for weights, bias in rest:
        units = _layer(weights, bias, [jax.nn.relu(unit) for unit in units])
    return units


def _layer(weights: jax.Array, bias: jax.Array, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    return [
        functools.reduce(
            jnp.add, (w * x for w, x in zip(weights[:, j], inputs, strict=True)), bias[j]
        )
        for j in range(weights.shape[1])
    ]


def as_matrices(
    network: Any,
    rows: Float[Array, "features n"],
    tensors: leaves.SideBySide,
    step: jax.Array,
    context: Float[Array, "c tensors"],
) -> Float[Array, "heads n"]:
    """The heads, from normalized features of vectors side by side and features of each."""
    (weights, biases), *rest = _layers(network, len(rows), step, context)
    by_tensor = jnp.split(biases, biases.shape[1], axis=1)
    units = weights.T @ rows + tensors.join(by_tensor)
    for weights, bias in rest:
        units = weights.T @ jax.nn.relu(units) + bias[:, None]
    return units


def _layers(
    network: Any, num_features: int, step: jax.Array, context: jax.Array
) -> list[tuple[jax.Array, jax.Array]]:
    """(weights, bias) by layer.

    What the step and the context add is the same for all coordinates of a tensor: it is in the
    first bias, [units, *context.shape[1:]].
    """
    layers = [network[f"layer_{i}"] for i in range(len(network))]
    pairs = [(layer["w"], layer["b"]) for layer in layers]
    weights, bias = pairs[0]
    clock = jnp.tanh(step / jnp.asarray(TIMESCALES, weights.dtype) - 1).astype(weights.dtype)
    of_features, of_clock, of_context = jnp.split(
        weights, [num_features, num_features + len(TIMESCALES)]
    )
    bias = bias + clock @ of_clock
    bias = bias.reshape(-1, *[1] * (context.ndim - 1)) + of_context.T @ context
    return [(of_features, bias), *pairs[1:]]
