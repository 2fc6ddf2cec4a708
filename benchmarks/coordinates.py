"""Theta's gradient through a share of the coordinates: what it saves, and what it costs in noise.

A trained optimizer (`mnist_mlp_none`) on its own task. At several points of a trajectory, gradients
with the same batches are taken through all coordinates and through a share of them. Their squared
difference is set against what other batches do to the gradient. Times are taken in turns.

    python benchmarks/coordinates.py [--rounds=7] [--dataset=Mnist] [--smallest]
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from regularized_lopt import launch, tasks, upstream, zoo
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.outer_training.curriculum import CurriculumOuterState

FRACTIONS = (1.0, 0.25, 0.1, 0.03)
INNER_STEPS = (0, 20, 60, 200, 1000)
BATCHES = 6
UNROLL = 20


def flat(tree: Any) -> np.ndarray:
    """One vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dataset", default="Mnist")
    parser.add_argument("--smallest", action="store_true", help="to see that everything runs")
    args = parser.parse_args()
    rounds, inner_steps = (1, (0, 20)) if args.smallest else (args.rounds, INNER_STEPS)
    launch.reuse_freed_memory()

    loaded = zoo.load("mnist_mlp_none")
    step = RegularizedTruncatedStep(
        tasks.as_family(f"ImageMLP_{args.dataset}_20_Sigmoid", "meta_train"),
        loaded.learned_opt,
        upstream.truncation_schedule.ConstantTruncationSchedule(10 * max(inner_steps)),
    )
    estimators = {f: RegularizedTruncatedGrad(step, coordinate_fraction=f) for f in FRACTIONS}
    programs = {fraction: jax.jit(one.estimate) for fraction, one in estimators.items()}
    outer_state = CurriculumOuterState(jnp.asarray(0), jnp.asarray(10 * max(inner_steps)))
    weights = upstream.WorkerWeights(loaded.theta, None, outer_state)
    state = estimators[1.0].init_worker_state(weights, jax.random.PRNGKey(1))
    data = estimators[1.0].get_datas()

    def estimate(fraction: float, seed: int) -> Any:
        key = jax.random.PRNGKey(seed)
        return jax.block_until_ready(
            programs[fraction](loaded.theta, state, key, data, outer_state)
        )

    times: dict[float, list[float]] = {fraction: [] for fraction in FRACTIONS}
    for turn in range(rounds + 1):  # The first compiles.
        for fraction in FRACTIONS:
            start = time.monotonic()
            estimate(fraction, turn)
            times[fraction] += [time.monotonic() - start] if turn else []

    table = rich.table.Table("inner step", "other batches", *[f"{f:.0%}" for f in FRACTIONS[1:]])
    for inner in range(0, max(inner_steps) + 1, UNROLL):
        if inner in inner_steps:
            whole = np.stack([flat(estimate(1.0, seed).grad) for seed in range(BATCHES)])
            scale = (whole**2).sum(axis=1).mean()
            row = [f"{whole.var(axis=0, ddof=1).sum() / scale:.3f}"]
            for fraction in FRACTIONS[1:]:
                part = np.stack([flat(estimate(fraction, seed).grad) for seed in range(BATCHES)])
                row.append(f"{((part - whole) ** 2).sum(axis=1).mean() / scale:.4f}")
            table.add_row(str(inner), *row)
        state = estimate(FRACTIONS[-1], inner).unroll_state
    console = rich.console.Console()
    console.print("Squared difference to the gradient through all coordinates, over its square")
    console.print(table)
    table = rich.table.Table("coordinates", "ms", "x all")
    whole_time = statistics.median(times[1.0])
    for fraction in FRACTIONS:
        seconds = statistics.median(times[fraction])
        table.add_row(f"{fraction:.0%}", f"{1e3 * seconds:.0f}", f"{seconds / whole_time:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
