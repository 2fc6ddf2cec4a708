"""What a regularizer in the outer objective does at several strengths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from regularized_lopt import statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import LABELS
from regularized_lopt.report import log_ratios, plot_style
from regularized_lopt.report.log_ratios import MATCHED, LogRatio
from regularized_lopt.report.sections import Table
from regularized_lopt.report.tables import summary
from regularized_lopt.report.verdicts import compare

_RISE = "gsam"
_STRENGTHS = ("rho", "strength")  # Facts of an optimizer; at 0 either is no regularizer.
CAPTION = (
    "One small dot per meta-training seed, the mean over runs; beside them their mean, with the "
    "95% interval of the paired ratio or difference to the reference. Hollow, on grey: tuned "
    "baselines. Above, lower is flatter; below, higher is more accurate."
)
NOTE = (
    "The rise in the ball of the figure, at the lowest training loss that both reached: ratio of "
    "geometric means over meta-training seeds, and the smallest decrease that so many seeds would "
    "show. Accuracy at completion: means ± standard deviation, and differences. All are paired by "
    "seed, with 95% intervals by Student's t, for ratios on the log scale."
)


@dataclasses.dataclass(frozen=True)
class Family:
    """Optimizers that were meta-trained with the same regularizer at several strengths.

    Attributes:
      regularizer, space: what they were trained with, and where.
      parameter: "rho" or "strength", in which they differ.
      strengths: by optimizer, ascending; the reference is at 0.
      tasks: where two of them, the reference left out, were measured.
    """

    regularizer: str
    space: str
    parameter: str
    strengths: Mapping[str, float]
    tasks: Sequence[xr.Dataset]

    @property
    def title(self) -> str:
        """What they were trained with, and where."""
        return f"{self.regularizer} in {self.space} space"

    @property
    def file(self) -> str:
        """Name of its figure's file, without the ending."""
        return f"{self.regularizer}_{self.space}_doses"

    def members(self, task: xr.Dataset) -> list[xr.Dataset]:
        """Their parts of a task, in the order of `strengths`."""
        on = selections.keys(task)
        return [selections.optimizer(task, key) for key in self.strengths if key in on]


def families(tasks: Sequence[xr.Dataset]) -> list[Family]:
    """Those that a study has; none in results that do not know radii."""
    known = [task for task in tasks if selections.is_measured(task) and "rho" in task]
    known = [task for task in known if _is_plain(selections.reference(task))]
    of: dict[tuple[str, str], dict[str, xr.Dataset]] = {}
    for one in (one for task in known for one in selections.learned(task)):
        kind = (one["regularizer"].item(), one["space"].item())
        of.setdefault(kind, {})[one["optimizer"].item()] = one
    found = []
    for (regularizer, space), members in of.items():
        by = {name: _known(members, name) for name in _STRENGTHS}
        differing = [name for name, values in by.items() if len(set(values.values())) > 1]
        if len(differing) != 1:  # None, or it is not clear which is the dose.
            continue
        (name,) = differing
        on = [task for task in known if len(set(by[name]) & set(selections.keys(task))) > 1]
        reference = {task.attrs["reference"]: 0.0 for task in on}
        strengths = dict(sorted((reference | by[name]).items(), key=lambda item: item[1]))
        found.append(Family(regularizer, space, name, strengths, on))
    return found


def _is_plain(one: xr.Dataset) -> bool:
    """Learned, and without a regularizer: with none, or with one of strength or radius 0."""
    nothing = any(one[name] == 0 for name in _STRENGTHS)
    return selections.is_learned(one) and bool(nothing or one["regularizer"] == "none")


def _known(members: Mapping[str, xr.Dataset], name: str) -> dict[str, float]:
    """By optimizer, where it is a number: no schedule, and not missing."""
    values = {key: float(one[name]) for key, one in members.items()}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def scale(task: xr.Dataset) -> str:
    """Of the ball: "live" where it was measured, else "relative"."""
    return "live" if "live" in selections.flatness_config(task).scales else "relative"


def table(family: Family) -> Table:
    """One row per task and optimizer: the family's by strength, then baselines."""
    reference = family.tasks[0].attrs["reference"]
    header = ["task", "optimizer", family.parameter, f"{LABELS[_RISE]}: ratio to {reference} (95%)"]
    header += ["seeds", "would show", "test accuracy (%)", f"vs {reference} (points, 95%)"]
    rows = []
    for task in family.tasks:
        base = selections.quality(selections.reference(task))
        for one in (*family.members(task), *_baselines(task)):
            strength = family.strengths.get(one["optimizer"].item())
            ratio, accuracy = _rise(task, one), selections.quality(one)
            same = one["optimizer"].item() == reference
            rows.append(
                [
                    task.attrs["task"],
                    one["name"].item(),
                    "" if strength is None else f"{strength:g}",
                    *(["", "", ""] if ratio is None else ratio.cells()),
                    *(
                        [summary(accuracy), "" if same else str(_difference(accuracy, base))]
                        if selections.has_accuracy(task)
                        else ["", ""]
                    ),
                ]
            )
    return header, rows


