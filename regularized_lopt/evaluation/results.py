"""Results as files and as tables. The same cells give the same bytes."""

from __future__ import annotations

import csv
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt.evaluation import statistics, store
from regularized_lopt.evaluation.claims import Claim
from regularized_lopt.evaluation.early_evidence import EarlyEvidence
from regularized_lopt.evaluation.properties import LABELS, PROPERTIES, SCALES, Surroundings
from regularized_lopt.evaluation.verdicts import (
    POINTS,
    Result,
    TaskResult,
    Verdict,
    compare,
    units,
)

Table = tuple[list[str], list[list[str]]]


def write(
    results: Sequence[TaskResult],
    judged: Sequence[Verdict],
    claims: Sequence[Claim],
    out_dir: pathlib.Path,
) -> None:
    """Writes table_1.csv, table.csv, properties.csv, verdicts.csv, runs.csv and results.json.

    The first two have what a reader sees, properties.csv every property at every radius with its
    interval, runs.csv one row per run and point, results.json the curves on the evaluation grid and
    along the ascents at the headline radius.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    tables = {
        "table_1.csv": table_1(results),
        "table.csv": accuracy_table(results),
        "verdicts.csv": verdict_table(judged),
    }
    for name, (header, rows) in tables.items():
        write_csv(out_dir / name, (dict(zip(header, row, strict=True)) for row in rows))
    write_csv(out_dir / "properties.csv", property_rows(results))
    write_csv(out_dir / "runs.csv", run_rows(results))
    (out_dir / "results.json").write_text(json.dumps(to_json(results, claims)))


def table_1(results: Sequence[TaskResult], seeds: Mapping[str, int] | None = None) -> Table:
    """One row per contestant, one column per task: test accuracy at completion.

    Args:
      results: by task.
      seeds: by contestant, the place of the one meta-training seed to show; default: all of them.
    """
    keys = dict.fromkeys(key for result in results for key in result.contestants)

    def cell(result: TaskResult, key: str) -> str:
        if key not in result.contestants:
            return ""
        accuracy = result.contestants[key].accuracy()
        return _summary(accuracy if seeds is None or key not in seeds else accuracy[[seeds[key]]])

    rows = [[key, *(cell(result, key) for result in results)] for key in keys]
    return ["optimizer", *(result.task for result in results)], rows


def against_sam(results: Sequence[TaskResult]) -> Table:
    """Learned optimizers against the baselines that take SAM's gradient in the inner loss."""
    header = ["task", "optimizer", "baseline", "accuracy (points)", "property"]
    header += ["absolute radius", "relative radius"]
    rows = []
    for result in results:
        baselines = {k: r for k, r in result.contestants.items() if r.gradients_per_step > 1}
        for key, one in result.contestants.items():
            if not one.is_learned:
                continue
            for other in baselines.values():
                accuracy = compare(one.accuracy(), other.accuracy())
                row = [result.task, key, other.name, str(accuracy), LABELS[one.own_property]]
                for scale in SCALES:
                    own, theirs = (
                        r.last(one.own_property, "completion", result.measurement.headline, scale)
                        for r in (one, other)
                    )
                    row.append(str(compare(own, theirs)))
                rows.append(row)
    return header, rows


def compute_table(seconds: Mapping[str, float]) -> Table:
    """Minutes by kind of cell, from `Laboratory.spent`."""
    total = sum(seconds.values())
    rows = [[kind, f"{value / 60:.1f}"] for kind, value in sorted(seconds.items())]
    return ["", "minutes"], [*rows, ["all", f"{total / 60:.1f}"]]


def accuracy_table(results: Sequence[TaskResult]) -> Table:
    """One row per task and contestant: means, deviations, paired differences to the reference."""
    reference = results[0].reference
    header = [
        "task",
        "optimizer",
        "test accuracy (%)",
        f"vs {reference} (points, 95%)",
        "train loss",
        "‖p‖",
        "PoC (step)",
        "gradients per step",
    ]
    rows = []
    for result in results:
        base = result.reference_result.accuracy()
        for key, one in result.contestants.items():
            poc = np.concatenate([runs.poc_step for runs in one.runs]) + 1
            never = int(sum((~runs.poc_declared).sum() for runs in one.runs))
            rows.append(
                [
                    result.task,
                    one.name,
                    _summary(one.accuracy()),
                    "" if key == reference else str(compare(one.accuracy(), base)),
                    _summary(one.final_train_loss()),
                    _summary(one.param_norm()),
                    f"{np.median(poc):.0f}" + (f" ({never} never)" if never else ""),
                    str(one.gradients_per_step),
                ]
            )
    return header, rows


