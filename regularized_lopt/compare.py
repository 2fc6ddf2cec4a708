"""Launcher: python -m regularized_lopt.compare A B [C ...] --task=... --out_dir=..."""

from collections.abc import Sequence

from absl import flags

from regularized_lopt import launch
from regularized_lopt.study import Experiment, Study, task_plan
from regularized_lopt.study_report import publish


def main(values: Sequence[str]) -> None:
    """Compares trained optimizers, the first of which is the reference."""
    given = flags.FLAGS
    optimizers = launch.trained_paths(values)
    if len(optimizers) < 2:
        raise ValueError(
            f"compare takes two or more trained optimizers ([NAME=]PATH), got {len(optimizers)}."
        )
    experiment = Experiment(
        title=" against ".join(optimizers),
        optimizers=optimizers,
        tasks=(task_plan(given.task, runs=given.num_runs),),
        reference=next(iter(optimizers)),
        baselines=(),
        num_steps=given.num_steps,
    )
    study = Study(experiment, given.out_dir)
    study.check()
    launch.check_read()
    publish(study, f"On {given.task}.")


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_string("task", "ImageMLP_Digits_20_Relu", "Task on which they are compared.")
    flags.DEFINE_integer("num_runs", 5, "Paired runs per optimizer.")
    flags.DEFINE_integer("num_steps", 500, "Inner steps per run.")
    flags.DEFINE_string("out_dir", "runs/compare", "Where the report goes.")


if __name__ == "__main__":
    launch.run(main, define_flags, takes_arguments=True)
