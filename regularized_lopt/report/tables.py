"""Tables of results, as text: what a reader sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from regularized_lopt import statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import LABELS, PROPERTIES, SCALES
from regularized_lopt.measure.selections import accuracy, final, quality
from regularized_lopt.report.sections import Table
from regularized_lopt.report.verdicts import Verdict, compare, measured_pair, units


def table_1(tasks: Sequence[xr.Dataset], seeds: Mapping[str, int] | None = None) -> Table:
    """One row per optimizer, one column per task: `selections.quality` at completion.

    Args:
      tasks: their datasets.
      seeds: by optimizer, the place of the one meta-training seed to show; default: all of them.
    """
    chosen = seeds or {}

    def cell(task: xr.Dataset, key: str) -> str:
        found = quality(selections.optimizer(task, key))
        return summary(found[[chosen[key]]] if key in chosen else found)

    return _by_task(tasks, selections.names(tasks), cell)


TABLE_1_NOTE = (
    "Means ± standard deviation over meta-training seeds, or over runs where there is one."
)
FAILURE_MARGIN = 10.0
"""A meta-training seed fails where it ends so many points below the best of all."""
FAILURES_NOTE = (
    f"A seed fails that ends more than {FAILURE_MARGIN:g} points below the best of all seeds and "
    "baselines. Where some do, means over seeds and their intervals say little."
)
OVER_TASKS_NOTE = (
    "Test accuracy at completion, of each meta-training seed the mean over tasks. IQM: the mean of "
    "the middle half of all pairs of a seed and a task, which a failure does not move, with a "
    "stratified bootstrap that draws seeds. Differences are paired by seed, with 95% intervals. "
    "Fail: pairs of a seed and a task."
)


def failures(tasks: Sequence[xr.Dataset]) -> Table:
    """One row per optimizer that has several seeds, one column per task: how many of them fail.

    Where some do, a mean over seeds tells little. The best, of which they fall short by more than
    `FAILURE_MARGIN`, is the highest mean over runs of any seed or baseline on that task. A seed
    whose accuracy is not finite fails.
    """
    keys = dict.fromkeys(key for task in tasks for key in _with_several_seeds(task))

    def cell(task: xr.Dataset, key: str) -> str:
        failing = _failing(task, key)
        return f"{np.sum(failing)} of {len(failing)}"

    return _by_task(tasks, list(keys), cell)


def _by_task(
    tasks: Sequence[xr.Dataset], keys: Sequence[str], cell: Callable[[xr.Dataset, str], str]
) -> Table:
    """One row per optimizer, one column per task; empty where the optimizer is not on it."""
    on = [(task, selections.keys(task)) for task in tasks]
    rows = [[key, *(cell(task, key) if key in of else "" for task, of in on)] for key in keys]
    return ["optimizer", *(task.attrs["task"] for task in tasks)], rows


def _with_several_seeds(task: xr.Dataset) -> list[str]:
    return selections.keys(task.sel(optimizer=task["seeds"] > 1))


def _failing(task: xr.Dataset, key: str) -> np.ndarray:
    """[seeds], which of an optimizer's do."""
    every = [accuracy(one).mean(axis=1) for one in selections.optimizers(task)]
    enough = np.nanmax(np.concatenate(every)) - FAILURE_MARGIN
    return ~(accuracy(selections.optimizer(task, key)).mean(axis=1) >= enough)


def against_sam(tasks: Sequence[xr.Dataset]) -> Table:
    """Learned optimizers against the baselines that take SAM's gradient in the inner loss."""
    header = ["task", "optimizer", "baseline", "accuracy (points)"]
    if any(map(selections.is_measured, tasks)):
        header += ["property", "absolute radius", "relative radius"]
    rows = []
    for task in tasks:
        every = list(selections.optimizers(task))
        for one in filter(selections.is_learned, every):
            for other in (other for other in every if other["gradients_per_step"] > 1):
                row = [task.attrs["task"], one["optimizer"].item(), other["name"].item()]
                known = selections.has_accuracy(task)
                row.append(str(compare(accuracy(one), accuracy(other))) if known else "")
                if selections.is_measured(task):
                    row += _own_property_against(one, other)
                rows.append(row + [""] * (len(header) - len(row)))
    return header, rows


def _own_property_against(one: xr.Dataset, other: xr.Dataset) -> list[str]:
    """What `one` is judged by, and its difference to `other` at completion, by scale."""
    name = selections.judged_by(one)
    pairs = [measured_pair(one, other, name, "completion", scale) for scale in SCALES]
    return [LABELS[name], *(str(compare(*pair)) for pair in pairs)]


def over_tasks(tasks: Sequence[xr.Dataset]) -> Table:
    """One row per optimizer that has several seeds: its mean over the MLPs, and over the CNNs.

    A seed's accuracy is averaged over the tasks, two at least, that the optimizer and the reference
    are on; seeds are the units of the paired difference. Beside the mean stands the interquartile
    mean (IQM) of all pairs of a seed and a task, see `statistics.interquartile_mean`.
    """
    header, reference = ["optimizer"], tasks[0].attrs["reference"]
    several = {key for task in tasks for key in _with_several_seeds(task)}
    keys = [key for key in selections.names(tasks) if key in several]
    rows: list[list[str]] = [[key] for key in keys]
    for name, inside in (("MLPs", True), ("CNNs", False)):
        group = [task for task in tasks if task.attrs["architecture"].endswith("MLP") is inside]
        if len(group) < 2:
            continue
        columns = ("tasks", "accuracy (%)", "IQM (95%)", "fail", f"vs {reference} (points, 95%)")
        header += [f"{name}: {column}" for column in columns]
        for key, row in zip(keys, rows, strict=True):
            own = [task for task in group if key in selections.keys(task)]
            row.extend(_over(own, key) if len(own) > 1 else [""] * len(columns))
    return header, rows if len(header) > 1 else []


