"""Trained learned optimizers as files: save and load."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from regularized_lopt import errors, optax_bridge, serialization, upstream
from regularized_lopt.learned_optimizers import LSTMLOpt

THETA_FILE = "theta.npz"

_CLASSES = {"LSTMLOpt": LSTMLOpt}


@dataclasses.dataclass(frozen=True)
class LoadedLOpt:
    """A learned optimizer with its trained weights.

    Attributes:
      learned_opt: the `LearnedOptimizer`.
      theta: its weights.
      metadata: how it was trained, as far as it was recorded.
    """

    learned_opt: LSTMLOpt
    theta: Any
    metadata: dict[str, Any]

    def opt(self) -> upstream.Optimizer:
        """The `Optimizer` (init / update / get_params) for a training loop of your own."""
        return self.learned_opt.opt_fn(self.theta)

    def as_optax(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        """The same as an `optax.GradientTransformation`; options as `optax_bridge.as_optax` has."""
        return optax_bridge.as_optax(self.learned_opt, self.theta, **options)


def save(
    path: str | os.PathLike[str],
    learned_opt: LSTMLOpt,
    theta: Any,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a trained optimizer: weights, constructor's arguments, `metadata` (JSON), no code."""
    name = type(learned_opt).__name__
    errors.check_name("learned optimizer class", name, _CLASSES)
    header = {"learned_opt": name, "config": learned_opt.config, **(metadata or {})}
    serialization.save(path, jax.tree.map(np.asarray, theta), header)


def load(path: str | os.PathLike[str]) -> LoadedLOpt:
    """Reads a trained optimizer.

    Args:
      path: a file of `save`, or the directory of an outer training run.

    Raises:
      FileNotFoundError: there is no such file; the message says what was looked for.
      serialization.FileFormatError: the file is damaged, foreign, or of a newer format.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / THETA_FILE).is_file():
            raise FileNotFoundError(
                f"{path} has no {THETA_FILE}: it is not the directory of an outer training run, or "
                "the run has not come to its first validation yet."
            )
        path = path / THETA_FILE
    _, metadata = serialization.load_flat(path)
    if "learned_opt" not in metadata:
        raise serialization.FileFormatError(
            f"{path} holds no learned optimizer (a checkpoint, perhaps)."
        )
    name = errors.check_name("learned optimizer class", metadata["learned_opt"], _CLASSES)
    learned_opt = _CLASSES[name](**metadata["config"])
    like = jax.eval_shape(learned_opt.init, jax.random.PRNGKey(0))
    theta, _ = serialization.load(
        path, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    )
    return LoadedLOpt(learned_opt, jax.tree.map(jax.numpy.asarray, theta), metadata)
