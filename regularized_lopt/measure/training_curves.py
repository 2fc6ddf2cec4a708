"""What is kept of the runs of one optimizer on one task."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from regularized_lopt.measure import convergence

LEVEL_RATIO = 1.3
"""Training losses at which params are kept are this factor apart."""
LEVELS_KEPT = 48
"""The last so many of them: a factor of 300,000 in the loss."""
NO_LEVEL = -(2**30)
"""In place of a level that was not reached."""


@dataclasses.dataclass(frozen=True)
class SavedParams:
    """Params of the runs of one optimizer on one task; leading axis: runs.

    Attributes:
      poc, final: at the PoC and at completion.
      level: [runs, LEVELS_KEPT, ...], at `TrainingCurves.level_step`.
    """

    poc: Any
    final: Any
    level: Any

    def first(self, count: int) -> SavedParams:
        """Of the first so many runs."""
        return SavedParams(
            *jax.tree.map(lambda leaf: leaf[:count], (self.poc, self.final, self.level))
        )


@dataclasses.dataclass(frozen=True)
class TrainingCurves:
    """Curves of the runs of one optimizer on one task; leading axis: runs.

    Attributes:
      loss_steps: [points], number of the step, from 0, of each training loss.
      train_loss: [runs, points], mean over the last `convergence.WINDOW` steps of the loss on each
        step's batch, before the step.
      eval_steps: [evals], after how many steps the test set was evaluated.
      test_loss: [runs, evals], on the whole test set.
      param_norm: [runs, evals], global l2 norm of the params.
      update_norm: [runs, evals], of the last step before (0 at step 0).
      poc_step: [runs], step at which convergence was declared (the last one if never).
      poc_declared: [runs], whether it was.
      best_step: [runs], step of the lowest trailing mean of the training loss.
      level_step: [runs, LEVELS_KEPT], the first step whose trailing mean is at or below a level,
        -1 where that level was not reached; see `LossLevels`.
      level: [runs, LEVELS_KEPT], which level that is.
      test_accuracy: [runs, evals], likewise; None: the task has none.
      saved_params: where they are at hand.
    """

    loss_steps: np.ndarray
    train_loss: np.ndarray
    eval_steps: np.ndarray
    test_loss: np.ndarray
    param_norm: np.ndarray
    update_norm: np.ndarray
    poc_step: np.ndarray
    poc_declared: np.ndarray
    best_step: np.ndarray
    level_step: np.ndarray
    level: np.ndarray
    test_accuracy: np.ndarray | None = None
    saved_params: SavedParams | None = None

    def first(self, count: int) -> TrainingCurves:
        """The first so many runs, without params."""
        shared = ("loss_steps", "eval_steps", "saved_params")
        own = {name: of for name, of in vars(self).items() if name not in shared}
        cut: dict[str, Any] = {name: None if of is None else of[:count] for name, of in own.items()}
        return dataclasses.replace(self, saved_params=None, **cut)

    @property
    def final_train_loss(self) -> np.ndarray:
        """[runs], mean of the last `convergence.WINDOW` training losses."""
        return self.train_loss[:, -1]

    @property
    def final_accuracy(self) -> np.ndarray:
        """[runs], test accuracy at the end; NaN where the task has none."""
        if self.test_accuracy is None:
            return np.full(len(self.train_loss), np.nan)
        return self.test_accuracy[:, -1]


@flax.struct.dataclass
class LossLevels:
    """Params at the first step at which the trailing mean of the training loss reaches a level.

    Level k is the loss LEVEL_RATIO^-k. Which level two runs will be compared at is known only when
    both have ended, so the params at the last `LEVELS_KEPT` ones are kept, in a ring.

    Attributes:
      lowest: the highest level number reached so far.
      level, step: number of the level in each slot, and when it was reached; step -1: empty.
      params: [LEVELS_KEPT + 1, ...]; the last slot takes what is not kept.
    """

    lowest: Int[Array, ""]
    level: Int[Array, slots]
    step: Int[Array, slots]
    params: Any

    @classmethod
    def start(cls, params: Any) -> LossLevels:
        """Before the first step."""
        return cls(
            lowest=jnp.asarray(NO_LEVEL, jnp.int32),
            level=jnp.full((LEVELS_KEPT,), NO_LEVEL, jnp.int32),
            step=jnp.full((LEVELS_KEPT,), -1, jnp.int32),
            params=jax.tree.map(
                lambda leaf: jnp.zeros((LEVELS_KEPT + 1, *leaf.shape), leaf.dtype), params
            ),
        )

    def update(self, step: jax.Array, mean: jax.Array, params: Any) -> LossLevels:
        """Takes in one training step: its number, the loss's trailing mean, the params after it."""
        number = jnp.floor(-jnp.log(jnp.maximum(mean, 1e-30)) / np.log(LEVEL_RATIO))
        reached = jnp.where(jnp.isfinite(mean), number, NO_LEVEL).astype(jnp.int32)
        new = reached > self.lowest
        # Levels passed over in one step share the step and the params of the lowest of them. Slot s
        # holds the one level of the last LEVELS_KEPT that is s modulo LEVELS_KEPT.
        numbers = reached - (reached - jnp.arange(LEVELS_KEPT)) % LEVELS_KEPT
        passed = numbers > self.lowest
        slot = jnp.where(new, reached % LEVELS_KEPT, LEVELS_KEPT)
        return LossLevels(
            lowest=jnp.maximum(self.lowest, reached),
            level=jnp.where(passed, numbers, self.level),
            step=jnp.where(passed, step, self.step),
            params=jax.tree.map(lambda old, leaf: old.at[slot].set(leaf), self.params, params),
        )


def eval_grid(num_steps: int, points: int = 12) -> np.ndarray:
    """When the test set is evaluated: at 0, log-spaced, at a quarter of the run and at its end."""
    spaced = np.geomspace(1, num_steps, points).round().astype(int)
    return np.unique(np.concatenate([[0, max(1, num_steps // 4)], spaced]))


def loss_grid(num_steps: int, points: int = 200) -> np.ndarray:
    """Numbers of the steps whose training losses are kept: log-spaced, the last one included."""
    return np.unique(np.geomspace(1, num_steps, points).round().astype(int)) - 1


def trailing_mean(
    values: np.ndarray, at: np.ndarray, window: int = convergence.WINDOW
) -> np.ndarray:
    """[runs, points]: means over the `window` values that end at each index of `at`."""
    begins = np.maximum(0, at + 1 - window)
    return np.stack([values[:, b : t + 1].mean(axis=1) for b, t in zip(begins, at, strict=True)], 1)
