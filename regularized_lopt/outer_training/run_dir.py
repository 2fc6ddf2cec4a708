"""The directory of an outer training run: whose it is, its checkpoints and its curves."""

from __future__ import annotations

import csv
import difflib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorboardX

from regularized_lopt import serialization

_EXPERIMENT = "experiment.json"
_METRICS = "metrics.csv"
_KEPT_CHECKPOINTS = 2


class OtherExperimentError(RuntimeError):
    """The directory holds another experiment, or something that is none; nothing was written."""


class RunDir:
    """Files of one experiment.

    experiment.json: the configuration the directory belongs to; config.gin: the same in full, with
      defaults;
    checkpoints/: everything that resuming needs, the last two; metrics.csv and TensorBoard events:
    curves.
    """

    def __init__(self, path: str | os.PathLike[str], experiment: Mapping[str, Any]):
        """Claims the directory for `experiment`.

        Args:
          path: created if needed.
          experiment: JSON-serializable description; a directory with another one is refused.

        Raises:
          OtherExperimentError: the directory is taken; the message has the differences.
        """
        self.path = pathlib.Path(path)
        description = json.dumps(experiment, indent=1, sort_keys=True)
        file = self.path / _EXPERIMENT
        if file.is_file():
            _check_same(self.path, file.read_text(), description)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise OtherExperimentError(
                f"{self.path} is not empty and holds no experiment of ours ({_EXPERIMENT} is "
                "missing). Choose another --train_log_dir; nothing was written."
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            file.write_text(description)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The last checkpoint, as (tree in the structure of `like`, metadata), or None."""
        checkpoints = self._checkpoints()
        return serialization.load(checkpoints[-1], like) if checkpoints else None

    def save_checkpoint(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint and drops all but the last ones."""
        serialization.save(self.path / "checkpoints" / f"checkpoint_{step:08d}.npz", tree, metadata)
        for old in self._checkpoints()[:-_KEPT_CHECKPOINTS]:
            old.unlink()

    def last_checkpoint(self) -> pathlib.Path | None:
        """The newest checkpoint's file, if there is any."""
        checkpoints = self._checkpoints()
        return checkpoints[-1] if checkpoints else None

    def _checkpoints(self) -> list[pathlib.Path]:
        return sorted((self.path / "checkpoints").glob("checkpoint_*.npz"))


class MetricsLog:
    """Scalars by outer step, in metrics.csv and in TensorBoard."""

    FIELDS = (
        "outer_step",
        "loss",
        "grad_norm",
        "trajectory_length",
        "validation_loss",
        "nonfinite",
        "smoothness",
        "seconds",
    )

    def __init__(self, run_dir: RunDir, resume_step: int):
        """Opens the log and drops entries later than the checkpoint at `resume_step`."""
        self._path = run_dir.path / _METRICS
        rows = [row for row in read_metrics(run_dir.path) if row["outer_step"] <= resume_step]
        self._file = self._path.open("w", newline="")
        self._csv = csv.DictWriter(self._file, self.FIELDS)
        self._csv.writeheader()
        for row in rows:
            self._csv.writerow({key: "" if value is None else value for key, value in row.items()})
        self._tensorboard = tensorboardX.SummaryWriter(
            str(run_dir.path), purge_step=resume_step + 1
        )
        self.seconds_before: float = rows[-1]["seconds"] or 0.0 if rows else 0.0

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one outer step."""
        self._csv.writerow({"outer_step": step, **scalars})
        self._file.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(f"outer_train/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes both logs."""
        self._file.close()
        self._tensorboard.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv; missing values are None. No file: no rows."""
    file = pathlib.Path(path) / _METRICS
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [
            {key: float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(lines)
        ]


def _check_same(path: pathlib.Path, found: str, given: str) -> None:
    if found != given:
        lines = difflib.unified_diff(
            found.splitlines(), given.splitlines(), "in the directory", "given", lineterm="", n=0
        )
        difference = "\n".join(line for line in lines if not line.startswith("@@"))
        raise OtherExperimentError(
            f"{path} holds another experiment; nothing was written. Choose another "
            "--train_log_dir, or give the same "
            f"configuration to resume. The difference:\n{difference}"
        )
