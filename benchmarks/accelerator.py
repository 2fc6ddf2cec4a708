"""Milliseconds of an outer step on the device at hand: the loop's own, theta's update included.

    python benchmarks/accelerator.py [--steps=30] [--smallest]

One trajectory, and many side by side; regularizers in meta space; theta's gradient through all
coordinates, and through a tenth. Everything is compiled first, at the same time, which on a GPU is
most of the wait.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import rich.console
import rich.table

from regularized_lopt import LSTMLOpt, RegularizedTruncatedGrad, devices, launch, tasks
from regularized_lopt.estimators import RegularizedTruncatedStep
from regularized_lopt.outer_training import curriculum, theta_optimizer
from regularized_lopt.outer_training.loop import Loop
from regularized_lopt.outer_training.programs import Programs


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
      dataset: of an MLP of 20 sigmoid units.
      trajectories: side by side.
      regularizer: in meta space.
      fraction: of the coordinates that theta's gradient goes through.
    """

    dataset: str = "Mnist"
    trajectories: int = 1
    regularizer: str = "none"
    fraction: float = 0.1


CASES = (
    Case("Digits", fraction=1.0),
    Case(),
    Case(fraction=1.0),
    Case(regularizer="sam"),
    Case(regularizer="gam"),
    Case(trajectories=16),
    Case(trajectories=64),
    Case(trajectories=64, fraction=1.0),
)


def build(case: Case) -> tuple[Callable[[], None], float]:
    """A function that takes one outer step, compiled, and the seconds that this took."""
    start = time.perf_counter()
    family = tasks.as_family(f"ImageMLP_{case.dataset}_20_Sigmoid", "meta_train")
    schedule = curriculum.CurriculumTruncationSchedule()
    step_lib = RegularizedTruncatedStep(family, LSTMLOpt(), schedule, num_tasks=case.trajectories)
    estimator = RegularizedTruncatedGrad(
        step_lib,
        regularizer=case.regularizer,
        coordinate_fraction=case.fraction,
        mesh=devices.make_mesh(None, [case.trajectories]),
    )
    stages = curriculum.Curriculum()
    programs = Programs(estimator, theta_optimizer(), stages.num_validation_tasks)
    loop = Loop(programs, stages, jax.random.PRNGKey(0))
    state, data = loop.init(), estimator.get_datas()

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(
            programs.outer_steps([loop.next_step(state, 100)], data)[0]
        )

    step()
    return step, time.perf_counter() - start


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--smallest", action="store_true", help="The first case alone.")
    args = parser.parse_args()
    launch.reuse_freed_memory()
    cases = CASES[:1] if args.smallest else CASES
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        built = list(pool.map(build, cases))
    table = rich.table.Table(
        title=f"{jax.devices()[0].device_kind}: T = 20, median of {args.steps} outer steps"
    )
    for column in ("dataset", "trajectories", "regularizer", "coordinates", "ms", "build, s"):
        table.add_column(
            column, justify="left" if column in ("dataset", "regularizer") else "right"
        )
    for case, (step, seconds) in zip(cases, built, strict=True):
        times = []
        for _ in range(args.steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        table.add_row(
            case.dataset,
            str(case.trajectories),
            case.regularizer,
            f"{case.fraction:.0%}",
            f"{1e3 * statistics.median(times):.2f}",
            f"{seconds:.0f}",
        )
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    main()
