"""What noise in the gradients does to a learned optimizer: does its mean update go down the loss?

Its inputs are compressed gradients. The mean over batches of what is compressed is not the
compressed mean gradient, so that smaller steps need not help.

Upper table: from one state of an inner training, updates for many batches of 128; the cosine
between their mean and the direction of steepest descent, beside that of the one update for the
gradient on 8,192 images. Lower table: what each reaches with batches of 128 and of 1,024. All on
images of the meta-train half; accuracy and loss on those held out of it.

    python benchmarks/batches.py [--lopt=NAME ...] [--runs=5] [--dataset=Mnist] [--smallest]
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from regularized_lopt import launch, zoo
from regularized_lopt.evaluation import contestants, training
from regularized_lopt.learned_optimizers.lstm import flatten
from regularized_lopt.tasks import image

BATCHES = (128, 1024)
MANY = 8192
RATES = (1.0, 2.2, 4.6)


def cosine(a: Any, b: Any) -> float:
    """Between two vectors."""
    return float(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


def directions(
    task: image.ImageTask, all_of_it: image.ImageTask, opt: Any, steps: list[int], batches: int
) -> list[tuple[float, float]]:
    """Cosines to steepest descent at some inner steps: of the mean update, of that for the mean."""
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

        def update(grad: Any) -> jax.Array:
            return flatten(opt.get_params(opt.update(state, grad))) - flatten(params)

        mean = jnp.mean(
            jax.lax.map(
                lambda i: update(gradient(task, params, jax.random.fold_in(key, i))),
                jnp.arange(batches),
            ),
            axis=0,
        )
        return flatten(exact), mean, update(exact)

    key = jax.random.PRNGKey(0)
    state = opt.init(task.init(key), num_steps=max(steps))
    found = []
    for step in range(max(steps) + 1):
        if step in steps:
            exact, mean, one = at(state, jax.random.fold_in(key, 10**6 + step))
            found.append((cosine(mean, -exact), cosine(one, -exact)))
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
    runs, num_steps, batches = (1, 20, 3) if args.smallest else (args.runs, 2000, 200)
    steps = [num_steps // 20, num_steps // 4, num_steps]
    launch.reuse_freed_memory()

    factory = image.FACTORIES[f"ImageMLP_{args.dataset}_20_Sigmoid"]
    make = functools.partial(factory, phase="meta_train")
    loaded = {name: zoo.load(name) for name in args.lopt or ["mnist_mlp_none"]}
    compared = [
        *(contestants.learned(name, lopt.learned_opt, lopt.theta) for name, lopt in loaded.items()),
        *(contestants.baseline("SGD", rate) for rate in RATES),
    ]

    console = rich.console.Console()
    console.print("Cosine to steepest descent: of the mean update / of the update for the mean")
    table = rich.table.Table("optimizer", *[f"step {step:,}" for step in steps])
    for name, lopt in loaded.items():
        found = directions(make(), make(batch_size=MANY), lopt.opt(), steps, batches)
        table.add_row(name, *[f"{mean:.3f} / {exact:.3f}" for mean, exact in found])
    console.print(table)

    columns = ["train loss", "held-out loss", "accuracy (%)"]
    table = rich.table.Table("optimizer", "batch", *columns)
    for one in compared:
        for batch in BATCHES:
            trainer = training.Trainer(
                make(batch_size=batch), runs, num_steps, layout=training.Layout(runs, 1)
            )
            got = trainer.train([one])[one.name]
            train_loss, test_loss, accuracy = (
                float(np.mean(curve[:, -1]))
                for curve in (got.train_loss, got.test_loss, got.test_accuracy)
            )
            numbers = (f"{train_loss:.3f}", f"{test_loss:.3f}", f"{100 * accuracy:.2f}")
            table.add_row(one.label, str(batch), *numbers)
    console.print(table)


if __name__ == "__main__":
    main()
