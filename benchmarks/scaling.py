"""Outer steps per second by number of devices: the same tasks, shared out over more of them.

    python benchmarks/scaling.py [--devices 1 2 4 8] [--dataset=Digits] [--tasks=8]

The devices are simulated on the CPU (each a share of the same cores, each number in a process of
its own, in turns), so on C cores the most to expect is C times one device, less what one device
already has of the other cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import jax
import rich.console
import rich.progress
import rich.table
from accelerator import Case, build

from regularized_lopt import LSTMLOpt, launch


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of an outer step on all of this process's devices, and the bytes of its gradient."""
    step, _ = build(Case(args.dataset, trajectories=args.tasks, fraction=1.0))
    began = time.perf_counter()
    for _ in range(args.steps):
        step()
    seconds = (time.perf_counter() - began) / args.steps
    theta = LSTMLOpt().init(jax.random.PRNGKey(0))
    return {"seconds": seconds, "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(theta))}


def in_a_process(count: int) -> dict[str, float]:
    """`measure` with so many simulated devices."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--measure"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{count} devices: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--dataset", default="Digits")
    parser.add_argument("--tasks", type=int, default=8, help="A multiple of every --devices.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    launch.reuse_freed_memory()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    seconds: dict[int, list[float]] = {count: [] for count in args.devices}
    size = 0.0
    for _ in rich.progress.track(range(args.rounds), "Rounds"):
        for count in args.devices:
            found = in_a_process(count)
            seconds[count].append(found["seconds"])
            size = found["bytes"]
    table = rich.table.Table(
        title=f"{args.tasks} trajectories on {args.dataset}; a sum of {size / 1e3:.1f} kB a step"
    )
    for column in ("devices", "outer steps per second", "x the first", "efficiency"):
        table.add_column(column, justify="right")
    first, *_ = medians = {n: statistics.median(each) for n, each in seconds.items()}
    for count, each in medians.items():
        speedup = medians[first] / each
        table.add_row(
            str(count), f"{1 / each:.2f}", f"{speedup:.2f}", f"{speedup / count * first:.2f}"
        )
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    main()
