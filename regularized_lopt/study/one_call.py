"""Meta-test in one call: train unseen networks with trained optimizers, measure what they find."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence

import xarray as xr

from regularized_lopt import errors, upstream, zoo
from regularized_lopt.configurable import configurable
from regularized_lopt.measure import dataset, flatness
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.study import experiment as experiment_lib
from regularized_lopt.study import study as study_lib
from regularized_lopt.study.task_runs import resident_task


@configurable(denylist=["opts", "task"])
def meta_test(
    opts: Mapping[str, zoo.LoadedLOpt | upstream.Optimizer | EvaluatedOptimizer],
    task: str,
    num_runs: int = 10,
    num_steps: int = 2000,
    seed: int = 0,
    baselines: Sequence[str] = ("SGD", "Adam"),
    flatness_config: flatness.FlatnessConfig | None = None,
    measured: bool = True,
    progress: bool = True,
) -> xr.Dataset:
    """Trains and measures every optimizer on one task.

    Args:
      opts: the optimizers to test, by the name they are to have in tables and figures; the first is
        the reference.
      task: name of a task of ours.
      num_runs: paired runs per optimizer, > 0.
      num_steps: inner steps per run, > 0.
      seed: of inits and batches, 0 to 2^32 - 1.
      baselines: of `optimizers.BASELINES`, tuned first.
      flatness_config: what to measure around the params; default: `flatness.FlatnessConfig()`.
      measured: whether to measure it at all; if not, accuracies are what there is.
      progress: show progress bars.

    Returns:
      All that was found, see `measure.dataset`; `measure.selections` reads it.

    Raises:
      ValueError: no optimizers, an unknown name or a parameter out of range.
      TypeError: the task's data do not live on the device.
    """
    errors.check_count("meta_test.num_runs", num_runs)
    errors.check_count("meta_test.num_steps", num_steps)
    errors.check_seed("meta_test.seed", seed)
    given = _evaluated(opts)
    experiment = experiment_lib.Experiment(
        optimizers=dict.fromkeys(given, experiment_lib.GIVEN),
        tasks=(
            experiment_lib.task_plan(
                task,
                runs=num_runs,
                measured_runs=None if measured else 0,
                optimizers=None,
            ),
        ),
        # What gin says of a study's optimizers, by name, is not about these.
        primary=None,
        properties={},
        early_evidence={},
        # Nor is what the images and the steps of a study are.
        phase="meta_test",
        budget="steps",
        reference=next(iter(given)),
        baselines=tuple(baselines),
        num_steps=num_steps,
        seed=seed,
        parallelism=(1, 1),
    )
    with tempfile.TemporaryDirectory() as scratch:
        (result,) = study_lib.Study(
            experiment, scratch, flatness_config, given=given, progress=progress
        ).run()
    return result


def train(
    opts: Mapping[str, zoo.LoadedLOpt | upstream.Optimizer | EvaluatedOptimizer],
    task: str,
    num_runs: int = 5,
    num_steps: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """The training runs of `meta_test` alone: curves, and nothing measured around the params.

    Arguments and errors are those of `meta_test`; nothing is tuned.
    """
    on = resident_task(task)
    trainer = trainer_lib.Trainer(on, num_runs, num_steps, seed, progress=progress)
    given = _evaluated(opts)
    found = {
        name: dataset.Found(one, [trainer.train([one])[one.name]]) for name, one in given.items()
    }
    nothing = flatness.FlatnessConfig()
    return dataset.of_task(task, on.facts, num_steps, nothing, next(iter(given)), found)


def _evaluated(
    opts: Mapping[str, zoo.LoadedLOpt | upstream.Optimizer | EvaluatedOptimizer],
) -> dict[str, EvaluatedOptimizer]:
    """Raises ValueError if there are none."""
    if not opts:
        raise ValueError(
            "opts is empty: give at least one optimizer by its name, e.g. "
            '{"mine": regularized_lopt.load("mnist_star_none")}.'
        )
    return {name: _evaluated_one(name, opt) for name, opt in opts.items()}


def _evaluated_one(
    name: str, opt: zoo.LoadedLOpt | upstream.Optimizer | EvaluatedOptimizer
) -> EvaluatedOptimizer:
    if isinstance(opt, EvaluatedOptimizer):
        return opt
    if isinstance(opt, zoo.LoadedLOpt):
        return optimizers_lib.learned(name, opt.learned_opt, opt.theta, opt.metadata)
    return optimizers_lib.fixed(name, opt)
