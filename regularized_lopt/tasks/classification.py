"""Cross-entropy and accuracy that hold at every scale of the logits, diverged networks included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log softmax(logits)[label] in nats, per example; NaN where a logit is not finite.

    Relative to the top logit, log1p(sum of the others' exp) - (label's logit - top). The usual
    logsumexp(logits) - label's logit loses all digits where logits are large: ten logits of 1e8
    give 0 instead of log 10.
    """
    classes = jnp.arange(logits.shape[-1])
    is_top = classes == jnp.argmax(logits, axis=-1, keepdims=True)
    is_label = classes == labels[..., None]
    # The identity holds for any choice of top, so gradients flow through it.
    shifted = logits - _pick(logits, is_top)[..., None]
    others = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(shifted)), axis=-1)
    loss = jnp.log1p(others) - _pick(shifted, is_label)
    # A factor makes the gradient NaN, too: a diverged network is at no minimum.
    return loss * jnp.where(_finite(logits), 1.0, jnp.nan)


def is_correct(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether the label has the largest logit (the first of equals); never if one is not finite."""
    return (jnp.argmax(logits, axis=-1) == labels) & _finite(logits)


def _pick(values: jax.Array, is_chosen: jax.Array) -> jax.Array:
    """By a mask: gathers that are batched over networks are slow on CPU."""
    return jnp.sum(jnp.where(is_chosen, values, 0.0), axis=-1)


def _finite(logits: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(logits), axis=-1)
