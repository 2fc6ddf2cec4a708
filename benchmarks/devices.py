"""Do runs on two devices agree? Accuracies of the same optimizers, inits and batches, side by side.

    python benchmarks/devices.py results/h200/cells results/paper/cells

Compares the runs that two studies' directories of cells have in common, by task.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator

import numpy as np
import rich.console
import rich.table

from regularized_lopt import serialization
from regularized_lopt.report.plot_style import short


def accuracies(path: pathlib.Path) -> tuple[np.ndarray, dict[str, str]]:
    """[runs, evals], in per cent, and what the runs were made with."""
    arrays, metadata = serialization.load_flat(path)
    made_with = metadata["made_with"]
    return 100 * arrays["['test_accuracy']"], {
        "task": metadata["spec"]["task"],
        "with": f"{made_with['device']}, JAX {made_with['jax']}",
    }


def pairs(
    first: pathlib.Path, second: pathlib.Path
) -> Iterator[tuple[str, str, str, np.ndarray, np.ndarray]]:
    """(task, made with, made with, accuracies, accuracies) of each optimizer on each task."""
    for path in sorted((first / "runs").glob("*.npz")):
        other = second / "runs" / path.name
        if other.is_file():
            (one, about), (two, about_two) = accuracies(path), accuracies(other)
            yield about["task"], about["with"], about_two["with"], one, two


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=pathlib.Path)
    parser.add_argument("second", type=pathlib.Path)
    args = parser.parse_args()
    by_task: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    made: set[tuple[str, str]] = set()
    for task, with_first, with_second, one, two in pairs(args.first, args.second):
        by_task.setdefault(task, []).append((one, two))
        made.add((with_first, with_second))
    if not by_task:
        parser.error(f"{args.first} and {args.second} have no runs in common.")
    table = rich.table.Table(title="; ".join(" against ".join(each) for each in sorted(made)))
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
            short(task),
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
