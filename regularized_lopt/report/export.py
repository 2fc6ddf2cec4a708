"""Results as files. The same results give the same bytes."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt import statistics
from regularized_lopt.measure.flatness import PROPERTIES, SCALES, KeptFlatness
from regularized_lopt.measure.results import POINTS, TaskResult
from regularized_lopt.report import paper_claims, tables
from regularized_lopt.report.paper_claims import Claim
from regularized_lopt.report.verdicts import (
    MEASURES,
    Verdict,
    compare,
    measured_pair,
    paired_units,
    units,
)


def write(
    results: Sequence[TaskResult],
    judged: Sequence[Verdict],
    claims: Sequence[Claim],
    out_dir: pathlib.Path,
) -> None:
    """Writes the results as CSV files.

    table_1.csv, failures.csv, over_tasks.csv, table.csv and verdicts.csv have what a reader sees,
    properties.csv every property at every radius with its interval, measures.csv by each measure
    what every optimizer is judged by, with its difference and its ratio to the reference, runs.csv
    one row per run and point, claims.csv what became of the paper's. A table without rows is not
    written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    as_seen = {
        "table_1.csv": tables.table_1(results),
        "failures.csv": tables.failures(results),
        "table.csv": tables.accuracy_table(results),
        "over_tasks.csv": tables.over_tasks(results),
        "verdicts.csv": tables.verdict_table(judged),
        "claims.csv": paper_claims.table(claims),
    }
    for name, (header, rows) in as_seen.items():
        write_csv(out_dir / name, (dict(zip(header, row, strict=True)) for row in rows))
    write_csv(out_dir / "properties.csv", property_rows(results))
    write_csv(out_dir / "measures.csv", measure_rows(results))
    write_csv(out_dir / "runs.csv", run_rows(results))


def property_rows(results: Sequence[TaskResult]) -> Iterator[dict[str, Any]]:
    """Every property, scale, point and radius, with its difference to the reference."""
    for result in (result for result in results if result.is_measured):
        for key, one in result.optimizers.items():
            for point in POINTS:
                for name in PROPERTIES:
                    for scale in SCALES:
                        for index, radius in enumerate(result.flatness_config.radii):
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


def measure_rows(results: Sequence[TaskResult]) -> Iterator[dict[str, Any]]:
    """What every optimizer is judged by, at the headline radius, by each measure.

    Columns say whether it is learned and whether it was trained for a property (`targeted`). Runs
    are at matched training loss once, so that `point` is empty there. The ends of a ratio's
    interval are NaN where values are not positive.
    """
    for result in (result for result in results if result.is_measured):
        for key, one in result.others:
            for measure in MEASURES:
                for point in ("",) if measure == "matched" else POINTS:
                    pair = paired_units(*measured_pair(result, key, one.judged_by, point, measure))
                    difference = statistics.paired_difference(*pair)
                    ratio = statistics.paired_ratio(*pair)
                    known = math.isfinite(ratio.log.mean)
                    low, high = (ratio.log.low, ratio.log.high) if known else (math.nan, math.nan)
                    yield {
                        "task": result.task,
                        "steps": result.num_steps,
                        "optimizer": key,
                        "reference": result.reference,
                        "learned": one.is_learned,
                        "targeted": one.targeted,
                        "property": one.judged_by,
                        "measure": measure,
                        "point": point,
                        "difference": difference.mean,
                        "low": difference.low,
                        "high": difference.high,
                        "log_ratio": ratio.log.mean,
                        "log_ratio_low": low,
                        "log_ratio_high": high,
                    }


def run_rows(results: Sequence[TaskResult]) -> Iterator[dict[str, Any]]:
    """One row per optimizer, meta-training seed, run and point."""
    for result in results:
        for key, one in result.optimizers.items():
            for seed, curves in enumerate(one.curves):
                for point in POINTS:
                    around = one.at[point][seed] if result.is_measured else None
                    for run in range(len(curves.train_loss)):
                        at_poc = point == "poc"
                        row = {
                            "task": result.task,
                            "optimizer": key,
                            "meta_training_seed": seed,
                            "run": run,
                            "point": point,
                            "step": int(curves.poc_step[run]) + 1 if at_poc else result.num_steps,
                            "poc_declared": bool(curves.poc_declared[run]),
                            **(_around(around, run) if around is not None else {}),
                            "test_accuracy": "" if at_poc else float(curves.test_accuracy[run, -1]),
                            "test_loss": "" if at_poc else float(curves.test_loss[run, -1]),
                            "train_loss": "" if at_poc else float(curves.final_train_loss[run]),
                            "param_norm": "" if at_poc else float(curves.param_norm[run, -1]),
                        }
                        if around is not None:
                            row |= _nearby(around, run, result.flatness_config.radii)
                        yield row


def _around(around: KeptFlatness, run: int) -> dict[str, Any]:
    """At the params of a run; empty cells for one that was not measured."""
    found = {
        "held_out_loss": around.loss,
        "grad_norm": around.grad_norm,
        "hessian_trace": around.trace,
        "hessian_top": around.top,
    }
    return {name: float(values[run]) if run < len(values) else "" for name, values in found.items()}


def _nearby(around: KeptFlatness, run: int, radii: Sequence[float]) -> dict[str, Any]:
    """Every property in every ball around them."""
    row: dict[str, Any] = {}
    for name in PROPERTIES:
        for scale in SCALES:
            last = around.last(name, scale)
            for index, radius in enumerate(radii):
                row[f"{name}_{scale}_r{radius:g}"] = (
                    float(last[run, index]) if run < len(last) else ""
                )
    return row


def _digits(value: float) -> str:
    return f"{value:.6g}"


def write_csv(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows, whose columns are all that any of them has; numbers with six digits.

    Without rows there is no file.
    """
    listed = [
        {key: _digits(cell) if isinstance(cell, float) else cell for key, cell in row.items()}
        for row in rows
    ]
    if not listed:
        return
    fields = list(dict.fromkeys(field for row in listed for field in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
