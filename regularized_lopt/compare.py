"""Launcher: python -m regularized_lopt.compare A B [C ...] --task=... --out_dir=..."""

from collections.abc import Sequence

from absl import flags

from regularized_lopt import launch
from regularized_lopt.evaluation import Experiment, Laboratory
from regularized_lopt.evaluation.report import publish

_TASK = flags.DEFINE_string("task", "ImageMLP_Digits_20_Relu", "Task on which they are compared.")
_NUM_RUNS = flags.DEFINE_integer("num_runs", 5, "Paired runs per optimizer.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 500, "Inner steps per run.")
_OUT_DIR = flags.DEFINE_string("out_dir", "runs/compare", "Where the report goes.")


def main(values: Sequence[str]) -> None:
    """Compares trained optimizers, the first of which is the reference."""
    optimizers = launch.named_paths(values)
    if len(optimizers) < 2:
        raise ValueError(
            f"compare takes two or more trained optimizers ([NAME=]PATH), got {len(optimizers)}."
        )
    experiment = Experiment(
        title=" against ".join(optimizers),
        optimizers=optimizers,
        tasks=(_TASK.value,),
        reference=next(iter(optimizers)),
        baselines=(),
        num_runs=_NUM_RUNS.value,
        num_steps=_NUM_STEPS.value,
    )
    publish(Laboratory(experiment, _OUT_DIR.value), f"On {_TASK.value}.")


if __name__ == "__main__":
    launch.run(main, takes_arguments=True)
