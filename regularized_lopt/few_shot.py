"""Launcher: python -m regularized_lopt.few_shot --config_file=... --out_dir=DIR"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import xarray as xr
from absl import flags

from regularized_lopt import errors, launch, progress, regularizers
from regularized_lopt.configurable import configurable
from regularized_lopt.estimators import RegularizedTruncatedGrad
from regularized_lopt.learned_optimizers import MetaLSTMLOpt
from regularized_lopt.measure import few_shot as measure
from regularized_lopt.outer_training import OuterTrainResult, outer_train
from regularized_lopt.outer_training.curriculum import Curriculum
from regularized_lopt.report import few_shot as report
from regularized_lopt.report import pages
from regularized_lopt.tasks.few_shot import FewShotFamily

RESULTS = "results.nc"
_NEVER = 2**31 - 1
_EPISODES_SEED = 1_000_003
"""Of test episodes: the same for all seeds."""


@configurable(denylist=["out_dir", "family", "asked_for"])
def few_shot(
    out_dir: str | os.PathLike[str],
    smoothings: Mapping[str, regularizers.Smoothing | None] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    num_steps: int = 8,
    num_episodes: int = 600,
    fine_tuning: bool = True,
    family: FewShotFamily | None = None,
    asked_for: Sequence[str] = (),
) -> xr.Dataset:
    """Meta-trains Meta-LSTM, plain and smoothed, and judges it on episodes of new classes.

    Continues where the directories of the runs stand, which are those of `outer_train`, one by name
    and seed.

    Args:
      out_dir: where runs, results.nc and the page go.
      smoothings: the smoothing term by the name of the optimizer; None: plain. Default: plain
        alone.
      seeds: of meta-training, each 0 to 2^32 - 1.
      num_steps: inner steps, > 0.
      num_episodes: of the test, >= 2.
      fine_tuning: whether to compare with `measure.few_shot.FineTuning`, too.
      family: of the episodes; default: `FewShotFamily` with gin's parameters.
      asked_for: see `outer_train`.

    Returns:
      What the page is made of, see `report.few_shot.write`.

    Raises:
      ValueError: a parameter is out of range.
    """
    errors.check_count("few_shot.num_steps", num_steps)
    errors.check_count("few_shot.num_episodes", num_episodes, least=2)
    smoothings = {"Meta-LSTM": None} if smoothings is None else smoothings
    if not smoothings:
        raise ValueError("few_shot.smoothings is empty: give at least {'plain': None}.")
    for name in smoothings:
        errors.check_file_name("few_shot.smoothings has", name)
    family, tuning = family or FewShotFamily(), measure.FineTuning()
    learned_opt = MetaLSTMLOpt(family.param_shapes())
    out_dir = pathlib.Path(out_dir)
    trained = {}
    for name, smoothing in smoothings.items():
        runs = outer_train(
            out_dir / name,
            task=family,
            learned_opt=learned_opt,
            curriculum=Curriculum(
                train_lengths=(num_steps,), min_validations=_NEVER, validation_window=1
            ),
            estimator=functools.partial(
                RegularizedTruncatedGrad, unroll_length=num_steps, smoothing=smoothing
            ),
            seeds=seeds,
            asked_for=asked_for,
        )
        assert isinstance(runs, dict)  # As seeds are given.
        trained[name] = runs
    keys = jax.random.split(jax.random.PRNGKey(_EPISODES_SEED), num_episodes)
    judge = measure.Judge(family, learned_opt.opt_fn, num_steps)
    found = {"nearest centroid": [measure.centroid_accuracies(family, keys)]}
    total = len(seeds) * (len(smoothings) + fine_tuning)
    with progress.bar(total, "test episodes", True) as bar:
        if fine_tuning:
            found["Adam, fine-tuned"] = []
            for seed in seeds:
                found["Adam, fine-tuned"].append(tuning.accuracies(family, keys, seed)[0])
                bar.update()
        for name, runs in trained.items():
            found[name] = []
            for run in runs.values():
                found[name].append(judge(run.theta, keys))
                bar.set_postfix(accuracy=f"{np.mean(found[name]):.1%}", refresh=False)
                bar.update()
    return _dataset(family.name, found, trained, seeds)


def _dataset(
    task: str,
    found: Mapping[str, Sequence[np.ndarray]],
    trained: Mapping[str, Mapping[str, OuterTrainResult]],
    seeds: Sequence[int],
) -> xr.Dataset:
    """See `few_shot`."""
    empty = np.full_like(found["nearest centroid"][0], np.nan)
    by_seed = [[*of, *[empty] * (len(seeds) - len(of))] for of in found.values()]
    curves = {
        (name, place): {
            row["outer_step"]: row["validation_accuracy"]
            for row in run.metrics
            if row["validation_accuracy"] is not None
        }
        for name, runs in trained.items()
        for place, run in enumerate(runs.values())
    }
    steps = sorted({step for curve in curves.values() for step in curve})
    course = np.array(
        [
            [[curves[name, place].get(step, np.nan) for step in steps] for place in range(len(of))]
            for name, of in trained.items()
        ]
    )
    return xr.Dataset(
        {
            "accuracy": (("learner", "seed", "episode"), np.array(by_seed, np.float32)),
            "validation_accuracy": (("optimizer", "seed", "validation"), course),
        },
        coords={
            "learner": list(found),
            "optimizer": list(trained),
            "seed": list(seeds),
            "outer_step": ("validation", np.array(steps, np.int64)),
        },
        attrs={"task": task, "reference": next(iter(trained))},
    )


def main() -> None:
    """Trains, judges, and writes results and page; or the page alone, of results."""
    given = flags.FLAGS
    out_dir = pathlib.Path(given.out_dir)
    file = out_dir / RESULTS
    if given.rewrite:
        if not file.is_file():
            raise ValueError(f"--rewrite: there is no {file}.")
        found = xr.load_dataset(file, engine="h5netcdf")
    else:
        family = FewShotFamily()
        how = "" if given.config_file else ", with the package's defaults (no --config_file)"
        print(f"Meta-training on {family.name}{how}, into {out_dir}", flush=True)
        found = few_shot(out_dir, family=family, asked_for=given.gin_bindings)
        packed = {name: {"zlib": True, "complevel": 9} for name in found.data_vars}
        found.to_netcdf(file, engine="h5netcdf", encoding=packed)
    pages.write(report.write(found, out_dir), out_dir)
    print(f"Few-shot study done: {out_dir / pages.REPORT}")


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_string(
        "out_dir", "runs/few_shot", "Where runs, results and page go; the same one resumes them."
    )
    flags.DEFINE_bool("rewrite", False, "Write the page anew from the results in --out_dir.")


if __name__ == "__main__":
    launch.run(main, define_flags)
