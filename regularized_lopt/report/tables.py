"""Tables of results, as text: what a reader sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from regularized_lopt import statistics
from regularized_lopt.measure.flatness import LABELS, PROPERTIES, SCALES
from regularized_lopt.measure.results import Result, TaskResult, names
from regularized_lopt.report.sections import Table
from regularized_lopt.report.verdicts import Verdict, compare, units


def table_1(results: Sequence[TaskResult], seeds: Mapping[str, int] | None = None) -> Table:
    """One row per optimizer, one column per task: test accuracy at completion.

    Args:
      results: by task.
      seeds: by optimizer, the place of the one meta-training seed to show; default: all of them.
    """

    def cell(result: TaskResult, key: str) -> str:
        if key not in result.optimizers:
            return ""
        accuracy = result.optimizers[key].accuracy()
        return summary(accuracy if seeds is None or key not in seeds else accuracy[[seeds[key]]])

    rows = [[key, *(cell(result, key) for result in results)] for key in names(results)]
    return ["optimizer", *(result.task for result in results)], rows


FAILURE_MARGIN = 10.0
"""A meta-training seed fails where it ends so many points below the best of all."""


def failures(results: Sequence[TaskResult]) -> Table:
    """One row per optimizer that has several seeds, one column per task: how many of them fail.

    Where some do, a mean over seeds tells little. The best, of which they fall short by more than
    `FAILURE_MARGIN`, is the highest mean over runs of any seed or baseline on that task. A seed
    whose accuracy is not finite fails.
    """
    keys = dict.fromkeys(
        key for result in results for key, one in result.optimizers.items() if len(one.curves) > 1
    )

    def cell(result: TaskResult, key: str) -> str:
        if key not in result.optimizers:
            return ""
        failing = _failing(result, key)
        return f"{np.sum(failing)} of {len(failing)}"

    rows = [[key, *(cell(result, key) for result in results)] for key in keys]
    return ["optimizer", *(result.task for result in results)], rows


def _failing(result: TaskResult, key: str) -> np.ndarray:
    """[seeds], which of an optimizer's do."""
    every = [one.accuracy().mean(axis=1) for one in result.optimizers.values()]
    enough = np.nanmax(np.concatenate(every)) - FAILURE_MARGIN
    return ~(result.optimizers[key].accuracy().mean(axis=1) >= enough)


def against_sam(results: Sequence[TaskResult]) -> Table:
    """Learned optimizers against the baselines that take SAM's gradient in the inner loss."""
    header = ["task", "optimizer", "baseline", "accuracy (points)"]
    if any(result.is_measured for result in results):
        header += ["property", "absolute radius", "relative radius"]
    rows = []
    for result in results:
        baselines = {k: r for k, r in result.optimizers.items() if r.gradients_per_step > 1}
        for key, one in result.optimizers.items():
            if not one.is_learned:
                continue
            for other in baselines.values():
                accuracy = compare(one.accuracy(), other.accuracy())
                row = [result.task, key, other.name, str(accuracy)]
                if result.is_measured:
                    row += _own_property_against(one, other, result.flatness_config.headline)
                rows.append(row + [""] * (len(header) - len(row)))
    return header, rows


def _own_property_against(one: Result, other: Result, radius: int) -> list[str]:
    """What `one` is judged by, and its difference to `other` at completion, by scale."""
    name = one.judged_by
    last = [[r.last(name, "completion", radius, scale) for r in (one, other)] for scale in SCALES]
    return [LABELS[name], *(str(compare(own, theirs)) for own, theirs in last)]


