"""A study: a grid of optimizers, tasks and runs, each result computed once and kept."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from regularized_lopt import serialization
from regularized_lopt.measure import cubic_regression, flatness, update_curves
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.results import TaskResult
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study import locks
from regularized_lopt.study.cache_keys import CacheKeys, Identity, identity
from regularized_lopt.study.experiment import Experiment
from regularized_lopt.study.meta_training import MetaTrainedOptimizers
from regularized_lopt.study.task_study import TaskStudy, image_task


class Study:
    """Runs an experiment in a directory; what is there already is not run again.

    Processes that run it in the same directory share the work: each takes a meta-training, then a
    task, that no other is at.

    It holds::

        optimizers/<name>-<digest>/   meta-training, resumable by itself
        cells/                        runs, measurements and tuned learning rates, see `cache`
        cells/ends/                   params of the runs: large, needed to measure around them
        manifest.json                 the parallelism of runs that was chosen for each task
        timings.json                  seconds per result; apart, for they are never the same twice
        spent.json                    the same, summed by kind
        locks/                        what a process is at
        rates.json                    seconds per unit of work, where `plan` measured them
    """

    def __init__(
        self,
        experiment: Experiment,
        out_dir: str | pathlib.Path,
        flatness_config: flatness.FlatnessConfig | None = None,
        given: Mapping[str, EvaluatedOptimizer] | None = None,
        progress: bool = True,
        optimizers_dir: str | pathlib.Path | None = None,
    ):
        """Initializer.

        Args:
          experiment: what is compared on what.
          out_dir: created if needed; what it holds of this or another experiment is reused.
          flatness_config: default: `FlatnessConfig()` with gin's parameters.
          given: the optimizers that `experiment` says are given.
          progress: show progress bars.
          optimizers_dir: where learned optimizers are meta-trained, in place of
            out_dir/optimizers: several experiments can share them.
        """
        self.experiment = experiment
        self.out_dir = pathlib.Path(out_dir)
        self.flatness_config = flatness_config or flatness.FlatnessConfig()
        self.progress = progress
        self.keys = CacheKeys(experiment, self.flatness_config)
        self.cache = cache_lib.TimedCache(self.out_dir)
        self.optimizers = MetaTrainedOptimizers(
            experiment,
            pathlib.Path(optimizers_dir or self.out_dir / "optimizers"),
            given or {},
            progress,
            self.cache.record_seconds,
        )

    @property
    def borrows_optimizers(self) -> bool:
        """Whether they are another experiment's, whose report tells how they were made."""
        return self.optimizers.directory.resolve() != (self.out_dir / "optimizers").resolve()

    def check(self) -> None:
        """Refuses what is wrong before anything is trained: names, files, bindings.

        Afterwards all that the study reads of gin's configuration has been read.

        Raises:
          errors.UnknownNameError: of a task.
          OSError, ValueError: an optimizer cannot be read.
          gin_files.UnreadBindingError: no meta-training reads one of `Experiment.bindings`.
        """
        for name in self.experiment.plans:
            image_task(name, self.experiment.phase)
            # Reads how data are split.
            self.keys.training_curves(name, "", Identity("", lasting=False))
        early = {early_name(name): of for name, of in self.experiment.early_evidence.items()}
        sources = {**self.experiment.optimizers, **early}
        for name, source in sources.items():
            self.optimizers.trained(name, source, 0)
        self.optimizers.check_bindings(sources)

    def run(self) -> list[TaskResult]:
        """Meta-trains what is missing, meta-tests, measures."""
        self.check()
        self._make_directory()
        seeds = {name: self.optimizers.seeds(name) for name in self.experiment.optimizers}
        trained = self._share(
            {
                f"{name}-seed{seed}": functools.partial(self.optimizers.train, name, source, seed)
                for name, source in self.experiment.optimizers.items()
                for seed in seeds[name]
            }
        )
        optimizers = {
            name: [trained[f"{name}-seed{seed}"] for seed in of] for name, of in seeds.items()
        }
        tested = self._share(
            {
                name: functools.partial(self.on(name).result, optimizers)
                for name in self.experiment.plans
            }
        )
        return list(tested.values())

    def _make_directory(self) -> None:
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.out_dir):
                pass
        except OSError as error:
            raise OSError(
                f"{self.out_dir} cannot be written to ({error.strerror or error}). Choose another "
                "directory (launchers: --out_dir)."
            ) from error

    def on(self, task: str) -> TaskStudy:
        """The part of the study that is about one task."""
        return TaskStudy(task, self.experiment, self.keys, self.cache, self.out_dir, self.progress)

    def _share(self, work: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        return locks.share(work, self.out_dir / "locks")

    def early_evidence(self) -> cubic_regression.EarlyEvidence | None:
        """The paper's early evidence, if the experiment asks for it."""
        if not self.experiment.early_evidence:
            return None
        trained = self._share(
            {
                early_name(name): functools.partial(
                    self.optimizers.train, early_name(name), source, 0
                )
                for name, source in self.experiment.early_evidence.items()
            }
        )
        learned = {name: trained[early_name(name)] for name in self.experiment.early_evidence}
        key = self.keys.early_evidence({name: identity(one) for name, one in learned.items()})

        def compute() -> dict[str, Any]:
            found = serialization.fields(cubic_regression.early_evidence(learned))
            found["fits"] = {
                name: serialization.fields(fits) for name, fits in found["fits"].items()
            }
            return found

        tree = self.cache.get(key, "early evidence", compute)
        tree["fits"] = {
            name: cubic_regression.Fits(**tree["fits"][name])
            for name in [*learned, *sorted(tree["fits"].keys() - learned.keys())]
        }
        return cubic_regression.EarlyEvidence(**tree)

    def update_curves(self) -> dict[str, list[list[update_curves.UpdateCurve]]]:
        """Updates by gradient of the learned optimizers: by meta-training seed, then by scale."""
        found: dict[str, list[list[update_curves.UpdateCurve]]] = {}
        for name, source in self.experiment.optimizers.items():
            for seed in self.optimizers.seeds(name):
                optimizer = self.optimizers.train(name, source, seed)
                if optimizer.learning_rate is not None:
                    continue  # A baseline that was given.
                tree = self.cache.get(
                    self.keys.update_curves(name, identity(optimizer)),
                    f"update curves {name}",
                    functools.partial(_update_curves, optimizer),
                )
                curves = [update_curves.UpdateCurve(**tree[str(i)]) for i in range(len(tree))]
                found.setdefault(name, []).append(curves)
        return found

    def seconds_per_step(self, result: TaskResult) -> dict[str, float]:
        """Wall-clock of one inner step of one run by optimizer, where it was timed."""
        steps = {key: f"step {result.task} {key}" for key in result.optimizers}
        timings = {key: self.cache.timings.get(step) for key, step in steps.items()}
        return {key: seconds for key, seconds in timings.items() if seconds is not None}


def _update_curves(optimizer: EvaluatedOptimizer) -> dict[str, Any]:
    curves = update_curves.update_curves(optimizer.make(optimizer.hyper))
    return {str(index): curve._asdict() for index, curve in enumerate(curves)}


def early_name(name: str) -> str:
    """What an optimizer of the early evidence is called among the optimizers."""
    return f"early-{name}"
