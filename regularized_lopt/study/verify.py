"""Whether a trained optimizer of the zoo still does what its card says."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import scipy.stats
import xarray as xr

from regularized_lopt import errors
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import HEADLINE_RADIUS, FlatnessConfig
from regularized_lopt.study.experiment import Experiment, TaskPlan
from regularized_lopt.study.study import Study
from regularized_lopt.zoo.cards import Card

_FIGURES = {"accuracy": "test accuracy (%)", "rise": "rise within 0.01", "norm": "‖p‖"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure of a card, measured again with the same inits and batches.

    Attributes:
      task: on which it was measured.
      what: which figure.
      stated: the mean on the card.
      half_width: of its 95% interval (Student's t over the runs).
      found: the mean now.
    """

    task: str
    what: str
    stated: float
    half_width: float
    found: float

    @property
    def holds(self) -> bool:
        """Whether it lies within the interval."""
        return abs(self.found - self.stated) <= self.half_width

    def row(self) -> list[str]:
        """For a table."""
        interval = f"{self.stated:.4g} ± {self.half_width:.2g}"
        verdict = "yes" if self.holds else "NO"
        return [self.task, self.what, interval, f"{self.found:.4g}", verdict]


HEADER = ["task", "", "stated (95%)", "found", "reproduced"]


def verify(
    card: Card, out_dir: pathlib.Path, tasks: Sequence[str] = (), progress: bool = True
) -> list[Check]:
    """Meta-tests an optimizer of the zoo as its card says it was.

    Args:
      card: its card.
      out_dir: keeps the runs; what is there is not run again.
      tasks: of the card's; default: all.
      progress: show progress bars.

    Raises:
      errors.UnknownNameError: the card has no such task.
    """
    stated = {row["task"]: row for row in card.figures}
    for task in tasks:
        errors.check_name("task of the card", task, stated)
    found = []
    for task in tasks or stated:
        row = stated[task]
        experiment = Experiment(
            optimizers={card.name: card.name},
            tasks=(TaskPlan(task, row["num_runs"], row["measured_runs"]),),
            reference=card.name,
            baselines=(),
            num_steps=row["num_steps"],
        )
        flatness_config = FlatnessConfig(
            radii=(HEADLINE_RADIUS,),
            num_examples=row["num_examples"],
            headline_starts=row["starts"],
            num_probes=0,
        )
        (measured,) = Study(experiment, out_dir, flatness_config, progress=progress).run()
        found += _checks(task, row, selections.reference(measured))
    return found


def _checks(task: str, row: dict[str, Any], one: xr.Dataset) -> list[Check]:
    rise = selections.last(one, "gsam").isel(radius=0).sel(point="completion", scale="absolute")
    values = {
        "accuracy": selections.accuracy(one),
        "rise": rise.values,
        "norm": selections.final(one, "param_norm"),
    }
    checks = []
    for name, label in _FIGURES.items():
        mean, std = row[name]
        count = row["measured_runs"] if name == "rise" else row["num_runs"]
        half_width = float(scipy.stats.t.ppf(0.975, count - 1) * std / math.sqrt(count))
        checks.append(Check(task, label, mean, half_width, float(values[name].mean())))
    return checks
