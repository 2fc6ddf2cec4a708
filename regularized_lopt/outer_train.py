"""Launcher: python -m regularized_lopt.outer_train --config_file=... --train_log_dir=..."""

from absl import flags

from regularized_lopt import launch
from regularized_lopt.outer_training import devices, outer_train

_TRAIN_LOG_DIR = flags.DEFINE_string(
    "train_log_dir", None, "Directory of the run; the same one resumes it.", required=True
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "If the directory holds another experiment, delete that."
)
_WARM_START = flags.DEFINE_string(
    "warm_start", None, "A trained optimizer (name, file or run) whose theta to begin with."
)

_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of the first of a job's processes, which share the tasks of an outer step among all "
    'their devices; "auto" on clusters that JAX knows.',
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main() -> None:
    """Trains, and says where the result is."""
    devices.initialize(_COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    result = outer_train(
        train_log_dir=_TRAIN_LOG_DIR.value,
        overwrite=_OVERWRITE.value,
        warm_start=_WARM_START.value,
    )
    if not devices.is_writer():
        return
    validations = [
        row["validation_loss"] for row in result.metrics if row["validation_loss"] is not None
    ]
    print(f"Outer training done: {_TRAIN_LOG_DIR.value}/theta.npz", end="")
    print(f", last validation loss {validations[-1]:.4f}." if validations else ".")


if __name__ == "__main__":
    launch.run(main)
