"""Puts an outer training run among the optimizers that come with the package.

    python -m regularized_lopt.zoo.publish --train_log_dir=RUN [--train_log_dir=RUN ...] \\
        --name=NAME --results=DIR --optimizer=KEY --measured_by=COMMAND

copies the run's weights, configuration and curves to zoo/entries/NAME and writes its card. Of
several runs, one per meta-training seed and in their order, it takes the one with the lowest
validation loss in the last stage of its curriculum. The figures on the card are those of optimizer
KEY and that seed in runs.csv and results.json, which a meta-test or a study wrote into DIR,
on all tasks there on which it has at least three runs and the properties of three: of fewer, the
interval that `reproduce --verify` checks them against says nothing.
"""

from __future__ import annotations

import csv
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from regularized_lopt import errors, launch, run_files, serialization, zoo
from regularized_lopt.zoo import cards

_LEAST_RUNS = 3


def publish(
    train_log_dirs: Sequence[pathlib.Path],
    name: str,
    results: pathlib.Path,
    optimizer: str,
    measured_by: str,
    entries: pathlib.Path = zoo.ENTRIES,
) -> cards.Card:
    """Writes an entry; see the module.

    Raises:
      ValueError: the results have no task with three runs.
      FileNotFoundError: a file of the run or of the results is missing.
      errors.UnknownNameError: the results have no such optimizer.
      serialization.FileFormatError: the run's weights are damaged.
    """
    seed = zoo.best_of(train_log_dirs)
    train_log_dir = train_log_dirs[seed]
    weights = train_log_dir / run_files.THETA_FILE
    _, metadata = serialization.load_flat(weights)
    spaces = {
        space: metadata[f"regularizer_{space}_space"]
        for space in ("meta", "optimizee")
        if metadata[f"regularizer_{space}_space"]["name"] != "none"
    }
    if metadata["smoothing"]:
        spaces["update"] = {"name": "smoothing", **metadata["smoothing"]}
    card = cards.Card(
        name=name,
        task=metadata["task"],
        regularizer=", ".join(map(_regularizer, spaces.values())) or "none",
        space=" and ".join(spaces) or "none",
        seed=metadata["seed"],
        outer_steps=metadata["outer_steps"],
        figures=_figures(results, optimizer, seed),
        measured_by=measured_by,
        made_with=metadata["made_with"],
        license=cards.LICENSE,
        sha256=cards.checksum(weights),
        config=(train_log_dir / run_files.CONFIG_FILE).read_text(),
    )
    entry = entries / name
    entry.mkdir(parents=True, exist_ok=True)
    for file in (run_files.THETA_FILE, run_files.METRICS_FILE):
        shutil.copyfile(train_log_dir / file, entry / file)
    card.write(entry)
    return card


def _regularizer(description: dict[str, Any]) -> str:
    parameters = {k: v for k, v in description.items() if k != "name" and (k, v) != ("weight", 1.0)}
    # Of a schedule only the name: its numbers are in the configuration.
    listed = ", ".join(f"{k} {str(v).split('.<locals>')[0]}" for k, v in parameters.items())
    return description["name"] + (f" ({listed})" if listed else "")


def _figures(results: pathlib.Path, optimizer: str, seed: int) -> list[dict[str, Any]]:
    measured = json.loads((results / "results.json").read_text())["tasks"]
    with (results / "runs.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["point"] == "completion"]
    errors.check_name("optimizer in runs.csv", optimizer, {row["optimizer"] for row in rows})
    rows = [row for row in rows if row["optimizer"] == optimizer]
    seeds = {row["meta_training_seed"] for row in rows}
    errors.check_name(f"meta-training seed of {optimizer} in runs.csv", str(seed), seeds)
    rows = [row for row in rows if row["meta_training_seed"] == str(seed)]
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        measured_runs = sum(row["held_out_loss"] != "" for row in of_task)
        if measured_runs < _LEAST_RUNS:
            continue
        found.append(
            {
                "task": task,
                "num_steps": int(of_task[0]["step"]),
                "num_runs": len(of_task),
                "measured_runs": measured_runs,
                "num_examples": measured[task]["measurement"]["num_examples"],
                "starts": measured[task]["measurement"]["headline_starts"],
                "accuracy": [100 * x for x in _mean_and_std(of_task, "test_accuracy")],
                "rise": _mean_and_std(of_task, "gsam_absolute_r0.01"),
                "norm": _mean_and_std(of_task, "param_norm"),
            }
        )
    if not found:
        raise ValueError(
            f"{results}/runs.csv has no task on which the properties of {optimizer}, seed {seed}, "
            f"were measured on {_LEAST_RUNS} runs: raise Experiment.property_runs."
        )
    return found


def _mean_and_std(rows: Sequence[dict[str, str]], column: str) -> list[float]:
    values = np.array([float(row[column]) for row in rows if row[column]])
    return [float(values.mean()), float(values.std(ddof=1))]  # Of at least `_LEAST_RUNS`.


def main() -> None:
    """Publishes one run and prints its card."""
    given = flags.FLAGS
    launch.check_read()
    print(
        publish(
            [pathlib.Path(one) for one in given.train_log_dir],
            given.name,
            pathlib.Path(given.results),
            given.optimizer,
            given.measured_by,
        )
    )


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_multi_string(
        "train_log_dir", None, "Directory of the outer training run, one per seed.", required=True
    )
    flags.DEFINE_string("name", None, "Name of the entry.", required=True)
    flags.DEFINE_string(
        "results",
        None,
        "Directory with the runs.csv of a meta-test or a study.",
        required=True,
    )
    flags.DEFINE_string("optimizer", None, "Name of the optimizer in runs.csv.", required=True)
    flags.DEFINE_string("measured_by", None, "The command that wrote these results.", required=True)


if __name__ == "__main__":
    launch.run(main, define_flags)
