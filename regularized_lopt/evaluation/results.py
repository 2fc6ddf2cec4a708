"""Meta-test results as files: results.json (everything), results.csv (by run), table.csv."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import regularized_lopt
from regularized_lopt import upstream
from regularized_lopt.evaluation import statistics
from regularized_lopt.evaluation.meta_test import MetaTestResult, Runs, Sharpness

HEADLINE_RADIUS = 0.01
"""The radius that the table shows; figures and files have all of them."""


def write(result: MetaTestResult, out_dir: pathlib.Path, reference: str | None = None) -> None:
    """Writes results.json, results.csv and table.csv into `out_dir`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "results.json").write_text(json.dumps(to_json(result), indent=1))
    _write_csv(out_dir / "results.csv", run_rows(result))
    header, rows = table(result, reference)
    _write_csv(out_dir / "table.csv", [dict(zip(header, row, strict=True)) for row in rows])


def to_json(result: MetaTestResult) -> dict[str, Any]:
    """Everything but params, as JSON types."""

    def arrays(value: Runs | Sharpness) -> dict[str, Any]:
        fields = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if not f.name.endswith("_params")
        }
        return {
            name: field.tolist() if isinstance(field, np.ndarray) else field
            for name, field in fields.items()
        }

    return {
        "task": result.task,
        "num_runs": result.num_runs,
        "num_steps": result.num_steps,
        "seed": result.seed,
        "radii": list(result.radii),
        "versions": {
            "regularized_lopt": regularized_lopt.__version__,
            "learned_optimization": upstream.GENERATION,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "runs": {name: arrays(runs) for name, runs in result.runs.items()},
        "sharpness_at_poc": {name: arrays(sharpness) for name, sharpness in result.at_poc.items()},
        "sharpness_at_completion": {
            name: arrays(sharpness) for name, sharpness in result.at_completion.items()
        },
    }


def run_rows(result: MetaTestResult) -> list[dict[str, Any]]:
    """One row per optimizer, run and point (PoC, completion)."""
    rows = []
    for name, runs in result.runs.items():
        for point, sharpness in (
            ("poc", result.at_poc[name]),
            ("completion", result.at_completion[name]),
        ):
            for run in range(result.num_runs):
                row = {
                    "task": result.task,
                    "optimizer": name,
                    "run": run,
                    "point": point,
                    "step": int(runs.poc_step[run]) + 1 if point == "poc" else result.num_steps,
                    "poc_declared": bool(runs.poc_declared[run]),
                    "held_out_loss": float(sharpness.centre[run]),
                }
                if point == "completion":
                    row |= {
                        "test_accuracy": float(runs.test_accuracy[run, -1]),
                        "test_loss": float(runs.test_loss[run, -1]),
                        "train_loss": float(runs.final_train_loss[run]),
                        "param_norm": float(runs.param_norm[run, -1]),
                    }
                for index, radius in enumerate(result.radii):
                    row[f"max_loss_r{radius:g}"] = float(sharpness.values[run, index, -1])
                    row[f"best_max_loss_r{radius:g}"] = float(sharpness.best[run, index])
                rows.append(row)
    return rows


def table(
    result: MetaTestResult, reference: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """The summary: one row per optimizer; means with deviations over runs.

    Args:
      result: of a meta-test.
      reference: the optimizer that accuracies are compared with, paired; default: the first.
    """
    reference = reference or next(iter(result.runs))
    index = headline_index(result)
    radius = result.radii[index]
    header = [
        "optimizer",
        "test accuracy (%)",
        f"vs {reference} (points, 95%)",
        "train loss",
        "‖p‖",
        f"rise at PoC, r={radius:g}",
        f"rise at end, r={radius:g}",
        f"rise vs {reference} (95%)",
        "PoC (step)",
    ]
    rows = []
    for name, runs in result.runs.items():
        accuracy = 100 * runs.test_accuracy[:, -1]
        base = 100 * result.runs[reference].test_accuracy[:, -1]
        at_poc, at_end = rise(result.at_poc[name], index), rise(result.at_completion[name], index)
        base_rise = rise(result.at_completion[reference], index)
        same = name == reference
        never = int(np.sum(~runs.poc_declared))
        rows.append(
            [
                name
                + (f" (lr {runs.learning_rate:.2g})" if runs.learning_rate is not None else ""),
                str(statistics.summarize(accuracy)),
                "" if same else str(statistics.paired_difference(accuracy, base)),
                str(statistics.summarize(runs.final_train_loss)),
                str(statistics.summarize(runs.param_norm[:, -1])),
                str(statistics.summarize(at_poc)),
                str(statistics.summarize(at_end)),
                "" if same else str(statistics.paired_difference(at_end, base_rise)),
                f"{np.median(runs.poc_step) + 1:.0f}" + (f" ({never} never)" if never else ""),
            ]
        )
    return header, rows


def rise(sharpness: Sharpness, index: int) -> np.ndarray:
    """[runs]: how much the loss rises from the centre to the end of the ascent, at one radius."""
    return sharpness.values[:, index, -1] - sharpness.centre


def headline_index(result: MetaTestResult) -> int:
    """Index of the radius that is closest to `HEADLINE_RADIUS`."""
    return int(np.argmin(np.abs(np.log(np.asarray(result.radii) / HEADLINE_RADIUS))))


def _write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    fields = list(dict.fromkeys(field for row in rows for field in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