def over_tasks(results: Sequence[TaskResult]) -> Table:
    """One row per optimizer that has several seeds: its mean over the MLPs, and over the CNNs.

    A seed's accuracy is averaged over the tasks, two at least, that the optimizer and the reference
    are on; seeds are the units of the paired difference. Beside the mean stands the interquartile
    mean (IQM) of all pairs of a seed and a task, see `statistics.interquartile_mean`.
    """
    header, reference = ["optimizer"], results[0].reference
    keys = [
        key
        for key in names(results)
        if any(key in r.optimizers and len(r.optimizers[key].curves) > 1 for r in results)
    ]
    rows: list[list[str]] = [[key] for key in keys]
    for name, inside in (("MLPs", True), ("CNNs", False)):
        group = [r for r in results if (r.facts["architecture"] == "MLP") is inside]
        if len(group) < 2:
            continue
        columns = ("tasks", "accuracy (%)", "IQM (95%)", "fail", f"vs {reference} (points, 95%)")
        header += [f"{name}: {column}" for column in columns]
        for key, row in zip(keys, rows, strict=True):
            own = [result for result in group if key in result.optimizers]
            row.extend(_over(own, key) if len(own) > 1 else [""] * len(columns))
    return header, rows if len(header) > 1 else []


def _over(results: Sequence[TaskResult], key: str) -> list[str]:
    """Of one optimizer on all of several tasks."""

    def seeds(name: str) -> np.ndarray:
        """[seeds, 1], the mean over tasks."""
        by_task = [result.optimizers[name].accuracy().mean(axis=1) for result in results]
        return np.mean(by_task, axis=0)[:, None]

    scores = np.stack([result.optimizers[key].accuracy().mean(axis=1) for result in results])
    fail = sum(int(np.sum(_failing(result, key))) for result in results)
    reference = results[0].reference
    return [
        str(len(results)),
        summary(seeds(key)),
        str(statistics.interquartile_mean(scores, shared_units=True)),
        f"{fail} of {len(results) * len(seeds(key))}",
        "" if key == reference else str(compare(seeds(key), seeds(reference))),
    ]


def accuracy_table(results: Sequence[TaskResult]) -> Table:
    """One row per task and optimizer: means, deviations, paired differences to the reference."""
    reference = results[0].reference
    header = [
        "task",
        "optimizer",
        "test accuracy (%)",
        "lowest",
        f"vs {reference} (points, 95%)",
        "train loss",
        "‖p‖",
        "PoC (step)",
        "gradients per step",
    ]
    rows = []
    for result in results:
        base = result.reference_result.accuracy()
        for key, one in result.optimizers.items():
            poc = np.concatenate([curves.poc_step for curves in one.curves]) + 1
            never = int(sum((~curves.poc_declared).sum() for curves in one.curves))
            rows.append(
                [
                    result.task,
                    one.name,
                    summary(one.accuracy()),
                    _lowest(one.accuracy()),
                    "" if key == reference else str(compare(one.accuracy(), base)),
                    summary(one.final_train_loss()),
                    summary(one.param_norm()),
                    f"{np.median(poc):.0f}" + (f" ({never} never)" if never else ""),
                    str(one.gradients_per_step),
                ]
            )
    return header, rows


def property_table(result: TaskResult, point: str) -> Table:
    """One task: every optimizer's properties at the headline radius, with differences."""
    reference = result.reference
    radius = result.flatness_config.headline
    header = ["optimizer"]
    for name in PROPERTIES:
        header += [LABELS[name], f"vs {reference} (95%)", "in relative radius (95%)"]
    header += ["tr H", "λ max"] if result.flatness_config.num_probes else []
    rows = []
    for key, one in result.optimizers.items():
        row = [one.name]
        for name in PROPERTIES:
            row.append(_measured(one.last(name, point, radius)))
            for scale in SCALES:
                row.append(
                    ""
                    if key == reference
                    else str(
                        compare(
                            one.last(name, point, radius, scale),
                            result.reference_result.last(name, point, radius, scale),
                        )
                    )
                )
        if result.flatness_config.num_probes:
            row += [
                summary(np.stack([getattr(s, f) for s in one.at[point]])) for f in ("trace", "top")
            ]
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


def _lowest(values: np.ndarray) -> str:
    finite = [value for value in units(values) if np.isfinite(value)]
    return f"{min(finite):.2f}" if finite else ""


def _measured(values: np.ndarray) -> str:
    """A property, which is NaN where its ball has no room (`sharpness.has_room`)."""
    missing = int(np.sum(np.isnan(units(values))))
    return f"not measured ({missing} of {len(units(values))})" if missing else summary(values)


def summary(values: np.ndarray) -> str:
    """Mean and deviation over the independent units of [seeds, runs]."""
    return str(statistics.summarize(units(values)))
