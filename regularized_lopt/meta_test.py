"""Launcher: python -m regularized_lopt.meta_test --lopt=[NAME=]PATH --task=... --out_dir=..."""

import pathlib

from absl import flags

from regularized_lopt import launch, zoo
from regularized_lopt.evaluation import baselines, meta_test, report, results

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
    "baselines", ",".join(baselines.BASELINES), "Tuned baselines; empty for none."
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", "runs/meta_test", "Where results, figures and report.html go."
)


def _named(value: str) -> tuple[str, str]:
    name, equals, path = value.partition("=")
    if equals:
        return name, path
    path = name
    file = pathlib.Path(path)
    return file.resolve().name if file.is_dir() else file.stem, path


def main() -> None:
    """Loads the optimizers, meta-tests them on every task, and writes the report."""
    named = [_named(value) for value in _LOPT.value]
    opts = {name: zoo.load(path).opt() for name, path in named}
    if len(opts) < len(named):
        raise ValueError(
            f"Two optimizers have the same name among {[name for name, _ in named]}: use "
            "--lopt=NAME=PATH."
        )
    out_dir = pathlib.Path(_OUT_DIR.value)
    page = report.Report(
        "Meta-test",
        f"{', '.join(opts)} on tasks they were not meta-trained on, with tuned baselines.",
    )
    for task in _TASK.value:
        result = meta_test(
            opts,
            task,
            num_runs=_NUM_RUNS.value,
            num_steps=_NUM_STEPS.value,
            seed=_SEED.value,
            baselines=[name for name in _BASELINES.value if name],
        )
        results.write(result, out_dir / task)
        page.meta_test(result, out_dir / task)
    page.write(out_dir / "report.html")
    print(f"Results, figures and report: {out_dir / 'report.html'}")


if __name__ == "__main__":
    launch.run(main)
