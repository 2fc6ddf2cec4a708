"""Launcher: python -m regularized_lopt.outer_train --config_file=... --train_log_dir=..."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from regularized_lopt import devices, launch
from regularized_lopt.outer_training import outer_train


def main() -> None:
    """Trains, and says where the result is."""
    given = flags.FLAGS
    devices.initialize(given.coordinator_address, given.num_processes, given.process_id)
    result = outer_train(
        train_log_dir=given.train_log_dir,
        overwrite=given.overwrite,
        warm_start=given.warm_start,
        asked_for=given.gin_bindings,
    )
    runs = result if isinstance(result, dict) else {"": result}
    for name, run in runs.items() if devices.is_writer() else ():
        _say(pathlib.Path(given.train_log_dir, name), run.metrics)


def _say(directory: pathlib.Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Where the result of a run is, and how good it is."""
    validations = [row["validation_loss"] for row in metrics if row["validation_loss"] is not None]
    steps = metrics[-1]["outer_step"] if metrics else 0
    print(f"Outer training done, {steps:.0f} steps: {directory}/theta.npz", end="")
    print(f", last validation loss {validations[-1]:.4f}." if validations else ".")


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_string(
        "train_log_dir", None, "Directory of the run; the same one resumes it.", required=True
    )
    flags.DEFINE_bool("overwrite", False, "If the directory holds another experiment, delete that.")
    flags.DEFINE_string(
        "warm_start", None, "A trained optimizer (name, file or run) whose theta to begin with."
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of the first of a job's processes, which share the tasks of an outer step among "
        'all their devices; "auto" on clusters that JAX knows.',
    )
    flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


if __name__ == "__main__":
    launch.run(main, define_flags)