def property_table(result: TaskResult, point: str) -> Table:
    """One task: every contestant's properties at the headline radius, with differences."""
    reference = result.reference
    radius = result.measurement.headline
    header = ["optimizer"]
    for name in PROPERTIES:
        header += [LABELS[name], f"vs {reference} (95%)", "in relative radius (95%)"]
    header += ["tr H", "λ max"] if result.measurement.num_probes else []
    rows = []
    for key, one in result.contestants.items():
        row = [one.name]
        for name in PROPERTIES:
            row.append(_summary(one.last(name, point, radius)))
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
        if result.measurement.num_probes:
            row += [
                _summary(np.stack([getattr(s, f) for s in one.at[point]])) for f in ("trace", "top")
            ]
        rows.append(row)
    return header, rows


def verdict_table(judged: Sequence[Verdict]) -> Table:
    """One row per verdict; p and its threshold where a test was declared."""
    header = [
        "task",
        "optimizer",
        "property",
        "point",
        "verdict",
        "absolute radius (95%)",
        "relative radius (95%)",
        "at matched training loss (95%)",
        "p",
        "threshold (Holm)",
    ]
    rows = []
    for v in judged:
        rows.append(
            [
                v.task,
                v.contestant,
                v.property,
                v.point,
                v.verdict,
                str(v.absolute),
                str(v.relative),
                str(v.matched),
                f"{v.decision.p:.3g}" if v.decision is not None else "",
                f"{v.decision.threshold:.3g}" if v.decision is not None else "",
            ]
        )
    return header, rows


def early_evidence_table(found: EarlyEvidence) -> Table:
    """One row per contestant; differences to the first."""
    first = next(iter(found.fits.values()))
    header = ["optimizer", "R² (median)", "R²", "vs first (95%)", "‖p‖", "vs first (95%)", "loss"]
    rows = []
    for name, fits in found.fits.items():
        same = fits is first
        rows.append(
            [
                name,
                f"{np.median(fits.r2):.4g}",
                str(statistics.summarize(fits.r2)),
                "" if same else str(statistics.paired_difference(fits.r2, first.r2)),
                str(statistics.summarize(fits.norm)),
                "" if same else str(statistics.paired_difference(fits.norm, first.norm)),
                str(statistics.summarize(fits.train_loss)),
            ]
        )
    return header, rows


def property_rows(results: Sequence[TaskResult]) -> Iterator[dict[str, Any]]:
    """Every property, scale, point and radius, with its difference to the reference."""
    for result in results:
        for key, one in result.contestants.items():
            for point in POINTS:
                for name in PROPERTIES:
                    for scale in SCALES:
                        for index, radius in enumerate(result.measurement.radii):
                            values = one.last(name, point, index, scale)
                            best = np.stack([s.best(name, scale)[:, index] for s in one.at[point]])
                            base = result.reference_result.last(name, point, index, scale)
                            summary = statistics.summarize(units(values))
                            difference = compare(values, base)
                            yield {
                                "task": result.task,
                                "optimizer": key,
                                "point": point,
                                "property": name,
                                "scale": scale,
                                "radius": radius,
                                "mean": summary.mean,
                                "std": summary.std,
                                "best_mean": float(units(best).mean()),
                                "difference": difference.mean,
                                "low": difference.low,
                                "high": difference.high,
                            }


