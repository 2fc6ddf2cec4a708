"""Trained learned optimizers: those that come with the package, and files of your own."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from regularized_lopt import errors, learned_optimizers, optax_bridge, serialization, upstream
from regularized_lopt.configurable import configurable
from regularized_lopt.learned_optimizers.num_steps import WithNumSteps, name_of
from regularized_lopt.run_files import EXPERIMENT_FILE, POPULATION_FILE, THETA_FILE
from regularized_lopt.zoo import cards
from regularized_lopt.zoo.cards import Card as Card

if TYPE_CHECKING:
    from matplotlib import figure as mpl_figure

LONGEST = "longest_trajectory"
"""In a file's metadata: the most inner steps of a trajectory of its meta-training."""
ENTRIES = pathlib.Path(__file__).parent / "entries"


@dataclasses.dataclass(frozen=True)
class LoadedLOpt:
    """A learned optimizer with its trained weights.

    Attributes:
      learned_opt: the `LearnedOptimizer`.
      theta: its weights.
      metadata: how it was trained, as far as it was recorded.
      path: the file it was read from.
    """

    learned_opt: upstream.LearnedOptimizer
    theta: Any = dataclasses.field(repr=False)
    metadata: dict[str, Any] = dataclasses.field(repr=False)
    path: pathlib.Path

    @property
    def name(self) -> str:
        """The entry's of the zoo; of the run's directory; or of the file."""
        return self.path.parent.name if self.path.name == THETA_FILE else self.path.stem

    @property
    def longest_trajectory(self) -> int | None:
        """The most inner steps that it was meta-trained for; None: not recorded."""
        return self.metadata.get(LONGEST)

    def opt(self, num_steps: int | None = None) -> upstream.Optimizer:
        """The `Optimizer` (init / update / get_params) for a training loop of your own.

        Args:
          num_steps: what `init` tells optimizers that need to know how long a run will be, > 0;
            default: `longest_trajectory`. `init(params, num_steps=...)` takes precedence.
        """
        if num_steps is None:
            num_steps = self.longest_trajectory
        opt = self.learned_opt.opt_fn(self.theta)
        return WithNumSteps(opt, num_steps, name_of(self.learned_opt))

    def as_optax(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        """The same as an `optax.GradientTransformation`.

        Args:
          **options: as `optax_bridge.as_optax` has; `num_steps` is `longest_trajectory` by default.
        """
        options = {"num_steps": self.longest_trajectory, **options}
        return optax_bridge.as_optax(self.learned_opt, self.theta, **options)

    def plot_update(self, scale: float = 1e-2, num_steps: int = 10) -> mpl_figure.Figure:
        """`plots.update` of this optimizer; `figure.savefig(path)` writes the figure."""
        from regularized_lopt import plots

        return plots.update(self, scale, num_steps)

    def plot_training(
        self,
        task: str,
        others: Mapping[str, Any] | None = None,
        num_runs: int = 5,
        num_steps: int = 500,
    ) -> mpl_figure.Figure:
        """`plots.training` of this optimizer."""
        from regularized_lopt import plots

        return plots.training(self, task, others, num_runs, num_steps)

    def plot_meta_training(self) -> mpl_figure.Figure:
        """`plots.meta_training` of this optimizer."""
        from regularized_lopt import plots

        return plots.meta_training(self)


def names() -> list[str]:
    """The optimizers that come with the package."""
    return sorted(path.parent.name for path in ENTRIES.glob(f"*/{THETA_FILE}"))


def card(name: str) -> Card:
    """What an entry is and what it reached.

    Raises:
      errors.UnknownNameError: there is no such entry.
    """
    return cards.read(ENTRIES / errors.check_name("entry of the zoo", name, names()))


def best_of(train_log_dirs: Sequence[pathlib.Path]) -> int:
    """Which of several outer training runs to take: nothing of meta-test decides.

    Returns:
      The place of the one with the lowest validation loss in the last stage of its curriculum.
    """
    return int(np.argmin([validation_loss(one) for one in train_log_dirs]))


def validation_loss(train_log_dir: pathlib.Path) -> float:
    """The lowest (nats) in the last stage of an outer training run's curriculum."""
    path = train_log_dir / THETA_FILE
    _, metadata = serialization.load_flat(path)
    if "stage" not in metadata:
        raise serialization.FileFormatError(f"{path} is not of an outer training run.")
    _check_run(path, metadata)
    return float(metadata["stage"]["best_loss"])


def save(
    path: str | os.PathLike[str],
    learned_opt: upstream.LearnedOptimizer,
    theta: Any,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a trained optimizer: weights, constructor's arguments, `metadata` (JSON), no code.

    Raises:
      ValueError: `load` could not make it again, see `learned_optimizers.describe`.
    """
    header = {**learned_optimizers.describe(learned_opt), **(metadata or {})}
    serialization.save(path, jax.tree.map(np.asarray, theta), header)


def load(name_or_path: str | os.PathLike[str]) -> LoadedLOpt:
    """Reads a trained optimizer; its weights are floats of this process, see `jax_enable_x64`.

    Args:
      name_or_path: an entry of the zoo (see `names`), a file of `save`, or the directory of an
        outer training run. A name of the zoo is taken as such; write ./name for a file of yours.

    Raises:
      FileNotFoundError: there is neither; the message says what was looked for.
      serialization.FileFormatError: the file is damaged, foreign, of a newer format, of another run
        than the directory, or holds an optimizer that cannot be made here, see
        `learned_optimizers.make`.
    """
    path, expected = _find(name_or_path)
    if expected and cards.checksum(path) != expected:
        raise serialization.FileFormatError(
            f"{path} is damaged: its checksum is not that of its card. Reinstall regularized_lopt."
        )
    _, metadata = serialization.load_flat(path)
    if "learned_opt" not in metadata:
        raise serialization.FileFormatError(
            f"{path} holds no learned optimizer (a checkpoint, perhaps)."
        )
    _check_run(path, metadata)
    try:
        learned_opt = learned_optimizers.make(metadata)
    except ValueError as error:
        raise serialization.FileFormatError(f"{path} holds {error}") from error
    like = jax.eval_shape(learned_opt.init, jax.random.PRNGKey(0))
    theta, _ = serialization.load(path, like, any_precision=True)
    return LoadedLOpt(learned_opt, jax.tree.map(jax.numpy.asarray, theta), metadata, path)


@configurable()
def trained_opt(name_or_path: str) -> upstream.Optimizer:
    """`load(name_or_path).opt()` for gin, e.g. `inner_train_task.opt = @trained_opt()`."""
    return load(name_or_path).opt()


def _check_run(path: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Raises FileFormatError if a run's theta is not of the experiment that lies beside it."""
    description = path.parent / EXPERIMENT_FILE
    if path.name != THETA_FILE or not description.is_file():
        return
    found = {**serialization.load_json(description), "experiment": cards.checksum(description)}
    for name in ("task", "seed", "experiment"):
        expected = found.get(name)
        if metadata.get(name, expected) != expected:
            raise serialization.FileFormatError(
                f"{path} is of another run than {EXPERIMENT_FILE} beside it ({name}: "
                f"{metadata[name]!r}, not {expected!r}). Restore both from one place, or move "
                "it to a directory of its own."
            )


def _find(name_or_path: str | os.PathLike[str]) -> tuple[pathlib.Path, str | None]:
    """The file, and for an entry of the zoo its checksum."""
    if str(name_or_path) in names():
        return ENTRIES / name_or_path / THETA_FILE, card(str(name_or_path)).sha256
    path = pathlib.Path(name_or_path)
    if path.is_dir():
        if (path / POPULATION_FILE).is_file():
            members = sorted(one.parent.name for one in path.glob(f"*/{THETA_FILE}"))
            raise FileNotFoundError(
                f"{path} is a population's directory: give that of a member with a {THETA_FILE} "
                f"({', '.join(members) or 'none has come to its first validation'})."
            )
        if not (path / THETA_FILE).is_file():
            raise FileNotFoundError(
                f"{path} has no {THETA_FILE}: it is not the directory of an outer training run, or "
                "the run has not come to its first validation yet."
            )
        path = path / THETA_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file or directory {path}, and no optimizer of that name comes with "
            f"regularized_lopt. {errors.nearest(str(name_or_path), names())}"
        )
    return path, None
