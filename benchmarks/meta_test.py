"""Inner steps per second at meta-test: ours, one after the other, and upstream's eval_training.

    python benchmarks/meta_test.py [--dataset=Mnist] [--runs=10] [--steps=100] [--rounds=3]

The same work in one process, in turns: as many networks, as many steps, the same learned optimizer,
no evaluations. Everything is compiled and its data are loaded before it is timed. Upstream's loops
run it twice: with our cell, and with the same function of the same theta laid out as hk.LSTM lays
it out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from regularized_lopt import LSTMLOpt, launch, tasks, upstream
from regularized_lopt.devices import Parallelism
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib


class HaikuLayout(LSTMLOpt):
    """`LSTMLOpt` with coordinates first and gates last, as hk.LSTM on [coordinates, features]."""

    def initial_hidden(self, num_coordinates: int, dtype: Any) -> Any:
        hidden = super().initial_hidden(num_coordinates, dtype)
        return jax.tree.map(jnp.transpose, hidden)

    def check_hidden(self, hidden: Any, num_coordinates: int) -> None:
        """Coordinates are not where others have them."""

    def network(
        self, theta: Any, hidden: Any, gradient: Any, params: Any, sizes: Any = None
    ) -> tuple[Any, Any]:
        x, new = self.features(hidden, gradient, params).T, []
        for layer, (h, c) in enumerate(hidden):
            weights = theta[f"lstm_{layer}"]
            gates = jnp.concatenate([x, h], axis=-1) @ weights["w"].T + weights["b"]
            i, g, f, o = jnp.split(gates, 4, axis=-1)
            next_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            x = jax.nn.sigmoid(o) * jnp.tanh(next_c)
            new.append((x, next_c))
        output = x @ theta["linear"]["w"].T + theta["linear"]["b"]
        return self.config["output_scale"] * output[:, 0], tuple(new)


def check_same(theta: Any) -> None:
    """Both layouts are the same optimizer."""
    gradient = jax.random.normal(jax.random.PRNGKey(0), (50,))
    moved = []
    for lopt in (LSTMLOpt(), HaikuLayout()):
        opt = lopt.opt_fn(theta)
        state = opt.init(jnp.zeros(50))
        for scale in (1.0, 1e-3, 1e-6):
            state = opt.update(state, scale * gradient)
        moved.append(opt.get_params(state))
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4, atol=1e-6)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="Digits")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="A multiple of 10, for upstream.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    launch.reuse_freed_memory()

    task = tasks.get(f"ImageMLP_{args.dataset}_20_Sigmoid")
    lopt, haiku = LSTMLOpt(), HaikuLayout()
    theta = lopt.init(jax.random.PRNGKey(0))
    check_same(theta)
    optimizer = optimizers_lib.learned("lo", lopt, theta)
    family = upstream.single_task_to_family(task)
    eval_training = upstream.eval_training

    trainer = trainer_lib.Trainer(task, args.runs, args.steps, eval_steps=[], progress=False)
    speeds = trainer_lib.measure_parallelism(trainer, [optimizer])
    chosen = max(speeds, key=lambda parallelism: speeds[parallelism])

    def ours(parallelism: Parallelism) -> Callable[[], Any]:
        one = trainer_lib.Trainer(task, args.runs, args.steps, 0, [], parallelism, progress=False)
        return lambda: one.train([optimizer])

    def single() -> None:
        for run in range(args.runs):
            eval_training.single_task_training_curves(
                task,
                lopt.opt_fn(theta),
                args.steps - 1,
                jax.random.PRNGKey(run),
                eval_every=10**9,
                eval_batches=1,
            )

    def multi(lopt: LSTMLOpt) -> None:
        eval_training.multi_task_training_curves(
            family,
            lopt,
            theta,
            args.runs,
            seed=0,
            n_devices=1,
            n_eval_batches=1,  # It fails without any; this one evaluation is at the end.
            n_eval_batches_vec=1,
            last_eval_batches=1,
            eval_just_at_end=True,
            steps=args.steps,
        )

    ways = {
        "ours, one run after the other": ours(Parallelism(1, 1)),
        f"ours, {chosen.batch} side by side, {chosen.threads} at once (chosen)": ours(chosen),
        "upstream's single_task_training_curves": single,
        "upstream's multi_task_training_curves": lambda: multi(lopt),
        "upstream's multi_task..., layout of hk.LSTM": lambda: multi(haiku),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat:  # The first one compiles.
                times[name].append(time.perf_counter() - start)
    table = rich.table.Table(title=f"{task.name}: {args.runs} runs of {args.steps} steps")
    for column in ("", "inner steps per second", "x sequential"):
        table.add_column(column, justify="left" if not column else "right")
    medians = {name: statistics.median(values) for name, values in times.items()}
    sequential = next(iter(medians.values()))
    for name, seconds in medians.items():
        rate = args.runs * args.steps / seconds
        table.add_row(name, f"{rate:,.0f}", f"{sequential / seconds:.2f}")
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    main()
