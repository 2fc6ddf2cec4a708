"""Small studies of optimizers that are given."""

import pathlib

import numpy as np

from regularized_lopt.measure import FlatnessConfig
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.study import Experiment, Study, task_plan
from regularized_lopt.study.experiment import GIVEN

RELU, SIGMOID = "ImageMLP_Digits_20_Relu", "ImageMLP_Digits_20_Sigmoid"
QUICK = FlatnessConfig(radii=(0.01, 0.05), num_examples=64, headline_starts=1, num_probes=0)


def given(**others):
    """SGD under the name of the reference, and others beside it."""
    return {"none": optimizers_lib.baseline("SGD", 0.5), **others}


def experiment(names, tasks=(RELU,), plan=None, **kwargs):
    """Tasks are names, each with two runs or what `plan` says, or plans."""
    settings = {"baselines": (), "num_steps": 30, "parallelism": (1, 1), **kwargs}
    plans = [
        task_plan(task, **{"runs": 2, **(plan or {})}) if isinstance(task, str) else task
        for task in tasks
    ]
    return Experiment(optimizers=dict.fromkeys(names, GIVEN), tasks=tuple(plans), **settings)


SAM = given(sam=optimizers_lib.baseline("SGD+SAM", 0.5))


def make_study(out_dir, flatness_config=QUICK, who=SAM, **kwargs):
    return Study(experiment(who, **kwargs), out_dir, flatness_config, given=who, progress=False)


def table(out_dir):
    return {
        name: (pathlib.Path(out_dir) / name).read_bytes()
        for name in ("table.csv", "properties.csv", "verdicts.csv", "runs.csv")
    }


def files_of(out_dir, kind):
    return sorted((out_dir / "cells" / kind).iterdir())


def numbers_of(study):
    """Numbers of all optimizers, enough to tell one from another."""
    (task,) = study.run()
    numbers = (task["train_loss"], task["around_loss"].sel(point="poc"))
    return np.concatenate([np.ravel(values) for values in numbers])
