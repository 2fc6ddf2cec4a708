"""Puts an outer training run among the optimizers that come with the package.

    python -m regularized_lopt.zoo.publish --train_log_dir=RUN [--train_log_dir=RUN ...] \\
        --name=NAME --results=DIR --optimizer=KEY --measured_by=COMMAND

copies the run's weights, configuration and curves to zoo/entries/NAME and writes its card. Of
several runs, one per meta-training seed and in their order, it takes the one with the lowest
validation loss in the last stage of its curriculum. The figures on the card are those of optimizer
KEY and that seed in the results that a meta-test or a study kept in DIR, on all tasks there on
which it has at least three runs and the properties of three: of fewer, the interval that
`reproduce --verify` checks them against says nothing.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from regularized_lopt import errors, launch, run_files, serialization, zoo
from regularized_lopt.measure import results_file, selections
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
    tasks = results_file.load(results / results_file.FILE).tasks
    errors.check_name(f"optimizer in {results}", optimizer, selections.names(tasks))
    found = []
    for task in filter(selections.has_accuracy, filter(selections.is_measured, tasks)):
        if optimizer not in selections.keys(task):
            continue
        every, name = selections.optimizer(task, optimizer), task.attrs["task"]
        seeds = list(map(str, range(every.sizes["seed"])))
        errors.check_name(f"meta-training seed of {optimizer} on {name}", str(seed), seeds)
        if every.sizes["measured_run"] < _LEAST_RUNS:
            continue
        config = selections.flatness_config(task)
        at = {"point": "completion", "scale": "absolute", "radius": selections.headline(task)}
        rise = selections.last(every, "gsam").sel(at).values[seed]
        found.append(
            {
                "task": name,
                "num_steps": int(task.attrs["num_steps"]),
                "num_runs": every.sizes["run"],
                "measured_runs": len(rise),
                "num_examples": config.num_examples,
                "starts": config.headline_starts,
                "accuracy": _mean_and_std(selections.accuracy(every)[seed]),
                "rise": _mean_and_std(rise),
                "norm": _mean_and_std(selections.final(every, "param_norm")[seed]),
            }
        )
    if not found:
        raise ValueError(
            f"{results} has no task on which the properties of {optimizer}, seed {seed}, were "
            f"measured on {_LEAST_RUNS} runs: raise TaskPlan.measured_runs."
        )
    return found


def _mean_and_std(values: np.ndarray) -> list[float]:
    wide = np.asarray(values, np.float64)
    return [float(wide.mean()), float(wide.std(ddof=1))]  # Of at least `_LEAST_RUNS`.


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
        "Directory of a meta-test or a study, with its results.",
        required=True,
    )
    flags.DEFINE_string("optimizer", None, "Name of the optimizer there.", required=True)
    flags.DEFINE_string("measured_by", None, "The command that wrote these results.", required=True)


if __name__ == "__main__":
    launch.run(main, define_flags)