def run_rows(results: Sequence[TaskResult]) -> Iterator[dict[str, Any]]:
    """One row per contestant, meta-training seed, run and point."""
    for result in results:
        for key, one in result.contestants.items():
            for seed, runs in enumerate(one.runs):
                for point in POINTS:
                    around = one.at[point][seed]
                    for run in range(len(runs.train_loss)):
                        measured = run < len(around.loss)
                        at_poc = point == "poc"
                        row = {
                            "task": result.task,
                            "optimizer": key,
                            "meta_training_seed": seed,
                            "run": run,
                            "point": point,
                            "step": int(runs.poc_step[run]) + 1 if at_poc else result.num_steps,
                            "poc_declared": bool(runs.poc_declared[run]),
                            "held_out_loss": float(around.loss[run]) if measured else "",
                            "grad_norm": float(around.grad_norm[run]) if measured else "",
                            "hessian_trace": float(around.trace[run]) if measured else "",
                            "hessian_top": float(around.top[run]) if measured else "",
                            "test_accuracy": "" if at_poc else float(runs.test_accuracy[run, -1]),
                            "test_loss": "" if at_poc else float(runs.test_loss[run, -1]),
                            "train_loss": "" if at_poc else float(runs.final_train_loss[run]),
                            "param_norm": "" if at_poc else float(runs.param_norm[run, -1]),
                        }
                        for name in PROPERTIES:
                            for scale in SCALES:
                                last = around.last(name, scale)
                                for index, radius in enumerate(result.measurement.radii):
                                    row[f"{name}_{scale}_r{radius:g}"] = (
                                        float(last[run, index]) if measured else ""
                                    )
                        yield row


def to_json(results: Sequence[TaskResult], claims: Sequence[Claim]) -> dict[str, Any]:
    """Curves on the evaluation grid, ascents and claims, as JSON types (NaN and inf: null)."""

    def around(at: Surroundings, radius: int) -> dict[str, Any]:
        """Without what runs.csv has: the ends of ascents at other radii."""
        ascents = {
            name: {scale: curves[:, radius] for scale, curves in getattr(at, name).items()}
            for name in ("loss_ascent", "grad_norm_ascent")
        }
        return {**store.fields(at), **ascents}

    def contestant(one: Result, radius: int) -> dict[str, Any]:
        return {
            "name": one.name,
            "gradients_per_step": one.gradients_per_step,
            "runs": [
                {
                    name: getattr(runs, name)
                    for name in (
                        "eval_steps",
                        "test_loss",
                        "test_accuracy",
                        "param_norm",
                        "update_norm",
                        "final_train_loss",
                        "poc_step",
                        "poc_declared",
                        "best_step",
                    )
                }
                for runs in one.runs
            ],
            "at": {point: [around(s, radius) for s in of] for point, of in one.at.items()},
            "matched": [
                {
                    "training_loss": matched.level,
                    "own_step": matched.own_step,
                    "reference_step": matched.reference_step,
                    "own": around(matched.own, 0),  # Measured at the headline radius alone.
                    "reference": around(matched.reference, 0),
                }
                for matched in one.matched
            ],
        }

    return _jsonable(
        {
            "reference": results[0].reference,
            "claims": [store.fields(claim) for claim in claims],
            "tasks": {
                result.task: {
                    "num_steps": result.num_steps,
                    "measurement": store.fields(result.measurement),
                    "contestants": {
                        key: contestant(one, result.measurement.headline)
                        for key, one in result.contestants.items()
                    },
                }
                for result in results
            },
        }
    )


def meta_training_table(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Table:
    """One row per meta-training: how long it was, how well it went, and what it had to survive."""
    header = [
        "optimizer",
        "outer steps",
        "lowest validation loss",
        "skipped",
        "drawn anew",
        "returns",
    ]
    rows = []
    for name, columns in curves.items():
        validated = columns["validation_loss"][np.isfinite(columns["validation_loss"])]
        counts = [columns[key] for key in ("nonfinite", "redrawn", "rollbacks")]
        rows.append(
            [
                name,
                f"{columns['outer_step'].max():.0f}",
                f"{validated.min():.4f}" if len(validated) else "none made",
                *(
                    f"{np.nanmax(one):.0f}" if np.isfinite(one).any() else "not recorded"
                    for one in counts
                ),
            ]
        )
    return header, rows


def _summary(values: np.ndarray) -> str:
    return str(statistics.summarize(units(values)))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return float(_digits(value)) if math.isfinite(value) else None
    return value


def _digits(value: float) -> str:
    return f"{value:.6g}"


def write_csv(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows, whose columns are all that any of them has; numbers with six digits."""
    listed = [
        {key: _digits(cell) if isinstance(cell, float) else cell for key, cell in row.items()}
        for row in rows
    ]
    fields = list(dict.fromkeys(field for row in listed for field in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
