"""Episodes per second: whole programs against plain Python loops over the same compiled steps.

Test episodes are learned and judged by one program, or by a Python loop that calls a compiled inner
step. Outer steps, of one episode each, are taken by `outer_train` with its logs and checkpoints, or
by a bare loop over the very program that it calls.

    python benchmarks/few_shot.py [--channels=C] [--episodes=N] [--smallest]
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table

from regularized_lopt import launch
from regularized_lopt.estimators import RegularizedTruncatedGrad
from regularized_lopt.estimators.truncated_step import RegularizedTruncatedStep
from regularized_lopt.learned_optimizers import MetaLSTMLOpt
from regularized_lopt.measure import few_shot
from regularized_lopt.outer_training import outer_train
from regularized_lopt.outer_training.curriculum import Curriculum, CurriculumTruncationSchedule
from regularized_lopt.outer_training.loop import Loop
from regularized_lopt.outer_training.objective import ObjectiveCheck
from regularized_lopt.outer_training.programs import Programs
from regularized_lopt.outer_training.theta_optimizer import theta_optimizer
from regularized_lopt.tasks.few_shot import FewShotFamily

KEY = jax.random.PRNGKey(0)
NEVER = 2**31 - 1


def rate(run: Callable[[], Any], episodes: int) -> float:
    """Episodes per second of the second run; the first compiles."""
    jax.block_until_ready(run())
    began = time.perf_counter()
    jax.block_until_ready(run())
    return episodes / (time.perf_counter() - began)


def in_python(
    family: FewShotFamily, lopt: MetaLSTMLOpt, theta: Any, num_steps: int, keys: jax.Array
) -> Callable[[], list[float]]:
    """Test episodes one after another, each inner step a call."""
    opt, data = lopt.opt_fn(theta), family.datasets.unroll_data("test")

    @jax.jit
    def start(key: jax.Array) -> Any:
        return opt.init(*family.task_fn(key).init_with_state(key))

    @jax.jit
    def step(state: Any, key: jax.Array, part: Any) -> Any:
        task = family.task_fn(key)
        params, model_state = opt.get_params_state(state)
        (loss, model_state), grad = jax.value_and_grad(task.loss_with_state, has_aux=True)(
            params, model_state, key, part
        )
        return opt.update(state, grad, loss=loss, model_state=model_state)

    @jax.jit
    def judge(state: Any, key: jax.Array, part: Any) -> jax.Array:
        params, model_state = opt.get_params_state(state)
        task = family.task_fn(key)
        return task.loss_with_state_and_aux(params, model_state, key, part)[2]["accuracy"]

    def run() -> list[float]:
        found = []
        for key in keys:
            state = start(key)
            for _ in range(num_steps):
                state = step(state, key, data["train"])
            found.append(float(judge(state, key, data["outer"])))
        return found

    return run


def bare(family: FewShotFamily, lopt: MetaLSTMLOpt, num_steps: int, count: int) -> Any:
    """Outer steps by a loop of nothing else."""
    step_lib = RegularizedTruncatedStep(family, lopt, CurriculumTruncationSchedule())
    estimator = RegularizedTruncatedGrad(step_lib, unroll_length=num_steps)
    programs = Programs(estimator, theta_optimizer(), 1, ObjectiveCheck(num_trajectories=0))
    loop = Loop(programs, Curriculum(train_lengths=(num_steps,)), KEY)
    data = estimator.get_datas()

    def run() -> Any:
        state = loop.init()
        for _ in range(count):
            ((state, _),) = programs.outer_steps((loop.next_step(state, num_steps),), data)
        return state.theta

    return run


def by_outer_train(family: FewShotFamily, lopt: MetaLSTMLOpt, num_steps: int, count: int) -> float:
    """Outer steps per second from its own log, whose first entry has the compilation behind it."""
    with tempfile.TemporaryDirectory() as directory:
        result = outer_train(
            directory,
            family,
            lopt,
            Curriculum(train_lengths=(num_steps,), validation_period=NEVER),
            estimator=functools.partial(RegularizedTruncatedGrad, unroll_length=num_steps),
            num_outer_steps=count + 1,
            log_every=1,
            progress=False,
        )
    assert not isinstance(result, dict)
    seconds = [row["seconds"] for row in result.metrics]
    return (len(seconds) - 1) / (seconds[-1] - seconds[0])


def main() -> None:
    """Prints episodes per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--smallest", action="store_true", help="to see that everything runs")
    args = parser.parse_args()
    launch.reuse_freed_memory()
    if args.smallest:
        family = FewShotFamily("Digits", ways=2, shots=2, queries=2, channels=2, blocks=1)
        num_steps, count = 2, 4
    else:
        family, num_steps, count = FewShotFamily(channels=args.channels), 8, args.episodes
    lopt = MetaLSTMLOpt(family.param_shapes())
    theta, keys = lopt.init(KEY), jax.random.split(KEY, count)
    judge = few_shot.Judge(family, lopt.opt_fn, num_steps)
    table = rich.table.Table("episodes per second", "ours", "Python loop", "ratio")
    rows = {
        "test": (
            rate(lambda: jnp.asarray(judge(theta, keys)), count),
            rate(in_python(family, lopt, theta, num_steps, keys), count),
        ),
        "meta-training": (
            by_outer_train(family, lopt, num_steps, count),
            rate(bare(family, lopt, num_steps, count), count),
        ),
    }
    for name, (ours, loop) in rows.items():
        table.add_row(name, f"{ours:.2f}", f"{loop:.2f}", f"{ours / loop:.2f}")
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main()
