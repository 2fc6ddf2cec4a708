"""Problems in other sizes: what trajectories are rescaled by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regularized_lopt import upstream


class Scales(NamedTuple):
    """By what a trajectory's problem is rescaled, so that optimizers meet other sizes.

    Attributes:
      params: of each tensor s, a scalar: the task's own params are s times the optimizer's; None:
        no such rescaling.
      inputs: what images are multiplied by, a scalar, or None.
    """

    params: Any
    inputs: Any


def draw(params: Any, key: jax.Array, param_bound: float, input_bound: float) -> Scales:
    """Scales between exp(-bound) and exp(bound), uniform in the logarithm; none where it is 0."""
    params_key, inputs_key = jax.random.split(key)

    def factor(key: jax.Array, bound: float) -> jax.Array:
        return jnp.exp(jax.random.uniform(key, (), minval=-bound, maxval=bound))

    by_tensor, inputs = None, None
    if param_bound:
        tensors, treedef = jax.tree.flatten(params)
        keys = jax.random.split(params_key, len(tensors))
        factors = [factor(key, param_bound) for key in keys]
        by_tensor = jax.tree.unflatten(treedef, factors)
    if input_bound:
        inputs = factor(inputs_key, input_bound)
    return Scales(by_tensor, inputs)


def check_images(task_family: upstream.TaskFamily) -> None:
    """Refuses a task whose batches are not known to have images."""
    batch = getattr(task_family.datasets, "abstract_batch", None)
    image = batch.get("image") if isinstance(batch, Mapping) else None
    if image is None or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"RegularizedTruncatedStep.input_scale_bound: batches of {task_family.name} have no "
            'float "image" (datasets.abstract_batch), which is what it rescales. Use 0.'
        )


def own_params(params: Any, scales: Scales | None) -> Any:
    """The task's own params, given those that the optimizer moves."""
    if scales is None or scales.params is None:
        return params
    return jax.tree.map(lambda leaf, s: leaf * s.astype(leaf.dtype), params, scales.params)


def divided(params: Any, by: Any) -> Any:
    """The inverse of `own_params`."""
    if by is None:
        return params
    return jax.tree.map(lambda leaf, s: leaf / s.astype(leaf.dtype), params, by)


def with_scaled_images(batch: Any, scales: Scales | None) -> Any:
    """A batch as the optimizer's problem has it."""
    if scales is None or scales.inputs is None:
        return batch
    image = batch["image"]
    return {**batch, "image": image * scales.inputs.astype(image.dtype)}
