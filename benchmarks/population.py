"""Seconds of an outer step per member of a population: one after the other, and together.

    python benchmarks/population.py [--dataset=Mnist] [--members=16] [--rounds=3] [--smallest]

Every way to compute the members' steps is compiled first and then timed in turns. "one by one" is
what as many runs cost that follow each other.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import rich.console
import rich.table

from regularized_lopt import launch
from regularized_lopt.devices import Parallelism
from regularized_lopt.learned_optimizers import StarLSTMLOpt
from regularized_lopt.outer_training import parallelism, parts
from regularized_lopt.outer_training.population import Population


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="Mnist", help="Of an MLP of 20 sigmoid units.")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smallest", action="store_true", help="Two members on Digits, once.")
    args = parser.parse_args()
    if args.smallest:
        args.dataset, args.members, args.rounds = "Digits", 2, 1
    launch.reuse_freed_memory()
    task = f"ImageMLP_{args.dataset}_20_Sigmoid"
    made = parts.make(task, StarLSTMLOpt(), num_members=args.members)
    loops = [made.of_member(seed, ()) for seed in range(args.members)]
    asked = [loop.next_step(loop.init(), 100) for loop in loops]
    built = {}
    for way in parallelism.ways(args.members):
        start = time.perf_counter()
        several = Population(made.loop.programs, way)
        several.seconds(asked, rounds=1)
        built[way] = (several, time.perf_counter() - start)
    times: dict[Parallelism, list[float]] = {way: [] for way in built}
    for _ in range(args.rounds):
        for way, (several, _) in built.items():
            times[way].append(several.seconds(asked, rounds=1) / args.members)
    alone = statistics.median(times[Parallelism(1, 1)])
    table = rich.table.Table(
        title=f"{jax.devices()[0].device_kind}: {args.members} members, StarLSTMLOpt on {task}"
    )
    for column in ("members per program", "programs at a time", "ms per member", "x one by one"):
        table.add_column(column, justify="right")
    table.add_column("build, s", justify="right")
    for way, (_, seconds) in built.items():
        own = statistics.median(times[way])
        cells = (f"{1e3 * own:.1f}", f"{alone / own:.2f}", f"{seconds:.0f}")
        table.add_row(str(way.batch), str(way.threads), *cells)
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    main()
