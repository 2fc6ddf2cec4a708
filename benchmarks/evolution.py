"""Time and memory of one estimate by ES and PES: ours against upstream's on equal work.

The same optimizer, task, number of pairs and truncation; upstream's run each truncation as one
program (`steps_per_jit`), its two particles one after the other or, on the wheel, stacked. All are
timed in turn, round by round, in one process; medians are printed, and ratios to the faster of
upstream's.
Memory is what XLA sets aside for a program, and the arrays that live meanwhile: theta, perturbed
thetas and sums, states before and after, and batches, which in ours are drawn inside.

    python benchmarks/evolution.py [--rounds=5] [--dataset=Mnist] [--pairs=4] [--unroll_length=50]
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from outer_step import measure

from regularized_lopt import launch, learned_optimizers, tasks, upstream
from regularized_lopt.estimators import (
    RegularizedTruncatedES,
    RegularizedTruncatedPES,
    RegularizedTruncatedStep,
)

# After regularized_lopt: on the wheel, it is what makes these imports work on a current JAX.
from learned_optimization.outer_trainers import common, truncated_es, truncated_pes  # isort: skip

OURS = {"PES": RegularizedTruncatedPES, "ES": RegularizedTruncatedES}
UPSTREAMS = {"PES": truncated_pes.TruncatedPES, "ES": truncated_es.TruncatedES}
# Stacked, main's give the same buffer away twice, which a current JAX refuses.
STACKED = {"upstream": False}
if upstream.GENERATION == "wheel":
    STACKED["upstream, stacked"] = True
KEY = jax.random.PRNGKey(2)
Run = tuple[Callable[[], None], float, float]


def bytes_of(tree: Any) -> int:
    """Of its arrays."""
    return sum(jnp.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def stepper(estimator: upstream.GradientEstimator, weights: Any, state: Any) -> Callable[[], None]:
    """A function that takes one estimate and goes on from its state."""

    def run() -> None:
        nonlocal state
        out, _ = estimator.compute_gradient_estimate(weights, KEY, state, with_summary=False)
        state = jax.block_until_ready(out.unroll_state)
        jax.block_until_ready(out.grad)

    return run


def ours(kind: str, step: RegularizedTruncatedStep, weights: Any, unroll_length: int) -> Run:
    """One estimate of ours, MB that XLA sets aside for it, and MB in all."""
    estimator = OURS[kind](step, unroll_length=unroll_length)
    state = estimator.init_worker_state(weights, jax.random.PRNGKey(1))
    arguments = (weights.theta, state, KEY, estimator.get_datas(), weights.outer_state)
    # What `stepper` calls: it is traced once.
    analysis = estimator._jitted_estimate.lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    temporary = analysis.temp_size_in_bytes
    live = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return stepper(estimator, weights, state), temporary / 1e6, (live + temporary) / 1e6


def upstreams(
    kind: str, step: RegularizedTruncatedStep, weights: Any, unroll_length: int, stacked: bool
) -> Run:
    """The same of upstream's; the arrays that live are counted by hand, as they do outside XLA."""
    name = {"PES": "trunc_length", "ES": "unroll_length"}[kind]
    kwargs: dict[str, Any] = {name: unroll_length, "steps_per_jit": unroll_length}
    kwargs["stack_antithetic_samples"] = stacked
    pairs = step.num_tasks
    problem = (step.task_family, step.learned_opt, step.trunc_sched, pairs)
    if upstream.GENERATION == "wheel":
        estimator = UPSTREAMS[kind](*problem, **kwargs)
        of_problem: tuple[Any, ...] = (*problem, unroll_length, False, stacked, True)
    else:
        from learned_optimization.outer_trainers import lopt_truncated_step

        their_step = lopt_truncated_step.VectorizedLOptTruncatedStep(*problem)
        estimator = UPSTREAMS[kind](their_step, **kwargs)
        of_problem = (their_step, unroll_length, True)
    state = estimator.init_worker_state(weights, jax.random.PRNGKey(1))
    particle = state.pos_state if kind == "PES" else state
    # The unroll's program, as the estimator calls it.
    data = jax.tree.map(jnp.asarray, step.pull("train", unroll_length))
    thetas = jax.tree.map(lambda leaf: jnp.stack([leaf] * pairs), weights.theta)
    arguments = (thetas, particle, data)
    if stacked:
        twice = [jax.tree.map(lambda x: jnp.concatenate([x, x]), one) for one in arguments[:2]]
        arguments = (*twice, jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), data))
    lowered = common.truncated_unroll.lower(
        *of_problem, arguments[0], KEY, *arguments[1:], weights.outer_state
    )
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    temporary = analysis.temp_size_in_bytes
    # Beside the program's: the perturbation and the sum of them, the unstacked batches, or the
    # other particle before and after.
    live = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + 2 * bytes_of(thetas)
    live += bytes_of(data) if stacked else 2 * bytes_of(particle) + bytes_of(thetas)
    return stepper(estimator, weights, state), temporary / 1e6, (live + temporary) / 1e6


def main() -> None:
    """Prints one table per dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", action="append", choices=["Digits", "Mnist"])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--unroll_length", type=int, default=50)
    args = parser.parse_args()
    launch.reuse_freed_memory()
    lopt = learned_optimizers.StarMLPLOpt()
    theta = lopt.init(jax.random.PRNGKey(0))
    weights = upstream.WorkerWeights(theta, None, upstream.OuterState(jnp.asarray(0)))
    schedule = upstream.truncation_schedule.ConstantTruncationSchedule(40 * args.unroll_length)
    for dataset in args.dataset or ["Digits", "Mnist"]:
        family = tasks.as_family(f"ImageMLP_{dataset}_20_Sigmoid", "meta_train")
        step = RegularizedTruncatedStep(family, lopt, schedule, num_tasks=args.pairs)
        made: dict[tuple[str, str], Run] = {}
        for kind in OURS:
            made[kind, "ours"] = ours(kind, step, weights, args.unroll_length)
            for how, stacked in STACKED.items():
                made[kind, how] = upstreams(kind, step, weights, args.unroll_length, stacked)
        seconds = measure({key: run for key, (run, *_) in made.items()}, args.rounds)
        table = rich.table.Table(
            title=f"{dataset}: {args.pairs} pairs, T = {args.unroll_length}, StarMLPLOpt, "
            f"learned_optimization: {upstream.GENERATION}, median of {args.rounds}"
        )
        for column in ("", "", "ms", "x upstream", "temporary MB", "MB in all"):
            table.add_column(column, justify="right" if column else "left")
        for (kind, whose), (_, temporary, in_all) in made.items():
            theirs = min(seconds[kind, how] for how in STACKED)
            value = seconds[kind, whose]
            table.add_row(
                kind,
                whose,
                f"{1e3 * value:.0f}",
                f"{value / theirs:.2f}",
                f"{temporary:.1f}",
                f"{in_all:.1f}",
            )
        rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    main()
