"""What the directory of an outer training run holds: names of its files, and reading its curves."""

from __future__ import annotations

import csv
import os
import pathlib
from typing import Any

import numpy as np

THETA_FILE = "theta.npz"
METRICS_FILE = "metrics.csv"
EXPERIMENT_FILE = "experiment.json"
CONFIG_FILE = "config.gin"
POPULATION_FILE = "population.json"
PARALLELISM_FILE = "parallelism.json"
METRICS = (
    "outer_step",
    "loss",
    "grad_norm",
    "gradient_correction",
    "loss_correction",
    "trajectory_length",
    "validation_loss",
    "validation_accuracy",
    "nonfinite",
    "redrawn",
    "rollbacks",
    "smoothness",
    "meta_rise",
    "optimizee_rise",
    "meta_rise_at_reference",
    "optimizee_rise_at_reference",
    "seconds",
)
"""Columns of metrics.csv."""


def metrics_as_written(train_log_dir: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv as text. No file: no rows.

    A last line without its end, of a process that was killed while it wrote, is left out.
    """
    file = pathlib.Path(train_log_dir) / METRICS_FILE
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        lines = [line for line in opened if line.endswith("\n")]
    return list(csv.DictReader(lines))


def read_metrics(train_log_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv; missing values are None. No file: no rows."""
    return [
        {key: float(value) if value else None for key, value in row.items()}
        for row in metrics_as_written(train_log_dir)
    ]


def load_metrics(train_log_dir: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A run's curves as columns; missing values are NaN."""
    rows = read_metrics(train_log_dir)
    return {
        name: np.array([np.nan if row.get(name) is None else row[name] for row in rows])
        for name in METRICS
    }
