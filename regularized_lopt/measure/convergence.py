"""The point of convergence (PoC) of a training run, found online, inside a jitted loop."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

WINDOW = 20
PATIENCE = 100


@flax.struct.dataclass
class Convergence:
    """What is known of a run's convergence after some steps.

    Attributes:
      recent: the last `WINDOW` training losses, a ring buffer.
      best_mean: lowest trailing mean so far (until convergence is declared).
      best_step: step at which it was reached.
      declared: convergence has been declared: the trailing mean is finite and has not improved for
        `PATIENCE` steps.
      step: step of that declaration (while there is none: the last step seen).
      params: the params at `step`: the PoC.
    """

    recent: Float[Array, window]
    best_mean: Float[Array, ""]
    best_step: Int[Array, ""]
    declared: Bool[Array, ""]
    step: Int[Array, ""]
    params: Any

    @property
    def trailing_mean(self) -> Float[Array, ""]:
        """Of the training loss; infinite until the window is full."""
        return jnp.mean(self.recent)


def start(params: Any) -> Convergence:
    """Before the first step."""
    return Convergence(
        recent=jnp.full((WINDOW,), jnp.inf),
        best_mean=jnp.asarray(jnp.inf, jnp.float32),
        best_step=jnp.asarray(0, jnp.int32),
        declared=jnp.asarray(False),
        step=jnp.asarray(0, jnp.int32),
        params=params,
    )


def update(state: Convergence, step: jax.Array, loss: jax.Array, params: Any) -> Convergence:
    """Takes in one training step.

    Args:
      state: from the previous step.
      step: number of the step, from 0.
      loss: training loss of this step.
      params: after this step.

    Returns:
      The next state. While convergence is not declared, its params are the current ones, so that a
      run that never converges has its completion as PoC.
    """
    recent = state.recent.at[step % WINDOW].set(loss)
    mean = jnp.mean(recent)
    was_declared = state.declared
    better = (mean < state.best_mean) & ~was_declared
    best_step = jnp.where(better, step, state.best_step)
    return Convergence(
        recent=recent,
        best_mean=jnp.where(better, mean, state.best_mean),
        best_step=best_step,
        declared=was_declared | (jnp.isfinite(mean) & (step - best_step >= PATIENCE)),
        step=jnp.where(was_declared, state.step, step),
        params=jax.tree.map(
            lambda old, new: jnp.where(was_declared, old, new), state.params, params
        ),
    )
