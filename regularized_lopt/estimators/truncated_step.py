"""The inner problem behind upstream's interface: many tasks side by side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regularized_lopt import upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators.inner_problem import InnerProblem, Theta
from regularized_lopt.estimators.states import UnrollState


@configurable()
class RegularizedTruncatedStep(InnerProblem, upstream.VectorizedTruncatedStep):
    """Inner training of `num_tasks` tasks by a learned optimizer, with a flatness-aware OUTER loss.

    The regularizer given here acts in optimizee space: it replaces the outer loss L(params) by a
    flatness-aware one. The inner loss, its gradients and batches are never touched by it.

    With bounds on scales, trajectories are those of rescaled problems: L(s p; x), where p begins at
    p_0 / s, is the same function at the start, with gradients s times as large and params as much
    smaller. An optimizer that was meta-trained so meets sizes that no task of its own has (Lv,
    Jiang & Li 2017, arXiv 1703.03633, by coordinate; here by tensor). Flatness is that of the
    task's own params, s p. Validations are on problems as they are.

    The methods here are upstream's interface, vectorized over tasks; those of `InnerProblem` serve
    a single task and are vmapped by `RegularizedTruncatedGrad`.
    """

    def outer_init(self, key: jax.Array) -> Theta:
        """Draws theta."""
        return self.learned_opt.init(key)

    def init_step_state(
        self,
        theta: Theta,
        outer_state: Any,
        key: jax.Array,
        theta_is_vector: bool = False,
        num_steps_override: int | None = None,
    ) -> UnrollState:
        """Starts `num_tasks` trajectories; with `theta_is_vector`, each from its own theta.

        With `num_steps_override`, which `FullES` gives, the optimizer is told that length.
        """
        keys = jax.random.split(key, self.num_tasks)

        def init(theta: Theta, key: jax.Array) -> UnrollState:
            return self.init_one(theta, outer_state, key, num_steps_override)

        return jax.vmap(init, in_axes=(0 if theta_is_vector else None, 0))(theta, keys)

    def unroll_step(
        self,
        theta: Theta,
        unroll_state: UnrollState,
        key: jax.Array,
        data: Any,
        outer_state: Any,
        theta_is_vector: bool = False,
        override_num_steps: int | None = None,
        **kwargs: Any,
    ) -> tuple[UnrollState, Any]:
        """One inner step of every task, or a reset of those that are done.

        For upstream's estimators, which leave resets out by `mask`; the loss it reports is the
        outer loss before the step, on the same batch.
        """
        del kwargs
        keys = jax.random.split(key, self.num_tasks)
        # Upstream's ES stacks its two antithetic halves; they share their randomness.
        keys = jnp.concatenate([keys] * (unroll_state.inner_step.shape[0] // self.num_tasks))

        def advance(
            theta: Theta, state: UnrollState, key: jax.Array, batch: Any
        ) -> tuple[UnrollState, upstream.TruncatedUnrollOut]:
            step_key, loss_key, reset_key, finish_key = jax.random.split(key, 4)

            def train() -> tuple[UnrollState, jax.Array]:
                outer_loss, _ = self.outer_loss_one(theta, state, loss_key, batch, outer_state)
                return self.step_one(theta, state, step_key, batch)[0], outer_loss

            def reset() -> tuple[UnrollState, jax.Array]:
                state = self.init_one(theta, outer_state, reset_key, override_num_steps)
                return state, jnp.asarray(0.0)

            next_state, loss = jax.lax.cond(state.is_done, reset, train)
            next_state = self.finish_one(next_state, outer_state, finish_key)
            return next_state, upstream.TruncatedUnrollOut(
                loss=loss,
                is_done=next_state.is_done,
                task_param=state.task_param,
                iteration=next_state.inner_step,
                mask=next_state.inner_step != 0,
            )

        return jax.vmap(advance, in_axes=(0 if theta_is_vector else None, 0, 0, 0))(
            theta, unroll_state, keys, data
        )

    def meta_loss_batch(
        self,
        theta: Theta,
        unroll_state: UnrollState,
        key: jax.Array,
        data: Any,
        outer_state: Any,
        theta_is_vector: bool = False,
    ) -> Float[Array, tasks]:
        """The outer loss of every task, flatness-aware if a regularizer is set."""
        keys = jax.random.split(key, self.num_tasks)

        def loss(theta: Theta, state: UnrollState, key: jax.Array, batch: Any) -> jax.Array:
            return self.outer_loss_one(theta, state, key, batch, outer_state)[0]

        return jax.vmap(loss, in_axes=(0 if theta_is_vector else None, 0, 0, 0))(
            theta, unroll_state, keys, data
        )

    def get_batch(self, steps: int | None = None) -> Any:
        """Inner batches from the task's iterators: [steps, num_tasks, ...], or [num_tasks, ...]."""
        return _squeeze(self.pull("train", steps or 1), steps)

    def get_outer_batch(self, steps: int | None = None) -> Any:
        """The same for the outer loss."""
        return _squeeze(self.pull(self.outer_data_split, steps or 1), steps)

    def task_name(self) -> str:
        return self.task_family.name

    def cfg_name(self) -> str:
        return f"{type(self.learned_opt).__name__}_{self.regularizer.name}"


def _squeeze(batches: Any, steps: int | None) -> Any:
    return batches if steps is not None else jax.tree.map(lambda leaf: leaf[0], batches)
