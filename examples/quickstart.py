"""Meta-trains two learned optimizers on handwritten digits and shows what they learned.

Both are small LSTMs with STAR's pieces, one without a regularizer, one with SAM in the outer loss.

Offline: the digits come with scikit-learn. Takes a few minutes on two cores.

    python examples/quickstart.py [--smallest] [--out_dir=runs/quickstart]
"""

import argparse
import pathlib
import shutil
import sys
import time

import gin

from regularized_lopt import gin_files, launch, zoo
from regularized_lopt.interruption import Interrupted
from regularized_lopt.measure import FlatnessConfig, StudyResults
from regularized_lopt.outer_training import outer_train
from regularized_lopt.report import figures, html, terminal, write
from regularized_lopt.run_files import load_metrics
from regularized_lopt.study import meta_test

CONFIGS = {
    "no regularizer": "gin_configs/digits_star_none.gin",
    "SAM": "gin_configs/digits_star_sam_optimizee.gin",
}
# Networks, inner steps, and whether flatness is measured around the minima, which is dear for CNNs.
TASKS = {"ImageMLP_Digits_20_Relu": (500, True), "Conv_Digits_16x32": (100, False)}


def main() -> None:
    """Meta-trains, meta-tests and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--smallest", action="store_true", help="a minute, to see that everything runs"
    )
    parser.add_argument("--out_dir", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
    args = parser.parse_args()
    outer_steps, num_runs = (20, 2) if args.smallest else (800, 5)
    launch.reuse_freed_memory()
    start = time.monotonic()

    shutil.rmtree(args.out_dir, ignore_errors=True)  # A quickstart starts afresh; real runs resume.
    opts, curves = {}, {}
    for name, config in CONFIGS.items():
        gin.clear_config()
        gin_files.parse_gin([config], [f"outer_train.num_outer_steps = {outer_steps}"])
        run_dir = args.out_dir / pathlib.Path(config).stem
        outer_train(run_dir)
        opts[name] = zoo.load(run_dir)
        curves[name] = {0: load_metrics(run_dir)}

    results = StudyResults(
        "Quickstart: two learned optimizers, one of them meta-trained with SAM",
        "Two learned optimizers (StarLSTMLOpt) were meta-trained on scikit-learn's handwritten "
        "digits with an MLP of 20 sigmoid units, one with the plain outer loss, one with SAM in "
        "it. Here both train networks outside their meta-training, a ReLU MLP and a CNN, on an "
        "ordinary loss, beside SGD and Adam with tuned learning rates. One seed each: it shows "
        "how things work, not whether SAM wins.",
        [
            meta_test(
                opts,
                task,
                num_runs=num_runs,
                num_steps=20 if args.smallest else num_steps,
                flatness_config=FlatnessConfig(num_probes=0),
                measured=measured,
            )
            for task, (num_steps, measured) in TASKS.items()
        ],
    )
    page = write.write(results, args.out_dir)
    page.heading("Outer training")
    page.figure(
        figures.outer_training(curves),
        "Left: what theta is trained on. Right: held-out validation. Below: how much the outer "
        "loss rises around params and around theta, at the same radius for both.",
    )
    page.note(f"Seed 0, {outer_steps} outer steps each.")
    html.write(page, args.out_dir / "report.html")
    terminal.show(page)
    report = (args.out_dir / "report.html").resolve()
    print(f"Done in {time.monotonic() - start:.0f} s. Open {report}")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, Interrupted):
        print("Stopped. The next quickstart starts afresh.", file=sys.stderr)
        sys.exit(130)
