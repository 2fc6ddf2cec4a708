"""Do runs on two devices agree? Accuracies of the same optimizers, inits and batches, side by side.

    python benchmarks/devices.py experiments/h200 experiments/paper

Compares the runs that two studies have in common, by task.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator

import numpy as np
import rich.console
import rich.table

from regularized_lopt.measure import results_file, selections
from regularized_lopt.measure.results import StudyResults


def pairs(
    first: StudyResults, second: StudyResults
) -> Iterator[tuple[str, list[tuple[np.ndarray, np.ndarray]]]]:
    """By task, the accuracies, [runs, evals] in per cent, of every optimizer and seed of both."""
    others = {task.attrs["task"]: task for task in second.tasks}
    for task in (task for task in first.tasks if task.attrs["task"] in others):
        sides, found = (task, others[task.attrs["task"]]), []
        for key in selections.keys(task):
            if key in selections.keys(sides[1]):
                own = (selections.optimizer(side, key)["test_accuracy"].values for side in sides)
                found += [(100 * a, 100 * b) for a, b in zip(*own, strict=False)]
        if found:
            yield selections.label(task), found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=pathlib.Path)
    parser.add_argument("second", type=pathlib.Path)
    args = parser.parse_args()
    first_study, second_study = (
        results_file.load(path / results_file.FILE) for path in (args.first, args.second)
    )
    by_task = dict(pairs(first_study, second_study))
    if not by_task:
        parser.error(f"{args.first} and {args.second} have no runs in common.")
    table = rich.table.Table(title=f"{first_study.title} against {second_study.title}")
    for column in (
        "task",
        "optimizers",
        "accuracy, first",
        "second",
        "means apart, at most",
        "runs apart, rms",
        "by more than 1",
    ):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, found in by_task.items():
        first, second = (np.stack(side)[..., -1] for side in zip(*found, strict=True))
        apart = first - second
        table.add_row(
            task,
            str(len(found)),
            f"{first.mean():.2f}",
            f"{second.mean():.2f}",
            f"{np.abs(apart.mean(axis=1)).max():.2f}",
            f"{np.sqrt(np.mean(apart**2)):.2f}",
            f"{int(np.sum(np.abs(apart) > 1))} of {apart.size}",
        )
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main()
