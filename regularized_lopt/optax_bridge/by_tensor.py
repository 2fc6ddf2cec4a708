"""`StarMLPLOpt` as a gradient transformation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regularized_lopt.learned_optimizers import StarMLPLOpt, leaves


class ByTensorState(NamedTuple):
    """State of `StarMLPLOpt` as a gradient transformation.

    Attributes:
      iteration: updates taken, int32 scalar.
      averages: see `StarMLPOptState`.
    """

    iteration: jax.Array
    averages: tuple[Any, ...]


def by_tensor(learned_opt: StarMLPLOpt, theta: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer that steps tensor by tensor."""

    def init(params: Any) -> ByTensorState:
        averages = tuple(map(learned_opt.initial_averages, jax.tree.leaves(params)))
        return ByTensorState(jnp.zeros((), jnp.int32), averages)

    def update(
        updates: Any, state: ByTensorState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ByTensorState]:
        del extra_args
        if params is None:
            raise ValueError(
                f"{learned_opt.name} reads the params: call update(grads, state, params)."
            )
        leaves.check_state(state, jax.eval_shape(init, params))
        grads, at = ([jnp.asarray(leaf) for leaf in jax.tree.leaves(x)] for x in (updates, params))
        found = learned_opt.update(theta, state.averages, grads, at, state.iteration)
        moved = [part.astype(grad.dtype) for (part, _), grad in zip(found, grads, strict=True)]
        averages = tuple(new for _, new in found)
        state = ByTensorState(optax.safe_increment(state.iteration), averages)
        return jax.tree.unflatten(jax.tree.structure(updates), moved), state

    return optax.GradientTransformationExtraArgs(init, update)
