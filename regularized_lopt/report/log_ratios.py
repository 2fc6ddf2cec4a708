"""Ratios to the reference over meta-training seeds, and what so many seeds could have shown.

Rises, norms and curvatures of trained networks spread over factors, and most of their spread is
that of meta-training seeds. So seeds are the units, after their runs are averaged on the log scale,
and ratios are those of geometric means.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from regularized_lopt import power, statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import LABELS, NORMS, PROPERTIES
from regularized_lopt.measure.results import paired
from regularized_lopt.report.sections import Table

MATCHED = "matched"
_WHERE = {"poc": "PoC", "completion": "completion", MATCHED: "matched loss"}
_LABELS = {
    **dict(zip(NORMS, ("‖p‖", "‖p‖ of live weights", "‖p‖ of dead weights"), strict=True)),
    "trace": "tr H",
    "top": "λ max",
}
NOTE = (
    "Geometric means over runs and meta-training seeds, as ratios to the reference's, paired by "
    "seed, with 95% intervals (Student's t on the log scale); below 1: less. Seeds whose "
    "value is not positive or not measured are left out, and their number tells. Beside each the "
    "smallest decrease that a paired t test at 0.05 finds with 80% power, with so many seeds that "
    "spread as these do; what is smaller may be there unseen."
)


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """An optimizer's value against the reference's.

    Attributes:
      ratio: of the geometric means over seeds.
      logs: [pairs], of each pair of seeds; NaN where they cannot be compared.
    """

    ratio: statistics.Ratio
    logs: np.ndarray

    @classmethod
    def of(cls, own: np.ndarray, reference: np.ndarray) -> LogRatio:
        """Of paired seeds, [seeds, runs] each."""
        with np.errstate(divide="ignore", invalid="ignore"):  # Not positive: left out.
            means = [np.log(np.asarray(of, np.float64)).mean(axis=1) for of in (own, reference)]
            logs = np.subtract(*means)
        known = np.isfinite(logs)
        logs = np.where(known, logs, np.nan)
        compared = logs[known] if known.any() else np.full(1, np.nan)
        log = statistics.paired_difference(compared, np.zeros(len(compared)), bootstrap=False)
        return cls(statistics.Ratio(log), logs)

    @property
    def seeds(self) -> int:
        """Pairs of seeds that are compared."""
        return int(np.isfinite(self.logs).sum())

    @property
    def pairs(self) -> int:
        """Those that there are."""
        return len(self.logs)

    @property
    def deviation(self) -> float:
        """Of the log ratios over seeds; NaN below two."""
        compared = self.logs[np.isfinite(self.logs)]
        return float(np.std(compared, ddof=1)) if len(compared) > 1 else math.nan

    @property
    def detectable(self) -> float:
        """The factor, below 1, of the smallest decrease that is found; see `NOTE`."""
        return math.exp(-power.detectable_difference(self.deviation, self.seeds))

    def cells(self) -> list[str]:
        """Ratio, seeds, detectable decrease in percent; the last is empty below two seeds."""
        seeds = str(self.seeds) if self.seeds == self.pairs else f"{self.seeds} of {self.pairs}"
        return [str(self.ratio), seeds, "" if self.seeds < 2 else decrease(self.detectable)]

    def __str__(self) -> str:
        ratio, seeds, change = self.cells()
        return f"{ratio} ({seeds} seeds" + (f", would show {change})" if change else ")")


def decrease(factor: float) -> str:
    """By a factor below 1, in percent; "nothing" where less than a thousandth would be left."""
    percent = 100 * (1 - factor)
    if percent > 99.9:
        return "nothing"
    return f"−{percent:.2g}%" if percent < 99 else f"−{percent:.3g}%"


def table(task: xr.Dataset, name: str = "gsam") -> Table:
    """One row per optimizer and quantity: a property in every scale, norms, curvatures.

    Args:
      task: its dataset.
      name: of the property, at the headline radius.

    Returns:
      The table; without rows where live weights were not told from dead ones, as in results that
      are older than the table.
    """
    reference = task.attrs["reference"]
    header = ["optimizer", "quantity"]
    for where in _WHERE.values():
        header += [f"at {where}: ratio to {reference} (95%)", "seeds", "would show"]
    config, base = selections.flatness_config(task), selections.reference(task)
    rows, radius = [], selections.headline(task)
    for one in selections.others(task) if config.has_norms else ():
        for scale in config.scales:
            found = [rise(one, base, name, point, scale, radius) for point in _WHERE]
            rows.append([one["name"].item(), f"{LABELS[name]}, {scale}", *_cells(found)])
        for quantity, label in _LABELS.items():
            if quantity in NORMS or config.num_probes:
                found = [at_params(one, base, quantity, point) for point in _WHERE]
                rows.append([one["name"].item(), label, *_cells(found)])
    return header, rows


def rows(tasks: Sequence[xr.Dataset]) -> Iterator[dict[str, Any]]:
    """Of all tasks that `table` has rows for: every property, scale, radius and point, and norms.

    Columns: the ratio and the ends of its interval, `deviation` of the log ratios over seeds,
    and `detectable`, the smallest ratio below 1 that so many seeds would show.
    """
    for task in filter(selections.is_measured, tasks):
        config, base = selections.flatness_config(task), selections.reference(task)
        for one in selections.others(task) if config.has_norms else ():
            for point in _WHERE:
                about = {
                    "task": task.attrs["task"],
                    "optimizer": one["optimizer"].item(),
                    "reference": task.attrs["reference"],
                    "point": point,
                }
                radii = config.headline_alone().radii if point == MATCHED else config.radii
                for name, scale, radius in itertools.product(PROPERTIES, config.scales, radii):
                    of = {"quantity": name, "scale": scale, "radius": radius}
                    yield from _row(about | of, rise(one, base, name, point, scale, radius))
                for quantity in _LABELS:
                    of = {"quantity": quantity, "scale": "", "radius": ""}
                    yield from _row(about | of, at_params(one, base, quantity, point))


def _row(about: dict[str, Any], found: LogRatio | None) -> Iterator[dict[str, Any]]:
    if found is None:
        return
    log = found.ratio.log
    yield {
        **about,
        "ratio": math.exp(log.mean),
        "low": math.exp(log.low),
        "high": math.exp(log.high),
        "seeds": found.seeds,
        "pairs": found.pairs,
        "deviation": found.deviation,
        "detectable": found.detectable,
    }


def _cells(found: Sequence[LogRatio | None]) -> list[str]:
    return [cell for one in found for cell in (["", "", ""] if one is None else one.cells())]


def rise(
    one: xr.Dataset, base: xr.Dataset, name: str, point: str, scale: str, radius: float
) -> LogRatio | None:
    """Of a property in a ball; None where it was not measured. At matched loss: in the one ball."""
    if point == MATCHED:
        if not one["pairs"]:
            return None
        return LogRatio.of(*selections.at(selections.matched(one, name), scale=scale))
    rises = (selections.last(side, name) for side in (one, base))
    sides = (selections.at(of, point=point, scale=scale, radius=radius) for of in rises)
    return LogRatio.of(*paired(*sides))


def at_params(one: xr.Dataset, base: xr.Dataset, name: str, point: str) -> LogRatio | None:
    """Of what was measured at the params themselves; None where it was not."""
    if point == MATCHED:
        variable = f"matched_{name}"
        return LogRatio.of(*one[variable].values) if variable in one and one["pairs"] else None
    sides = (selections.at(side[f"around_{name}"], point=point) for side in (one, base))
    return LogRatio.of(*paired(*sides))
