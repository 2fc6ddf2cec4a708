"""Figures of a trained optimizer: what `LoadedLOpt.plot_...` draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regularized_lopt import run_files, zoo
from regularized_lopt.report import figures, update_figures
from regularized_lopt.study import train

if TYPE_CHECKING:
    from matplotlib import figure as mpl_figure


def update(loaded: zoo.LoadedLOpt, scale: float = 1e-2, num_steps: int = 10) -> mpl_figure.Figure:
    """The update as a function of the gradient and of those before it.

    Args:
      loaded: the optimizer.
      scale: the gradients span [-scale, scale], > 0.
      num_steps: gradients before, > 0.
    """
    return update_figures.update_by_history(loaded.opt(), scale, num_steps)


def training(
    loaded: zoo.LoadedLOpt,
    task: str,
    others: Mapping[str, Any] | None = None,
    num_runs: int = 5,
    num_steps: int = 500,
) -> mpl_figure.Figure:
    """Trains networks and draws training loss and test accuracy.

    Args:
      loaded: what to train them with.
      task: name of a task of ours, see `tasks.names()`.
      others: optimizers to draw beside it, by name: loaded ones, upstream's `Optimizer`s, or
        `measure.optimizers`.
      num_runs: networks per optimizer, from the same inits and batches.
      num_steps: inner steps.
    """
    opts = {loaded.name: loaded, **(others or {})}
    return figures.training_curves(train(opts, task, num_runs, num_steps))


def meta_training(loaded: zoo.LoadedLOpt) -> mpl_figure.Figure:
    """The losses of its meta-training, which lie beside its file in metrics.csv.

    Raises:
      FileNotFoundError: they do not.
    """
    metrics = run_files.load_metrics(loaded.path.parent)
    if not len(metrics["outer_step"]):
        raise FileNotFoundError(
            f"There is no {run_files.METRICS_FILE} beside {loaded.path}: load an entry of the zoo "
            "or the directory of an outer training run."
        )
    return figures.outer_training({loaded.name: {0: metrics}})
