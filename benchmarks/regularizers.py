"""Time of one outer step with each regularizer, in both spaces, relative to none.

The inner problem is that of `outer_step.py`: MLP-20, T = 20, batch 128. All are timed in turn,
round by round, in one process; medians and their ratios to none are printed. Regularizers have
their defaults, and in meta space the few probes of docs/regularizers.md.

    python benchmarks/regularizers.py [--rounds=5] [--dataset=Mnist] [--only=meta ...]
"""

import argparse
from collections.abc import Callable
from typing import Any

import gin
import rich.console
import rich.table
from outer_step import TRAJECTORY, UNROLL, measure, stepper

import regularized_lopt
from regularized_lopt import gin_files, launch, regularizers, tasks, upstream
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep

# What each may cost, times none. In meta space: one more gradient for SAM, three for GAM's
# differences; third derivatives of the unroll for the Hessian, to which no bound is set.
BOUNDS = {
    ("meta", "sam"): 2.1,
    ("meta", "asam"): 2.1,
    ("meta", "gsam"): 2.2,
    ("meta", "gam"): 4.3,
    ("meta", "gam, Hessian-vector products"): 7.0,
    ("smoothing", "K = 10, a tenth of the coordinates"): 2.0,
    **{
        ("optimizee", name): 1.6
        for name in (
            *("sam", "asam", "gsam", "gam", "gam, differences"),
            *("hessian_trace", "hessian_top", "hessian_frobenius", "l2"),
        )
    },
}


def run_for(
    task: upstream.Task,
    meta: str | regularizers.Regularizer = "none",
    optimizee: str | regularizers.Regularizer = "none",
    smoothing: regularizers.Smoothing | None = None,
) -> Callable[[], None]:
    """One gradient estimate."""
    lopt = regularized_lopt.LSTMLOpt()
    step = RegularizedTruncatedStep(
        upstream.single_task_to_family(task),
        lopt,
        upstream.truncation_schedule.ConstantTruncationSchedule(TRAJECTORY),
        regularizer=optimizee,
    )
    estimator = RegularizedTruncatedGrad(
        step, unroll_length=UNROLL, regularizer=meta, smoothing=smoothing
    )
    return stepper(estimator, lopt)[1]


FEW = {
    "hessian_trace": "HessianTrace.num_probes = 1",
    "hessian_top": "HessianTop.num_iterations = 3",
    "hessian_frobenius": "HessianFrobenius.num_probes = 1",
}


def configured(name: str, space: str) -> regularizers.Regularizer:
    """The regularizer with the parameters that it is timed with."""
    gin.clear_config()
    gin_files.parse_gin([], [FEW[name]] if space == "meta" and name in FEW else [])
    return regularizers.get(name)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", default="Mnist", choices=["Digits", "Mnist"])
    parser.add_argument(
        "--only", nargs="*", default=[], help="Rows whose space or name begins with one of these."
    )
    args = parser.parse_args()
    launch.reuse_freed_memory()
    task = tasks.get(f"ImageMLP_{args.dataset}_20_Sigmoid", "meta_train")

    parts: dict[tuple[str, str], dict[str, Any]] = {("", "none"): {}}
    for name in regularizers.names()[1:]:
        for space in ("meta", "optimizee"):
            parts[space, name] = {space: configured(name, space)}
    gin.clear_config()
    parts["meta", "gam, Hessian-vector products"] = {"meta": regularizers.GAM(form="hvp")}
    parts["optimizee", "gam, differences"] = {"optimizee": regularizers.GAM(form="difference")}
    smoothing = regularizers.Smoothing(num_steps=10, fraction=0.1)
    parts["smoothing", "K = 10, a tenth of the coordinates"] = {"smoothing": smoothing}
    prefixes = tuple(args.only) or ("",)
    runs = {
        key: run_for(task, **kwargs)
        for key, kwargs in parts.items()
        if key == ("", "none") or any(part.startswith(prefixes) for part in key)
    }
    seconds = measure(runs, args.rounds)
    none = seconds["", "none"]
    table = rich.table.Table(title=f"{args.dataset}, T = {UNROLL}, median of {args.rounds}")
    for column in ("space", "regularizer", "ms", "x none", "at most"):
        table.add_column(column, justify="left" if column in ("space", "regularizer") else "right")
    for key, value in sorted(seconds.items()):
        bound = f"{BOUNDS[key]:.1f}" if key in BOUNDS else ""
        table.add_row(*key, f"{1e3 * value:.0f}", f"{value / none:.2f}", bound)
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main()
