"""Runs of two optimizers compared where both first reached the same training loss."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from regularized_lopt.measure.training_curves import (
    LEVEL_RATIO,
    NO_LEVEL,
    SavedParams,
    TrainingCurves,
)


def common_loss_level(a: TrainingCurves, b: TrainingCurves) -> np.ndarray:
    """[runs]: the lowest training loss that both runs reached, as a number of `LossLevels`.

    Where one of the two fell so much lower that its params there are not kept: NO_LEVEL.
    """
    lowest = np.minimum(a.level.max(axis=1), b.level.max(axis=1))
    kept = np.all(
        [[lowest[i] in curves.level[i] for i in range(len(lowest))] for curves in (a, b)], axis=0
    )
    return np.where(kept, lowest, NO_LEVEL)


def params_at_level(
    curves: TrainingCurves, saved: SavedParams, level: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Params, and steps [runs], at which each run first reached its level; NaN and -1: never."""
    slots, steps = [], []
    for run, number in enumerate(level):
        found = np.flatnonzero(curves.level[run] == number)
        step = int(curves.level_step[run, found[0]]) if len(found) and number > NO_LEVEL else -1
        steps.append(step)
        # Levels that were reached at once share the slot of the lowest loss among them.
        same = np.flatnonzero(curves.level_step[run] == step)
        slots.append(same[np.argmax(curves.level[run, same])] if step >= 0 else 0)
    known = np.asarray(steps) >= 0

    def leaf(values: np.ndarray) -> np.ndarray:
        picked = values[np.arange(len(slots)), slots]
        return np.where(known.reshape(-1, *[1] * (picked.ndim - 1)), picked, np.nan)

    return jax.tree.map(leaf, saved.level), np.asarray(steps)


def level_loss(level: np.ndarray) -> np.ndarray:
    """The training loss (nats) that the number of a level stands for."""
    known = level > NO_LEVEL
    return np.where(known, LEVEL_RATIO ** -np.where(known, level, 0).astype(np.float64), np.nan)
