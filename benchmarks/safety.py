"""What the options of `as_optax` do where a learned optimizer (LO) was not trained for the problem.

Each line trains the same networks from the same inits on the same batches, of the second half of
the training set; the test set is looked at once, at the end. Nothing is tuned, every line is shown.
The LOs that come with the package were meta-trained on an MLP with sigmoids on MNIST, to 1,000
steps. Here are other data with another activation; a CNN; three times as many steps; and color
images, which were added because `mnist_mlp_none` fails there.

With `--scales` the loss is multiplied by constants instead, which Adam does not notice.

    python benchmarks/safety.py [--lopt=mnist_mlp_none] [--runs=5] [--problems relu cnn long cifar]
    python benchmarks/safety.py --scales [--lopt=mnist_mlp_none] [--problems relu]
"""

import argparse
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
import rich.console
import rich.table

import regularized_lopt
from regularized_lopt import launch, tasks
from regularized_lopt.measure import convergence, programs
from regularized_lopt.tasks import sources

PROBLEMS = {
    "relu": ("ImageMLP_Digits_20_Relu", 500),
    "cnn": ("Conv_Digits_16x32", 150),
    "long": ("ImageMLP_Digits_20_Sigmoid", 3000),
    "cifar": ("ImageMLP_Cifar10_20_Relu", 100),
}
CLIPS = (0.1, 0.01)
RATES = (1e-3, 1e-2)
SCALES = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)


def optimizers(loaded: regularized_lopt.LoadedLOpt) -> dict[str, optax.GradientTransformation]:
    """The LO as it is and with each option, and Adam alone."""
    chosen: dict[str, optax.GradientTransformation] = {"LO": loaded.as_optax()}
    for clip in CLIPS:
        chosen[f"LO, clip {clip:g}"] = loaded.as_optax(clip=clip)
    for mix, title in {"add": "LO + Adam({:g})", "graft": "LO grafted to Adam({:g})"}.items():
        for rate in RATES:
            chosen[title.format(rate)] = loaded.as_optax(nominal=optax.adam(rate), mix=mix)
    for rate in RATES:
        chosen[f"Adam({rate:g})"] = optax.adam(rate)
    return chosen


def scaled(loaded: regularized_lopt.LoadedLOpt) -> dict[str, optax.GradientTransformation]:
    """The LO and Adam, by what the loss is multiplied with."""
    both = {"LO": loaded.as_optax(), "Adam(1e-2)": optax.adam(1e-2)}
    return {
        f"{name}, loss x {scale:g}": optax.chain(optax.scale(scale), tx)
        for name, tx in both.items()
        for scale in SCALES
    }


def train(
    task: tasks.ImageTask,
    tx: optax.GradientTransformation,
    params: Any,
    batches: np.ndarray,
    examples: Any,
) -> tuple[jax.Array, Any]:
    """Trains several networks: mean of the last losses [runs], and the params.

    Args:
      task: what on.
      tx: what with.
      params: at the start; each leaf [runs, ...].
      batches: [runs, steps, batch size], indices of training examples.
      examples: those of the training set, raw.
    """

    @jax.jit
    def run(params: Any, batches: jax.Array, examples: Any) -> tuple[jax.Array, Any]:
        def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            batch = task.datasets.normalize(jax.tree.map(lambda array: array[index], examples))
            loss, grads = jax.value_and_grad(task.loss)(params, jax.random.PRNGKey(0), batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        def one(args: tuple[Any, jax.Array]) -> tuple[jax.Array, Any]:
            params, batches = args
            (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), batches)
            return losses[-convergence.WINDOW :].mean(), params

        return jax.lax.map(one, (params, batches))

    return run(params, batches, examples)


def compare(
    name: str, num_steps: int, num_runs: int, chosen: Mapping[str, optax.GradientTransformation]
) -> rich.table.Table:
    """The table of one task: what each optimizer reached."""
    task = tasks.get(name)
    train_split, test_split = (task.datasets.arrays(split) for split in ("train", "test"))
    keys = jax.random.split(jax.random.PRNGKey(0), num_runs)
    start = jax.jit(functools.partial(jax.lax.map, task.init))(keys)
    # Drawn here: a program that draws them takes seconds more to compile.
    batches = np.random.default_rng(0).integers(
        len(train_split["label"]), size=(num_runs, num_steps, task.datasets.batch_size)
    )

    @jax.jit
    def accuracies(params: Any, test: Any) -> jax.Array:
        return jax.lax.map(lambda one: programs.whole_split(task, one, test)["accuracy"], params)

    table = rich.table.Table(title=f"{name}: {num_runs} runs of {num_steps:,} steps, mean ± std")
    for column in ("", "final training loss", "test accuracy, %"):
        table.add_column(column, justify="right" if column else "left")
    for label, tx in chosen.items():
        losses, params = train(task, tx, start, batches, train_split)
        percent = 100 * accuracies(params, test_split)
        table.add_row(
            label,
            f"{np.mean(losses):.3g} ± {np.std(losses, ddof=1):.2g}",
            f"{np.mean(percent):.2f} ± {np.std(percent, ddof=1):.2f}",
        )
    return table


def main() -> None:
    """Prints a table per problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lopt", default="mnist_mlp_none", help="name in the zoo, or a path")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--scales", action="store_true", help="multiply the loss by constants")
    parser.add_argument("--smallest", action="store_true", help="to see that everything runs")
    args = parser.parse_args()
    launch.reuse_freed_memory()
    loaded = regularized_lopt.load(args.lopt)
    chosen = (scaled if args.scales else optimizers)(loaded)
    console = rich.console.Console(width=100)
    for problem in ["relu"] if args.smallest else args.problems:
        name, num_steps = PROBLEMS[problem]
        num_runs, num_steps = (2, 2) if args.smallest else (args.runs, num_steps)
        try:
            console.print(compare(name, num_steps, num_runs, chosen))
        except sources.DataUnavailableError as error:
            console.print(f"{name} is left out: {error}")


if __name__ == "__main__":
    main()
