"""What noise in the gradients takes from a learned optimizer.

Upper table: params are held where an inner training has brought them, and the optimizer goes on to
read gradients there. How fast the loss would fall, to first order, by its mean update over batches
of 128, and by the update that it settles on when it reads the gradient on 8,192 images; and the
cosine of the former to steepest descent. Lower table: what each reaches with batches of 128 and of
1,024. All on images of the meta-train half; accuracy and loss on those held out of it.

    python benchmarks/batches.py [--lopt=NAME ...] [--runs=5] [--dataset=Mnist] [--smallest]
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from regularized_lopt import launch, zoo
from regularized_lopt.devices import Parallelism
from regularized_lopt.learned_optimizers.leaves import flatten
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.tasks import image, resident

BATCHES = (128, 1024)
MANY = 8192
BASELINES = (("SGD", 2.2), ("Adam", 0.01))  # At the rates that are best with batches of 128.


class Descent(NamedTuple):
    """How the loss falls by updates at one place.

    Attributes:
      noisy: -<gradient, mean update> over batches, in nats per step.
      exact: the same, for the update that exact gradients lead to.
      cosine: of the mean update over batches to steepest descent.
    """

    noisy: float
    exact: float
    cosine: float


def descents(
    task: image.ImageTask, all_of_it: image.ImageTask, opt: Any, steps: list[int], batches: int
) -> list[Descent]:
    """At some steps of an inner training."""
    train = task.datasets.arrays("train")

    def gradient(which: image.ImageTask, params: Any, key: jax.Array) -> Any:
        return jax.grad(which.loss)(params, key, which.datasets.sample(train, key))

    @jax.jit
    def advance(state: Any, key: jax.Array) -> Any:
        return opt.update(state, gradient(task, opt.get_params(state), key))

    @jax.jit
    def at(state: Any, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        params = opt.get_params(state)
        exact = gradient(all_of_it, params, jax.random.fold_in(key, batches))

        def read(state: Any, grad: Any) -> tuple[Any, jax.Array]:
            moved = opt.update(state, grad)
            update = flatten(opt.get_params(moved)) - flatten(params)
            return moved.replace(params=params), update

        def noisy(carry: Any, i: jax.Array) -> tuple[Any, None]:
            state, total = carry
            state, update = read(state, gradient(task, params, jax.random.fold_in(key, i)))
            # What it remembers of the way there is left out.
            return (state, total + jnp.where(i < batches // 10, 0.0, update)), None

        start = state, jnp.zeros_like(flatten(params))
        (_, total), _ = jax.lax.scan(noisy, start, jnp.arange(batches))
        settled = jax.lax.fori_loop(0, batches // 4, lambda _, carry: read(carry[0], exact), start)
        return flatten(exact), total / (batches - batches // 10), settled[1]

    key = jax.random.PRNGKey(0)
    state = opt.init(task.init(key), num_steps=max(steps))
    found = []
    for step in range(max(steps) + 1):
        if step in steps:
            exact, mean, settled = at(state, jax.random.fold_in(key, 10**6 + step))
            lengths = jnp.linalg.norm(exact) * jnp.linalg.norm(mean)
            values = (-exact @ mean, -exact @ settled, -exact @ mean / lengths)
            found.append(Descent(*map(float, values)))
        state = advance(state, jax.random.fold_in(key, step))
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lopt", action="append", help="name or path; default: mnist_mlp_none")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dataset", default="Mnist")
    parser.add_argument("--smallest", action="store_true", help="to see that everything runs")
    args = parser.parse_args()
    runs, num_steps, batches = (1, 20, 20) if args.smallest else (args.runs, 2000, 1000)
    steps = [num_steps // 20, num_steps // 4, num_steps]
    launch.reuse_freed_memory()

    factory = resident.FACTORIES[f"ImageMLP_{args.dataset}_20_Sigmoid"]
    make = functools.partial(factory, phase="meta_train")
    task, all_of_it = make(), make(batch_size=MANY)
    loaded = {name: zoo.load(name) for name in args.lopt or ["mnist_mlp_none"]}
    compared = [
        *(
            optimizers_lib.learned(name, lopt.learned_opt, lopt.theta)
            for name, lopt in loaded.items()
        ),
        *(optimizers_lib.baseline(name, rate) for name, rate in BASELINES),
    ]

    console = rich.console.Console(width=120)
    console.print("Descent, nats per step: with batches of 128 / with exact gradients (cosine)")
    table = rich.table.Table("optimizer", *[f"step {step:,}" for step in steps])
    for one in compared:
        opt = one.make(one.hyper)
        found = descents(task, all_of_it, opt, steps, batches)
        table.add_row(
            one.label, *[f"{d.noisy:.1e} / {d.exact:.1e} ({d.cosine:.2f})" for d in found]
        )
    console.print(table)

    columns = ["train loss", "held-out loss", "accuracy (%)"]
    table = rich.table.Table("optimizer", "batch", *columns)
    for one in compared:
        for batch in BATCHES:
            trainer = trainer_lib.Trainer(
                make(batch_size=batch),
                runs,
                num_steps,
                parallelism=Parallelism(runs, 1),
            )
            got = trainer.train([one])[one.name]
            train_loss, test_loss, accuracy = (
                float(np.mean(end))
                for end in (got.final_train_loss, got.test_loss[:, -1], got.final_accuracy)
            )
            numbers = (f"{train_loss:.3f}", f"{test_loss:.3f}", f"{100 * accuracy:.2f}")
            table.add_row(one.label, str(batch), *numbers)
    console.print(table)


if __name__ == "__main__":
    main()
