"""Launcher: python -m regularized_lopt.meta_test --lopt=[NAME=]PATH --task=... --out_dir=..."""

from absl import flags

from regularized_lopt import launch
from regularized_lopt.evaluation import Experiment, Laboratory, contestants
from regularized_lopt.evaluation.report import publish

_LOPT = flags.DEFINE_multi_string(
    "lopt",
    None,
    "A trained optimizer: a directory of outer training or a file, named as in NAME=PATH "
    "(default: the directory's name). Repeat it to compare several; the first is the reference.",
    required=True,
)
_TASK = flags.DEFINE_multi_string(
    "task", None, "Task to meta-test on; repeat it for several.", required=True
)
_NUM_RUNS = flags.DEFINE_integer("num_runs", 10, "Paired runs per optimizer.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 2000, "Inner steps per run.")
_SEED = flags.DEFINE_integer("seed", 0, "Of inits and batches.")
_BASELINES = flags.DEFINE_list(
    "baselines",
    "SGD,Adam",
    f"Tuned baselines, of {', '.join(contestants.BASELINES)}; empty for none.",
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", "runs/meta_test", "Where results, figures and report.html go."
)


def main() -> None:
    """Loads the optimizers, meta-tests them on every task, and writes the report."""
    optimizers = launch.named_paths(_LOPT.value)
    experiment = Experiment(
        title="Meta-test",
        optimizers=optimizers,
        tasks=tuple(_TASK.value),
        reference=next(iter(optimizers)),
        baselines=tuple(name for name in _BASELINES.value if name),
        num_runs=_NUM_RUNS.value,
        num_steps=_NUM_STEPS.value,
        seed=_SEED.value,
    )
    publish(
        Laboratory(experiment, _OUT_DIR.value),
        f"{', '.join(optimizers)} on tasks they were not meta-trained on, with tuned baselines.",
    )


if __name__ == "__main__":
    launch.run(main)
