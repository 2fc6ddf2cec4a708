"""Results as files. The same results give the same bytes."""

from __future__ import annotations

import csv
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from regularized_lopt import statistics
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import PROPERTIES
from regularized_lopt.measure.results import POINTS
from regularized_lopt.report import log_ratios, paper_claims, tables
from regularized_lopt.report.paper_claims import Claim
from regularized_lopt.report.verdicts import (
    MEASURES,
    Verdict,
    compare,
    measured_pair,
    paired_units,
    units,
)

_ENDS = ("test_accuracy", "test_loss", "train_loss", "param_norm")
_AROUND = {
    "held_out_loss": "loss",
    "grad_norm": "grad_norm",
    "hessian_trace": "trace",
    "hessian_top": "top",
}


def write(
    tasks: Sequence[xr.Dataset],
    judged: Sequence[Verdict],
    claims: Sequence[Claim],
    out_dir: pathlib.Path,
) -> None:
    """Writes the results as CSV files.

    table_1.csv, failures.csv, over_tasks.csv, table.csv (of tasks without accuracy losses.csv and
    loss_table.csv) and verdicts.csv have what a reader sees,
    properties.csv every property at every radius with its interval, measures.csv by each measure
    what every optimizer is judged by, with its difference and its ratio to the reference,
    log_ratios.csv what `log_ratios` tells of seeds, runs.csv one row per run and point, claims.csv
    what became of the paper's. A table without rows is not written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    accurate = [task for task in tasks if selections.has_accuracy(task)]
    others = [task for task in tasks if not selections.has_accuracy(task)]
    as_seen = {
        **({"table_1.csv": tables.table_1(accurate)} if accurate else {}),
        **({"losses.csv": tables.table_1(others)} if others else {}),
        "failures.csv": tables.failures(accurate),
        **({"table.csv": tables.quality_table(accurate)} if accurate else {}),
        **({"loss_table.csv": tables.quality_table(others)} if others else {}),
        **({"over_tasks.csv": tables.over_tasks(accurate)} if accurate else {}),
        "verdicts.csv": tables.verdict_table(judged),
        "claims.csv": paper_claims.table(claims),
    }
    for name, (header, rows) in as_seen.items():
        write_csv(out_dir / name, (dict(zip(header, row, strict=True)) for row in rows))
    write_csv(out_dir / "properties.csv", property_rows(tasks))
    write_csv(out_dir / "measures.csv", measure_rows(tasks))
    write_csv(out_dir / "log_ratios.csv", log_ratios.rows(tasks))
    write_csv(out_dir / "runs.csv", run_rows(tasks))


def property_rows(tasks: Sequence[xr.Dataset]) -> Iterator[dict[str, Any]]:
    """Every property, scale, point and radius, with its difference to the reference."""
    for task in filter(selections.is_measured, tasks):
        base, config = selections.reference(task), selections.flatness_config(task)
        for one in selections.optimizers(task):
            for point, name in itertools.product(POINTS, PROPERTIES):
                last, best = selections.last(one, name), selections.best(one, name)
                sides = (last, best, selections.last(base, name))
                for scale, radius in itertools.product(config.scales, config.radii):
                    values, highest, other = (
                        selections.at(side, point=point, scale=scale, radius=radius)
                        for side in sides
                    )
                    summary = statistics.summarize(units(values))
                    difference = compare(values, other)
                    yield {
                        "task": task.attrs["task"],
                        "optimizer": one["optimizer"].item(),
                        "point": point,
                        "property": name,
                        "scale": scale,
                        "radius": radius,
                        "mean": summary.mean,
                        "std": summary.std,
                        "best_mean": float(units(highest).mean()),
                        "difference": difference.mean,
                        "low": difference.low,
                        "high": difference.high,
                    }


def measure_rows(tasks: Sequence[xr.Dataset]) -> Iterator[dict[str, Any]]:
    """What every optimizer is judged by, at the headline radius, by each measure.

    Columns say whether it is learned and whether it was trained for a property (`targeted`). Runs
    are at matched training loss once, so that `point` is empty there. The ends of a ratio's
    interval are NaN where values are not positive.
    """
    for task in filter(selections.is_measured, tasks):
        base = selections.reference(task)
        for one in selections.others(task):
            name = selections.judged_by(one)
            for measure in MEASURES:
                for point in ("",) if measure == "matched" else POINTS:
                    pair = paired_units(*measured_pair(one, base, name, point, measure))
                    difference = statistics.paired_difference(*pair)
                    ratio = statistics.paired_ratio(*pair)
                    known = math.isfinite(ratio.log.mean)
                    low, high = (ratio.log.low, ratio.log.high) if known else (math.nan, math.nan)
                    yield {
                        "task": task.attrs["task"],
                        "steps": int(task.attrs["num_steps"]),
                        "optimizer": one["optimizer"].item(),
                        "reference": task.attrs["reference"],
                        "learned": selections.is_learned(one),
                        "targeted": one["targeted"].item(),
                        "property": name,
                        "measure": measure,
                        "point": point,
                        "difference": difference.mean,
                        "low": difference.low,
                        "high": difference.high,
                        "log_ratio": ratio.log.mean,
                        "log_ratio_low": low,
                        "log_ratio_high": high,
                    }


def run_rows(tasks: Sequence[xr.Dataset]) -> Iterator[dict[str, Any]]:
    """One row per optimizer, meta-training seed, run and point."""
    for task in tasks:
        steps, measured = int(task.attrs["num_steps"]), selections.is_measured(task)
        for one in selections.optimizers(task):
            around = {point: _around(one, point) if measured else {} for point in POINTS}
            nearby = {point: _nearby(one, point) if measured else {} for point in POINTS}
            ends = {name: selections.final(one, name) for name in _ENDS if name in one}
            poc, declared = one["poc_step"].values + 1, one["poc_declared"].values
            runs = range(one.sizes["run"])
            for seed, point, run in itertools.product(range(one.sizes["seed"]), POINTS, runs):
                at_poc = point == "poc"
                yield {
                    "task": task.attrs["task"],
                    "optimizer": one["optimizer"].item(),
                    "meta_training_seed": seed,
                    "run": run,
                    "point": point,
                    "step": int(poc[seed, run]) if at_poc else steps,
                    "poc_declared": bool(declared[seed, run]),
                    **_cells(around[point], seed, run),
                    **(dict.fromkeys(ends, "") if at_poc else _cells(ends, seed, run)),
                    **_cells(nearby[point], seed, run),
                }


def _around(one: xr.Dataset, point: str) -> dict[str, np.ndarray]:
    """By column, [seeds, runs]: what was measured at the params."""
    return {
        column: selections.at(one[f"around_{name}"], point=point)
        for column, name in _AROUND.items()
    }


def _nearby(one: xr.Dataset, point: str) -> dict[str, np.ndarray]:
    """By column, [seeds, runs]: every property in every ball around them."""
    found = {}
    for name in PROPERTIES:
        last = selections.last(one, name)
        for scale, radius in itertools.product(last["scale"].values, last["radius"].values):
            values = selections.at(last, point=point, scale=scale, radius=radius)
            found[f"{name}_{scale}_r{radius:g}"] = values
    return found


def _cells(columns: Mapping[str, np.ndarray], seed: int, run: int) -> dict[str, Any]:
    """Of one run; empty where it was not measured."""
    return {
        name: float(values[seed, run]) if run < values.shape[1] else ""
        for name, values in columns.items()
    }


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
