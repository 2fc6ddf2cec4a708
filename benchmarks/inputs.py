"""Why learned optimizers fail on CIFAR-10: is it the size of its inputs?

Where each weight of a unit moves by as much, the unit moves by that times the sum of its inputs,
which in an image of CIFAR-10 is 14 times that in one of MNIST. Here networks read the images times
a factor. All on images of the meta-train half; accuracy on those held out of it.

    python benchmarks/inputs.py [--lopt=NAME ...] [--factor=F ...] [--dataset=Cifar10] [--smallest]
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from regularized_lopt import launch, zoo
from regularized_lopt.devices import Parallelism
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.tasks import image, networks

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "ReLU": jax.nn.relu}


def scaled(datasets: image.ImageDatasets, activation: str, factor: float) -> image.ImageTask:
    """The paper's MLP of 20 units on images times a factor."""
    mlp = networks.mlp([20], ACTIVATIONS[activation])

    def network(images: Any, is_training: bool) -> Any:
        return mlp(factor * images, is_training)

    return image.ImageTask(f"{datasets.dataset}, {activation} x {factor:g}", network, datasets)


def main() -> None:
    """Prints the accuracy of each optimizer for each network and factor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lopt", action="append", help="name or path; default: mnist_mlp_none")
    parser.add_argument("--factor", action="append", type=float, help="default: 1, 0.3, 0.1")
    parser.add_argument("--dataset", default="Cifar10")
    parser.add_argument("--smallest", action="store_true", help="to see that everything runs")
    args = parser.parse_args()
    num_steps = 20 if args.smallest else 2000
    launch.reuse_freed_memory()

    datasets = image.ImageDatasets(args.dataset, "meta_train", 128)
    images = datasets.sample(datasets.arrays("train"), jax.random.PRNGKey(0))["image"]
    total = float(jnp.mean(jnp.sum(images, axis=(1, 2, 3))))
    loaded = [zoo.load(name) for name in args.lopt or ["mnist_mlp_none"]]
    compared = [
        optimizers_lib.learned(str(place), lopt.learned_opt, lopt.theta)
        for place, lopt in enumerate(loaded)
    ]
    table = rich.table.Table("network", "factor", "sum of inputs", "accuracy (%)", "mean")
    for activation in ACTIVATIONS:
        for factor in args.factor or (1.0, 0.3, 0.1):
            task = scaled(datasets, activation, factor)
            trainer = trainer_lib.Trainer(
                task, 1, num_steps, parallelism=Parallelism(len(compared), 1)
            )
            found = trainer.train(compared, label=task.name)
            each = [100 * float(found[one.name].final_accuracy[0]) for one in compared]
            table.add_row(
                activation,
                f"{factor:g}",
                f"{factor * total:.0f}",
                " ".join(f"{accuracy:.1f}" for accuracy in each),
                f"{np.mean(each):.1f}",
            )
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main()