def draw(family: Family, colors: Mapping[str, str]) -> mpl_figure.Figure:
    """Rise and test accuracy, or loss, by strength: a column per task, strengths evenly spaced.

    Args:
      family: what to draw.
      colors: by optimizer.
    """
    columns = len(family.tasks)
    places = max(len(list(_places(family, task))) for task in family.tasks)
    roomy, tight = 1.1 + 0.5 * places, 0.8 + 0.19 * places  # Inches; tight: labels just fit.
    width = 0.6 + columns * max(2.6, tight, min(roomy, 9.0 / columns))
    with matplotlib.rc_context(plot_style.STYLE):
        figure = mpl_figure.Figure(figsize=(width, 4.8), layout="constrained")
        axes = figure.subplots(2, columns, sharex="col", squeeze=False)
        for (upper, lower), task in zip(axes.T, family.tasks, strict=True):
            _panels(upper, lower, family, task, colors)
        reference = family.tasks[0].attrs["reference"]
        axes[0, 0].set_ylabel(f"rise at matched loss,\nratio to {reference}")
        for axis, task in zip(axes[1], family.tasks, strict=True):
            if axis is axes[1, 0] or not selections.has_accuracy(task):
                axis.set_ylabel(selections.quality_label(task))
    return figure


def _panels(
    upper: Any, lower: Any, family: Family, task: xr.Dataset, colors: Mapping[str, str]
) -> None:
    """Of one task."""
    base = selections.quality(selections.reference(task))
    ticks: dict[float, str] = {}
    for x, label, one in _places(family, task):
        ticks[x] = label
        color, is_learned = colors[one["optimizer"].item()], selections.is_learned(one)
        accuracy = selections.quality(one)
        if (ratio := _rise(task, one)) is not None:
            dots = ratio.logs if is_learned else None
            _draw(upper, x, color, dots, ratio.ratio.log, 0.0, np.exp)
        dots = accuracy.mean(axis=1) if is_learned else None
        _draw(lower, x, color, dots, _difference(accuracy, base), base.mean(), np.asarray)
    upper.axhline(1.0, color="black", linewidth=0.8)
    lower.axhline(base.mean(), color="black", linewidth=0.8)
    _ratio_scale(upper)
    ball = f"{scale(task)} radius {selections.headline(task):g}"
    upper.set_title(f"{selections.label(task)}\n{LABELS[_RISE]}, {ball}")
    lower.set_xticks(list(ticks), list(ticks.values()))
    lower.set_xlabel(f"{family.parameter} of {family.title} (0: {task.attrs['reference']})")
    begin, end = len(_steps(family)), max(ticks) + 0.5
    lower.set_xlim(-0.5, end)
    for axis in (upper, lower):
        axis.grid(visible=False, axis="x")
        if end > begin:
            axis.axvspan(begin - 0.25, end, color="#80808020", linewidth=0)
    for x, label in zip(ticks, lower.get_xticklabels(), strict=True):
        if x > begin:
            label.set(rotation=45, ha="right", rotation_mode="anchor")


def _steps(family: Family) -> dict[float, float]:
    """Where strengths are on the axis: next to each other."""
    return {of: float(place) for place, of in enumerate(sorted(set(family.strengths.values())))}


def _places(family: Family, task: xr.Dataset) -> Iterator[tuple[float, str, xr.Dataset]]:
    """Of all that is drawn: where, with which label, and what there is of it."""
    at = _steps(family)
    for one in family.members(task):
        strength = family.strengths[one["optimizer"].item()]
        yield at[strength], f"{strength:g}", one
    for place, one in enumerate(_baselines(task)):
        yield len(at) + 0.5 + place, one["optimizer"].item(), one


def _draw(
    axis: Any,
    x: float,
    color: str,
    dots: np.ndarray | None,
    mean: statistics.Difference,
    base: float,
    unit: Any,
) -> None:
    """Seeds as dots, and their mean with its interval; without dots it is hollow."""
    if dots is not None:
        spread = np.linspace(-0.15, 0.15, len(dots)) if len(dots) > 1 else np.zeros(1)
        axis.plot(x - 0.1 + spread, unit(dots), "o", color=color, alpha=0.6, markersize=3)
        x += 0.22
    ends = unit(base + np.array([mean.low, mean.high]))
    if np.all(np.isfinite(ends)):
        axis.plot([x, x], ends, color=color, linewidth=1.6)
    face = "white" if dots is None else color
    axis.plot(x, unit(base + mean.mean), "o", color=color, markerfacecolor=face, markersize=5)


def _ratio_scale(axis: Any) -> None:
    """Logarithmic; of ratios near 1 with more ticks than powers of ten."""
    axis.set_yscale("log")
    low, high = axis.dataLim.intervaly
    if high < 5 * low:
        axis.yaxis.set_major_locator(ticker.MaxNLocator(6))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())


def _rise(task: xr.Dataset, one: xr.Dataset) -> LogRatio | None:
    base = selections.reference(task)
    return log_ratios.rise(one, base, _RISE, MATCHED, scale(task), selections.headline(task))


def _difference(own: np.ndarray, reference: np.ndarray) -> statistics.Difference:
    """Of accuracies, with the interval that ratios have, too."""
    return compare(own, reference, bootstrap=False)


def _baselines(task: xr.Dataset) -> list[xr.Dataset]:
    return [one for one in selections.others(task) if not selections.is_learned(one)]
