"""Launcher: python -m regularized_lopt.meta_test --lopt=[NAME=]PATH --task=... --out_dir=..."""

from absl import flags

from regularized_lopt import launch
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.study import Experiment, Study, task_plan
from regularized_lopt.study_report import publish


def main() -> None:
    """Loads the optimizers, meta-tests them on every task, and writes the report."""
    given = flags.FLAGS
    optimizers = launch.trained_paths(given.lopt)
    experiment = Experiment(
        title="Meta-test",
        optimizers=optimizers,
        tasks=tuple(task_plan(task, runs=given.num_runs) for task in given.task),
        reference=next(iter(optimizers)),
        baselines=tuple(name for name in given.baselines if name),
        num_steps=given.num_steps,
        seed=given.seed,
    )
    study = Study(experiment, given.out_dir)
    study.check()
    launch.check_read()
    publish(
        study,
        f"{', '.join(optimizers)} on tasks they were not meta-trained on, with tuned baselines.",
    )


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_multi_string(
        "lopt",
        None,
        "A trained optimizer: a directory of outer training or a file, named as in NAME=PATH "
        "(default: the directory's name). Repeat it to compare several; the first is the "
        "reference.",
        required=True,
    )
    flags.DEFINE_multi_string(
        "task", None, "Task to meta-test on; repeat it for several.", required=True
    )
    flags.DEFINE_integer("num_runs", 10, "Paired runs per optimizer.")
    flags.DEFINE_integer("num_steps", 2000, "Inner steps per run.")
    flags.DEFINE_integer("seed", 0, "Of inits and batches.")
    flags.DEFINE_list(
        "baselines",
        "SGD,Adam",
        f"Tuned baselines, of {', '.join(optimizers_lib.BASELINES)}; empty for none.",
    )
    flags.DEFINE_string("out_dir", "runs/meta_test", "Where results, figures and report.html go.")


if __name__ == "__main__":
    launch.run(main, define_flags)