def _over(tasks: Sequence[xr.Dataset], key: str) -> list[str]:
    """Of one optimizer on all of several tasks."""

    def scores(name: str) -> np.ndarray:
        """[tasks, seeds], the mean over runs."""
        of = (selections.optimizer(task, name) for task in tasks)
        return np.stack([accuracy(one).mean(axis=1) for one in of])

    own, reference = scores(key), tasks[0].attrs["reference"]
    fail = sum(int(np.sum(_failing(task, key))) for task in tasks)
    seeds = own.mean(axis=0)[:, None]
    return [
        str(len(tasks)),
        summary(seeds),
        str(statistics.interquartile_mean(own, shared_units=True)),
        f"{fail} of {own.size}",
        "" if key == reference else str(compare(seeds, scores(reference).mean(axis=0)[:, None])),
    ]


def quality_table(tasks: Sequence[xr.Dataset]) -> Table:
    """One row per task and optimizer: means, deviations, paired differences to the reference.

    All tasks have accuracies, or none has.
    """
    reference, accurate = tasks[0].attrs["reference"], selections.has_accuracy(tasks[0])
    header = [
        "task",
        "optimizer",
        selections.quality_label(tasks[0]),
        "lowest" if accurate else "highest",
        f"vs {reference} (points, 95%)" if accurate else f"vs {reference} (95%)",
        "train loss",
        "‖p‖",
        "PoC (step)",
        "gradients per step",
    ]
    rows = []
    for task in tasks:
        base = quality(selections.reference(task))
        for one in selections.optimizers(task):
            own, never = quality(one), int((~one["poc_declared"]).sum())
            is_reference = one["optimizer"] == reference
            rows.append(
                [
                    task.attrs["task"],
                    one["name"].item(),
                    summary(own),
                    _worst(own, accurate),
                    "" if is_reference else str(compare(own, base)),
                    summary(final(one, "train_loss")),
                    summary(final(one, "param_norm")),
                    f"{np.median(one['poc_step']) + 1:.0f}"
                    + (f" ({never} never)" if never else ""),
                    str(one["gradients_per_step"].item()),
                ]
            )
    return header, rows


def property_table(task: xr.Dataset, point: str) -> Table:
    """One task: every optimizer's properties at the headline radius, with differences."""
    base, has_hessian = selections.reference(task), selections.flatness_config(task).num_probes > 0
    reference = task.attrs["reference"]
    header = ["optimizer"]
    for name in PROPERTIES:
        header += [LABELS[name], f"vs {reference} (95%)", "in relative radius (95%)"]
    header += ["tr H", "λ max"] if has_hessian else []
    rows = []
    for one in selections.optimizers(task):
        row = [one["name"].item()]
        for name in PROPERTIES:
            pairs = [measured_pair(one, base, name, point, scale) for scale in SCALES]
            row.append(_measured(pairs[0][0]))
            is_reference = one["optimizer"] == reference
            row += ["" if is_reference else str(compare(*pair)) for pair in pairs]
        if has_hessian:
            at = one.sel(point=point)
            row += [summary(at[f"around_{of}"].values) for of in ("trace", "top")]
        rows.append(row)
    return header, rows


def verdict_table(judged: Sequence[Verdict]) -> Table:
    """One row per verdict; what was decided, p and its threshold where a test was declared."""
    header = [
        "task",
        "optimizer",
        "property",
        "point",
        "absolute radius (95%)",
        "relative radius (95%)",
        "at matched training loss (95%)",
        "by its interval, each measure",
        "declared test",
        "p",
        "threshold (Holm)",
    ]
    rows = []
    for v in judged:
        rows.append(
            [
                v.task,
                v.optimizer,
                v.property,
                v.point,
                str(v.absolute),
                str(v.relative),
                str(v.matched),
                v.text(),
                v.declared(),
                f"{v.decision.p:.3g}" if v.decision is not None else "",
                f"{v.decision.threshold:.3g}" if v.decision is not None else "",
            ]
        )
    return header, rows


def _worst(values: np.ndarray, accurate: bool) -> str:
    """The lowest accuracy, or the highest loss, that is finite."""
    finite = [value for value in units(values) if np.isfinite(value)]
    if not finite:
        return ""
    return f"{min(finite):.2f}" if accurate else f"{max(finite):.4g}"


def _measured(values: np.ndarray) -> str:
    """A property, which is NaN where its ball has no room (`sharpness.has_room`)."""
    missing = int(np.sum(np.isnan(units(values))))
    return f"not measured ({missing} of {len(units(values))})" if missing else summary(values)


def summary(values: np.ndarray) -> str:
    """Mean and deviation over the independent units of [seeds, runs]."""
    return str(statistics.summarize(units(values)))
