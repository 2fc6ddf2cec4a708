"""An LSTM of n coordinates side by side: what learned optimizers have as their network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Theta = dict[str, dict[str, jax.Array]]
Layers = tuple[tuple[jax.Array, jax.Array], ...]
"""(h, c) by layer, each [hidden, n]."""


def init(
    rng: jax.Array, num_inputs: int, hidden_size: int, num_layers: int, num_outputs: int
) -> Theta:
    """Draws weights, float32.

    LSTM weights are [4 * hidden_size, inputs + hidden_size], gates in order i, g, f, o; the linear
    layer's [outputs, hidden_size].

    Weights are truncated normal with deviation 1/sqrt(fan-in), biases zero but 1 for the forget
    gate (as in Sonnet and Haiku).
    """
    sizes = [num_inputs] + [hidden_size] * num_layers
    keys = jax.random.split(rng, num_layers + 1)
    forget_bias = jnp.zeros((4, hidden_size)).at[2].set(1.0).reshape(-1)
    theta: Theta = {}
    for layer in range(num_layers):
        shape = (4 * hidden_size, sizes[layer] + hidden_size)
        theta[f"lstm_{layer}"] = {"w": _truncated_normal(keys[layer], shape), "b": forget_bias}
    theta["linear"] = {
        "w": _truncated_normal(keys[-1], (num_outputs, hidden_size)),
        "b": jnp.zeros((num_outputs,)),
    }
    return theta


def initial(num_layers: int, hidden_size: int, num_coordinates: int, dtype: Any) -> Layers:
    """Zeros, each an array of its own."""
    shape = (hidden_size, num_coordinates)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(num_layers))


def apply(
    theta: Theta, layers: Sequence[tuple[jax.Array, jax.Array]], x: Float[Array, "inputs n"]
) -> tuple[Float[Array, "outputs n"], Layers]:
    """One step: (the linear layer's outputs, next hidden states)."""
    advanced = []
    for index, (h, c) in enumerate(layers):
        x, next_c = _layer(theta[f"lstm_{index}"], x, h, c)
        advanced.append((x, next_c))
    linear = jax.tree.map(lambda t: t.astype(x.dtype), theta["linear"])
    return linear["w"] @ x + linear["b"][:, None], tuple(advanced)


def _layer(
    weights: dict[str, jax.Array],
    x: Float[Array, "features n"],
    h: Float[Array, "hidden n"],
    c: Float[Array, "hidden n"],
) -> tuple[Float[Array, "hidden n"], Float[Array, "hidden n"]]:
    """One LSTM layer with forget gate on n coordinates: (next h, next c)."""
    w, b = weights["w"].astype(x.dtype), weights["b"].astype(x.dtype)
    gates = w @ jnp.concatenate([x, h]) + b[:, None]
    i, g, f, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _truncated_normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / jnp.sqrt(shape[1])
