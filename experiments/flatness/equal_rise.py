"""Carries the pilot's doses from Digits to MNIST by equal rise (PROTOCOL.md): prints a table.

python experiments/flatness/equal_rise.py

The first-order rise of SAM, rho ||g||, as a share of the rise within the absolute l_inf radius
0.01, at completion of networks that an optimizer without a regularizer trained. All on the
meta-train half, seed 0; g is the gradient on the same held-out images as the rise. Two minutes on
one core.
"""

import pathlib

import numpy as np

from regularized_lopt import gin_files
from regularized_lopt.measure import flatness
from regularized_lopt.measure.trainer import Trainer
from regularized_lopt.report.terminal import print_table
from regularized_lopt.study.experiment import Experiment
from regularized_lopt.study.meta_training import MetaTrainedOptimizers
from regularized_lopt.study.task_runs import resident_task

DOSES = (0.25, 0.5, 1.0, 2.0)
NUM_RUNS = 10
SCALE = "absolute"
# The unregularized optimizers of two studies, where they are kept, and what they train.
SOURCES = {
    "Digits": ("flatness_pilot", "flatness_pilot", "none", "ImageMLP_Digits_20_Sigmoid"),
    "MNIST": ("stable", "paper", "star_lstm", "ImageMLP_Mnist_20_Sigmoid"),
}


def share_per_rho(study: str, kept_in: str, name: str, task: str) -> tuple[float, float, float]:
    """Means over networks: the gradient's norm, the rise, and the geometric mean of their ratio."""
    here = pathlib.Path("experiments")
    with gin_files.set_aside():
        gin_files.parse_gin([str(here / study / "experiment.gin")], [])
        experiment = Experiment()
    kept = MetaTrainedOptimizers(
        experiment, here / kept_in / "optimizers", {}, False, lambda *_: None
    )
    optimizer = kept.trained(name, experiment.optimizers[name], 0)
    assert optimizer is not None, f"{name} of {study} is not in {kept.directory}"
    on = resident_task(task, "meta_train")
    saved = Trainer(on, NUM_RUNS, experiment.num_steps).train([optimizer])[name].saved_params
    assert saved is not None
    what = flatness.FlatnessConfig(num_probes=0).headline_alone()
    found = flatness.measure(on, saved.final, what)
    rise = found.loss_ascent[SCALE][:, 0].max(axis=-1) - found.loss
    ratio = np.exp(np.mean(np.log(found.grad_norm / rise)))
    return float(np.mean(found.grad_norm)), float(np.mean(rise)), float(ratio)


def main() -> None:
    """Prints the tables."""
    found = {name: share_per_rho(*source) for name, source in SOURCES.items()}
    print_table(
        "Networks of the unregularized optimizer, at completion",
        ["data", "gradient's norm", "rise, nats", "share at rho = 1"],
        [[name, *(f"{value:.4g}" for value in values)] for name, values in found.items()],
    )
    factor = found["Digits"][2] / found["MNIST"][2]
    print_table(
        "Doses of equal rise",
        ["rho on Digits", "share of the rise", "rho on MNIST"],
        [[f"{rho:g}", f"{rho * found['Digits'][2]:.3g}", f"{rho * factor:.3g}"] for rho in DOSES],
    )


if __name__ == "__main__":
    main()
