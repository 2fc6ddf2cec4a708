"""Points of training that are kept: params, and the model state where a task has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regularized_lopt import tasks


def joined(params: Any, model_state: Any) -> Any:
    """What is kept of a network: its params, or a dict of "params" and "model_state"."""
    return params if model_state is None else {"params": params, "model_state": model_state}


def parted(task: tasks.ResidentTask, point: Any) -> tuple[Any, Any]:
    """(params, model state) of what `joined` made; the latter is None where the task has none."""
    return (point["params"], point["model_state"]) if task.has_model_state else (point, None)


def loss_around(
    task: tasks.ResidentTask, model_state: Any, key: jax.Array, batch: Any
) -> Callable[[Any], jax.Array]:
    """A fixed function of the params.

    A stochastic loss draws the same wherever it is taken. Statistics that a model state has are
    frozen: the network around a point is the trained one with other params.
    """
    if model_state is None:
        return lambda params: task.loss(params, key, batch)
    return lambda params: jnp.mean(task.judged(params, model_state, batch)["loss"])
